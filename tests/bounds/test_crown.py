import pytest
import torch
from bounds.milp import exact_minimum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sabr.bounds.auto_lirpa import BoundedNetwork
from sabr.bounds.boxes import Box, ball
from sabr.bounds.crown import backward_bound, crown_margins, relax
from sabr.bounds.interval import margin_rows, margins, propagate
from sabr.networks.affine import clean_pass, folded_steps
from sabr.networks.steps import ConvolutionStep, FlattenStep, LinearStep, ReLUStep, ScaleStep, forward
from sabr.settings import DATASETS

LOOSE = [HealthCheck.function_scoped_fixture]


def bounds_at_relus(steps, box):
    return propagate(steps[:-1], box).relu_inputs


def test_by_hand():
    # y1 = x1 - x2 in [-1, 0.5], y2 = x1 + x2 - 1 in [-0.5, 1]; the function is 2 z1 - 3 z2 + 1 of z = relu(y).
    steps = [LinearStep(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([0.0, -1.0])), ReLUStep()]
    box = Box(torch.tensor([[0.0, 0.5]]), torch.tensor([[1.0, 1.0]]))
    relu_inputs = propagate(steps, box).relu_inputs
    relaxation = relax(relu_inputs[0])
    assert relaxation.lower_slope.tolist() == [[0.0, 1.0]]
    torch.testing.assert_close(relaxation.upper_slope, torch.tensor([[1 / 3, 2 / 3]]))
    torch.testing.assert_close(relaxation.upper_offset, torch.tensor([[1 / 3, 1 / 3]]))
    # z1 >= 0 and z2 <= 2/3 y2 + 1/3, so the function is at least 1 - 2 y2 - 1 = 2 - 2 x1 - 2 x2 >= -2.
    found = backward_bound(steps, box, relu_inputs, torch.tensor([[[2.0, -3.0]]]), torch.tensor([[1.0]]))
    torch.testing.assert_close(found, torch.tensor([[-2.0]]))


@pytest.mark.parametrize(
    ("low", "high", "lines"),
    [(1.0, 2.0, (1, 1, 0)), (0.0, 2.0, (1, 1, 0)), (-2.0, -1.0, (0, 0, 0)), (-2.0, 0.0, (0, 0, 0)), (0.0, 0.0, None)],
)
def test_stable_relus_are_themselves(low, high, lines):
    found = relax(Box(torch.tensor([low]), torch.tensor([high])))
    if lines is None:  # a point at the kink: any line through it
        assert all(torch.isfinite(line).all() for line in found) and found.upper_offset == 0
    else:
        assert tuple(float(line) for line in found) == lines


@settings(max_examples=60, suppress_health_check=LOOSE)
@given(st.integers(0, 10_000), st.floats(0, 2), st.sampled_from([1e-3, 1.0, 1e4]))
def test_sampled_points_never_leave_their_bounds(random_steps, seed, radius, scale):
    steps = random_steps(seed, scale=scale)
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(1, 4, generator=generator, dtype=torch.float64)
    box = Box(centre - radius, centre + radius)
    labels = torch.tensor([seed % 3])
    lower = crown_margins(steps, box, bounds_at_relus(steps, box), labels)
    corners = torch.where(torch.rand(500, 4, generator=generator) < 0.5, box.lower, box.upper)
    points = torch.cat([box.lower + torch.rand(1500, 4, generator=generator) * 2 * radius, corners])
    reached = margins(forward(steps, points), labels.expand(len(points)))
    assert (reached >= lower - 1e-12 * (1 + reached.abs().max())).all()


@settings(max_examples=40)
@given(
    st.integers(0, 10_000), st.sampled_from([(1, 0, 3), (2, 1, 3), (2, 0, 2), (3, 1, 4), (2, 2, 5)]), st.integers(6, 9)
)
def test_pulling_back_is_the_transpose_for_every_stride_and_border(seed, convolution, size):
    stride, padding, kernel = convolution
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    image = draw(1, 2, size, size + 1)
    steps = [
        ScaleStep(draw(1, 2, 1, 1), draw(1, 2, 1, 1)),
        ConvolutionStep(draw(3, 2, kernel, kernel), draw(3), (stride, stride), (padding, padding)),
        FlattenStep(),
    ]
    for step in steps:
        output = step.apply(image)
        row = draw(*output.shape)
        linear = output - step.apply(torch.zeros_like(image))
        pulled = step.pull(row, image.shape[1:])
        assert pulled.shape == image.shape
        torch.testing.assert_close((pulled * image).sum(), (row * linear).sum())
        image = output


@pytest.mark.parametrize("seed", range(12))
def test_no_bound_crosses_the_optimum(random_steps, seed):
    widths = [(4, 12, 9, 3), (2, 20, 2), (6, 8, 8, 8, 4)][seed % 3]
    steps = random_steps(seed, widths)
    centre = torch.rand(1, widths[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    radius = [0.01, 0.1, 0.4][seed // 4]
    box = Box(centre - radius, centre + radius)
    found = crown_margins(steps, box, bounds_at_relus(steps, box), torch.tensor([0]))[0]
    for bound, other in zip(found, range(1, widths[-1]), strict=True):
        row = torch.zeros(widths[-1], dtype=torch.float64)
        row[0], row[other] = 1, -1
        exact, _ = exact_minimum(steps, box, row)
        assert bound <= exact + 1e-6 * (1 + abs(exact))
        if radius == 0.01:  # hardly a ReLU is unstable
            assert bound >= exact - 0.2


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
@pytest.mark.parametrize("architecture", ["cnn-tiny", "cnn-small"])
@pytest.mark.parametrize("eps", [0.002, 0.02, 0.1])
def test_it_is_the_librarys_crown_ibp(small_network, dataset, architecture, eps):
    _, steps = small_network(dataset, architecture)
    images = torch.rand(4, *DATASETS[dataset].shape, generator=torch.Generator().manual_seed(0))
    images[0], images[1] = 0, 1
    labels = torch.arange(4)
    region = ball(images, eps)
    theirs = BoundedNetwork(steps, DATASETS[dataset].shape).margin_lower_bounds(region, labels, method="crown-ibp")
    ours = crown_margins(steps, region, bounds_at_relus(steps, region), labels)
    assert float((ours - theirs).abs().max()) <= 1e-4 * float(theirs.abs().max())


def test_gradients_reach_the_weights_the_statistics_and_the_box(small_network):
    network, _ = small_network("cifar10")
    images = torch.rand(8, 3, 32, 32, requires_grad=True)
    clean = clean_pass(network, images)
    steps = folded_steps(network, clean.statistics)
    region = Box(images - 0.05, images + 0.05)
    crown_margins(steps, region, bounds_at_relus(steps, region), torch.arange(8)).sum().backward()
    for gradient in (images.grad, *(p.grad for name, p in network.named_parameters() if "weight" in name)):
        assert torch.isfinite(gradient).all() and (gradient != 0).any()


def test_the_gradient_is_that_of_finite_differences(random_steps):
    box = Box(torch.full((1, 4), 0.3, dtype=torch.float64), torch.full((1, 4), 0.6, dtype=torch.float64))
    steps = random_steps(3)
    weight = steps[0].weight.clone().requires_grad_()

    def bound(first):
        changed = [LinearStep(first, steps[0].bias), *steps[1:]]
        return crown_margins(changed, box, bounds_at_relus(changed, box), torch.tensor([1]))

    assert torch.autograd.gradcheck(bound, weight)


def test_a_point_has_its_own_value(small_network):
    _, steps = small_network()
    images, labels = torch.rand(4, 1, 28, 28), torch.arange(4)
    region = Box(images, images)
    found = crown_margins(steps, region, bounds_at_relus(steps, region), labels)
    torch.testing.assert_close(found, margins(forward(steps, images), labels), rtol=1e-4, atol=1e-5)


def test_rows_of_the_caller_are_bounded_too(random_steps):
    steps = random_steps(5)
    box = Box(torch.zeros(2, 4, dtype=torch.float64), torch.ones(2, 4, dtype=torch.float64))
    labels = torch.tensor([0, 2])
    relu_inputs = bounds_at_relus(steps, box)
    weight, bias = margin_rows(steps[-1], labels)
    single = [backward_bound(steps[:-1], box, relu_inputs, weight[:, i : i + 1], bias[:, i : i + 1]) for i in range(2)]
    torch.testing.assert_close(torch.cat(single, 1), crown_margins(steps, box, relu_inputs, labels))


def test_little_memory_changes_nothing(small_network):
    _, steps = small_network("cifar10")
    region, labels = ball(torch.rand(3, 3, 32, 32), 0.02), torch.tensor([0, 2, 9])
    relu_inputs = bounds_at_relus(steps, region)
    whole = crown_margins(steps, region, relu_inputs, labels)
    for memory in (1, 3_000_000):
        torch.testing.assert_close(crown_margins(steps, region, relu_inputs, labels, memory=memory), whole)


def test_networks_without_a_linear_end_are_refused():
    with pytest.raises(TypeError, match="ReLUStep"):
        crown_margins([ReLUStep()], Box(torch.zeros(1, 2), torch.ones(1, 2)), [], torch.tensor([0]))
