"""What rounding adds is below what is allowed for it, and would be noticed if it were not."""

import pytest
import torch
from bounds.nets import Draws, outputs, random_case
from bounds.tasks import pose, solved

from sabr.bounds import rounding
from sabr.bounds.boxes import Box
from sabr.bounds.condensed import condense
from sabr.bounds.crown import backward_bound
from sabr.bounds.dual import Cuts, Multipliers, backward, bound, lines_of, start_of
from sabr.bounds.inner import crown_inputs
from sabr.bounds.interval import margin_bounds, margin_rows, propagate
from sabr.bounds.optimise import optimise
from sabr.bounds.rounding import allowances, multiplier_allowance
from sabr.certification.subproblems import Search, bound_together, roots
from sabr.networks.steps import FlattenStep, ReLUStep, SumStep, cast, forward

LABELS = torch.tensor([0])
MEMORY = 2**28
NETWORKS = 60


def large(seed):
    """A wider and deeper network than an exact solver could take, with weights of one sign where sums are longest."""
    draw = Draws(seed)
    steps = [draw.scaling(3), draw.convolution(3, 16, (3, 3), (1, 1), (1, 1)), ReLUStep()]
    block = SumStep(((draw.convolution(16, 16, (3, 3), (1, 1), (1, 1)), ReLUStep()), ()))
    steps += [block, draw.convolution(16, 16, (4, 4), (2, 2), (1, 1)), ReLUStep(), FlattenStep()]
    steps += [draw.linear(outputs(steps, (3, 10, 10))[0], 64), ReLUStep(), draw.linear(64, 64), ReLUStep()]
    if seed % 2:
        steps[-2].weight.abs_()
    steps += [draw.linear(64, 5)]
    centre = torch.rand(1, 3, 10, 10, generator=draw.generator)
    return steps, Box((centre - 0.01).double(), (centre + 0.01).double())


def networks():
    for seed in range(NETWORKS):
        case = random_case(seed)
        yield case.steps, case.box
    for seed in range(6):
        yield large(seed)


def in_float32(steps, box):
    return cast(steps, torch.float32), Box(box.lower.float(), box.upper.float())


def off(one, other, allowed):
    """By how much two tensors differ, at most, in units of what is allowed."""
    assert one.dtype == torch.float32 and other.dtype == torch.float64
    return float(((one.double() - other).abs() / allowed.double()).nan_to_num(0.0).max())


def relu_values(steps, points):
    seen = []

    def through(part, values):
        for step in part:
            if isinstance(step, ReLUStep):
                seen.append(values)
            if isinstance(step, SumStep):
                values = sum(through(path, values) for path in step.paths)
            else:
                values = step.apply(values)
        return values

    return seen, through(steps, points)


def errors(steps, box):
    """Of one network: errors of values at points and of each kind of bound, in units of what is allowed."""
    single, ends = in_float32(steps, box)
    rows, exact_rows = margin_rows(single[-1], LABELS), margin_rows(steps[-1], LABELS)
    intervals = propagate(single[:-1], ends).relu_inputs
    allowed = allowances(single[:-1], ends, intervals, *rows)
    found = {}
    unit = torch.rand(200, *box.lower.shape[1:], generator=torch.Generator().manual_seed(0))
    points = ends.clamp(ends.lower + unit.round(decimals=1) * (ends.upper - ends.lower))
    one, other = relu_values(single[:-1], points), relu_values(steps[:-1], points.double())
    pairs = zip(one[0], other[0], allowed.relu_inputs, strict=True)
    found["values"] = max([off(a, b, c) for a, b, c in pairs], default=0.0)
    logits = [torch.einsum("ph,qh->pq", inner, w[0]) + b for inner, (w, b) in ((one[1], rows), (other[1], exact_rows))]
    found["values"] = max(found["values"], off(*logits, allowed.objective))
    exact = margin_bounds(steps, box, LABELS)
    found["interval"] = off(margin_bounds(single, ends, LABELS).lower, exact.lower, allowed.objective)
    for a, b, c in zip(intervals, exact.relu_inputs, allowed.relu_inputs, strict=True):
        found["interval"] = max(found["interval"], off(a.lower, b.lower, c), off(a.upper, b.upper, c))
    widened = [Box(b.lower - a, b.upper + a) for b, a in zip(intervals, allowed.relu_inputs, strict=True)]
    inner = crown_inputs(single[:-1], ends, widened, allowances=allowed.relu_inputs, memory=MEMORY)
    known = [Box(b.lower.double(), b.upper.double()) for b in inner]
    allowed = allowances(single[:-1], ends, inner, *rows)
    crown = backward_bound(single[:-1], ends, inner, *rows)
    found["crown"] = off(crown, backward_bound(steps[:-1], box, known, *exact_rows), allowed.objective)
    problem = condense(single[:-1], ends, *rows, inner, memory=MEMORY)
    double = condense(steps[:-1], box, *exact_rows, known, memory=MEMORY)
    found["condensed"] = off(bound(problem), bound(double), allowed.objective)
    lines = lines_of(problem)
    alpha = optimise(problem, lines, start_of(problem, lines), iterations=5, rate=0.2, target=float("inf"))
    again = backward(double, lines_of(double), Multipliers([a.double() for a in alpha.multipliers.alpha]))
    found["alpha-crown"] = off(alpha.passed.lower, again.lower, allowed.objective)
    return found


def test_rounding_stays_below_what_is_allowed_but_not_far_below():
    largest, means = {}, []
    for steps, box in networks():
        for kind, value in errors(steps, box).items():
            largest[kind] = max(largest.get(kind, 0.0), value)
            means.append(value)
    assert len(means) == 5 * (NETWORKS + 6)
    assert all(value < 1 for value in largest.values()), largest
    assert min(largest["values"], largest["interval"]) > 0.03, largest
    assert min(largest["crown"], largest["condensed"], largest["alpha-crown"]) > 0.002, largest


@pytest.mark.parametrize(
    ("kind", "deviations"),
    [("values", 0.2), ("interval", 0.2), ("crown", 0.02), ("condensed", 0.02), ("alpha-crown", 0.02)],
)
def test_too_small_an_allowance_would_be_noticed(kind, deviations, monkeypatch):
    monkeypatch.setattr(rounding, "_DEVIATIONS", deviations)
    assert max(errors(*network)[kind] for network in networks()) > 1


def test_inner_bounds_in_float32_contain_those_in_float64_when_moved():
    for steps, box in (large(0), large(1)):
        single, ends = in_float32(steps, box)
        intervals = propagate(single[:-1], ends).relu_inputs
        allowed = allowances(single[:-1], ends, intervals, *margin_rows(single[-1], LABELS)).relu_inputs
        widened = [Box(b.lower - a, b.upper + a) for b, a in zip(intervals, allowed, strict=True)]
        moved = crown_inputs(single[:-1], ends, widened, allowances=allowed, memory=MEMORY)
        # Each layer by itself: the same bounds before it, in float64.
        known = [Box(b.lower.double(), b.upper.double()) for b in moved]
        values, _ = relu_values(steps, box.sample(torch.Generator().manual_seed(0)))
        for own, exact in zip(known, values, strict=True):
            assert (own.lower <= exact).all() and (exact <= own.upper).all()
        for narrow, wide in zip(propagate(steps[:-1], box).relu_inputs, widened, strict=True):
            assert (wide.lower < narrow.lower).all() and (wide.upper > narrow.upper).all()


def test_it_grows_with_the_network_and_follows_the_precision():
    steps, box = large(0)
    rows = margin_rows(steps[-1], LABELS)
    bounds = propagate(steps[:-1], box).relu_inputs
    double = allowances(steps[:-1], box, bounds, *rows)
    single, ends = in_float32(steps, box)
    own = allowances(single[:-1], ends, propagate(single[:-1], ends).relu_inputs, *margin_rows(single[-1], LABELS))
    ratio = own.objective.double() / double.objective
    torch.testing.assert_close(ratio, torch.full_like(ratio, 2.0**29), rtol=1e-3, atol=0)
    means = [float(a.mean()) for a in double.relu_inputs]
    assert means == sorted(means) and len(means) == 5
    # Over a point of zeros only the constants are rounded.
    nothing = Box(torch.zeros_like(box.lower), torch.zeros_like(box.lower))
    plain = [*steps[1:3], FlattenStep()]
    last = torch.zeros(1, 1, 1600).double(), torch.zeros(1, 1).double()
    first = allowances(plain, nothing, propagate(plain, nothing).relu_inputs, *last)
    expected = 16 * (3 * 9 + 1) ** 0.5 * 2.0**-53 * plain[0].bias.abs()
    torch.testing.assert_close(first.relu_inputs[0][0, :, 4, 4], expected)


def test_it_is_the_error_of_a_long_sum():
    # 10^4 products of one sign: theirs is the largest error that independent roundings may give.
    draw = Draws(0)
    steps = [draw.linear(10_000, 30, gain=1.0)]
    steps[0].weight.abs_()
    point = torch.rand(1, 10_000, generator=draw.generator)
    single = cast(steps, torch.float32)
    rows = torch.eye(30).unsqueeze(0), torch.zeros(1, 30)
    allowed = allowances(single, Box(point, point), [], *rows).objective
    value = forward(single, point)[:, :30]
    error = (value.double() - forward(steps, point.double())).abs()
    assert (error < allowed).all() and float(allowed.max()) < 1e-3 * float(value.min())


def test_multipliers_add_what_their_constraints_may_be_off_by():
    alpha = [torch.zeros(1, 2, 3), torch.zeros(1, 2, 2)]
    beta = [torch.tensor([[[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]]), torch.tensor([[[0.0, 3.0], [0.0, 0.0]]])]
    allowed = [torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[0.4, 0.5]])]
    found = multiplier_allowance(Multipliers(alpha, beta), None, allowed)
    torch.testing.assert_close(found, torch.tensor([[0.1 + 0.6 + 1.5, 0.0]]))
    assert multiplier_allowance(Multipliers(alpha), None, allowed).tolist() == [[0.0, 0.0]]
    cut = Cuts(
        torch.tensor([[[2, 0]]]), torch.tensor([[[1.0, -2.0]]]), torch.tensor([[[0.0, 0.5]]]), torch.tensor([[4.0]])
    )
    mu = [torch.tensor([[[2.0], [0.0]]]), None]
    found = multiplier_allowance(Multipliers(alpha, beta, mu), [cut, None], allowed)
    expected = 2.2 + 2 * (0.3 + 2.5 * 0.1 + 16 * 2**0.5 * 2.0**-24 * 4)
    torch.testing.assert_close(found, torch.tensor([[expected, 0.0]]))


def test_bounds_of_subproblems_are_lowered_by_it():
    # Large multipliers of splits: the bound is below the one without rounding by what they weigh.
    case, optimum, _ = solved(0)
    task = pose(case, optimum, 0.1).task
    part = roots(task)
    sign = torch.ones_like(part.sign)
    part = part._replace(sign=sign, beta=torch.full_like(part.beta, 2.0))
    settings = Search(1, 1e-30, "babsr", 1, False, 8, MEMORY)
    [found] = bound_together([task], [part], settings)
    beta = [b.unsqueeze(0) for b in torch.split(found.subproblems.beta, task.sizes, 1)]
    splits = [s.unsqueeze(0) for s in torch.split(sign, task.sizes, 1)]
    plain = backward(
        task.problem, lines_of(task.problem, splits), Multipliers([torch.ones_like(b) for b in beta], beta)
    )
    expected = plain.lower[0] - 2.0 * float(sum(a.sum() for a in task.allowances))
    torch.testing.assert_close(found.subproblems.bound, expected, rtol=1e-6, atol=1e-6)
    assert float(sum(a.sum() for a in task.allowances)) > 1e-5
