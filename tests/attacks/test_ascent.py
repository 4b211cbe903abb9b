import pytest
import torch

from sabr.attacks.ascent import ascend
from sabr.bounds.boxes import Box


def hill(points):
    return -(points - 0.6).square().sum(-1)


def test_by_hand():
    # Radii 1 and 0.5: the step is in units of each. From 0 the first step leads to (0.5, 0.25), the second too far.
    region = Box(torch.tensor([[-1.0, -0.5]]), torch.tensor([[1.0, 0.5]]))
    found = ascend(hill, region, start=torch.zeros(1, 2), step_sizes=[0.5, 0.5])
    assert found.tolist() == [[0.5, 0.25]] or hill(found) >= hill(torch.tensor([[0.5, 0.25]]))
    slope = ascend(lambda points: points.sum(-1), region, start=torch.zeros(1, 2), step_sizes=[0.25, 0.25])
    assert slope.tolist() == [[0.5, 0.25]]


def test_the_best_iterate_is_kept_and_the_last_counts():
    region = Box(torch.zeros(2, 1), torch.ones(2, 1))
    start = torch.tensor([[0.59], [0.0]])
    found = ascend(hill, region, start=start, step_sizes=[1.0, 0.1])
    # One overshoots to 1 and comes back to 0.95, so that its start was best; the other ends where it is best.
    torch.testing.assert_close(found, torch.tensor([[0.59], [0.55]]), rtol=0, atol=1e-6)


def test_a_single_step_is_taken_without_looking():
    region = Box(torch.zeros(1, 1), torch.ones(1, 1))
    calls = []

    def counted(points):
        calls.append(points)
        return hill(points)

    assert ascend(counted, region, start=torch.full((1, 1), 0.59), step_sizes=[10]).tolist() == [[1.0]]
    assert len(calls) == 1


@pytest.mark.parametrize("sizes", [[0.7], [0.7, 0.3, 0.1]])
def test_points_stay_inside_and_start_is_left_alone(sizes):
    generator = torch.Generator().manual_seed(0)
    region = Box(-torch.rand(3, 4, 5, generator=generator), torch.rand(3, 4, 5, generator=generator))
    start = region.sample(generator)
    before = start.clone()
    found = ascend(lambda points: points.square().sum(-1), region, start=start, step_sizes=sizes)
    assert (found >= region.lower).all() and (found <= region.upper).all()
    assert torch.equal(start, before) and not start.requires_grad and not found.requires_grad
    assert (found.square().sum(-1) >= start.square().sum(-1) - 1e-6).all()
