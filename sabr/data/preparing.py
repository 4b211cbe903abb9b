"""A named dataset fetched, decoded and written as uint8 tensors, once."""

import io
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sabr.data.datasets import Split
from sabr.data.sources import Files, obtain
from sabr.errors import SabrError
from sabr.files import atomic, checksum, read_json, write_json
from sabr.settings import Dataset
from sabr.tensors import save_tensors


def prepare(dataset: Dataset, folder: Path, *, mirror: Path | None) -> None:
    """Fetch and decode a dataset into ``folder/<name>/``: train.pt, test.pt and, last, source.json.

    Nothing is done when all three are there and have the recorded checksums. To change the source, delete the folder.
    Archives stay in ``folder/<name>/downloads/`` and may be deleted. Several processes may prepare at once.

    Parameters
    ----------
    dataset
        Which one.
    folder
        Folder of all datasets.
    mirror
        Directory with the original files that is tried before the official site; see `sabr.data.sources`.

    Raises
    ------
    SabrError
        When no source has the right files, an image cannot be decoded, or `folder` cannot be written to.
    """
    home = folder / dataset.name
    if _is_whole(home):
        return
    originals = obtain(dataset.name, home / "downloads", mirror)
    splits = _DECODERS[dataset.name](originals.files, dataset)
    sums = {}
    for name, split in splits.items():
        with atomic(home / f"{name}.pt") as temporary:
            save_tensors(split._asdict(), temporary)
            sums[f"{name}.pt"] = checksum(temporary)
    write_json(
        home / "source.json",
        {
            "dataset": dataset.name,
            "source": originals.source,
            "check": originals.check,
            "originals": originals.checksums,
            "images": {name: len(split.labels) for name, split in splits.items()},
            "prepared": sums,
        },
    )


def _is_whole(home: Path) -> bool:
    """Whether all files are there with the checksums that source.json records."""
    try:
        recorded = read_json(home / "source.json")["prepared"]
        return all(checksum(home / name) == recorded[name] for name in ("train.pt", "test.pt"))
    except (SabrError, OSError, TypeError, LookupError):
        return False


def _decode_mnist(files: Files, dataset: Dataset) -> dict[str, Split]:
    def split(prefix: str) -> Split:
        images = np.frombuffer(files[f"{prefix}-images-idx3-ubyte"], np.uint8, offset=16)
        labels = np.frombuffer(files[f"{prefix}-labels-idx1-ubyte"], np.uint8, offset=8)
        return _split(images, labels, dataset)

    return {"train": split("train"), "test": split("t10k")}


def _decode_cifar10(files: Files, dataset: Dataset) -> dict[str, Split]:
    def split(names: Sequence[str]) -> Split:
        batches = [unpickle(files[name]) for name in names]
        images = np.concatenate([batch["data"] for batch in batches])
        return _split(images, np.concatenate([batch["labels"] for batch in batches]), dataset)

    return {"train": split([f"data_batch_{i}" for i in range(1, 6)]), "test": split(["test_batch"])}


def _decode_tinyimagenet(files: Files, dataset: Dataset) -> dict[str, Split]:
    label = {wnid: i for i, wnid in enumerate(files["wnids.txt"].decode().split())}
    annotations = [line.split("\t") for line in files["val/val_annotations.txt"].decode().splitlines()]
    named = {
        "train": [(name, label[name.split("/")[1]]) for name in sorted(files) if name.startswith("train/")],
        "test": [(f"val/images/{name}", label[wnid]) for name, wnid, *_ in annotations],
    }

    def split(examples: Sequence[tuple[str, int]]) -> Split:
        size = dataset.stored_size
        pixels = np.empty((len(examples), dataset.channels, size, size), np.uint8)

        def decode(i: int) -> None:
            pixels[i] = _decode_jpeg(files[examples[i][0]], examples[i][0], size)

        with ThreadPoolExecutor() as pool:
            list(pool.map(decode, range(len(examples)), chunksize=256))
        return _split(pixels, np.array([label for _, label in examples]), dataset)

    return {name: split(examples) for name, examples in named.items()}


def _decode_jpeg(data: bytes, name: str, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One image as (3, size, size); a grey one has three equal channels."""
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if image.size == (size, size):
                return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
            problem = f"is {image.size[0]} x {image.size[1]} pixels"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"cannot be decoded ({error})"
    raise SabrError(f"{name} {problem} instead of being a JPEG image of {size} x {size}; replace it with the original")


def _split(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], dataset: Dataset) -> Split:
    shape = (-1, dataset.channels, dataset.stored_size, dataset.stored_size)
    return Split(torch.tensor(images).view(shape), torch.tensor(labels, dtype=torch.int64))


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can make containers, text, numbers and numpy arrays, and calls nothing else."""

    _ALLOWED: dict[str, Callable[..., Any]] = {
        "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],  # type: ignore[dict-item]
        "numpy._core.multiarray._reconstruct": np.empty(0).__reduce__()[0],  # type: ignore[dict-item]
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise SabrError(f"a pickle asks for {module}.{name}; it is not an original file, delete it") from None


def unpickle(data: bytes) -> Any:
    """Containers and numpy arrays from a pickle of Python 2 or 3.

    Raises
    ------
    SabrError
        When the pickle asks for anything else; nothing of it has been called then.
    """
    return _ArraysOnly(io.BytesIO(data), encoding="latin1").load()


_DECODERS: dict[str, Callable[[Files, Dataset], dict[str, Split]]] = {
    "mnist": _decode_mnist,
    "cifar10": _decode_cifar10,
    "tinyimagenet": _decode_tinyimagenet,
}
