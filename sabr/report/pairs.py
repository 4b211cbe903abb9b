"""Networks of one setting and seed, side by side on the same images: in how many of them only one is right."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pandas as pd

from sabr import tables
from sabr.errors import SabrError
from sabr.report.rows import Row, read_row

MEASURES = {"natural": "natural_correct", "adversarial": "adversarial_correct", "certified": "certified"}
_DTYPES = {
    **{"dataset": "str", "eps": "str", "first": "str", "second": "str", "seed": "int64", "measure": "str"},
    **dict.fromkeys(("images", "first_right", "second_right", "first_only", "second_only"), "int64"),
}


def pairs(folders: Sequence[Path]) -> pd.DataFrame:
    """Compare every two networks of one setting and seed, image by image.

    Parameters
    ----------
    folders
        As `rows.read_row` takes them.

    Returns
    -------
    pandas.DataFrame
        One line per pair and measure: dataset, eps, first and second (methods), seed; measure: natural, adversarial or
        certified; images; first_right, second_right: how many images count for each; first_only, second_only: for one
        and not for the other.

    Raises
    ------
    SabrError
        As `rows.read_row`, or when two networks of one setting were judged on other images.
    """
    rows = [read_row(folder) for folder in folders]
    lines = []
    for one, other in combinations(rows, 2):
        here, there = one.place, other.place
        if (here.dataset, here.eps, here.seed) != (there.dataset, there.eps, there.seed):
            continue
        _same_images(one, other)
        for measure, column in MEASURES.items():
            first, second = one.verdicts[column].to_numpy(), other.verdicts[column].to_numpy()
            counts = (len(first), first.sum(), second.sum(), (first & ~second).sum(), (second & ~first).sum())
            names = (here.dataset, here.eps, here.method, there.method, here.seed, measure)
            lines.append((*names, *map(int, counts)))
    return pd.DataFrame(lines, columns=list(_DTYPES)).astype(_DTYPES)


def read(path: Path) -> pd.DataFrame:
    """Read what `pairs` returned, from CSV.

    Raises
    ------
    SabrError
        When it cannot be read.
    """
    table = tables.read(path, _DTYPES)
    tables.check_at_most(table, path, ("first_right", "second_right", "first_only", "second_only"), "images")
    return table


def between(table: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """The lines of two methods, turned so that they are `first` and `second`."""
    straight = table[(table["first"] == first) & (table["second"] == second)]
    crossed = table[(table["first"] == second) & (table["second"] == first)]
    swap = {f"{a}{end}": f"{b}{end}" for a, b in (("first", "second"), ("second", "first")) for end in _ENDS}
    return pd.concat([straight, crossed.rename(columns=swap)], ignore_index=True)[list(_DTYPES)]


_ENDS = ("", "_right", "_only")


def _same_images(one: Row, other: Row) -> None:
    if one.certification.images != other.certification.images:
        raise SabrError(
            f"{one.folder} was judged on {one.certification.images} images, {other.folder} on "
            f"{other.certification.images}; certify both on the same images before comparing them"
        )
    if not one.verdicts["label"].equals(other.verdicts["label"]):
        raise SabrError(f"{one.folder} and {other.folder} were judged on images with other labels; certify both again")
