"""Published numbers: what the literature reports, each with its source."""

from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import BeforeValidator, Field, model_validator

from sabr.errors import SabrError
from sabr.layers import read_yaml
from sabr.methods import Strict
from sabr.problems import checked
from sabr.specs import DatasetName, parse_eps


def _as_written(value: object) -> str:
    parse_eps(value)
    return str(value)


class Value(Strict):
    """A number; `quoted` when it was taken from the literature and not checked against its source."""

    value: float
    quoted: bool = False


class Percent(Value):
    """One in %."""

    value: float = Field(ge=0, le=100)


class Cosine(Value):
    """A cosine similarity."""

    value: float = Field(ge=-1, le=1)


class Minutes(Value):
    """A time in minutes."""

    value: float = Field(gt=0)


class Result(Strict):
    """What is published of one method in one setting; eps as it is written: "0.1", "2/255".

    Attributes
    ----------
    natural, certified
        Accuracies.
    cosine_clean, cosine_adversarial
        Gradient alignment at clean and at adversarial images.
    unstable_region
        Share of unstable ReLUs over the whole region.
    training_minutes
        Time that training took.
    """

    dataset: DatasetName
    eps: Annotated[str, BeforeValidator(_as_written)]
    method: str = Field(min_length=1)
    natural: Percent | None = None
    certified: Percent | None = None
    cosine_clean: Cosine | None = None
    cosine_adversarial: Cosine | None = None
    unstable_region: Percent | None = None
    training_minutes: Minutes | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Result":
        if not self.numbers:
            raise ValueError(f"a number is needed: {', '.join(MEASURES)}")
        return self

    @property
    def numbers(self) -> dict[str, Value]:
        """The numbers that are given, by measure."""
        return {name: value for name in MEASURES if (value := getattr(self, name)) is not None}


MEASURES = tuple(name for name in Result.model_fields if name not in ("dataset", "eps", "method"))


class Group(Strict):
    """Results of one source: a paper, and where in it."""

    group: str = Field(min_length=1)
    source: str = Field(min_length=1)
    results: tuple[Result, ...] = Field(min_length=1)


class Published(Strict):
    """The whole of `config/published.yaml`."""

    published: tuple[Group, ...] = Field(min_length=1)


def read(path: Path) -> pd.DataFrame:
    """Read and check published numbers.

    Parameters
    ----------
    path
        A file like `config/published.yaml`.

    Returns
    -------
    pandas.DataFrame
        One line per number: group ("table-1", "table-2", "table-3", "table-4", "times", "later"), source, method,
        dataset, eps (as written), measure (one of `MEASURES`), value, quoted.

    Raises
    ------
    SabrError
        When a number has no source, a key is unknown, a value is out of range, or a number is given twice.
    """
    content = checked(Published, read_yaml(path), str(path))
    table = pd.DataFrame(
        [
            (group.group, group.source, result.method, result.dataset, result.eps, measure, number.value, number.quoted)
            for group in content.published
            for result in group.results
            for measure, number in result.numbers.items()
        ],
        columns=["group", "source", "method", "dataset", "eps", "measure", "value", "quoted"],
    )
    twice = table[table.duplicated(["method", "dataset", "eps", "measure"])]
    if len(twice):
        one = twice.iloc[0]
        raise SabrError(f"{path}: {one.method}, {one.dataset}, eps {one.eps}: {one.measure} is given twice; keep one")
    return table
