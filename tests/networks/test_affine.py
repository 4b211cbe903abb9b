import copy

import pytest
import torch
from torch import nn

from sabr.networks.affine import Statistics, as_module, clean_pass, folded_steps
from sabr.networks.architectures import Network
from sabr.networks.steps import ConvolutionStep, ReLUStep, ScaleStep, SumStep, forward
from sabr.settings import DATASETS


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_folding_changes_nothing_in_evaluation_mode(small_network, dataset):
    network, steps = small_network(dataset)
    images = torch.rand(8, *DATASETS[dataset].shape)
    torch.testing.assert_close(forward(steps, images), network(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_clean_pass_is_pytorchs_training_mode(small_network, dataset):
    network, _ = small_network(dataset)
    twin = copy.deepcopy(network).train()
    images = torch.rand(8, *DATASETS[dataset].shape)
    clean = clean_pass(network, images)
    torch.testing.assert_close(clean.logits, twin(images), rtol=1e-4, atol=1e-5)
    for name, buffer in network.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer, dict(twin.named_buffers())[name], rtol=1e-5, atol=1e-6)
    steps = folded_steps(network, clean.statistics)
    torch.testing.assert_close(forward(steps, images), clean.logits, rtol=1e-4, atol=1e-5)


def test_gradients_flow_through_the_statistics(small_network):
    network, _ = small_network()
    images = torch.rand(8, 1, 28, 28)
    clean = clean_pass(network, images)
    logits = forward(folded_steps(network, clean.statistics), images[:2])
    logits.square().sum().backward()
    with_statistics = network[0].weight.grad.clone()
    network.zero_grad()
    detached = [Statistics(s.mean.detach(), s.variance.detach()) for s in clean_pass(network, images).statistics]
    forward(folded_steps(network, detached), images[:2]).square().sum().backward()
    assert not torch.allclose(with_statistics, network[0].weight.grad, rtol=0.05)


def test_a_bias_before_a_batch_norm_has_no_gradient(small_network):
    network, _ = small_network()
    images = torch.rand(8, 1, 28, 28)
    clean = clean_pass(network, images)
    forward(folded_steps(network, clean.statistics), images[:2]).square().sum().backward()
    assert network[0].bias.grad is None
    assert network[-1].bias.grad is not None
    # PyTorch, in float64, agrees that it is zero.
    twin = copy.deepcopy(network).double().train()
    twin.zero_grad()
    twin(images.double()).square().sum().backward()
    assert twin[0].bias.grad.abs().max() < 1e-12 * twin[0].weight.grad.abs().max()


def test_steps_folded_without_gradients_have_none(small_network):
    _, steps = small_network()
    assert not forward(steps, torch.rand(1, 1, 28, 28)).requires_grad


def test_as_module_computes_the_same(small_network):
    _, steps = small_network("cifar10")
    assert isinstance(steps[0], ScaleStep)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(as_module(steps[1:])(steps[0].apply(images)), forward(steps, images))


def test_as_module_goes_into_sums():
    inner = ConvolutionStep(torch.randn(3, 3, 3, 3), torch.randn(3), (1, 1), (1, 1))
    steps = [SumStep(((), (inner, ReLUStep()), (inner, SumStep(((), (ReLUStep(),))))))]
    points = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(as_module(steps)(points), forward(steps, points))
    assert as_module([ReLUStep()])(points).min() == 0


def test_unknown_layers_are_named():
    with pytest.raises(TypeError, match="Tanh"):
        folded_steps(Network(nn.Linear(2, 2), nn.Tanh()))
