"""Tensors on disk: plain, whole or not at all."""

from pathlib import Path

import torch
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write named tensors to a file that `torch.load(..., weights_only=True)` reads; equal tensors give equal bytes.

    Raises
    ------
    OSError
        When not all of it can be written, on a full disk for instance.
    """
    try:
        with path.open("wb") as file:  # given the name, torch would write it into the file
            torch.save(tensors, file)
    except RuntimeError as error:  # this is how torch reports a full disk
        raise OSError("not all of it could be written; the disk may be full") from error
