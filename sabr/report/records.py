"""All recorded results as one tidy table, with provenance."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import binomtest

from sabr import tables
from sabr.errors import SabrError
from sabr.files import write_text
from sabr.report.rows import Row, place_of, read_row
from sabr.scales import in_words
from sabr.settings import DATASETS
from sabr.specs import PROOFS, differing_keys

STAGE_COLUMNS = {stage: f"certified_{stage.replace('-', '_')}" for stage in PROOFS}
MEASURES = ("natural", "adversarial", "certified", "unknown", *STAGE_COLUMNS.values())

_DTYPES = {
    "dataset": "str",
    "eps": "str",
    "method": "str",
    "objective": "str",
    "seed": "int64",
    "lambda_ratio": "float64",
    "architecture": "str",
    "train_images": "int64",
    "epochs": "int64",
    "images": "int64",
    "natural": "int64",
    "adversarial": "int64",
    "certified": "int64",
    "refuted": "int64",
    "unknown": "int64",
    "unknown_because": "str",
    **{column: "Int64" for column in STAGE_COLUMNS.values()},
    "train_seconds": "float64",
    "attack_seconds": "float64",
    "certify_seconds": "float64",
    "commit": "str",
    "certify_commit": "str",
    "torch": "str",
    "processor": "str",
    "device": "str",
    "threads": "Int64",
}
# What is not known of networks that were imported, and what some methods do not have.
_OPTIONAL = {
    *("lambda_ratio", "unknown_because", "train_seconds"),
    *("commit", "certify_commit", "torch", "processor", "device"),
}
# Columns of history.csv; some methods have no worst case, and imported networks no history at all.
_HISTORY = {"epoch": "int64"} | dict.fromkeys(
    (
        *("eps", "learning_rate", "loss", "robust_loss", "regulariser", "l1"),
        *("natural_accuracy", "robust_accuracy", "seconds", "images_per_second"),
    ),
    "float64",
)
_HISTORIES = {"method": "str", "setting": "str", "seed": "int64"} | _HISTORY


def collect(folders: Sequence[Path]) -> pd.DataFrame:
    """Bring recorded results together, one line per network, in the order of `folders`.

    Parameters
    ----------
    folders
        As `rows.read_row` takes them.

    Returns
    -------
    pandas.DataFrame
        dataset; eps, the radius as it is written ("0.1", "2/255"); method; objective; seed; lambda_ratio (NaN where
        the method has none); architecture; train_images; epochs; images, how many test images were judged; natural,
        adversarial, certified: how many of them were classified right, withstood all attacks, were certified; refuted
        and unknown: how many of those classified right are, so that natural = certified + refuted + unknown;
        unknown_because, reasons and how often; certified_interval and so on: how many were certified by that stage or
        one before it in that network's order (missing where the stage was not run); train_seconds, attack_seconds (of
        the quick attack) and certify_seconds; commit, torch, processor, device and threads of the training, and
        certify_commit.

    Raises
    ------
    SabrError
        When `rows.read_row` does, when a network is given twice, when seeds of one method were trained differently, or
        when two networks of one setting were judged on different numbers of images.
    """
    if not folders:
        raise SabrError("there are no results to collect: give at least one folder such as .../sabr/seed-1")
    found = [read_row(folder) for folder in folders]
    _one_scale(found)
    rows = [_line(row) for row in found]
    records = pd.DataFrame(rows, columns=list(_DTYPES)).astype(_DTYPES)
    seen: dict[tuple[Any, ...], Path] = {}
    images: dict[tuple[Any, ...], tuple[int, Path]] = {}
    for row, folder in zip(rows, folders, strict=True):
        other = seen.setdefault((row["dataset"], row["eps"], row["method"], row["seed"]), folder)
        if other is not folder:
            raise SabrError(f"{folder} and {other} hold the same method, setting and seed; collect one scale at a time")
        count, first = images.setdefault((row["dataset"], row["eps"]), (row["images"], folder))
        if row["images"] != count:
            raise SabrError(
                f"{folder / 'verdicts.json'}: {row['images']} images were judged here, but {count} in {first}; "
                "certify both on the same images before comparing them"
            )
    return records


def write(records: pd.DataFrame, path: Path) -> None:
    """Write what `collect` returns as CSV."""
    write_text(path, records.to_csv(index=False))


def read(path: Path) -> pd.DataFrame:
    """Read what `write` wrote, with the same columns and types.

    Raises
    ------
    SabrError
        When the file is missing or is no such table.
    """
    table = tables.read(path, _DTYPES, _OPTIONAL)
    tables.check_at_most(table, path, MEASURES, "images")
    return table


def histories(folders: Sequence[Path]) -> pd.DataFrame:
    """Bring the training histories together: the columns of `history.csv` with method, setting and seed before them.

    Parameters
    ----------
    folders
        Row folders as for `collect`, each with `history.csv`.

    Returns
    -------
    pandas.DataFrame
        One line per network and epoch; setting is a name such as "mnist-eps-0.1". Accuracies are in [0, 1], on
        training batches.

    Raises
    ------
    SabrError
        When a history is missing or cannot be read.
    """
    found = []
    for folder in folders:
        place = place_of(folder)
        table = tables.read(folder / "history.csv", _HISTORY, _HISTORY)
        setting = f"{place.dataset}-eps-{place.eps.replace('/', '_')}"
        network = {"method": place.method, "setting": setting, "seed": place.seed}
        found.append(pd.DataFrame(network, table.index).join(table))
    if not found:
        raise SabrError("there are no histories to collect: give at least one folder such as .../sabr/seed-1")
    return pd.concat(found, ignore_index=True)


def read_histories(path: Path) -> pd.DataFrame:
    """Read what `histories` returned, from CSV.

    Raises
    ------
    SabrError
        When the file is missing or is no such table.
    """
    return tables.read(path, _HISTORIES, _HISTORY)


def interval(successes: int, n: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson's score interval), both ends in [0, 1].

    Parameters
    ----------
    successes, n
        `successes` of `n` independent images; n >= 1.
    """
    found = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(found.low), float(found.high)


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """Accuracies in %, one line per setting, method and measure, over all seeds.

    Parameters
    ----------
    records
        What `collect` returns, or a part of it.

    Returns
    -------
    pandas.DataFrame
        dataset, eps, method, objective, lambda_ratio; measure, one of `MEASURES`; value, the mean over seeds; low and
        high, the 95 % interval of `interval` for one seed, mean -+ standard deviation for several; deviation, the
        standard deviation over seeds (n - 1), NaN for one; seeds and images. Measures that were not taken are absent.
    """
    keys = ["dataset", "eps", "method", "objective", "lambda_ratio"]
    lines = []
    for names, group in records.groupby(keys, sort=False, dropna=False):
        for measure in MEASURES:
            if group[measure].isna().any():
                continue
            percent = 100 * group[measure].astype("float64") / group["images"]
            value, deviation = float(percent.mean()), float(percent.std())
            low, high = value - deviation, value + deviation
            images = int(group["images"].iloc[0])
            if len(group) == 1:
                low, high = (100 * end for end in interval(int(group[measure].iloc[0]), images))
            lines.append((*names, measure, value, low, high, deviation, len(group), images))
    columns = [*keys, "measure", "value", "low", "high", "deviation", "seeds", "images"]
    return pd.DataFrame(lines, columns=columns).astype({"lambda_ratio": "float64", "deviation": "float64"})


def described(records: pd.DataFrame, title: str) -> str:
    """The scale in words, with the networks, images and epochs of these records alone.

    Parameters
    ----------
    records
        What `collect` returns, or a part of it; not empty.
    title
        That of the whole run, "SCALE: ..., first 1,000 test images", whose networks may be other ones.
    """
    full = [DATASETS[dataset].train_images for dataset in records["dataset"]]
    kind = re.search(r"[0-9] ([a-z ]+images)$", title)
    return in_words(
        title.partition(":")[0],
        records["architecture"],
        (None if own == all_ else own for own, all_ in zip(records["train_images"], full, strict=True)),
        records["epochs"],
        records["images"],
        kind.group(1) if kind else "images",
    )


def _one_scale(rows: Sequence[Row]) -> None:
    """Refuse seeds of one method and setting that were not trained alike: they come from several scales."""
    first: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        other = first.setdefault((row.place.dataset, row.place.eps, row.place.method), row)
        one, two = (found.training.model_dump(mode="json", exclude={"seed"}) for found in (row, other))
        differences = differing_keys(one, two)
        if differences:
            raise SabrError(
                f"{row.folder / 'run.json'} and {other.folder / 'run.json'} are seeds of one method, but were trained "
                f"differently: {differences[0]}; keep one scale in a folder"
            )


def _line(row: Row) -> dict[str, Any]:
    table, training, certification = row.verdicts, row.training, row.certification
    machine = row.model["provenance"].get("machine", {})
    unknown = table[table["natural_correct"] & (table["reason"] != "")]
    by_stage: dict[str, Any] = dict.fromkeys(STAGE_COLUMNS.values(), pd.NA)
    for place, stage in enumerate(certification.stages):
        if stage in STAGE_COLUMNS:
            so_far = certification.stages[: place + 1]
            by_stage[STAGE_COLUMNS[stage]] = int(table["certified_by"].isin(so_far).sum())
    return {
        **row.place._asdict(),
        "objective": training.method.objective,
        "lambda_ratio": getattr(training.method, "lambda_ratio", float("nan")),
        "architecture": training.architecture,
        "train_images": training.train_images or DATASETS[training.dataset].train_images,
        "epochs": training.epochs,
        "images": certification.images,
        "natural": int(table["natural_correct"].sum()),
        "adversarial": int(table["adversarial_correct"].sum()),
        "certified": int(table["certified"].sum()),
        "refuted": int((table["refuted_by"] != "").sum()),
        "unknown": len(unknown),
        "unknown_because": _because(unknown["reason"]),
        **by_stage,
        "train_seconds": row.model["seconds"],
        "attack_seconds": row.attacked["seconds"],
        "certify_seconds": row.judged["seconds"],
        "commit": row.model["provenance"]["commit"],
        "certify_commit": row.judged["provenance"]["commit"],
        "torch": row.model["provenance"]["versions"].get("torch"),
        **{name: machine.get(name) for name in ("processor", "device", "threads")},
    }


def _because(reasons: "pd.Series[str]") -> str | None:
    """Reasons without their numbers, the commonest first: "out of time: 12; a tie: 1"; None: there are none."""
    kinds = reasons.str.split(r":| after ", regex=True).str[0].value_counts()
    return "; ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items(), key=lambda k: (-k[1], k[0]))) or None
