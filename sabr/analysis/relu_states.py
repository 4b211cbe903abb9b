"""How many ReLUs are active, inactive and unstable, at points and over balls (paper: Table 4)."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from sabr.analysis.batches import parts
from sabr.bounds.boxes import Box, ball
from sabr.bounds.interval import propagate
from sabr.networks.steps import Step


@torch.no_grad()
def measure(steps: Sequence[Step], images: Tensor, *, eps: float, memory_mb: float) -> pd.DataFrame:
    """Mean shares over images of the ReLUs in each state, by interval bounds of their inputs.

    Intervals are what the paper's networks are trained with, and what Shi et al. (2021) count states by; tighter
    bounds would find fewer unstable ReLUs.

    Parameters
    ----------
    steps
        A folded network that ends in a linear layer, without gradients.
    images
        (N, channels, height, width) in [0, 1].
    eps
        Radius of the balls, which are cut to [0, 1], in pixel units.
    memory_mb
        What the tensors of a batch may take, roughly.

    Returns
    -------
    pandas.DataFrame
        where, "point" (the image itself) or "region" (its ball); images; layer, the number of the ReLU layer from "1"
        on, or "all": every ReLU of the network counts the same; active, the input is positive, inactive, the input is
        not positive, at every point of the bounds; unstable, neither: in %, together 100.
    """
    counts: dict[str, list[Tensor]] = {}
    sizes: list[int] = []
    for part in parts(steps, images, memory_mb):
        points = images[part]
        for where, region in (("point", Box(points, points)), ("region", ball(points, eps))):
            relu_inputs = propagate(steps[:-1], region).relu_inputs
            sizes = [inputs.centre[0].numel() for inputs in relu_inputs]
            counts.setdefault(where, []).append(torch.stack([_counts(b.lower, b.upper) for b in relu_inputs]))
    lines = []
    for where, found in counts.items():
        total = torch.stack(found).sum(0)
        for layer, own, size in zip(range(1, len(sizes) + 1), total, sizes, strict=True):
            lines.append((where, len(images), str(layer), *_percent(own, len(images) * size)))
        lines.append((where, len(images), "all", *_percent(total.sum(0), len(images) * sum(sizes))))
    return pd.DataFrame(lines, columns=["where", "images", "layer", "active", "inactive", "unstable"])


def _counts(lower: Tensor, upper: Tensor) -> Tensor:
    """How many of the inputs are positive, are not, may be either."""
    active, inactive = (lower > 0).sum(), (upper <= 0).sum()
    return torch.stack([active, inactive, lower.numel() - active - inactive]).cpu()


def _percent(counts: Tensor, whole: int) -> list[float]:
    return [100 * count / whole for count in counts.tolist()]
