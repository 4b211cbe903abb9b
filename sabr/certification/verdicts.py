"""What is known about each image, as a table on disk with a sidecar that says where it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import BaseModel, NonNegativeFloat, PositiveInt

from sabr.errors import SabrError
from sabr.files import atomic, checksum, read_json, write_json
from sabr.problems import checked
from sabr.tables import damage

if TYPE_CHECKING:
    from torch import Tensor

ATTACK_COLUMNS = {
    "index": "int64",
    "label": "int64",
    "prediction": "int64",
    "natural_correct": "bool",
    "adversarial_correct": "bool",
}
COLUMNS = ATTACK_COLUMNS | {
    "certified": "bool",
    "certified_by": "str",
    "refuted_by": "str",
    "reason": "str",
    "margin_lower_bound": "float64",
    "subproblems": "int64",
    "seconds": "float64",
}
# What the quick attack of every image is called in `refuted_by`.
QUICK_ATTACK = "quick-attack"
# `reason` where there is nothing to certify.
MISCLASSIFIED = "misclassified"


@dataclass(frozen=True)
class Verdict:
    """What the stages say of one image that is classified correctly and resists the quick attack.

    Attributes
    ----------
    certified_by, refuted_by
        The stage that decided it; at most one is not empty.
    reason
        Why neither; empty if either.
    margin_lower_bound
        The smallest over the classes of the best sound lower bound of each margin; None: no stage bounded it.
    subproblems
        How many the complete verifier bounded.
    seconds
        The image's share of the time of its batches.
    point
        The counterexample in float64, or None.
    """

    certified_by: str
    refuted_by: str
    reason: str
    margin_lower_bound: float | None
    subproblems: int
    seconds: float
    point: "Tensor | None" = None


class _Asked(BaseModel):
    images: PositiveInt


class _Shard(BaseModel):
    """What the sidecar of a shard must say for it to be put together with others; there is more."""

    certification: _Asked
    seconds: NonNegativeFloat
    stages: dict[str, dict[str, float]] = {}


def table(attacked: pd.DataFrame, verdicts: Mapping[int, Verdict]) -> pd.DataFrame:
    """The table of a shard.

    Parameters
    ----------
    attacked
        `ATTACK_COLUMNS` of the shard's images.
    verdicts
        By image, of all that are classified correctly and resist the quick attack.

    Returns
    -------
    pandas.DataFrame
        `COLUMNS`; `adversarial_correct` is false where any stage refuted the image.
    """
    rows = []
    for line in attacked.to_dict("records"):
        known = verdicts.get(int(line["index"]))
        if known is None:
            refuted = line["natural_correct"] and not line["adversarial_correct"]
            known = Verdict("", QUICK_ATTACK if refuted else "", "" if refuted else MISCLASSIFIED, None, 0, 0.0)
        margin = float("nan") if known.margin_lower_bound is None else known.margin_lower_bound
        rows.append(
            {
                **line,
                "adversarial_correct": line["adversarial_correct"] and not known.refuted_by,
                "certified": bool(known.certified_by),
                "certified_by": known.certified_by,
                "refuted_by": known.refuted_by,
                "reason": known.reason,
                "margin_lower_bound": margin,
                "subproblems": known.subproblems,
                "seconds": known.seconds,
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def write(table: pd.DataFrame, path: Path, about: dict[str, Any]) -> None:
    """Write a table as CSV and, last, its sidecar with suffix .json, which knows the table's checksum.

    Raises
    ------
    SabrError
        When the table's name ends in .json or .pt, which are its companions', or the place cannot be written to.
    """
    if path.suffix in (".json", ".pt"):
        raise SabrError(f"{path}: a table of verdicts needs another name, such as {path.with_suffix('.csv').name}")
    with atomic(path) as temporary:
        table.to_csv(temporary, index=False)
    write_json(path.with_suffix(".json"), {**about, "sha256": checksum(path)})


def read(path: Path, columns: dict[str, str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a table and its sidecar.

    Raises
    ------
    SabrError
        When either is missing, half-written, or not of that form, or when the two do not belong together.
    """
    about = read_json(path.with_suffix(".json"))
    try:
        if not isinstance(about, dict) or about.pop("sha256", None) != checksum(path):
            raise SabrError(
                f"cannot read {path}: it does not belong to {path.with_suffix('.json').name}; delete it and run again"
            )
        table = pd.read_csv(path, dtype=columns, keep_default_na=False, na_values={"margin_lower_bound": [""]})
    except OSError as error:
        raise SabrError(f"cannot read {path}: {error.strerror or error}; run again") from error
    except (ValueError, OverflowError) as error:
        raise SabrError(f"cannot read {path}: {damage(path, columns)}; delete it and run again") from error
    if list(table.columns) != list(columns):
        raise SabrError(f"{path} has the columns {', '.join(table.columns)}; expected {', '.join(columns)}")
    return table, about


def refuse_contradictions(table: pd.DataFrame, where: str) -> None:
    """Stop when an image is certified although the attack, or the network itself, gets it wrong.

    Raises
    ------
    SabrError
        Names the first such image, and the bound that must be wrong.
    """
    wrong = table[table["certified"] & ~(table["adversarial_correct"] & table["natural_correct"])]
    if len(wrong):
        first = wrong.iloc[0]
        raise SabrError(
            f"{where}: test image {first['index']} was certified by {first['certified_by']} with margin "
            f"{first['margin_lower_bound']:.6g} although an attack refutes it; a bound is unsound, and no result of "
            "this run can be trusted: please report it with this line"
        )


def merge(paths: Sequence[Path]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Put shards together.

    Parameters
    ----------
    paths
        Verdict files of one network under one specification, in any order.

    Returns
    -------
    table, about
        All images in order, and the common sidecar, with the shards' seconds, and what each stage did, added up.

    Raises
    ------
    SabrError
        When shards come from different networks or specifications, when an image is missing or there twice, or when
        verdicts contradict each other.
    """
    shards = [read(path, COLUMNS) for path in paths]
    common = shards[0][1]
    for path, (_, about) in zip(paths, shards, strict=True):
        for key in ("model_sha256", "data_sha256", "certification"):
            if about.get(key) != common.get(key) or key not in about:
                raise SabrError(f"{path} and {paths[0]} differ in {key}; delete the older of them and run again")
    for path, (_, about) in zip(paths, shards, strict=True):
        checked(_Shard, about, str(path.with_suffix(".json")), "delete it and its table, and run again")
    table = pd.concat([shard for shard, _ in shards]).sort_values("index", ignore_index=True)
    images = common["certification"]["images"]
    if table["index"].tolist() != list(range(images)):
        raise SabrError(f"the shards beside {paths[0]} hold {len(table)} verdicts, not one for each of {images} images")
    refuse_contradictions(table, str(paths[0].parent))
    stages: dict[str, dict[str, float]] = {}
    for _, about in shards:
        for stage, numbers in about.get("stages", {}).items():
            own = stages.setdefault(stage, {})
            for key, value in numbers.items():
                own[key] = own.get(key, 0) + value
    return table, {**common, "seconds": sum(about["seconds"] for _, about in shards), "stages": stages}
