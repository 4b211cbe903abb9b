"""How boxes grow layer by layer in a trained network, against their size at the input (paper, section 4, measured)."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from sabr.analysis.batches import parts
from sabr.bounds.boxes import ball
from sabr.bounds.interval import Centred, propagate
from sabr.networks.steps import Step

STAGES = ("before", "after")


@torch.no_grad()
def measure(
    steps: Sequence[Step], images: Tensor, *, eps: float, lambda_ratios: Sequence[float], memory_mb: float
) -> pd.DataFrame:
    """Mean radii of the boxes that intervals give before and after every ReLU layer, for balls of growing radius.

    Parameters
    ----------
    steps
        A folded network that ends in a linear layer, without gradients.
    images
        (N, channels, height, width) in [0, 1], the centres of the balls.
    eps
        Radius of the largest ball, in pixel units.
    lambda_ratios
        Radii in units of `eps`; 0, a point, is left out, and rows are in increasing order.
    memory_mb
        What the tensors of a batch may take, roughly.

    Returns
    -------
    pandas.DataFrame
        layer, the number of the ReLU layer from 1 on; stage, "before" or "after" the ReLU; lambda_ratio; images;
        input_radius, mean radius of the balls, cut to [0, 1], over pixels and images; mean_radius, likewise over the
        layer's neurons; linear, what that would be if it grew in proportion to input_radius from the smallest lambda
        on. Images' borders keep input_radius from growing quite in proportion to lambda.
    """
    ratios = sorted(ratio for ratio in lambda_ratios if ratio > 0)
    collected = []
    for part in parts(steps, images, memory_mb):
        rows = []
        for ratio in ratios:
            region = ball(images[part], ratio * eps)
            radii = [region.radius]
            for inputs in propagate(steps[:-1], region).relu_inputs:
                radii += [inputs.radius, _after(inputs)]
            rows.append(torch.stack([radius.double().mean().cpu() for radius in radii]))
        collected.append(len(images[part]) * torch.stack(rows))
    means = torch.stack(collected).sum(0) / len(images)
    lines = []
    for place in range(1, means.shape[1]):
        layer, stage = (place + 1) // 2, STAGES[(place + 1) % 2]
        for ratio, row in zip(ratios, means, strict=True):
            linear = float(means[0, place] / means[0, 0] * row[0])
            lines.append((layer, stage, ratio, len(images), float(row[0]), float(row[place]), linear))
    columns = ["layer", "stage", "lambda_ratio", "images", "input_radius", "mean_radius", "linear"]
    return pd.DataFrame(lines, columns=columns)


def _after(inputs: Centred) -> Tensor:
    """Radius of the box behind a ReLU."""
    return (inputs.upper.clamp(min=0) - inputs.lower.clamp(min=0)) / 2
