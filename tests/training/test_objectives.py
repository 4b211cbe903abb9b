import math

import pytest
import torch
from torch import nn

from sabr.bounds.boxes import Box
from sabr.networks.affine import clean_pass
from sabr.networks.architectures import Network
from sabr.specs import IBP
from sabr.training.methods.base import Batch, worst_case_cross_entropy
from sabr.training.methods.boxes import ibp, sabr
from sabr.training.methods.plain import pgd
from sabr.training.objectives import evaluate
from sabr.training.regularisers import l1_norm, warmup_regulariser

STEPS = [0.5] * 4 + [0.05] * 3 + [0.005]


def batch_of(network, images, labels, eps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(network, images, labels, eps, clean_pass(network, images), generator)


@pytest.fixture
def batch(small_network):
    network, _ = small_network()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(32, 1, 28, 28, generator=generator)
    images[:4], images[4:8] = 0, 1
    labels = torch.randint(10, (32,), generator=generator)
    return batch_of(network, images, labels, 0.05)


def test_by_hand():
    # One linear layer, two classes: margin of class 0 is 2 x1 - x2 + 0.5.
    network = Network(nn.Linear(2, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        network[0].bias.copy_(torch.tensor([0.5, 0.0]))
    images, labels = torch.tensor([[0.5, 0.5]]), torch.tensor([0])
    batch = batch_of(network, images, labels, 0.1)

    def loss(margin):
        return math.log(1 + math.exp(-margin))

    assert ibp(batch).losses.item() == pytest.approx(loss(1.0 - 0.3), rel=1e-6)
    # The worst point is the corner (0.4, 0.6); there the small box of radius 0.04 has its centre at (0.44, 0.56).
    assert pgd(batch, step_sizes=STEPS).losses.item() == pytest.approx(loss(1.0 - 0.3), rel=1e-6)
    small = sabr(batch, lambda_ratio=0.4, relu_shrinkage=None, step_sizes=STEPS)
    assert small.losses.item() == pytest.approx(loss(1.0 - 0.18 - 0.12), rel=1e-6)
    assert small.correct.tolist() == [True]


def test_worst_case_cross_entropy_by_hand():
    lower = torch.tensor([[1.0, -2.0]])
    assert float(worst_case_cross_entropy(lower)) == pytest.approx(math.log(1 + math.exp(-1) + math.exp(2)), rel=1e-6)


def test_lambda_one_is_ibp(small_network):
    network, _ = small_network()
    images = 0.1 + 0.8 * torch.rand(16, 1, 28, 28)  # no border cuts a ball of radius 0.05
    batch = batch_of(network, images, torch.arange(16) % 10, 0.05)
    expected = ibp(batch).losses
    whole = sabr(batch, lambda_ratio=1.0, relu_shrinkage=None, step_sizes=STEPS).losses
    nearly = sabr(batch, lambda_ratio=1 - 1e-6, relu_shrinkage=None, step_sizes=STEPS).losses  # with an attack
    assert torch.equal(whole, expected)
    torch.testing.assert_close(nearly, expected, rtol=1e-3, atol=1e-4)


def test_small_lambda_tends_to_pgd(batch):
    tiny = sabr(batch, lambda_ratio=1e-5, relu_shrinkage=None, step_sizes=STEPS).losses
    batch.generator.manual_seed(0)
    adversarial = pgd(batch, step_sizes=STEPS).losses
    batch.generator.manual_seed(0)
    tiny = sabr(batch, lambda_ratio=1e-5, relu_shrinkage=None, step_sizes=STEPS).losses
    torch.testing.assert_close(tiny, adversarial, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lambda_ratio", [0.05, 0.2, 0.5])
def test_the_loss_lies_between_pgd_and_ibp(batch, lambda_ratio):
    batch.generator.manual_seed(0)
    lower = pgd(batch, step_sizes=STEPS).losses
    batch.generator.manual_seed(0)
    middle = sabr(batch, lambda_ratio=lambda_ratio, relu_shrinkage=None, step_sizes=STEPS).losses
    upper = ibp(batch).losses
    assert (middle <= upper + 1e-5).all()
    # Per batch: the small box is moved inside, away from a corner that the attack may have reached.
    assert middle.mean().item() > lower.mean().item()


def test_shrinking_lowers_the_loss(batch):
    batch.generator.manual_seed(0)
    plain = sabr(batch, lambda_ratio=0.4, relu_shrinkage=None, step_sizes=STEPS).losses
    batch.generator.manual_seed(0)
    shrunk = sabr(batch, lambda_ratio=0.4, relu_shrinkage=0.8, step_sizes=STEPS).losses
    assert shrunk.mean().item() < plain.mean().item()


def test_before_the_ramp_every_method_is_clean(batch):
    method = IBP(objective="ibp", initialisation="intervals", l1=0, warmup_weight=0.5)
    early = Batch(batch.network, batch.images, batch.labels, 0.0, batch.clean, batch.generator)
    found = evaluate(method, early)
    expected = torch.nn.functional.cross_entropy(batch.clean.logits, batch.labels, reduction="none")
    torch.testing.assert_close(found.losses, expected)
    assert found.bounds is not None
    assert float(found.bounds.input_radius) == pytest.approx(1e-6, rel=0.1)


def test_regulariser_by_hand():
    # Centres 3 (active), -1 (inactive) and 0 (unstable), radii 1, 0.5 and 2; mean radius 7/6.
    box = Box(torch.tensor([[2.0, -1.5, -2.0]]), torch.tensor([[4.0, -0.5, 2.0]]))
    tightness = (0.5 - 0.1 / (3.5 / 3)) / 0.5
    mean_term = 0.5 - 1 / 3  # ratio (3/3) / (1/3) = 3, folded to 1/3
    # mean centre 2/3: squares (7/3)^2 active, (5/3)^2 inactive; ratio 49/25, folded to 25/49 > 0.5
    expected = tightness + mean_term / 0.5
    value = warmup_regulariser([box], torch.tensor(0.1))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    # The mean over layers.
    assert float(warmup_regulariser([box, box], torch.tensor(0.1))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_layers_without_active_or_inactive_neurons_give_finite_gradients(sign):
    centre = (sign * torch.tensor([[2.0, 3.0]])).requires_grad_()
    value = warmup_regulariser([Box(centre - 1, centre + 1)], torch.tensor(0.1))
    (gradient,) = torch.autograd.grad(value, centre)
    assert torch.isfinite(value) and torch.isfinite(gradient).all()


def test_l1_by_hand():
    assert float(l1_norm([torch.tensor([[1.0, -2.0]]), torch.tensor([-0.5])])) == 3.5
