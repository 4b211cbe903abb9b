import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from sabr.bounds.boxes import Box, ball
from sabr.bounds.interval import margin_bounds, propagate
from sabr.errors import SabrError
from sabr.networks.affine import folded_steps
from sabr.networks.architectures import Network
from sabr.networks.steps import ReLUStep
from sabr.training.methods.boxes import ibp
from sabr.training.methods.taps import connect, latent_points, own_margins, split, taps

OPTIONS = {"classifier_relus": 1, "connector": 0.5, "step_sizes": [0.4] * 14 + [0.04] * 6, "relu_shrinkage": None}


@pytest.fixture
def monotone(batch_of):
    # Latent 2 x in [0.8, 1.2], then 3 z - 1, which is also the margin of class 0: at least 1.4, attacked or bounded.
    network = Network(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        for layer, weight, bias in ((0, [[2.0]], [0.0]), (2, [[3.0]], [-1.0]), (4, [[1.0], [0.0]], [0.0, 0.0])):
            network[layer].weight.copy_(torch.tensor(weight))
            network[layer].bias.copy_(torch.tensor(bias))
    return batch_of(network, torch.tensor([[0.5]]), torch.tensor([0]), 0.1)


def test_by_hand(monotone):
    region = ball(monotone.images, monotone.eps)
    found = taps(monotone, region, gradient_weight=5, **OPTIONS)
    one = math.log(1 + math.exp(-1.4))
    assert found.losses.item() == pytest.approx(one * one, rel=1e-5)
    assert found.correct.tolist() == [True] and found.bounds is None
    # d margin / d (first weight) = 3 * 0.4 on either way: weight 5 from the attack, 1 from the bound.
    (gradient,) = torch.autograd.grad(found.losses.mean(), monotone.network[0].weight)
    assert gradient.item() == pytest.approx((5 + 1) * one * -1 / (1 + math.exp(1.4)) * 1.2, rel=1e-4)


def test_while_eps_grows_it_is_the_interval_bound(batch):
    early = replace(batch, ramp=0.99)
    found = taps(early, ball(batch.images, batch.eps), gradient_weight=5, **OPTIONS)
    assert torch.equal(found.losses, ibp(batch).losses) and found.bounds is not None


def test_the_connector_by_hand():
    lower = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]], requires_grad=True)
    upper = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0]], requires_grad=True)
    points = torch.tensor([[[0.0, 0.25, 0.5, 0.9, 1.0], [0.0, 1.0, 0.4, 0.9, 1.0]]])
    connected = connect(Box(lower, upper), points, 0.5)
    assert torch.equal(connected, points)
    connected.sum().backward()
    torch.testing.assert_close(lower.grad, torch.tensor([[2.0, 0.5, 0.2, 0.0, 1.0]]))
    torch.testing.assert_close(upper.grad, torch.tensor([[0.0, 1.0, 0.0, 1.6, 1.0]]))


def test_the_classifier_has_as_many_relus_as_asked_for(small_network):
    _, steps = small_network()
    for relus in (1, 2):
        first, classifier = split(steps, relus)
        assert sum(isinstance(step, ReLUStep) for step in classifier) == relus
        assert [*first, *classifier] == steps and isinstance(first[-1], ReLUStep)
    with pytest.raises(SabrError, match="classifier.relus is 3, but the network has 3 ReLU layers"):
        split(steps, 3)


@pytest.mark.parametrize("relus", [1, 2])
def test_attacked_margins_lie_between_the_bound_and_random_points(batch, relus):
    with torch.no_grad():
        first, classifier = split(folded_steps(batch.network, batch.clean.statistics), relus)
        latent = propagate(first, ball(batch.images, 0.02)).output
    generator = torch.Generator().manual_seed(0)
    points = latent_points(classifier, latent, batch.labels, step_sizes=OPTIONS["step_sizes"], generator=generator)
    assert points.shape[:2] == (32, 9)
    found = own_margins(classifier, points, batch.labels)
    assert (found >= margin_bounds(classifier, latent, batch.labels).lower - 1e-4).all()
    for _ in range(10):
        sampled = own_margins(
            classifier, Box(latent.lower, latent.upper).sample(generator).unsqueeze(1).expand_as(points), batch.labels
        )
        assert (found <= sampled + 1e-4).all()
