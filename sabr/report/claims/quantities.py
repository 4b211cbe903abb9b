"""What claims compare: numbers of recorded results, one for each seed, or the reason why there are none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from sabr.errors import SabrError
from sabr.problems import written
from sabr.report.claims.model import Accuracy, FullScale, PublishedNumber, Studied, place
from sabr.report.outline import Outline, present
from sabr.report.records import interval
from sabr.report.style import Style
from sabr.settings import DATASETS


class NotTestable(Exception):  # noqa: N818 (an outcome, not an error)
    """A check cannot be made; says why."""


@dataclass(frozen=True)
class Results:
    """Everything recorded that a claim may be checked on.

    Attributes
    ----------
    outline
        What was planned.
    records, pairs
        What `records.collect` and `pairs.pairs` return.
    studies
        The table of each study that there is, by its name.
    published
        What `published.read` returns.
    full_scale
        When ours may be compared with published numbers.
    style
        Labels.
    """

    outline: Outline
    records: pd.DataFrame
    pairs: pd.DataFrame
    studies: Mapping[str, pd.DataFrame]
    published: pd.DataFrame
    full_scale: FullScale
    style: Style

    def label(self, setting: str) -> str:
        """Label of a setting given as "mnist-eps-0.1"."""
        return self.style.setting(*place(setting))


@dataclass(frozen=True)
class Values:
    """A quantity in one setting.

    Attributes
    ----------
    label
        Of the network.
    by_seed
        Values, indexed by seed.
    low, high
        Ends of the 95 % interval over test images, as `by_seed`; the values themselves where they count no images.
    unit
        "%", or empty.
    method
        Whose networks; None for a published number.
    measure
        Of `pairs.MEASURES`, if the same images can be compared; else None.
    """

    label: str
    by_seed: "pd.Series[float]"
    low: "pd.Series[float]"
    high: "pd.Series[float]"
    unit: str
    method: str | None = None
    measure: str | None = None


def values(quantity: Accuracy | Studied, setting: str, results: Results) -> Values:
    """The values of a quantity of ours in a setting.

    Raises
    ------
    NotTestable
        When they were not measured.
    SabrError
        When a claim asks a study for what its table cannot have.
    """
    if isinstance(quantity, Studied):
        return _studied(quantity, setting, results)
    method = quantity.method or swept(quantity.swept or "best", setting, results)
    return accuracy(method, quantity.measure, setting, results)


def accuracy(method: str, measure: str, setting: str, results: Results) -> Values:
    """An accuracy of a method's networks in %.

    Raises
    ------
    NotTestable
        When there are no results of it.
    """
    found = lines_of(method, setting, results)
    if found[measure].isna().any():
        raise NotTestable(f"{results.style.method(method).label}: {measure} was not measured")
    found = found.set_index("seed")
    counts, images = found[measure].astype("int64"), found["images"]
    ends = [interval(int(count), int(n)) for count, n in zip(counts, images, strict=True)]
    low, high = (pd.Series([100 * end[side] for end in ends], found.index) for side in (0, 1))
    label = results.style.method(method).label
    compared = measure if measure in ("natural", "adversarial", "certified") else None
    return Values(label, 100 * counts / images, low, high, "%", method, compared)


def lines_of(method: str, setting: str, results: Results) -> pd.DataFrame:
    """The planned records of a method in a setting.

    Raises
    ------
    NotTestable
        When there are none.
    """
    dataset, eps = place(setting)
    found = present(results.records, results.outline.table)
    here = found[(found["dataset"] == dataset) & (found["eps"] == eps)]
    if here.empty:
        raise NotTestable(f"{results.label(setting)} is not part of this run")
    found = here[here["method"] == method]
    if found.empty:
        raise NotTestable(f"{results.style.method(method).label} has no results in {results.label(setting)}")
    return found


def sweep(results: Results) -> pd.DataFrame:
    """Records of the sweep over lambda.

    Raises
    ------
    NotTestable
        When there are none.
    """
    found = present(results.records, results.outline.of("sweep"))
    if found["lambda_ratio"].nunique() < 2:
        raise NotTestable("this run has no sweep over λ")
    return found


def swept(which: str, setting: str, results: Results) -> str:
    """The method of the sweep with the smallest or largest lambda, or whose networks certify most on average."""
    found = sweep(results)
    dataset, eps = place(setting)
    found = found[(found["dataset"] == dataset) & (found["eps"] == eps)]
    if found.empty:
        raise NotTestable(f"the sweep over λ was not run in {results.label(setting)}")
    if which == "best":
        return str(found.groupby("method", sort=False)["certified"].mean().idxmax())
    ratios = found.groupby("method", sort=False)["lambda_ratio"].first()
    return str(ratios.idxmin() if which == "smallest" else ratios.idxmax())


def published(quantity: PublishedNumber, setting: str, results: Results) -> float:
    """A published number that was checked against its source.

    Raises
    ------
    NotTestable
        When there is none, or it is quoted.
    """
    dataset, eps = place(setting)
    table = results.published
    found = table[(table["dataset"] == dataset) & (table["eps"] == eps) & (table["measure"] == quantity.measure)]
    found = found[found["method"] == quantity.published]
    label = results.style.method(quantity.published).label
    if found.empty:
        raise NotTestable(f"no {quantity.measure} accuracy of {label} is published")
    number = found.iloc[0]
    if number["quoted"]:
        raise NotTestable(f"the published {number['value']:.2f} % of {label} is quoted, not checked against its source")
    return float(number["value"])


def reduced(method: str, setting: str, results: Results) -> str | None:
    """How a method's networks fall short of the published protocol, in words; None: they do not."""
    found, full = lines_of(method, setting, results).iloc[0], results.full_scale
    dataset = DATASETS[place(setting)[0]]
    if setting not in full.epochs:
        return "no published protocol is known"
    short = [
        words
        for words, less in (
            (f"network {found['architecture']}", found["architecture"] != full.architecture),
            (f"{found['train_images']:,} training images", found["train_images"] < dataset.train_images),
            (f"{found['epochs']} epochs", found["epochs"] < full.epochs[setting]),
            (f"{found['images']:,} test images", found["images"] < dataset.test_images),
        )
        if less
    ]
    return ", ".join(short) or None


def study(name: str, results: Results) -> pd.DataFrame:
    """The table of a study.

    Raises
    ------
    NotTestable
        When there is none.
    """
    if name not in results.studies:
        raise NotTestable(f"the study {name} was not made in this run")
    return results.studies[name]


def select(table: pd.DataFrame, where: Mapping[str, str | float], name: str) -> pd.DataFrame:
    """The lines of a study's table with the given values.

    Raises
    ------
    SabrError
        When it has no such column.
    """
    for column, value in where.items():
        check_column(table, column, "where", name)
        if isinstance(value, str):
            table = table[table[column].astype("str") == value]
        else:
            table = table[(numbers(table, column, "where", name) - value).abs() < 1e-9]
    return table


def check_column(table: pd.DataFrame, column: str, key: str, name: str) -> None:
    """Make sure that a study's table has a column, which `key` of a claim names.

    Raises
    ------
    SabrError
        When it has not.
    """
    if column not in table:
        raise SabrError(
            f"config/claims.yaml: {key}: the study {name} has no column {column!r}; it has {_columns(table)}"
        )


def numbers(table: pd.DataFrame, column: str, key: str, name: str) -> "pd.Series[float]":
    """A column of numbers in a study's table, which `key` of a claim names.

    Raises
    ------
    SabrError
        When there is no such column, or it holds text.
    """
    check_column(table, column, key, name)
    if not pd.api.types.is_numeric_dtype(table[column]):
        raise SabrError(
            f"config/claims.yaml: {key}: {column} of the study {name} holds text; name a column of numbers, or put the "
            "value in quotes"
        )
    return table[column]


def of_method(name: str, methods: Sequence[str], setting: str, results: Results) -> tuple[str, pd.DataFrame]:
    """A method's label and its lines of a study in a setting; of several methods, the first that has any.

    Raises
    ------
    NotTestable
        When there are none.
    """
    dataset, eps = place(setting)
    table = study(name, results)
    for method in methods:
        found = table[(table["dataset"] == dataset) & (table["eps"] == eps) & (table["method"] == method)]
        if len(found):
            return results.style.method(method).label, found
    label = results.style.method(methods[-1]).label
    raise NotTestable(f"the study {name} was not made for {label} in {results.label(setting)}")


def _studied(quantity: Studied, setting: str, results: Results) -> Values:
    label, found = of_method(quantity.study, quantity.method, setting, results)
    found = select(found, quantity.where, quantity.study)
    if found.empty:
        raise NotTestable(f"the study {quantity.study} has nothing for {written(quantity.where)}")
    seeds = numbers(found, quantity.column, "column", quantity.study).groupby(found["seed"])
    if (seeds.nunique() > 1).any():
        raise SabrError(
            f"config/claims.yaml: where: {written(quantity.where)} leaves several values of {quantity.column} in the "
            f"study {quantity.study}; add another column"
        )
    by_seed = seeds.first()
    unit = "%" if quantity.study == "relu-states" else ""
    return Values(label, by_seed, by_seed, by_seed, unit)


def _columns(table: pd.DataFrame) -> str:
    return ", ".join(map(str, table.columns))
