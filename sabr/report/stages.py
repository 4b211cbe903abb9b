"""Where in the cascade images were decided, how long it took, and what each time limit is good for: tidy tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sabr import tables
from sabr.certification.verdicts import QUICK_ATTACK
from sabr.report.rows import Row, read_row

# The strong attack of all certified images, after the last stage: the name that sidecars give it.
CONTROL = "control"
# Limits that a reader thinks in, seconds an image; the curve has more.
ROUND_LIMITS = (1.0, 3.0, 10.0, 30.0)
# Of the curve: its first limit, and how many there are in a factor of ten.
_FIRST, _PER_DECADE = 0.001, 10

_STAGES = {"dataset": "str", "eps": "str", "method": "str", "seed": "int64", "images": "int64", "stage": "str"} | {
    **dict.fromkeys(("entered", "certified", "refuted", "unknown"), "int64"),
    "seconds": "float64",
}
_LIMITS = {"dataset": "str", "eps": "str", "method": "str", "seed": "int64", "images": "int64"} | {
    "limit": "float64",
    **dict.fromkeys(("certified", "refuted", "undecided"), "int64"),
}


def stages(folders: Sequence[Path]) -> pd.DataFrame:
    """What each stage did, one line per network and stage, in the order in which they were run.

    Parameters
    ----------
    folders
        As `rows.read_row` takes them.

    Returns
    -------
    pandas.DataFrame
        dataset, eps, method, seed; images, how many test images were judged; stage: quick-attack, the stages of the
        certification, control; entered: images that were open then; certified, refuted, unknown: what became of them
        there, unknown for good; seconds that the stage took, over all shards. Counts are those of the verdicts.

    Raises
    ------
    SabrError
        As `rows.read_row`.
    """
    lines = [line for folder in folders for line in _stages(read_row(folder))]
    return pd.DataFrame(lines, columns=list(_STAGES)).astype(_STAGES)


def limits(folders: Sequence[Path]) -> pd.DataFrame:
    """What would have been decided within shorter time limits, one line per network and limit.

    Parameters
    ----------
    folders
        As `rows.read_row` takes them; networks that the complete verifier was not asked about are left out.

    Returns
    -------
    pandas.DataFrame
        dataset, eps, method, seed, images; limit, seconds an image, up to the one that was configured; certified,
        refuted: images that were, and whose recorded seconds are within it; undecided: all others that are classified
        right. The configured limit is only the complete verifier's, so at it all verdicts count.

    Raises
    ------
    SabrError
        As `rows.read_row`.
    """
    lines = [line for folder in folders for line in _limits(read_row(folder))]
    return pd.DataFrame(lines, columns=list(_LIMITS)).astype(_LIMITS)


def read_stages(path: Path) -> pd.DataFrame:
    """Read what `stages` returned, from CSV.

    Raises
    ------
    SabrError
        When it cannot be read.
    """
    return tables.read(path, _STAGES)


def read_limits(path: Path) -> pd.DataFrame:
    """Read what `limits` returned, from CSV.

    Raises
    ------
    SabrError
        When it cannot be read.
    """
    return tables.read(path, _LIMITS)


def _stages(row: Row) -> list[dict[str, Any]]:
    table, order = row.verdicts, row.certification.stages
    unknown = int((table["natural_correct"] & ~table["certified"] & (table["refuted_by"] == "")).sum())
    # The complete verifier leaves nothing open; without it, what no stage decided leaves with the last one.
    last = "complete" if "complete" in order else order[-1]
    open_ = int(table["natural_correct"].sum())
    lines = []
    for stage in (QUICK_ATTACK, *order):
        line = {
            **row.place._asdict(),
            "images": row.certification.images,
            "stage": stage,
            "entered": open_,
            "certified": int((table["certified_by"] == stage).sum()),
            "refuted": int((table["refuted_by"] == stage).sum()),
            "unknown": unknown if stage == last else 0,
            "seconds": row.attacked["seconds"] if stage == QUICK_ATTACK else row.judged["stages"][stage]["seconds"],
        }
        open_ -= line["certified"] + line["refuted"] + line["unknown"]
        lines.append(line)
    if CONTROL in row.judged["stages"]:
        nothing = dict.fromkeys(("certified", "refuted", "unknown"), 0)
        control = {"stage": CONTROL, "entered": int(table["certified"].sum()), **nothing}
        lines.append(lines[0] | control | {"seconds": row.judged["stages"][CONTROL]["seconds"]})
    return lines


def _limits(row: Row) -> list[dict[str, Any]]:
    if "complete" not in row.certification.stages:
        return []
    table, longest = row.verdicts, row.certification.complete.seconds
    needed = table["seconds"].clip(upper=longest)
    certified, refuted = table["certified"], table["refuted_by"] != ""
    lines = []
    for limit in _grid(longest):
        counts = [int((decided & (needed <= limit)).sum()) for decided in (certified, refuted)]
        undecided = int(table["natural_correct"].sum()) - sum(counts)
        lines.append(
            row.place._asdict()
            | {"images": row.certification.images, "limit": limit, "undecided": undecided}
            | dict(zip(("certified", "refuted"), counts, strict=True))
        )
    return lines


def _grid(longest: float) -> list[float]:
    """Limits up to the longest, evenly on a logarithmic scale, and the round ones."""
    chosen = {longest, *(limit for limit in ROUND_LIMITS if limit < longest)}
    step = 0
    while (limit := round(_FIRST * 10 ** (step / _PER_DECADE), 12)) < longest:
        chosen.add(limit)
        step += 1
    return sorted(chosen)
