"""What stands at the inputs of the last ReLU layer (paper: input distribution of the last ReLU layer)."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from sabr.analysis.batches import parts
from sabr.bounds.boxes import Box
from sabr.bounds.interval import propagate
from sabr.networks.steps import Step

# The middle 99 % of the values get about so many bins.
_BINS = 60


@torch.no_grad()
def measure(steps: Sequence[Step], images: Tensor, *, memory_mb: float) -> pd.DataFrame:
    """A histogram of the inputs of all ReLUs of the last ReLU layer, at all images.

    Parameters
    ----------
    steps
        A folded network that ends in a linear layer, without gradients.
    images
        (N, channels, height, width) in [0, 1].
    memory_mb
        What the tensors of a batch may take, roughly.

    Returns
    -------
    pandas.DataFrame
        layer, the number of the last ReLU layer; images; lower_edge, upper_edge of a bin: multiples of a round width,
        so that 0 is an edge where it is in range, from the smallest to the largest value; share of the values in the
        bin, all together 1; mean of the values, and negative_share, of those below 0, the same in every row.

    Raises
    ------
    ValueError
        When there is no ReLU.
    """
    values, layer = [], 0
    for part in parts(steps, images, memory_mb):
        points = images[part]
        relu_inputs = propagate(steps[:-1], Box(points, points)).relu_inputs
        if not relu_inputs:
            raise ValueError("a network without ReLUs has no last ReLU layer")
        layer = len(relu_inputs)
        values.append(relu_inputs[-1].centre.double().cpu().flatten())
    flat: NDArray[np.float64] = torch.cat(values).numpy()
    edges = _edges(flat)
    counts, _ = np.histogram(flat, edges)
    return pd.DataFrame(
        {
            "layer": layer,
            "images": len(images),
            "lower_edge": edges[:-1],
            "upper_edge": edges[1:],
            "share": counts / len(flat),
            "mean": flat.mean(),
            "negative_share": (flat < 0).mean(),
        }
    )


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiples of a width of 1, 2 or 5 times a power of ten, around all values."""
    low, high = np.quantile(values, [0.005, 0.995])
    wanted = (float(high - low) or max(abs(float(high)), 1.0)) / _BINS
    power = 10.0 ** math.floor(math.log10(wanted))
    width = next(step * power for step in (1, 2, 5, 10) if step * power >= wanted * (1 - 1e-9))
    first, last = math.floor(float(values.min()) / width), math.floor(float(values.max()) / width) + 1
    return width * np.arange(first, last + 1, dtype=np.float64)
