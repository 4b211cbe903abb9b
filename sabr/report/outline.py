"""What was planned: the scale in words, and every network with the parts of the paper that it is for."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, Field, NonNegativeInt, model_validator

from sabr.files import parse_json, read_json
from sabr.methods import Strict
from sabr.problems import checked
from sabr.report.style import Style
from sabr.specs import DatasetName, parse_eps

Part = Literal["main", "studied", "sweep", "ablation", "shrinking", "widths", "long"]
# Other choices of networks.
Choice = Literal["first seeds", "all"]

_NETWORK = ["dataset", "eps", "method", "seed"]


def _radius(value: str) -> str:
    parse_eps(value)
    return value


class PlannedRow(Strict):
    """One network; `eps` as it is written: "0.1", "2/255". `parts`: main (Table 1), studied, sweep, a comparison's."""

    dataset: DatasetName
    eps: Annotated[str, AfterValidator(_radius)]
    method: str = Field(min_length=1)
    seed: NonNegativeInt
    parts: tuple[Part, ...] = Field(min_length=1)


class Outline(Strict):
    """The plan of a run, as far as tables, claims and the report need it.

    Attributes
    ----------
    scale
        Its name.
    title
        The scale in words, for captions, with the networks of Table 1.
    studied
        The same with the networks that studies compare, without images.
    overrides
        What the configuration changes on top of the scale.
    rows
        Every network, each once.
    """

    scale: str = Field(min_length=1)
    title: str = Field(min_length=1)
    studied: str = Field(min_length=1)
    overrides: dict[str, Any]
    rows: tuple[PlannedRow, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> "Outline":
        table = self.table
        twice = table[table.duplicated(_NETWORK)]
        if len(twice):
            one = twice.iloc[0]
            raise ValueError(f"rows: {one.dataset}, eps {one.eps}, {one.method}, seed {one.seed} is given twice")
        return self

    @property
    def table(self) -> pd.DataFrame:
        """One line per network: dataset, eps, method, seed, parts."""
        return pd.DataFrame([row.model_dump() for row in self.rows])

    def of(self, part: Part | Choice) -> pd.DataFrame:
        """Networks of a part, or a choice of them: dataset, eps, method, seed, in the order of the plan; maybe none.

        "first seeds": Table 1's, one of each method and setting.
        """
        if part == "all":
            return self.table[_NETWORK]
        if part == "first seeds":
            return self.of("main").drop_duplicates(["dataset", "eps", "method"]).reset_index(drop=True)
        table = self.table
        chosen = table[[part in parts for parts in table["parts"]]]
        return chosen[_NETWORK].reset_index(drop=True)


def parse(text: str) -> Outline:
    """Check an outline given as JSON.

    Raises
    ------
    SabrError
        When it is none.
    """
    return checked(Outline, parse_json(text, "the outline"), "the outline")


def read(path: Path) -> Outline:
    """Read what `sabr outline` wrote.

    Raises
    ------
    SabrError
        When it cannot be read or is no outline.
    """
    return checked(Outline, read_json(path), str(path))


def present(results: pd.DataFrame, planned: pd.DataFrame) -> pd.DataFrame:
    """The lines of `results` (dataset, eps, method, seed, ...) whose network is planned, in the order of the plan."""
    return planned[_NETWORK].merge(results, on=_NETWORK, how="inner")


def missing(results: pd.DataFrame, planned: pd.DataFrame, style: Style) -> list[str]:
    """Say which planned networks `results` do not have, one sentence a setting; none: all are there."""
    known = set(_networks(results))
    absent = planned[[network not in known for network in _networks(planned)]]
    sentences = []
    for (dataset, eps), part in absent.groupby(["dataset", "eps"], sort=False):
        methods = []
        for method in style.order(part["method"]):
            seeds = ", ".join(str(seed) for seed in part[part["method"] == method]["seed"])
            methods.append(f"{style.method(method).label} (seed {seeds})")
        sentences.append(f"Missing in {style.setting(str(dataset), str(eps))}: {', '.join(methods)}.")
    return sentences


def _networks(table: pd.DataFrame) -> Iterable[tuple[Any, ...]]:
    return table[_NETWORK].itertuples(index=False, name=None)
