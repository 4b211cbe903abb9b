"""How the networks of a run were trained, and with which code and machine: hyper-parameters and provenance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sabr import tables
from sabr.report.rows import read_row
from sabr.settings import DATASETS

_HYPER_PARAMETERS = {
    **{"dataset": "str", "eps": "str", "method": "str", "seed": "int64", "objective": "str", "architecture": "str"},
    **{"train_images": "int64", "epochs": "int64", "batch_size": "int64", "learning_rate": "float64", "drops": "str"},
    **{"ramp_start": "int64", "ramp_end": "int64", "eps_trained": "float64", "lambda_ratio": "float64"},
    **{"l1": "float64", "relu_shrinkage": "float64"},
}


def hyper_parameters(folders: Sequence[Path]) -> pd.DataFrame:
    """What the paper's appendix lists of every network.

    Parameters
    ----------
    folders
        As `rows.read_row` takes them.

    Returns
    -------
    pandas.DataFrame
        One line per network: dataset, eps, method, seed; objective; architecture; train_images, epochs, batch_size,
        learning_rate; drops, the epochs at which it falls, such as "50, 60"; ramp_start, ramp_end, epochs between which
        eps grows; eps_trained, what it grows to; lambda_ratio, relu_shrinkage (NaN where there is none), l1.

    Raises
    ------
    SabrError
        As `rows.read_row`.
    """
    lines = []
    for row in map(read_row, folders):
        training, method = row.training, row.training.method
        lines.append(
            row.place._asdict()
            | training.model_dump(include={"architecture", "epochs", "batch_size", "learning_rate"})
            | training.model_dump(include={"ramp_start", "ramp_end"})
            | {
                "objective": method.objective,
                "train_images": training.train_images or DATASETS[training.dataset].train_images,
                "drops": ", ".join(map(str, training.learning_rate_drops)),
                "eps_trained": training.eps * getattr(method, "eps_ratio", 1.0),
                "lambda_ratio": getattr(method, "lambda_ratio", None),
                "l1": method.l1,
                "relu_shrinkage": getattr(method, "relu_shrinkage", None),
            }
        )
    return pd.DataFrame(lines, columns=list(_HYPER_PARAMETERS)).astype(_HYPER_PARAMETERS)


def read(path: Path) -> pd.DataFrame:
    """Read what `hyper_parameters` returned, from CSV.

    Raises
    ------
    SabrError
        When it cannot be read.
    """
    return tables.read(path, _HYPER_PARAMETERS, ("drops", "lambda_ratio", "relu_shrinkage"))


def provenance(folders: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """With which versions, commit and machine the networks were trained and certified.

    Parameters
    ----------
    folders
        As `rows.read_row` takes them.

    Returns
    -------
    dict
        "trained" and "certified": every provenance that occurs, once, and how many `networks` have it, most first.

    Raises
    ------
    SabrError
        As `rows.read_row`.
    """
    rows = [read_row(folder) for folder in folders]
    kinds: Mapping[str, list[dict[str, Any]]] = {
        "trained": [row.model["provenance"] for row in rows],
        "certified": [row.judged["provenance"] for row in rows],
    }
    return {kind: _counted(found) for kind, found in kinds.items()}


def _counted(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    distinct: list[dict[str, Any]] = []
    for one in found:
        if one not in distinct:
            distinct.append(one)
    counted = [{"networks": found.count(one), **one} for one in distinct]
    return sorted(counted, key=lambda one: -int(one["networks"]))
