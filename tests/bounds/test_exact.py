"""Every bound against the exact optimum of small networks."""

import pytest
import torch
from bounds.milp import exact_minimum

from sabr.bounds.auto_lirpa import METHODS, BoundedNetwork
from sabr.bounds.boxes import Box
from sabr.bounds.interval import margin_bounds, margin_rows
from sabr.networks.steps import LinearStep, forward


def region(seed, inputs, radius):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(1, inputs, generator=generator, dtype=torch.float64)
    return Box(centre - radius, centre + radius)


def in_float32(steps):
    """What auto_LiRPA computes in; float64 fails in its alpha-CROWN."""
    return [LinearStep(s.weight.float(), s.bias.float()) if isinstance(s, LinearStep) else s for s in steps]


@pytest.mark.parametrize("seed", range(12))
def test_no_bound_crosses_the_optimum(random_steps, seed):
    widths = [(4, 12, 9, 3), (2, 20, 2), (6, 8, 8, 8, 4)][seed % 3]
    steps = random_steps(seed, widths)
    box = region(seed, widths[0], radius=[0.01, 0.1, 0.4][seed // 4])
    labels = torch.tensor([seed % widths[-1]])
    weight, bias = margin_rows(steps[-1], labels)
    rows = torch.zeros(widths[-1] - 1, widths[-1], dtype=torch.float64)
    rows[:, labels] += 1
    others = [j for j in range(widths[-1]) if j != int(labels)]
    rows[range(len(others)), others] -= 1
    exact = []
    for row in rows:
        value, point = exact_minimum(steps, box, row)
        # The oracle itself: its point lies in the box and takes its value there, to the solver's feasibility of 1e-6.
        assert (point >= box.lower - 1e-6).all() and (point <= box.upper + 1e-6).all()
        assert float(row @ forward(steps, point)[0]) == pytest.approx(value, abs=1e-4)
        exact.append(value)
    exact = torch.tensor([exact])
    scale = 1 + exact.abs().max()
    assert (margin_bounds(steps, box, labels).lower <= exact + 1e-9 * scale).all()
    engine = BoundedNetwork(in_float32(steps), box.lower.shape[1:])
    previous = None
    for method in METHODS:
        bound = engine.margin_lower_bounds(Box(box.lower.float(), box.upper.float()), labels, method=method)
        assert (bound <= exact + 1e-5 * scale).all(), method
        if method == "alpha-crown":  # the only order that holds always: CROWN's inner bounds need not beat intervals
            assert (bound >= previous - 1e-5 * scale).all()
        previous = bound


def test_a_point_has_exact_bounds(random_steps):
    steps = random_steps(0)
    centre = region(0, 4, 0.0).centre.float()
    steps, box = in_float32(steps), Box(centre, centre)
    labels = torch.tensor([1])
    logits = forward(steps, box.lower)[0]
    expected = torch.stack([logits[1] - logits[0], logits[1] - logits[2]])
    engine = BoundedNetwork(steps, (4,))
    for method in METHODS:
        torch.testing.assert_close(
            engine.margin_lower_bounds(box, labels, method=method)[0], expected, rtol=1e-4, atol=1e-5
        )
