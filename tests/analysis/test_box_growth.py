from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from sabr.analysis import box_growth

MEAN, DEVIATION = -1.0, 0.5


def closed_form(sizes: Any) -> Any:
    """E[ReLU(c + s/2)] - E[ReLU(c - s/2)] for normal c, each the integral of x over the positive half line."""

    def relu_mean(shift: Any) -> Any:
        mean = MEAN + shift
        return mean * norm.cdf(mean / DEVIATION) + DEVIATION * norm.pdf(mean / DEVIATION)

    return relu_mean(sizes / 2) - relu_mean(-sizes / 2)


def test_agrees_with_the_closed_form_and_with_quadrature() -> None:
    sizes = np.linspace(0, 2, 11)
    table = box_growth.simulate(sizes, centres=200_000)
    assert table["output_size"].to_numpy() == pytest.approx(closed_form(sizes), abs=1e-3)
    z = np.abs(table["output_size"] - closed_form(sizes))[1:] / table["standard_error"][1:]
    assert z.max() < 4.5
    for size, exact in zip(sizes, closed_form(sizes), strict=True):
        grown = norm.expect(lambda c, r=size / 2: max(c + r, 0) - max(c - r, 0), loc=MEAN, scale=DEVIATION)
        assert grown == pytest.approx(exact, abs=1e-6)


def test_linear_extrapolation_starts_with_the_share_of_active_centres() -> None:
    table = box_growth.simulate(np.array([0.0, 0.001, 1.0]))
    slope = table["linear"].iloc[2] / table["input_size"].iloc[2]
    assert slope == pytest.approx(norm.sf(0, MEAN, DEVIATION), rel=0.03)
    assert table["linear"].iloc[1] == table["output_size"].iloc[1]
    assert table["output_size"].iloc[0] == 0


def test_grows_faster_than_linearly_where_more_mass_is_inactive() -> None:
    table = box_growth.simulate(np.linspace(0, 2, 21), centres=20_000)
    ratio = (table["output_size"] / table["input_size"])[1:]
    assert (ratio.diff().dropna() > 0).all()


def test_same_seed_same_table() -> None:
    sizes = np.array([0.5])
    first, second, other = (box_growth.simulate(sizes, centres=1000, seed=seed) for seed in (1, 1, 2))
    assert first.equals(second)
    assert not first["output_size"].equals(other["output_size"])


@pytest.mark.parametrize("sizes", [[], [0.0], [-1.0, 1.0], [1.0, 0.5], [0.5, 0.5]])
def test_refuses_sizes_out_of_order(sizes: list[float]) -> None:
    with pytest.raises(ValueError, match="sizes must increase"):
        box_growth.simulate(np.array(sizes))
