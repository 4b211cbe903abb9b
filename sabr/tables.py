"""Tidy tables as CSV: read with the types that they were written with, or told where they are damaged."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from sabr.errors import SabrError
from sabr.settings import DATASETS
from sabr.specs import parse_eps

# What pandas takes for a value that is missing; and how each type is called and written.
_MISSING = {"", "NA", "N/A", "NaN", "nan", "<NA>", "null", "None"}
_KINDS = {
    "int64": ("a whole number", r"\s*[+-]?[0-9]{1,18}\s*"),
    "bool": ("True or False", r"True|TRUE|true|False|FALSE|false"),
}


def read(path: Path, dtypes: Mapping[str, str], optional: Collection[str] = ()) -> pd.DataFrame:
    """Read a table with the given columns and types; others are left out.

    Parameters
    ----------
    path
        CSV.
    dtypes
        Columns, in the order to give them back; whole numbers are counts and places, and none is negative.
    optional
        Columns of text or decimal numbers that may be empty.

    Raises
    ------
    SabrError
        When the file is missing or is no such table: says in which line and column.
    """
    try:
        # All columns are read, as with some of them pandas takes lines of any length.
        table = pd.read_csv(path, dtype=dict(dtypes))
    except OSError as error:
        raise SabrError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise SabrError(not_the_table(path, damage(path, dtypes))) from error
    if any(column not in table for column in dtypes):
        raise SabrError(not_the_table(path, damage(path, dtypes)))
    table = table[list(dtypes)]
    wrong = next(_implausible(table, dtypes, optional), None)
    if wrong is not None:
        raise SabrError(not_the_table(path, wrong))
    return table


def check_at_most(table: pd.DataFrame, path: Path, columns: Iterable[str], most: str) -> None:
    """Make sure that some columns of a table that was read are at most another one.

    Raises
    ------
    SabrError
        Says in which line one is not.
    """
    for column in columns:
        for wrong in _told(table[column] > table[most], f"{column} is larger than {most}"):
            raise SabrError(not_the_table(path, wrong))


def not_the_table(path: Path, problem: str) -> str:
    """The message about a table that cannot be used."""
    return f"{path} is not the table it should be ({problem}); delete it and run again"


def damage(path: Path, dtypes: Mapping[str, str]) -> str:
    """Say why a table cannot be read with these columns and types: the first line and column that do not fit."""
    try:
        text = pd.read_csv(path, dtype="str", keep_default_na=False)
    except pd.errors.EmptyDataError:
        return "it is empty"
    except UnicodeDecodeError:
        return "it is not text in UTF-8"
    except ValueError as error:
        place = re.search(r"in line (\d+)", str(error))
        return f"line {place[1]} does not have as many columns as the first" if place else "it is not CSV"
    for column in dtypes:
        if column not in text:
            return f"it has no column {column}"
    for column, dtype in dtypes.items():
        for line, cell in enumerate(text[column], start=2):
            if not _fits(str(cell), dtype):
                kind = _KINDS.get(dtype.lower(), ("a number", ""))[0]
                return f"line {line}: {column}: {cell!r} is not {kind}"
    return "lines and columns are not those of a table"


def _fits(cell: str, dtype: str) -> bool:
    if dtype == "str" or (dtype in ("float64", "Int64") and cell in _MISSING):
        return True
    if dtype.lower() in _KINDS:
        return re.fullmatch(_KINDS[dtype.lower()][1], cell) is not None
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _implausible(table: pd.DataFrame, dtypes: Mapping[str, str], optional: Collection[str]) -> Iterator[str]:
    """Values that are of the right type and yet cannot be."""
    for column, dtype in dtypes.items():
        values = table[column]
        if dtype in ("str", "float64") and column not in optional:
            yield from _told(values.isna(), f"{column} is empty")
        if dtype.lower() == "int64":
            yield from _told(values < (column == "images"), f"{column} is too small")
        elif dtype == "float64":
            yield from _told(values.abs() == float("inf"), f"{column} is not finite")
    if "dataset" in dtypes:
        unknown = ~table["dataset"].isin(DATASETS)
        names = table["dataset"][unknown].head(1)
        yield from _told(unknown, f"{', '.join(map(repr, names))} is not a dataset; allowed: {', '.join(DATASETS)}")
    for eps in table["eps"].unique() if dtypes.get("eps") == "str" else ():
        try:
            parse_eps(eps)
        except ValueError as error:
            yield from _told(table["eps"] == eps, f"eps: {error}")


def _told(wrong: "pd.Series[bool]", what: str) -> Iterator[str]:
    places = wrong.fillna(False).to_numpy(dtype=bool).nonzero()[0]
    for place in places[:1]:
        yield f"line {place + 2}: {what}"
