"""Shuffled, augmented, scaled batches on the device."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sabr.data.datasets import Split
from sabr.errors import SabrError
from sabr.provenance import child_seed
from sabr.settings import Dataset


class TrainingBatches:
    """Batches of training images, shuffled and augmented anew in each epoch.

    All random choices come from one generator on the CPU: equal seeds give equal batches on every device.

    Parameters
    ----------
    split
        Training images and labels; moved to `device` once, still as bytes.
    dataset
        Says whether images are flipped and how they are cropped.
    batch_size
        Images in each batch; what is left over at the end of an epoch is dropped, as in the authors' code.
    seed
        Seed of the generator.
    device
        Where batches are made and given out.

    Raises
    ------
    SabrError
        When there are not enough images for one batch.
    """

    def __init__(
        self, split: Split, dataset: Dataset, batch_size: int, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self._images = split.images.to(device)
        self._labels = split.labels.to(device)
        self._dataset = dataset
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        if not 1 <= batch_size <= len(split.labels):
            raise SabrError(
                f"batches of {batch_size} cannot be made of the {len(split.labels)} training images of {dataset.name}; "
                f"choose a batch size between 1 and {len(split.labels)}"
            )

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self._labels) // self._batch_size

    def epoch(self, *, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Each image at most once, in random order.

        All random choices of the epoch are made before its first batch.

        Parameters
        ----------
        skip
            So many batches at the start of the epoch are not given out.

        Yields
        ------
        Images, float32 in [0, 1] (batch_size, C, size, size), and labels, int64 (batch_size,), on the device.
        """
        count = len(self) * self._batch_size
        order = torch.randperm(len(self._labels), generator=self._generator)[:count]
        flips = torch.rand(count, generator=self._generator) < (0.5 if self._dataset.flip else 0.0)
        room = self._dataset.stored_size + 2 * self._dataset.padding - self._dataset.size
        corners = torch.randint(room + 1, (count, 2), generator=self._generator) - self._dataset.padding
        choices = [_moved(choice, self._images.device) for choice in (order, flips, corners)]
        for index in range(skip, len(self)):
            part = slice(index * self._batch_size, (index + 1) * self._batch_size)
            rows, flip, corner = (choice[part] for choice in choices)
            yield _scaled(flipped_crops(self._images, rows, flip, corner, self._dataset.size)), self._labels[rows]

    def state(self) -> Tensor:
        """State of the generator, a uint8 tensor; taken between two epochs it lets the next one be repeated."""
        return self._generator.get_state()

    def restore(self, state: Tensor) -> None:
        """Continue from what `state` gave."""
        self._generator.set_state(state.cpu())


def flipped_crops(images: Tensor, rows: Tensor, flips: Tensor, corners: Tensor, size: int) -> Tensor:
    """Flip some images left to right, then cut a window out of each; outside an image its edge pixels go on.

    Parameters
    ----------
    images
        (N, C, H, W), of any type.
    rows
        (B,) which images to take.
    flips
        (B,) bool, which of those to flip.
    corners
        (B, 2) row and column of the window's upper left corner; may be negative.
    size
        Height and width of the windows.

    Returns
    -------
    (B, C, size, size), of the type of `images`.
    """
    channels, height, width = images.shape[1:]
    window = torch.arange(size, device=images.device)
    y = (corners[:, :1] + window).clamp(0, height - 1)
    x = (corners[:, 1:] + window).clamp(0, width - 1)
    x = torch.where(flips[:, None], width - 1 - x, x)
    pixels = (y[:, :, None] * width + x[:, None, :]).view(-1, 1, size * size).expand(-1, channels, -1)
    return images[rows].flatten(2).gather(2, pixels).view(-1, channels, size, size)


def evaluation_images(
    split: Split, dataset: Dataset, indices: slice | Sequence[int] | Tensor, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Images as they are evaluated: the centre crop, neither shuffled nor augmented.

    Parameters
    ----------
    split
        Images and labels.
    dataset
        Says how large the crop is.
    indices
        Which images.
    device
        Where to put them.

    Returns
    -------
    Images, float32 in [0, 1] (B, C, size, size), and labels, int64 (B,).
    """
    margin = (dataset.stored_size - dataset.size) // 2
    window = slice(margin, margin + dataset.size)
    return _scaled(split.images[indices][..., window, window].to(device)), split.labels[indices].to(device)


class Held(NamedTuple):
    """Images that are held out of training, and the rest."""

    validation: Split
    rest: Split


def held_out(split: Split, count: int) -> Held:
    """Hold out `count` training images, the same ones whatever is trained: for choosing hyper-parameters.

    Raises
    ------
    SabrError
        When no image would be left.
    """
    available = len(split.labels)
    if count >= available:
        raise SabrError(
            f"{count} validation images cannot be held out of {available} training images; lower validation_images"
        )
    order = torch.randperm(available, generator=torch.Generator().manual_seed(child_seed(0, "validation")))
    chosen, rest = order[:count].sort().values, order[count:].sort().values
    return Held(*(Split(split.images[rows], split.labels[rows]) for rows in (chosen, rest)))


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor on the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _scaled(images: Tensor) -> Tensor:
    return images.to(torch.float32) / 255
