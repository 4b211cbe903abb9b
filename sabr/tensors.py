"""Tensors on disk: plain, whole or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Write named tensors, plain values, and containers of them; equal ones give equal bytes.

    `torch.load(..., weights_only=True)` reads the file.

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
