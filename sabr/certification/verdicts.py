"""What is known about each image, as a table on disk with a sidecar that says where it comes from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sabr.errors import SabrError
from sabr.files import atomic, checksum, read_json, write_json

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
    "margin_lower_bound": "float64",
    "seconds": "float64",
}


def write(table: pd.DataFrame, path: Path, about: dict[str, Any]) -> None:
    """Write a table as CSV and, last, its sidecar with suffix .json, which knows the table's checksum."""
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
            raise ValueError(f"it does not belong to {path.with_suffix('.json').name}")
        table = pd.read_csv(path, dtype=columns, keep_default_na=False, na_values={"margin_lower_bound": [""]})
    except (OSError, ValueError) as error:
        raise SabrError(f"cannot read {path}: {error}; delete it and run again") from error
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
            f"{first['margin_lower_bound']:.6g} although the attack refutes it; a bound is unsound, and no result of "
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
        All images in order, and the common sidecar, with the shards' seconds added up.

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
    table = pd.concat([shard for shard, _ in shards]).sort_values("index", ignore_index=True)
    images = common["certification"]["images"]
    if table["index"].tolist() != list(range(images)):
        raise SabrError(f"the shards beside {paths[0]} hold {len(table)} verdicts, not one for each of {images} images")
    refuse_contradictions(table, str(paths[0].parent))
    return table, {**common, "seconds": sum(about["seconds"] for _, about in shards)}
