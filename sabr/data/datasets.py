"""A prepared dataset: uint8 tensors on disk, mapped into memory."""

import pickle
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sabr.errors import SabrError
from sabr.files import checksum, read_json
from sabr.settings import Dataset

SplitName = Literal["train", "test"]


class Split(NamedTuple):
    """Images, uint8 (N, C, stored_size, stored_size), and their labels, int64 (N,)."""

    images: Tensor
    labels: Tensor


def load(dataset: Dataset, folder: Path, split: SplitName) -> Split:
    """Map one split of a prepared dataset into memory.

    Parameters
    ----------
    dataset
        Which one.
    folder
        Folder of all datasets, as given to `sabr.data.preparing.prepare`.
    split
        "train" or "test".

    Raises
    ------
    SabrError
        When the file is missing, truncated, or does not hold what the dataset is.
    """
    home = folder / dataset.name
    path = home / f"{split}.pt"
    if not path.is_file() or not (home / "source.json").is_file():
        raise SabrError(f"{path} is not there or not finished; run `sabr data {dataset.name}`")
    try:
        if checksum(path) != fingerprint(dataset, folder, split):
            raise SabrError("its checksum is not the recorded one")
        count = read_json(home / "source.json")["images"][split]
        loaded = Split(**torch.load(path, map_location="cpu", mmap=True, weights_only=True))
        shapes = (tuple(loaded.images.shape), tuple(loaded.labels.shape))
    except (SabrError, OSError, EOFError, RuntimeError, pickle.UnpicklingError, TypeError, LookupError) as error:
        raise SabrError(f"{path} is truncated or damaged; run `sabr data {dataset.name}`") from error
    expected = ((count, dataset.channels, dataset.stored_size, dataset.stored_size), (count,))
    if shapes != expected or (loaded.images.dtype, loaded.labels.dtype) != (torch.uint8, torch.int64):
        raise SabrError(
            f"{path} holds images and labels of shapes {shapes} instead of {expected}, or of other types than uint8 "
            f"and int64; run `sabr data {dataset.name}`"
        )
    return loaded


def fingerprint(dataset: Dataset, folder: Path, split: SplitName) -> str:
    """SHA-256 of a prepared split, for results to say what they were made of.

    Raises
    ------
    SabrError
        When the dataset is not prepared.
    """
    source = folder / dataset.name / "source.json"
    try:
        return str(read_json(source)["prepared"][f"{split}.pt"])
    except (SabrError, TypeError, LookupError) as error:
        raise SabrError(f"{source} is missing or damaged; run `sabr data {dataset.name}`") from error
