"""How many images a study looks at together."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sabr.attacks.search import rows_within
from sabr.bounds.boxes import ball
from sabr.networks.steps import LinearStep, Step

# A propagated box has a centre and a radius at each place, and what is computed of them, where an attack has a point.
_BOX_FOR_POINTS = 3


def parts(steps: Sequence[Step], images: Tensor, megabytes: float) -> Iterator[slice]:
    """Cut images into parts whose boxes go through a network within so much memory, roughly.

    Parameters
    ----------
    steps
        A network that ends in a linear layer, whose margins count too.
    images
        (N, ...).
    megabytes
        Of 10^6 bytes; at least one image is in each part.
    """
    last = steps[-1]
    if not isinstance(last, LinearStep):
        raise TypeError(f"margins need a network that ends in a linear layer, not in {type(last).__name__}")
    points = rows_within(steps, ball(images[:1], 0), megabytes / _BOX_FOR_POINTS)
    margins = 3 * last.weight.numel() * last.weight.element_size()  # rows, their absolute values, what they come from
    size = max(1, min(points, int(megabytes * 1e6 / 2 // margins)))
    for first in range(0, len(images), size):
        yield slice(first, first + size)


def means(losses: Sequence[Tensor]) -> Tensor:
    """Mean over images of the parts' values, (..., B) each, in float64 on the CPU."""
    return torch.cat([part.double().cpu() for part in losses], -1).mean(-1)
