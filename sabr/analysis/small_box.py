"""A whole ball and a small box through a small network with two inputs, exactly and by intervals (paper, section 3)."""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from sabr.attacks.pgd import pgd
from sabr.bounds.boxes import Box, ball, small_box
from sabr.bounds.interval import propagate
from sabr.networks.steps import LinearStep, ReLUStep, Step, forward

# How many steps have been taken at each of the layers that are shown.
LAYERS = {"input": 0, "hidden": 2, "output": 3}


def network(seed: int) -> list[Step]:
    """A network 2 - 2 - 2 with normally distributed weights and small biases, drawn from `seed` alone."""
    generator = torch.Generator().manual_seed(seed)

    def linear() -> LinearStep:
        weight = torch.randn(2, 2, generator=generator)
        return LinearStep(weight, 0.3 * torch.randn(2, generator=generator))

    return [linear(), ReLUStep(), linear()]


def example() -> pd.DataFrame:
    """Return the study of the figure: a ball whose exact image is classified right while its interval bounds are not.

    The seed was chosen among the first 3,000 for showing this; it is an illustration, not a statistic.
    """
    step_sizes = [0.5] * 4 + [0.05] * 3 + [0.005]
    return study(network(208), torch.tensor([0.5, 0.5]), eps=0.3, lambda_ratio=0.3, step_sizes=step_sizes)


def study(
    steps: Sequence[Step],
    image: Tensor,
    *,
    eps: float,
    lambda_ratio: float,
    step_sizes: Sequence[float],
    resolution: int = 33,
) -> pd.DataFrame:
    """Propagate the ball of an image and a small box in it through a network with two neurons in every layer.

    The label is the network's own class of the image; the small box lies around the point that `pgd`, started at the
    image, finds worst, as in SABR.

    Parameters
    ----------
    steps
        Affine, ReLU and affine step, two neurons each.
    image
        (2,) in [0, 1].
    eps
        Radius of the ball, which is cut to [0, 1].
    lambda_ratio
        Radius of the small box in units of `eps`, in (0, 1].
    step_sizes
        Attack steps in units of the ball's radius.
    resolution
        Grid points along each side of a region.

    Returns
    -------
    pandas.DataFrame
        layer, a key of `LAYERS`; region, "ball", "small" or "image"; kind; row, column; x, y, the two neurons.
        kind "grid": the image of grid point (row, column) of the region, so that cells of neighbouring points tile
        the exact image of the region; "lower" and "upper": corners of the region's interval bounds; region "image"
        has one "clean" and one "adversarial" point per layer. Where there is no grid, row and column are 0.
    """
    centre = image.unsqueeze(0)
    region = ball(centre, eps)
    with torch.no_grad():
        label = forward(steps, centre).argmax(1)
    adversarial = pgd(steps, region, label, start=centre, step_sizes=step_sizes, stop_early=False).points
    boxes = {"ball": region, "small": small_box(adversarial, region, lambda_ratio * eps)}
    tables = []
    with torch.no_grad():
        for layer, count in LAYERS.items():
            first = steps[:count]
            for name, box in boxes.items():
                bounds = propagate(first, box).output
                tables.append(_points(layer, name, "lower", bounds.lower))
                tables.append(_points(layer, name, "upper", bounds.upper))
                tables.append(_points(layer, name, "grid", forward(first, grid(box, resolution)), resolution))
            tables.append(_points(layer, "image", "clean", forward(first, centre)))
            tables.append(_points(layer, "image", "adversarial", forward(first, adversarial)))
    return pd.concat(tables, ignore_index=True)


def grid(box: Box, resolution: int) -> Tensor:
    """(resolution ** 2, 2) points of one box (1, 2), row by row."""
    along = torch.linspace(0, 1, resolution)
    unit = torch.cartesian_prod(along, along)
    return box.lower + unit * (box.upper - box.lower)


def points_of(layer: str, kind: str, points: Tensor, resolution: int = 1) -> pd.DataFrame:
    """Points (P, 2) of one layer with their places in a grid: layer, kind, row, column, x, y."""
    index = pd.RangeIndex(len(points))
    return pd.DataFrame(
        {
            "layer": layer,
            "kind": kind,
            "row": index // resolution,
            "column": index % resolution,
            "x": points[:, 0].numpy(),
            "y": points[:, 1].numpy(),
        }
    )


def _points(layer: str, region: str, kind: str, points: Tensor, resolution: int = 1) -> pd.DataFrame:
    table = points_of(layer, kind, points, resolution)
    table.insert(1, "region", region)
    return table
