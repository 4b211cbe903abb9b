import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sabr.bounds.boxes import Box
from sabr.methods import METHODS
from sabr.networks.affine import clean_pass
from sabr.networks.architectures import Network
from sabr.training.methods.base import worst_case_cross_entropy
from sabr.training.methods.boxes import ibp, sabr
from sabr.training.methods.plain import pgd
from sabr.training.objectives import evaluate
from sabr.training.regularisers import l1_norm, warmup_regulariser

STEPS = [0.5] * 4 + [0.05] * 3 + [0.005]


def test_by_hand(batch_of):
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
    small = sabr(batch, lambda_ratio=0.4, tau="scalar", relu_shrinkage=None, step_sizes=STEPS)
    assert small.losses.item() == pytest.approx(loss(1.0 - 0.18 - 0.12), rel=1e-6)
    assert small.correct.tolist() == [True]


def test_worst_case_cross_entropy_by_hand():
    lower = torch.tensor([[1.0, -2.0]])
    assert float(worst_case_cross_entropy(lower)) == pytest.approx(math.log(1 + math.exp(-1) + math.exp(2)), rel=1e-6)


@pytest.mark.parametrize("tau", ["scalar", "per-dimension"])
def test_lambda_one_is_ibp(small_network, batch_of, tau):
    network, _ = small_network()
    images = 0.1 + 0.8 * torch.rand(16, 1, 28, 28)  # no border cuts a ball of radius 0.05
    batch = batch_of(network, images, torch.arange(16) % 10, 0.05)
    expected = ibp(batch).losses
    whole = sabr(batch, lambda_ratio=1.0, tau=tau, relu_shrinkage=None, step_sizes=STEPS).losses
    nearly = sabr(batch, lambda_ratio=1 - 1e-6, tau=tau, relu_shrinkage=None, step_sizes=STEPS).losses  # with an attack
    assert torch.equal(whole, expected)
    torch.testing.assert_close(nearly, expected, rtol=1e-3, atol=1e-4)


def test_per_dimension_lambda_one_is_ibp_at_borders_too(batch):
    nearly = sabr(batch, lambda_ratio=1 - 1e-6, tau="per-dimension", relu_shrinkage=None, step_sizes=STEPS).losses
    torch.testing.assert_close(nearly, ibp(batch).losses, rtol=1e-3, atol=1e-4)


def test_small_lambda_tends_to_pgd(batch):
    batch.generator.manual_seed(0)
    adversarial = pgd(batch, step_sizes=STEPS).losses
    batch.generator.manual_seed(0)
    tiny = sabr(batch, lambda_ratio=1e-5, tau="scalar", relu_shrinkage=None, step_sizes=STEPS).losses
    torch.testing.assert_close(tiny, adversarial, rtol=1e-3, atol=1e-3)


@pytest.fixture
def exact(batch):
    """The batch in float64, where rounding is out of the way."""
    network, images = batch.network.double(), batch.images.double()
    return replace(batch, images=images, clean=clean_pass(network, images), attack_dtype=torch.float64)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    eps=st.floats(0.001, 0.3),
    # Above 1/2 the published box may leave the ball next to white pixels.
    shape=st.tuples(st.just("scalar"), st.floats(0.01, 0.5)) | st.tuples(st.just("per-dimension"), st.floats(0.01, 1)),
)
def test_the_loss_lies_between_pgd_and_ibp(exact, eps, shape):
    # For every image, black and white ones too: the small box holds the adversarial point and lies in the ball.
    batch = replace(exact, eps=eps)
    tau, lambda_ratio = shape
    batch.generator.manual_seed(0)
    lower = pgd(batch, step_sizes=STEPS).losses
    batch.generator.manual_seed(0)
    middle = sabr(batch, lambda_ratio=lambda_ratio, tau=tau, relu_shrinkage=None, step_sizes=STEPS).losses
    upper = ibp(batch).losses
    assert (lower <= middle + 1e-10).all()
    assert (middle <= upper + 1e-10).all()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(eps=st.floats(0.001, 0.3), seed=st.integers(0, 1000))
def test_lambda_leads_from_pgd_to_ibp(exact, eps, seed):
    batch = replace(exact, eps=eps)

    def loss(lambda_ratio):
        batch.generator.manual_seed(seed)
        kwargs = {"tau": "per-dimension", "relu_shrinkage": None, "step_sizes": STEPS}
        return sabr(batch, lambda_ratio=lambda_ratio, **kwargs).losses

    batch.generator.manual_seed(seed)
    adversarial = pgd(batch, step_sizes=STEPS).losses
    torch.testing.assert_close(loss(1e-8), adversarial, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss(1 - 1e-8), ibp(batch).losses, rtol=1e-5, atol=1e-5)
    assert torch.equal(loss(1.0), ibp(batch).losses)


def test_shrinking_lowers_the_loss(batch):
    batch.generator.manual_seed(0)
    plain = sabr(batch, lambda_ratio=0.4, tau="scalar", relu_shrinkage=None, step_sizes=STEPS).losses
    batch.generator.manual_seed(0)
    shrunk = sabr(batch, lambda_ratio=0.4, tau="scalar", relu_shrinkage=0.8, step_sizes=STEPS).losses
    assert shrunk.mean().item() < plain.mean().item()


@pytest.mark.parametrize("name", METHODS)
def test_before_the_ramp_every_method_is_clean(batch, method, name):
    early = replace(batch, eps=0.0, ramp=0.0)
    found = evaluate(method(name), early)
    expected = torch.nn.functional.cross_entropy(batch.clean.logits, batch.labels, reduction="none")
    torch.testing.assert_close(found.losses, expected)
    if name in ("standard", "pgd"):
        assert found.bounds is None
    else:
        assert float(found.bounds.input_radius) == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_finite_and_reach_every_weight(batch, method, name):
    for ramp in (0.5, 1.0):
        found = evaluate(method(name), replace(batch, ramp=ramp))
        assert found.losses.shape == found.correct.shape == batch.labels.shape
        weights = [weight for weight in batch.network.parameters() if weight.dim() > 1]
        for gradient in torch.autograd.grad(found.losses.mean(), weights, retain_graph=True):
            assert torch.isfinite(gradient).all() and (gradient != 0).any()
        if ramp < 1 and name not in ("standard", "pgd"):
            assert torch.isfinite(warmup_regulariser(*found.bounds))


def test_a_method_may_train_with_a_larger_radius(batch, method):
    wider = method("ibp").model_copy(update={"eps_ratio": 2.0})
    assert torch.equal(evaluate(wider, batch).losses, ibp(replace(batch, eps=0.1)).losses)


def test_lambda_moves_with_eps(batch, method):
    annealed = method("sabr").model_copy(update={"lambda_ratio": 0.2, "lambda_end": 1.0})
    halfway = evaluate(annealed, replace(batch, ramp=0.5)).losses
    batch.generator.manual_seed(0)
    expected = sabr(batch, lambda_ratio=0.6, tau="scalar", relu_shrinkage=None, step_sizes=STEPS).losses
    assert torch.equal(halfway, expected)
    assert torch.equal(evaluate(annealed, batch).losses, ibp(batch).losses)


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
    weights = torch.tensor([[1.0, -2.0], [0.0, 4.0]], requires_grad=True)
    norm = l1_norm([weights, torch.tensor([-0.5])])
    assert norm.item() == 7.5
    (gradient,) = torch.autograd.grad(3 * norm, weights)
    assert gradient.tolist() == [[3, -3], [0, 3]]


def test_l1_of_many_weights_is_not_lost_to_rounding():
    weights = torch.randn(512, 6272, generator=torch.Generator().manual_seed(0))
    assert float(l1_norm([weights])) == pytest.approx(float(weights.double().abs().sum()), rel=1e-5)
