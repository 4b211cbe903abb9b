"""No ReLU input ever leaves its bounds: sampled and climbed points, extreme networks and boxes."""

import pytest
import torch
from bounds.nets import Draws, random_case
from hypothesis import given, settings
from hypothesis import strategies as st

from sabr.bounds.boxes import Box
from sabr.bounds.condensed import condense
from sabr.bounds.dual import bound, lines_of, start_of
from sabr.bounds.inner import crown_inputs
from sabr.bounds.interval import margin_rows, margins, propagate
from sabr.bounds.optimise import optimise
from sabr.bounds.rows import flat
from sabr.bounds.tighten import optimised_layers
from sabr.networks.steps import FlattenStep, LinearStep, ReLUStep, ScaleStep, SumStep, forward

MEMORY = 2**28
POINTS = 100_000


def relu_inputs_at(steps, points):
    """What each ReLU sees at points (P, ...), and the output."""
    seen = []

    def through(part, values):
        for step in part:
            if isinstance(step, ReLUStep):
                seen.append(values)
            values = (
                sum(through(path, values) for path in step.paths) if isinstance(step, SumStep) else step.apply(values)
            )
        return values

    return seen, through(steps, points)


def climbed(steps, box, generator, starts=4, moves=12):
    """For each neuron points that drive it up and down (projected gradient steps)."""
    with torch.no_grad():
        sizes = [values[0].numel() for values in relu_inputs_at(steps, box.centre)[0]]
    total = 2 * starts * sum(sizes)
    unit = torch.rand(total, *box.lower.shape[1:], generator=generator, dtype=box.lower.dtype)
    points = box.lower + unit * (box.upper - box.lower)
    signs = torch.tensor([1.0, -1.0], dtype=box.lower.dtype).repeat(total // 2)
    own = torch.arange(sum(sizes)).repeat_interleave(2 * starts)
    for move in range(moves):
        points.requires_grad_()
        seen = torch.cat([values.flatten(1) for values in relu_inputs_at(steps, points)[0]], 1)
        (slope,) = torch.autograd.grad((seen[range(total), own] * signs).sum(), points)
        with torch.no_grad():
            points = box.clamp(points + slope.sign() * box.radius * 2 * 0.7**move)
    return points.detach()


def bounds_by(steps, box, labels):
    """For each method bounds at every ReLU's input; and of the margins, by alpha-CROWN."""
    hidden, rows = steps[:-1], margin_rows(steps[-1], labels)
    intervals = propagate(hidden, box).relu_inputs
    crown = crown_inputs(hidden, box, intervals, memory=MEMORY)
    problem = condense(hidden, box, *rows, crown, memory=MEMORY)
    slack = [torch.zeros_like(layer.lower) for layer in problem.layers]
    tightened = optimised_layers(problem, iterations=3, rate=0.1, allowances=slack, memory=MEMORY)
    optimised = []
    for bounds, layer in zip(crown, tightened, strict=True):
        lower, upper = flat(bounds.lower).clone(), flat(bounds.upper).clone()
        lower[0, layer.places[0]], upper[0, layer.places[0]] = layer.lower[0], layer.upper[0]
        optimised.append(Box(lower, upper))
    problem, lines = problem._replace(layers=tightened), lines_of(problem._replace(layers=tightened))
    found = optimise(problem, lines, start_of(problem, lines), iterations=3, rate=0.1, target=float("inf"))
    assert (found.passed.lower >= bound(problem, lines)).all()
    return {"interval": intervals, "crown": crown, "optimised": optimised}, found.passed.lower


def check(steps, box, points, label=0):
    """Compare bounds with values at points; gives how near the values come to the ends, for each method."""
    labels = torch.tensor([label])
    found, lower = bounds_by(steps, box, labels)
    with torch.no_grad():
        seen, logits = relu_inputs_at(steps, points)
    nearest = {}
    for method, bounds in found.items():
        assert len(bounds) == len(seen)
        for values, own in zip(seen, bounds, strict=True):
            least, most = (flat(getattr(values, f"a{end}")(0, keepdim=True)) for end in ("min", "max"))
            low, high = flat(own.lower), flat(own.upper)
            slack = 1e-9 * torch.maximum(low.abs(), high.abs()).max()
            assert (low <= least + slack).all() and (high >= most - slack).all(), method
            share = (most - least).sum() / (high - low).sum().clamp(min=1e-300)
            nearest[method] = max(nearest.get(method, 0.0), float(share))
    reached = margins(logits, labels.expand(len(points)))
    assert (reached.amin(0) >= lower[0] - 1e-9 * reached.abs().max()).all()
    return nearest


@pytest.mark.parametrize("seed", range(900, 930))
def test_no_point_leaves_its_bounds(seed):
    case = random_case(seed)
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(POINTS, *case.box.lower.shape[1:], generator=generator, dtype=torch.float64)
    unit[: POINTS // 2] = unit[: POINTS // 2].round()  # corners
    points = case.box.lower + unit * (case.box.upper - case.box.lower)
    share = check(case.steps, case.box, torch.cat([points, climbed(case.steps, case.box, generator)]))
    assert all(0.5 < value <= 1 + 1e-9 for value in share.values()), "bounds that are loose everywhere say nothing"


scales = st.sampled_from([1e-6, 1e-2, 1.0, 30.0])
kinds = st.sampled_from(["fully connected", "convolutional", "residual"])


@settings(max_examples=60)
@given(st.integers(0, 10_000), kinds, st.sampled_from([0.0, 1e-6, 0.02, 0.3, 1.0]), scales)
def test_any_width_and_weight(seed, kind, radius, scale):
    case = random_case(seed, kind)
    generator = torch.Generator().manual_seed(seed)
    centre = case.box.centre
    box = Box((centre - radius).clamp(0, 1), (centre + radius).clamp(0, 1))
    steps = scaled(case.steps, scale)
    unit = torch.rand(500, *box.lower.shape[1:], generator=generator, dtype=torch.float64)
    points = box.lower + unit * (box.upper - box.lower)
    if radius:
        points = torch.cat([points, climbed(steps, box, generator, starts=1, moves=5)])
    check(steps, box, points, label=case.classes - 1)


def scaled(steps, by):
    result = []
    for step in steps:
        if isinstance(step, SumStep):
            step = SumStep(tuple(tuple(scaled(path, by)) for path in step.paths))
        elif hasattr(step, "weight"):
            step = type(step)(**{**step.__dict__, "weight": by * step.weight, "bias": by * step.bias})
        result.append(step)
    return result


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([1e4, 1e6]), st.sampled_from([1e-6, 1e-3, 0.1]))
def test_huge_weights_with_dead_and_constant_neurons(seed, scale, radius):
    draw = Draws(seed)
    first, second = draw.linear(4, 10), draw.linear(10, 8)
    first.weight[:2] = 0  # constant: one active, one dead
    first.bias[:2] = torch.tensor([1.0, -1.0], dtype=torch.float64)
    second.weight[0] = 0
    second.bias[0] = 0  # constant, exactly at the kink
    first.weight[3:6] *= scale
    second.weight[4:] *= scale
    steps = [first, ReLUStep(), second, ReLUStep(), draw.linear(8, 2)]
    centre = torch.rand(1, 4, generator=draw.generator, dtype=torch.float64)
    box = Box(centre - radius, centre + radius)
    points = torch.cat([box.clamp(centre + radius * draw.normal(500, 4)), climbed(steps, box, draw.generator, 1, 5)])
    check(steps, box, points)
    dead = propagate(steps[:-1], box).relu_inputs[0]
    assert dead.upper[0, 1] < 0 < dead.lower[0, 0]


def test_zero_radius_and_two_classes_are_exact():
    case = random_case(2, "convolutional")
    steps = [*case.steps[:-1], Draws(1).linear(case.steps[-1].weight.shape[1], 2)]
    box = Box(case.box.centre, case.box.centre)
    _, lower = bounds_by(steps, box, torch.tensor([1]))
    expected = margins(forward(steps, box.centre), torch.tensor([1]))
    assert lower.shape == (1, 1)
    torch.testing.assert_close(lower, expected, rtol=1e-12, atol=1e-12)


def test_a_box_on_the_borders_of_images():
    draw = Draws(4)
    steps = [ScaleStep(*(torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (4.0, -2.0)))]
    steps = [*steps, draw.convolution(1, 3, (3, 3), (1, 1), (1, 1)), ReLUStep(), FlattenStep()]
    steps = [*steps, draw.linear(48, 6), ReLUStep(), draw.linear(6, 3)]
    image = torch.tensor([0.0, 1.0], dtype=torch.float64).repeat(8).view(1, 1, 4, 4)
    box = Box((image - 0.2).clamp(0, 1), (image + 0.2).clamp(0, 1))
    assert float(box.radius.max()) < 0.11
    check(steps, box, climbed(steps, box, torch.Generator().manual_seed(0)))


def test_a_bound_that_is_too_tight_is_noticed():
    case = random_case(903)
    points = climbed(case.steps, case.box, torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen, _ = relu_inputs_at(case.steps, points)
    bounds = crown_inputs(case.steps[:-1], case.box, propagate(case.steps[:-1], case.box).relu_inputs, memory=MEMORY)
    # At the first ReLU the bounds are taken on: one that is tighter by a hundred-thousandth is crossed.
    own, values = bounds[0], seen[0]
    by = 1e-5 * (own.upper - own.lower)
    assert (values.amin(0) < (own.lower + by)[0]).all() and (values.amax(0) > (own.upper - by)[0]).all()


def test_linear_networks_have_exact_bounds():
    steps = [LinearStep(torch.tensor([[1.0, -2.0], [0.5, 1.0]]).double(), torch.tensor([0.0, 1.0]).double())]
    box = Box(torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    problem = condense([], box, *margin_rows(steps[-1], torch.tensor([0])), [], memory=MEMORY)
    assert bound(problem).tolist() == [[-4.0]]  # 0.5 x - 3 y - 1 at (0, 1)
    assert optimise(problem, [], start_of(problem, []), iterations=3, rate=0.1).passed.lower.tolist() == [[-4.0]]
