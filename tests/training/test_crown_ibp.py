import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sabr.bounds.boxes import Box, ball
from sabr.networks.affine import folded_steps
from sabr.networks.architectures import Network
from sabr.networks.steps import forward
from sabr.training.methods.boxes import ibp
from sabr.training.methods.crown_ibp import crown_ibp, exponential_chords


@pytest.fixture
def two_neurons(batch_of):
    # z = relu(x1 - x2, x1 + x2 - 1), margin of class 0: 1 - z1 - z2.
    network = Network(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        network[0].bias.copy_(torch.tensor([0.0, -1.0]))
        network[2].weight.copy_(torch.tensor([[-1.0, -1.0], [0.0, 0.0]]))
        network[2].bias.copy_(torch.tensor([1.0, 0.0]))
    return batch_of(network, torch.tensor([[0.5, 0.75]]), torch.tensor([0]), 0.25)


def loss(margin):
    return math.log(1 + math.exp(-margin))


# On the ball: y1 in [-0.75, 0.25], y2 in [-0.25, 0.75]. By intervals the margin lies in [0, 1]; with z1 <= (y1 + 0.75) / 4
# and z2 <= 3 (y2 + 0.25) / 4 it is at least 1.375 - x1 - x2 / 2 >= 0.125. In the centre it is 0.75.
@pytest.mark.parametrize(("kappa", "beta"), [(0, 1), (0, 0), (0.5, 0.25), (1, 1)])
def test_by_hand(two_neurons, kappa, beta):
    found = crown_ibp(two_neurons, kappa=kappa, beta=beta, loss_fusion=False)
    assert found.losses.item() == pytest.approx(kappa * loss(0.75) + (1 - kappa) * loss(beta * 0.125), rel=1e-6)
    assert found.correct.tolist() == [beta > 0]


@pytest.mark.parametrize("beta", [0, 0.25, 1])
def test_loss_fusion_by_hand(two_neurons, beta):
    # The chord of exp(-m) over [0, 1] is 1 - (1 - 1/e) m.
    chord = 1 - (1 - math.exp(-1)) * 0.125
    expected = math.log(1 + beta * chord + (1 - beta) * 1)
    found = crown_ibp(two_neurons, kappa=0, beta=beta, loss_fusion=True)
    assert found.losses.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("fusion", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_no_point_has_a_larger_loss(batch, fusion, beta):
    bound = crown_ibp(batch, kappa=0, beta=beta, loss_fusion=fusion).losses
    steps = folded_steps(batch.network, batch.clean.statistics)
    region = ball(batch.images, batch.eps)
    for seed in range(10):
        points = region.sample(torch.Generator().manual_seed(seed))
        if seed % 2:
            points = torch.where(points > region.centre, region.upper, region.lower)
        assert (F.cross_entropy(forward(steps, points), batch.labels, reduction="none") <= bound + 1e-4).all()


@pytest.mark.parametrize("fusion", [False, True])
def test_without_linear_bounds_it_is_ibp(batch, fusion):
    found = crown_ibp(batch, kappa=0, beta=0, loss_fusion=fusion)
    torch.testing.assert_close(found.losses, ibp(batch).losses)
    torch.testing.assert_close(found.losses, crown_ibp(batch, kappa=0, beta=1e-9, loss_fusion=fusion).losses)


def test_fusing_one_margin_is_looser_and_many_may_gain(two_neurons, batch):
    fused = crown_ibp(two_neurons, kappa=0, beta=1, loss_fusion=True).losses
    assert fused.item() > crown_ibp(two_neurons, kappa=0, beta=1, loss_fusion=False).losses.item()
    # In a tiny ball chord and exponential agree, and the worst point of the sum is no worse than one for each margin.
    near = replace(batch, eps=3e-6)
    fused = crown_ibp(near, kappa=0, beta=1, loss_fusion=True).losses
    apart = crown_ibp(near, kappa=0, beta=1, loss_fusion=False).losses
    assert (fused <= apart + 2e-6).all() and fused.mean() < apart.mean()


@pytest.mark.parametrize("fusion", [False, True])
def test_a_point_has_the_clean_loss(batch, fusion):
    point = crown_ibp(replace(batch, eps=1e-7), kappa=0, beta=1, loss_fusion=fusion).losses
    clean = F.cross_entropy(batch.clean.logits, batch.labels, reduction="none")
    torch.testing.assert_close(point, clean, rtol=1e-3, atol=1e-4)


def test_chords_lie_above_and_stay_finite():
    margins = Box(torch.tensor([[-200.0, 1.0, 3.0, 0.0]]), torch.tensor([[300.0, 2.0, 3.0, 1e-7]]))
    chords = exponential_chords(margins)
    assert chords.shift.item() == 200
    for along in torch.linspace(0, 1, 11):
        point = margins.lower + along * (margins.upper - margins.lower)
        above = chords.start - chords.slope * (point - margins.upper)
        assert torch.isfinite(above).all() and (above >= torch.exp(-point - chords.shift) - 1e-7).all()


def test_gradients_of_the_fused_loss_are_finite(batch):
    weights = [weight for weight in batch.network.parameters() if weight.dim() > 1]
    found = crown_ibp(batch, kappa=0, beta=0.5, loss_fusion=True)
    for gradient in torch.autograd.grad(found.losses.mean(), weights):
        assert torch.isfinite(gradient).all() and (gradient != 0).any()
