"""The first counterexamples of a few networks, with their images, as an archive of arrays; needs torch."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sabr.errors import SabrError
from sabr.files import atomic
from sabr.report.examples import FIELDS
from sabr.report.rows import Row, read_row
from sabr.trained import read_images, read_network


def collect(folders: Sequence[Path], data: Path, *, each: int) -> list[dict[str, Any]]:
    """The first refuted images of each network.

    Parameters
    ----------
    folders
        As `rows.read_row` takes them, with `model.pt`, `attack.pt` and `shards/*.pt`.
    data
        Folder of the prepared datasets.
    each
        How many of each network, at most.

    Returns
    -------
    list of dict
        `sabr.report.examples.FIELDS`: dataset, eps, method, seed; radius, eps as a number; index, label; refuted_by;
        wrong, the class that the network sees in the counterexample; image and point, (channels, height, width) in
        [0, 1].

    Raises
    ------
    SabrError
        When a file is missing, a refuted image has no counterexample, or one that is none is found: it lies outside the
        ball, or the network is right about it.
    """
    return [line for folder in folders for line in _of_row(read_row(folder), data, each)]


def write(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Write what `collect` returned; `sabr.report.examples.read` reads it, without torch.

    Images of several datasets have several shapes, so each is an array of its own.
    """
    arrays: dict[str, Any] = {
        f"{name}-{place}": np.asarray(line[name]) for place, line in enumerate(lines) for name in FIELDS
    }
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _of_row(row: Row, data: Path, each: int) -> list[dict[str, Any]]:
    refuted = row.verdicts[row.verdicts["refuted_by"] != ""].head(each)
    if refuted.empty:
        return []
    points = _points(row.folder)
    device = torch.device("cpu")
    network = read_network(row.folder / "model.pt", row.certification, data, device).network.double().eval()
    last = int(refuted["index"].max()) + 1
    images, labels = read_images(row.certification, data, 0, last, device)
    lines = []
    for verdict in refuted.to_dict("records"):
        index = int(verdict["index"])
        if index not in points:
            raise SabrError(
                f"{row.folder}: image {index} is refuted, but no counterexample of it is there; certify again"
            )
        point, image = points[index].double(), images[index].double()
        with torch.no_grad():
            wrong = int(network(point[None]).argmax())
        # A pixel's own rounding to float32.
        outside = float((point - image).abs().max()) > row.certification.eps + 1e-6
        if outside or wrong == int(labels[index]):
            problem = "lies outside the ball" if outside else "is classified right"
            raise SabrError(
                f"{row.folder}: the counterexample of image {index} {problem}; an attack is wrong, so report it"
            )
        lines.append(
            row.place._asdict()
            | {"radius": row.certification.eps, "index": index, "label": int(labels[index]), "wrong": wrong}
            | {"refuted_by": str(verdict["refuted_by"])}
            | {"image": image.float().numpy(), "point": point.float().numpy()}
        )
    return lines


def _points(folder: Path) -> dict[int, torch.Tensor]:
    """Counterexamples by image: the quick attack's and those of all shards."""
    found: dict[int, torch.Tensor] = {}
    for path in (folder / "attack.pt", *sorted((folder / "shards").glob("*.pt"))):
        try:
            stored = torch.load(path, weights_only=True)
            found |= dict(zip(stored["index"].tolist(), stored["points"], strict=True))
        except OSError as error:
            raise SabrError(f"cannot read {path}: {error.strerror or error}") from error
        except (
            RuntimeError,
            pickle.UnpicklingError,
            EOFError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            raise SabrError(f"{path} is no file of counterexamples; delete it and run again") from error
    return found
