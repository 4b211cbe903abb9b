import pytest
import torch
from torch.autograd.functional import vjp

from sabr.networks.steps import ConvolutionStep, FlattenStep, LinearStep, ReLUStep, ScaleStep, cast, forward, linearise


def convolution(inputs, outputs, kernel, stride, padding):
    weight = torch.randn(outputs, inputs, kernel, kernel).contiguous(memory_format=torch.channels_last)
    return ConvolutionStep(weight, torch.randn(outputs), (stride, stride), (padding, padding))


@pytest.mark.parametrize(
    ("step", "shape"),
    [
        (convolution(1, 8, 4, 2, 1), (1, 28, 28)),
        (convolution(3, 8, 3, 1, 1), (3, 32, 32)),
        (convolution(3, 8, 5, 3, 2), (3, 31, 31)),
        (convolution(6, 8, 3, 1, 1), (6, 9, 9)),
        (convolution(6, 8, 4, 3, 0), (6, 12, 11)),  # the last rows and columns are in no window
        (LinearStep(torch.randn(5, 7), torch.randn(5)), (7,)),
        (ScaleStep(torch.randn(3, 1, 1), torch.randn(3, 1, 1)), (3, 4, 4)),
        (FlattenStep(), (3, 4, 5)),
    ],
)
def test_pull_is_the_transpose(step, shape):
    points = torch.randn(4, *shape)
    gradient = torch.randn_like(step.apply(points))
    _, expected = vjp(step.apply, points, gradient)
    torch.testing.assert_close(step.pull(gradient, points.shape[1:]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_linearise_agrees_with_autograd_and_leaves_its_arguments_alone(small_network, dataset):
    _, steps = small_network(dataset)
    shape = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}[dataset]
    points, gradient = torch.rand(5, *shape), torch.randn(5, 10)
    before = points.clone(), gradient.clone()
    expected, back = vjp(lambda x: forward(steps, x), points, gradient)
    logits, pull = linearise(steps, points)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(pull(gradient), back, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pull(gradient), back, rtol=1e-4, atol=1e-5)
    assert torch.equal(points, before[0]) and torch.equal(gradient, before[1])


def test_a_network_that_starts_with_relu_does_not_overwrite_its_points():
    steps = [ReLUStep(), LinearStep(torch.randn(2, 3), torch.randn(2))]
    points = torch.randn(4, 3)
    before = points.clone()
    _, pull = linearise(steps, points)
    assert torch.equal(points, before)
    assert (pull(torch.ones(4, 2))[points < 0] == 0).all()


def test_in_half_the_precision_the_gradient_is_nearly_the_same(small_network):
    _, steps = small_network("cifar10")
    points, gradient = torch.rand(5, 3, 32, 32), torch.randn(5, 10)
    exact = linearise(steps, points)
    rough = linearise(cast(steps, torch.bfloat16), points)
    assert rough.logits.dtype == torch.float32
    torch.testing.assert_close(rough.logits, exact.logits, rtol=0.05, atol=0.05)
    alike = torch.cosine_similarity(rough.pull(gradient).flatten(), exact.pull(gradient).flatten(), dim=0)
    assert rough.pull(gradient).dtype == torch.float32 and alike > 0.98
