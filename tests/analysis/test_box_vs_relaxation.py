from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sabr.analysis import box_vs_relaxation
from sabr.bounds.boxes import ball
from sabr.bounds.crown import backward_bound
from sabr.bounds.inner import crown_inputs
from sabr.bounds.interval import propagate
from sabr.networks.steps import LinearStep, ReLUStep


@pytest.fixture(scope="module")
def example() -> pd.DataFrame:
    return box_vs_relaxation.example()


def points(table, layer, kind):
    part = table[(table["layer"] == layer) & (table["kind"] == kind)]
    return part.sort_values(["row", "column"])[["x", "y"]].to_numpy()


def outside(polygon, found):
    """How far any point lies outside a convex polygon, corners counter-clockwise."""
    edges = np.roll(polygon, -1, 0) - polygon
    lengths = np.linalg.norm(edges, axis=1)
    kept = lengths > 1e-6
    normals = np.stack([edges[:, 1], -edges[:, 0]], 1)[kept] / lengths[kept, None]
    return max(0.0, float((found @ normals.T - (polygon[kept] * normals).sum(1)).max()))


def test_both_bounds_hold_the_exact_image(example):
    for layer in box_vs_relaxation.LAYERS:
        exact, polygon = points(example, layer, "grid"), points(example, layer, "relaxation")
        (low,), (high,) = points(example, layer, "lower"), points(example, layer, "upper")
        assert (exact >= low - 1e-5).all() and (exact <= high + 1e-5).all()
        assert outside(polygon, exact) < 1e-4
        assert outside(polygon, points(example, layer, "clean")) < 1e-4
    assert outside(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([[0.6, 0.6]])) > 0.1


def test_example_shows_what_it_says(example):
    """The class of the clean point is proved by linear bounds, and not by intervals."""
    (clean,), polygon = points(example, "output", "clean"), points(example, "output", "relaxation")
    sign = 1 if clean[0] > clean[1] else -1
    (low,), (high,) = points(example, "output", "lower"), points(example, "output", "upper")
    assert (low[0] - high[1] if sign > 0 else low[1] - high[0]) < 0
    assert (sign * (polygon[:, 0] - polygon[:, 1])).min() > 0


def test_by_hand():
    """Y = |x1 - 0.5| in both neurons, twice: over the whole line the triangle leaves 0 <= y <= 0.5, and more below."""
    first = LinearStep(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([-0.5, 0.5]))
    steps = [
        first,
        ReLUStep(),
        LinearStep(torch.eye(2), torch.zeros(2)),
        ReLUStep(),
        LinearStep(torch.eye(2), torch.zeros(2)),
    ]
    table = box_vs_relaxation.study(steps, torch.tensor([0.5, 0.5]), eps=0.5, directions=8, resolution=3)
    polygon = points(table, "first hidden", "relaxation")
    # Lower lines are 0, upper ones (x1 - 0.5) / 2 + 0.25 and 0.25 - (x1 - 0.5) / 2, so that z1 + z2 <= 0.5.
    assert (polygon.min(0), polygon.max(0)) == (pytest.approx([0, 0], abs=1e-6), pytest.approx([0.5, 0.5]))
    assert polygon.sum(1).max() == pytest.approx(0.5)
    assert points(table, "first hidden", "upper")[0] == pytest.approx([0.5, 0.5])
    assert len(points(table, "output", "grid")) == 9


def test_corners_are_what_linear_bounds_say():
    """In each direction the polygon reaches as far as a backward pass of its own."""
    steps, region = box_vs_relaxation.network(3), ball(torch.tensor([[0.4, 0.6]]), 0.3)
    table = box_vs_relaxation.study(steps, torch.tensor([0.4, 0.6]), eps=0.3, directions=360)
    bounds = crown_inputs(steps, region, propagate(steps, region).relu_inputs, memory=10**7)
    polygon = points(table, "output", "relaxation")
    for normal in ([1.0, 0.0], [0.0, -1.0], [0.6, 0.8], [-0.8, 0.6]):
        least = backward_bound(steps, region, bounds, torch.tensor([[normal]]), torch.zeros(1, 1))
        assert (polygon @ np.array(normal)).min() == pytest.approx(float(least), abs=2e-3)


def test_round_trip(example, tmp_path: Path):
    example.to_csv(tmp_path / "study.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "study.csv"), example, check_dtype=False)
    assert example.equals(box_vs_relaxation.example())
