"""A ball through a small network exactly, by intervals, and by linear bounds (paper, section 2: bound propagation)."""

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from sabr.analysis.small_box import grid, points_of
from sabr.bounds.boxes import Box, ball
from sabr.bounds.crown import backward_bound
from sabr.bounds.inner import crown_inputs
from sabr.bounds.interval import propagate
from sabr.networks.steps import LinearStep, ReLUStep, Step, cast, forward

# How many steps have been taken at each of the layers that are shown.
LAYERS = {"first hidden": 2, "second hidden": 4, "output": 5}


def network(seed: int) -> list[Step]:
    """A network 2 - 2 - 2 - 2 with normally distributed weights and small biases, drawn from `seed` alone."""
    generator = torch.Generator().manual_seed(seed)

    def linear() -> LinearStep:
        weight = torch.randn(2, 2, generator=generator)
        return LinearStep(weight, 0.3 * torch.randn(2, generator=generator))

    return [linear(), ReLUStep(), linear(), ReLUStep(), linear()]


def example() -> pd.DataFrame:
    """Return the study of the figure: linear bounds prove what intervals do not.

    The seed was chosen among the first 3,000 for showing this; it is an illustration, not a statistic.
    """
    return study(network(575), torch.tensor([0.5, 0.5]), eps=0.3)


@torch.no_grad()
def study(
    steps: Sequence[Step], image: Tensor, *, eps: float, directions: int = 180, resolution: int = 49
) -> pd.DataFrame:
    """Propagate the ball of an image through a network with two neurons in every layer.

    Parameters
    ----------
    steps
        Affine and ReLU steps in turn, an affine one last, two neurons each.
    image
        (2,) in [0, 1].
    eps
        Radius of the ball, which is cut to [0, 1].
    directions
        In so many directions, evenly around the circle, linear bounds of a layer's two neurons together are computed.
    resolution
        Grid points along each side of the ball.

    Returns
    -------
    pandas.DataFrame
        layer, a key of `LAYERS`; kind; row, column; x, y, the two neurons. kind "grid": the image of grid point
        (row, column) of the ball, so that cells of neighbouring points tile the exact image; "lower" and "upper":
        corners of the interval bounds; "relaxation": corners, in order of `row`, of the polygon of all points that the
        linear bounds of CROWN (DeepPoly) leave possible in the given directions; "clean": the image itself.
    """
    centre = image.unsqueeze(0)
    region = ball(centre, eps)
    intervals = propagate(steps, region)
    bounds = crown_inputs(steps, region, intervals.relu_inputs, memory=10**8)
    tables = []
    for layer, count in LAYERS.items():
        first = steps[:count]
        relus = sum(isinstance(step, ReLUStep) for step in first)
        box = propagate(first, region).output
        for kind, points in (
            ("lower", box.lower),
            ("upper", box.upper),
            ("relaxation", _polygon(first, region, bounds[:relus], directions)),
            ("clean", forward(first, centre)),
        ):
            tables.append(points_of(layer, kind, points))
        tables.append(points_of(layer, "grid", forward(first, grid(region, resolution)), resolution))
    return pd.concat(tables, ignore_index=True)


def _polygon(steps: Sequence[Step], region: Box, relu_inputs: Sequence[Box], directions: int) -> Tensor:
    """Corners (directions, 2), counter-clockwise, where the lines of neighbouring directions meet.

    All points that linear bounds leave possible are a convex set, whose least value in each direction CROWN finds
    exactly: its one lower and one upper line for each ReLU are eliminated one after the other.
    """
    exact, box = cast(steps, torch.float64), Box(region.lower.double(), region.upper.double())
    angles = torch.arange(directions, dtype=torch.float64) * (2 * math.pi / directions)
    normals = torch.stack([angles.cos(), angles.sin()], 1)
    bounds = [Box(b.lower.double(), b.upper.double()) for b in relu_inputs]
    least = backward_bound(exact, box, bounds, normals.unsqueeze(0), torch.zeros(1, directions, dtype=torch.float64))[0]
    pairs = torch.stack([normals, normals.roll(-1, 0)], 1)
    corners: Tensor = torch.linalg.solve(pairs, torch.stack([least, least.roll(-1, 0)], 1))
    return corners
