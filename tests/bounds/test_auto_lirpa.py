import pytest
import torch

from sabr.attacks.search import Round, search
from sabr.bounds.auto_lirpa import METHODS, BoundedNetwork, _InclusiveClamp
from sabr.bounds.boxes import ball
from sabr.bounds.interval import margin_bounds, margins
from sabr.networks.steps import ReLUStep, forward
from sabr.settings import DATASETS


@pytest.fixture(params=["mnist", "cifar10"])
def case(request, small_network):
    dataset = DATASETS[request.param]
    _, steps = small_network(request.param)
    images = torch.rand(6, *dataset.shape, generator=torch.Generator().manual_seed(0))
    images[0], images[1] = 0, 1
    labels = forward(steps, images).argmax(1)
    return steps, ball(images, 0.02), labels, BoundedNetwork(steps, dataset.shape, alpha_iterations=10)


def test_intervals_are_ours(case):
    steps, region, labels, engine = case
    theirs = engine.margin_lower_bounds(region, labels, method="interval")
    torch.testing.assert_close(theirs, margin_bounds(steps, region, labels).lower, rtol=1e-4, atol=1e-4)


def test_sound_against_attacks_and_samples(case):
    steps, region, labels, engine = case
    found = search(
        steps,
        region,
        labels,
        rounds=[Round("margin", "largest", 3, (), (0.25,) * 10 + (0.02,) * 5)],
        generator=torch.Generator().manual_seed(0),
        rows=100,
    )
    reached = margins(forward(steps, found.points), labels)
    for seed in range(20):
        sampled = forward(steps, region.sample(torch.Generator().manual_seed(seed)))
        reached = torch.minimum(reached, margins(sampled, labels))
    for method in METHODS:
        bound = engine.margin_lower_bounds(region, labels, method=method)
        assert (bound <= reached + 1e-4).all(), method


def test_optimised_slopes_are_strictly_better_than_crown(case):
    # Since torch 2.14 they silently are not, unless clamp has its inclusive gradient while they are optimised.
    _, region, labels, engine = case
    crown = engine.margin_lower_bounds(region, labels, method="crown")
    alpha = engine.margin_lower_bounds(region, labels, method="alpha-crown")
    assert (alpha >= crown - 1e-4).all()
    assert float((alpha - crown).sum()) > 1e-3


def test_asking_again_gives_the_same(case):
    _, region, labels, engine = case
    first = engine.margin_lower_bounds(region, labels, method="crown")
    engine.margin_lower_bounds(region, labels, method="alpha-crown")
    engine.margin_lower_bounds(ball(region.centre[:2], 0.1), labels[:2], method="crown-ibp")
    torch.testing.assert_close(engine.margin_lower_bounds(region, labels, method="crown"), first)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (None, 1.0), (0.0, None)])
def test_inclusive_clamp(bounds):
    low, high = bounds
    value = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0], requires_grad=True)
    with _InclusiveClamp():
        clamped = value.clamp(min=low, max=high)
        also = torch.clamp(value, low, high)
    assert torch.equal(clamped, also)
    assert torch.equal(clamped.detach(), value.detach().clamp(low, high))
    (gradient,) = torch.autograd.grad(clamped.sum(), value)
    inside = [(low is None or v >= low) and (high is None or v <= high) for v in value.tolist()]
    assert gradient.tolist() == [float(i) for i in inside]


def test_networks_without_a_linear_end_are_refused():
    with pytest.raises(TypeError, match="ReLUStep"):
        BoundedNetwork([ReLUStep()], (3,))
