import pytest
import torch
from torch.autograd.functional import vjp

from sabr.networks.steps import (
    ConvolutionStep,
    FlattenStep,
    LinearStep,
    ReLUStep,
    ScaleStep,
    SumStep,
    cast,
    first_weight,
    forward,
    linearise,
)


def convolution(inputs, outputs, kernel, stride, padding):
    weight = torch.randn(outputs, inputs, kernel, kernel).contiguous(memory_format=torch.channels_last)
    return ConvolutionStep(weight, torch.randn(outputs), (stride, stride), (padding, padding))


@pytest.fixture
def residual():
    """A network of (2, 6, 6) to 5 with a sum in a sum, a ReLU at the start of a path and a path that is the identity."""
    inner = SumStep(((), (ReLUStep(), convolution(4, 4, 3, 1, 1)), (convolution(4, 4, 1, 1, 0), ReLUStep())))
    block = SumStep(((inner, convolution(4, 3, 3, 2, 1)), (convolution(4, 3, 1, 2, 0),)))
    last = LinearStep(torch.randn(5, 27), torch.randn(5))
    return [convolution(2, 4, 3, 1, 1), ReLUStep(), block, ReLUStep(), FlattenStep(), last]


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


def test_nor_does_one_that_flattens_them_first():
    steps = [FlattenStep(), ReLUStep(), LinearStep(torch.randn(2, 3), torch.randn(2))]
    points = torch.randn(4, 3, 1, 1)
    before = points.clone()
    linearise(steps, points)
    assert torch.equal(points, before)


def test_a_sum_adds_its_paths_up():
    double = LinearStep(2 * torch.eye(2), torch.tensor([1.0, 0.0]))
    points = torch.tensor([[1.0, -2.0]])
    assert SumStep(((), (double, ReLUStep()))).apply(points).tolist() == [[4.0, -2.0]]
    assert SumStep(((double,),)).apply(points).tolist() == [[3.0, -4.0]]


def test_linearise_goes_into_sums(residual):
    points, gradient = torch.randn(3, 2, 6, 6), torch.randn(3, 5)
    before = points.clone(), gradient.clone()
    expected, back = vjp(lambda x: forward(residual, x), points, gradient)
    logits, pull = linearise(residual, points)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(pull(gradient), back, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pull(gradient), back, rtol=1e-4, atol=1e-4)
    assert torch.equal(points, before[0]) and torch.equal(gradient, before[1])


@pytest.mark.parametrize("path", [(), (ReLUStep(),), (FlattenStep(), ReLUStep())])
def test_a_sum_of_one_path_overwrites_nothing(path):
    points = torch.randn(4, 3)
    before = points.clone()
    linearise([SumStep((path,)), ReLUStep()], points)
    assert torch.equal(points, before)


def test_casting_goes_into_sums(residual):
    points = torch.rand(3, 2, 6, 6, dtype=torch.float64)
    precise = cast(residual, torch.float64)
    assert first_weight(precise).dtype == torch.float64
    torch.testing.assert_close(
        forward(precise, points).float(), forward(residual, points.float()), rtol=1e-3, atol=1e-3
    )


def test_the_first_weight_may_be_in_a_sum(residual):
    assert first_weight([ReLUStep(), residual[2]]) is residual[2].paths[0][0].paths[1][1].weight
    assert first_weight([ReLUStep(), SumStep(((), (ReLUStep(),)))]) is None


def test_in_half_the_precision_the_gradient_is_nearly_the_same(small_network):
    _, steps = small_network("cifar10")
    points, gradient = torch.rand(5, 3, 32, 32), torch.randn(5, 10)
    exact = linearise(steps, points)
    rough = linearise(cast(steps, torch.bfloat16), points)
    assert rough.logits.dtype == torch.float32
    torch.testing.assert_close(rough.logits, exact.logits, rtol=0.05, atol=0.05)
    alike = torch.cosine_similarity(rough.pull(gradient).flatten(), exact.pull(gradient).flatten(), dim=0)
    assert rough.pull(gradient).dtype == torch.float32 and alike > 0.98


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), (1, 1)), ((4, 4), (2, 2)), ((3, 2), (2, 1))])
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
@pytest.mark.parametrize("size", [(7, 9), (4, 4)])
def test_applied_by_pixel_it_is_the_same_in_another_order(channels, kernel, stride, padding, size):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, channels, *kernel, generator=generator, dtype=torch.float64)
    step = ConvolutionStep(weight, torch.randn(5, generator=generator, dtype=torch.float64), stride, padding)
    points = torch.randn(4, channels, *size, generator=generator, dtype=torch.float64)
    found = step.apply_by_pixel(points)
    assert torch.allclose(found, step.apply(points), rtol=0, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3, 8])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3), (1, 1)), ((4, 4), (2, 2)), ((3, 2), (2, 1))])
def test_windows_are_pulled_back_as_by_a_transposed_convolution(channels, kernel, stride):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, channels, *kernel, generator=generator, dtype=torch.float64)
    step = ConvolutionStep(weight, torch.zeros(5, dtype=torch.float64), stride, (1, 1))
    windows = torch.randn(4, 5, 3, 2, generator=generator, dtype=torch.float64)
    expected = torch.nn.functional.conv_transpose2d(windows, weight, None, stride)
    assert torch.allclose(step.pull_windows(windows), expected, rtol=0, atol=1e-12)
