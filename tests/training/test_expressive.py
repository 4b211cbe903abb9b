import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sabr.bounds.boxes import ball
from sabr.networks.architectures import Network
from sabr.training.methods.base import worst_case
from sabr.training.methods.expressive import at_adversarial_points, cc_ibp, exp_ibp, mtl_ibp


def loss(margin):
    return math.log(1 + math.exp(-margin))


def test_by_hand(batch_of):
    # Margin 2 x1 - x2 + 0.5: 1 in the centre, 0.7 at worst within 0.1, 0.4 within 0.2, where the attack goes.
    network = Network(nn.Linear(2, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        network[0].bias.copy_(torch.tensor([0.5, 0.0]))
    batch = batch_of(network, torch.tensor([[0.5, 0.5]]), torch.tensor([0]), 0.1)
    attacked = at_adversarial_points(batch, attack_eps_ratio=2, step_sizes=[10])
    assert attacked.eps == 0.1
    assert cc_ibp(attacked, alpha=0.25).losses.item() == pytest.approx(loss(0.25 * 0.7 + 0.75 * 0.4), rel=1e-5)
    assert mtl_ibp(attacked, alpha=0.25).losses.item() == pytest.approx(0.25 * loss(0.7) + 0.75 * loss(0.4), rel=1e-5)
    assert exp_ibp(attacked, alpha=0.25).losses.item() == pytest.approx(loss(0.7) ** 0.25 * loss(0.4) ** 0.75, rel=1e-5)


@pytest.fixture
def attacked(batch):
    return at_adversarial_points(batch, attack_eps_ratio=1, step_sizes=[0.25] * 8)


@pytest.mark.parametrize("combine", [cc_ibp, mtl_ibp, exp_ibp])
def test_alpha_leads_from_the_attack_to_the_bound(attacked, combine):
    bound = worst_case(attacked, ball(attacked.images, attacked.eps)).losses.mean()
    adversarial = F.cross_entropy(attacked.clean.logits, attacked.labels)
    torch.testing.assert_close(combine(attacked, alpha=1.0).losses.mean(), bound)
    torch.testing.assert_close(combine(attacked, alpha=0.0).losses.mean(), adversarial)
    path = [combine(attacked, alpha=alpha).losses.mean().item() for alpha in (0, 0.1, 0.3, 0.6, 1)]
    assert path == sorted(path)


def test_by_convexity_cc_and_exp_stay_below_mtl(attacked):
    linear = mtl_ibp(attacked, alpha=0.3).losses
    assert (cc_ibp(attacked, alpha=0.3).losses <= linear + 1e-5).all()
    assert exp_ibp(attacked, alpha=0.3).losses[0] <= linear.mean() + 1e-5


def test_the_attack_raises_the_loss_and_its_statistics_are_used(batch, attacked):
    clean = F.cross_entropy(batch.clean.logits, batch.labels)
    assert F.cross_entropy(attacked.clean.logits, batch.labels) > clean
    assert not torch.equal(attacked.clean.statistics[0].mean, batch.clean.statistics[0].mean)
