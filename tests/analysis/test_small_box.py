from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sabr.analysis import small_box
from sabr.networks.steps import LinearStep, ReLUStep, Step


def corners(table: pd.DataFrame, layer: str, region: str) -> Any:
    part = table[(table["layer"] == layer) & (table["region"] == region)].set_index("kind")
    return list(part.loc["lower", ["x", "y"]]), list(part.loc["upper", ["x", "y"]])


@pytest.fixture(scope="module")
def example() -> pd.DataFrame:
    return small_box.example()


def test_bounds_hold_the_exact_images(example: pd.DataFrame) -> None:
    for layer in small_box.LAYERS:
        for region in ("ball", "small"):
            lower, upper = corners(example, layer, region)
            part = example[(example["layer"] == layer) & (example["region"] == region) & (example["kind"] == "grid")]
            for name, low, high in zip(("x", "y"), lower, upper, strict=True):
                assert low - 1e-5 <= part[name].min() and part[name].max() <= high + 1e-5


def test_small_box_lies_in_the_ball_at_every_layer(example: pd.DataFrame) -> None:
    for layer in small_box.LAYERS:
        (low, high), (small_low, small_high) = corners(example, layer, "ball"), corners(example, layer, "small")
        assert all(a <= b + 1e-5 for a, b in zip(low, small_low, strict=True))
        assert all(a >= b - 1e-5 for a, b in zip(high, small_high, strict=True))
    assert corners(example, "input", "ball") == (pytest.approx([0.2, 0.2]), pytest.approx([0.8, 0.8]))
    low, high = corners(example, "input", "small")
    assert [b - a for a, b in zip(low, high, strict=True)] == pytest.approx([0.18, 0.18])


def test_example_shows_what_it_says(example: pd.DataFrame) -> None:
    """The ball's exact image keeps the class of the clean point, its interval bounds do not, the small box's do."""
    output = example[example["layer"] == "output"]
    clean = output[output["kind"] == "clean"].iloc[0]
    sign = 1 if clean["x"] > clean["y"] else -1
    ball = output[(output["region"] == "ball") & (output["kind"] == "grid")]
    assert (sign * (ball["x"] - ball["y"])).min() > 0

    def worst(region: str) -> float:
        (x0, y0), (x1, y1) = corners(example, "output", region)
        return float(x0 - y1 if sign > 0 else y0 - x1)

    assert worst("ball") < 0 < worst("small")


def test_by_hand() -> None:
    eye, zero = torch.eye(2), torch.zeros(2)
    steps: list[Step] = [
        LinearStep(2 * eye, zero - 1),
        ReLUStep(),
        LinearStep(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), zero),
    ]
    image = torch.tensor([0.5, 0.75])
    table = small_box.study(steps, image, eps=0.25, lambda_ratio=0.5, step_sizes=[1.0, 1.0], resolution=2)
    # [0.25, 0.75] x [0.5, 1] -> [-0.5, 0.5] x [0, 1] -> [0, 0.5] x [0, 1]
    assert corners(table, "hidden", "ball") == (pytest.approx([0, 0]), pytest.approx([0.5, 1]))
    assert corners(table, "output", "ball") == (pytest.approx([0, -1]), pytest.approx([1.5, 0.5]))
    grid = table[(table["layer"] == "input") & (table["region"] == "ball") & (table["kind"] == "grid")]
    assert grid[["row", "column"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_round_trip(example: pd.DataFrame, tmp_path: Path) -> None:
    example.to_csv(tmp_path / "small_box.csv", index=False)
    back = pd.read_csv(tmp_path / "small_box.csv")
    pd.testing.assert_frame_equal(back, example, check_dtype=False)
