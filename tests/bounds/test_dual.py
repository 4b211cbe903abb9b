"""Bounds of condensed networks: their value and gradient against automatic differentiation, and weak duality."""

import pytest
import torch
from bounds.nets import random_case
from bounds.tasks import evaluate

from sabr.bounds.boxes import Box
from sabr.bounds.condensed import condense
from sabr.bounds.cuts import Grouping, cuts_for
from sabr.bounds.dual import (
    Cuts,
    Layer,
    Multipliers,
    Problem,
    backward,
    bound,
    gradient,
    lines_of,
    projected,
    relax,
    start_of,
)
from sabr.bounds.inner import crown_inputs
from sabr.bounds.interval import margin_rows, propagate
from sabr.bounds.optimise import optimise
from sabr.bounds.stacking import stack, stack_cuts, stack_queries
from sabr.bounds.tighten import optimised_layers, split_lines

MEMORY = 2**28


def problem_of(seed, kind=None, labels=(0,)):
    """The condensed network of a random case: one problem with a query for each wrong class."""
    case = random_case(seed, kind)
    hidden, rows = case.steps[:-1], margin_rows(case.steps[-1], torch.tensor(labels))
    relu_inputs = crown_inputs(hidden, case.box, propagate(hidden, case.box).relu_inputs, memory=MEMORY)
    return condense(hidden, case.box, *rows, relu_inputs, memory=MEMORY)


def drawn_problem(seed, images=2, queries=3, inputs=4, sizes=(3, 0, 5, 2)):
    """Random rows; boxes around 0; bounds by intervals; some ReLUs stable by them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    centre, radius = draw(images, inputs), draw(images, inputs).abs()
    box, layers, width = Box(centre - radius, centre + radius), [], inputs + 1
    ones = torch.ones(images, 1, dtype=torch.float64)
    lower, upper = torch.cat([box.lower, ones], 1), torch.cat([box.upper, ones], 1)
    for size in sizes:
        rows = draw(images, size, width)
        low = (rows.clamp(min=0) * lower.unsqueeze(1) + rows.clamp(max=0) * upper.unsqueeze(1)).sum(2)
        high = (rows.clamp(min=0) * upper.unsqueeze(1) + rows.clamp(max=0) * lower.unsqueeze(1)).sum(2)
        real = torch.ones(images, size, dtype=torch.bool)
        layers.append(Layer(rows, low, high, real, torch.arange(size).expand(images, -1)))
        lower, upper = torch.cat([lower, low.clamp(min=0)], 1), torch.cat([upper, high.clamp(min=0)], 1)
        width += size
    return Problem(box, layers, draw(images, queries, width)), draw


def drawn_cuts(problem, draw, generator):
    cuts = []
    for layer in problem.layers:
        images, size = layer.lower.shape
        if size < 2:
            cuts.append(None)
            continue
        members = torch.stack(
            [torch.stack([torch.randperm(size, generator=generator)[:2] for _ in range(4)]) for _ in range(images)]
        )
        cuts.append(Cuts(members, draw(images, 4, 2), draw(images, 4, 2), draw(images, 4)))
    return cuts


def drawn_multipliers(problem, draw, cuts):
    count, queries, _ = problem.objective.shape
    shapes = [(count, queries, layer.lower.shape[1]) for layer in problem.layers]
    alpha = [draw(*shape).sigmoid().requires_grad_() for shape in shapes]
    beta = [draw(*shape).abs().requires_grad_() for shape in shapes]
    mu = [None if cut is None else draw(count, queries, 4).abs().requires_grad_() for cut in cuts]
    return Multipliers(alpha, beta, mu)


def drawn_splits(problem, generator):
    count, queries, _ = problem.objective.shape
    return [
        torch.randint(-1, 2, (count, queries, layer.lower.shape[1]), generator=generator) for layer in problem.layers
    ]


def by_hand(problem, splits, multipliers, cuts):
    """The Lagrangian's minimum for each image and query, neuron by neuron, as a graph of the multipliers."""
    count, queries, _ = problem.objective.shape
    results = []
    for image in range(count):
        for query in range(queries):
            row = list(problem.objective[image, query])
            size = problem.box.lower.shape[1]

            def add(weight, values, row=row):
                for column, value in enumerate(values):
                    row[column] = row[column] + weight * value

            for number in reversed(range(len(problem.layers))):
                layer, start, cut = problem.layers[number], problem.columns[number].start, cuts[number]
                for index in range(0 if cut is None else 4):
                    mu = multipliers.mu[number][image, query, index]
                    row[size] = row[size] - mu * cut.limit[image, index]
                    for member, z_weight in zip(cut.members[image, index], cut.z_weight[image, index], strict=True):
                        row[start + member] = row[start + member] + mu * z_weight
                for neuron in range(layer.lower.shape[1]):
                    own, values = row[start + neuron], layer.rows[image, neuron]
                    sign = int(splits[number][image, query, neuron])
                    low, high = float(layer.lower[image, neuron]), float(layer.upper[image, neuron])
                    if sign > 0 or (sign == 0 and low >= 0):
                        add(own, values)
                    elif sign == 0 and high > 0:
                        if own > 0:
                            add(own * multipliers.alpha[number][image, query, neuron], values)
                        else:
                            add(own * high / (high - low), values)
                            row[size] = row[size] - own * high * low / (high - low)
                    add(-sign * multipliers.beta[number][image, query, neuron], values)
                    for index in range(0 if cut is None else 4):
                        mu = multipliers.mu[number][image, query, index]
                        for member, y_weight in zip(cut.members[image, index], cut.y_weight[image, index], strict=True):
                            if int(member) == neuron:
                                add(mu * y_weight, values)
            value = row[size]
            for column in range(size):
                end = problem.box.lower if row[column] > 0 else problem.box.upper
                value = value + row[column] * end[image, column]
            results.append(value)
    return torch.stack(results).view(count, queries)


@pytest.mark.parametrize("seed", range(12))
def test_value_and_gradient_are_those_of_automatic_differentiation(seed):
    problem, draw = drawn_problem(seed)
    generator = torch.Generator().manual_seed(seed)
    splits = drawn_splits(problem, generator)
    cuts = drawn_cuts(problem, draw, generator)
    asked = drawn_multipliers(problem, draw, cuts)
    lines = lines_of(problem, splits)
    expected = by_hand(problem, splits, asked, cuts)
    wanted = [*asked.alpha, *asked.beta, *(m for m in asked.mu if m is not None)]
    slopes = torch.autograd.grad(expected.sum(), wanted, allow_unused=True)
    with torch.no_grad():
        at = projected(asked, lines)
        passed = backward(problem, lines, at, cuts)
        found = gradient(problem, lines, at, passed, cuts)
    torch.testing.assert_close(passed.lower, expected.detach(), rtol=1e-10, atol=1e-10)
    own = [*found.alpha, *found.beta, *(m for m in found.mu if m is not None)]
    assert len(own) == len(wanted)
    for one, other in zip(own, slopes, strict=True):
        other = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    assert sum(int((slope != 0).sum()) for slope in own) > 20


def test_gradients_without_splits_and_cuts():
    problem, draw = drawn_problem(3)
    lines = lines_of(problem)
    alpha = [draw(2, 3, layer.lower.shape[1]).sigmoid().requires_grad_() for layer in problem.layers]
    nothing = [torch.zeros(2, 3, layer.lower.shape[1]) for layer in problem.layers]
    expected = by_hand(problem, nothing, Multipliers(alpha, nothing, None), [None] * 4)
    slopes = torch.autograd.grad(expected.sum(), alpha, allow_unused=True)
    with torch.no_grad():
        at = projected(Multipliers(alpha), lines)
        passed = backward(problem, lines, at)
        found = gradient(problem, lines, at, passed)
    assert found.beta is None and found.mu is None
    torch.testing.assert_close(passed.lower, expected.detach(), rtol=1e-10, atol=1e-10)
    for one, other in zip(found.alpha, slopes, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(20))
def test_no_multipliers_lift_a_bound_above_a_point_that_fulfils_the_splits(seed):
    problem = problem_of(seed, ("convolutional", "residual", "fully connected")[seed % 3])
    generator = torch.Generator().manual_seed(seed)
    queries, size = problem.objective.shape[1], problem.box.lower.shape[1]
    cuts = cuts_for(
        problem, Grouping(2, 20, 5, 8), allowances=[torch.zeros_like(x.lower) for x in problem.layers], memory=MEMORY
    )
    for _ in range(8):
        unit = torch.rand(1, queries, size, generator=generator, dtype=torch.float64).round(decimals=1)
        points = problem.box.lower.unsqueeze(1) + unit * (problem.box.upper - problem.box.lower).unsqueeze(1)
        values, splits = torch.cat([points, torch.ones(1, queries, 1, dtype=torch.float64)], 2), []
        for layer in problem.layers:
            y = torch.bmm(values, layer.rows.transpose(1, 2))
            chosen = torch.rand(y.shape, generator=generator) < 0.4
            splits.append(torch.where(chosen, torch.where(y >= 0, 1, -1), 0))
            values = torch.cat([values, y.clamp(min=0)], 2)
        lines = lines_of(problem, splits)
        start = start_of(problem, lines, cuts)
        wild = start.map(lambda t: 3 * torch.rand(t.shape, generator=generator, dtype=t.dtype))
        reached = evaluate(problem, points)
        assert (backward(problem, lines, projected(wild, lines), cuts).lower <= reached + 1e-9).all()
        found = optimise(problem, lines, start, iterations=15, rate=0.2, target=float("inf"), cuts=cuts)
        assert (found.passed.lower <= reached + 1e-9).all()
        assert (found.passed.lower >= backward(problem, lines, projected(start, lines), cuts).lower).all()


def test_relaxation_of_one_relu():
    lower = torch.tensor([-1.0, -2.0, 0.0, -3.0, -1.0, -1.0])
    upper = torch.tensor([3.0, 1.0, 2.0, 0.0, 3.0, 3.0])
    sign = torch.tensor([0, 0, 0, 0, 1, -1])
    lines = relax(lower, upper, sign)
    torch.testing.assert_close(lines.upper_slope, torch.tensor([0.75, 1 / 3, 1.0, 0.0, 1.0, 0.0]))
    torch.testing.assert_close(lines.upper_offset, torch.tensor([0.75, 2 / 3, 0.0, 0.0, 0.0, 0.0]))
    assert lines.alpha.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert lines.free.tolist() == [True, True, False, False, False, False]


def test_optimising_keeps_the_best_and_what_gave_it():
    problem, draw = drawn_problem(11, sizes=(6, 6))
    lines = lines_of(problem)
    start = start_of(problem, lines)
    first = bound(problem, lines)
    found = optimise(problem, lines, start, iterations=30, rate=0.3, target=float("inf"))
    assert (found.passed.lower >= first).all() and (found.passed.lower > first + 1e-3).any()
    again = backward(problem, lines, found.multipliers)
    torch.testing.assert_close(again.lower, found.passed.lower, rtol=0, atol=1e-12)
    torch.testing.assert_close(again.point, found.passed.point)
    for one, other in zip(again.coefficients, found.passed.coefficients, strict=True):
        torch.testing.assert_close(one, other)
    assert all(((a >= 0) & (a <= 1)).all() for a in found.multipliers.alpha)


@pytest.mark.parametrize("below", [True, False])
def test_optimising_ends_when_all_targets_are_met(below, monkeypatch):
    problem, _ = drawn_problem(11, sizes=(6, 6))
    lines, passes = lines_of(problem), []
    first = bound(problem, lines)

    def counting(*arguments):
        passes.append(1)
        return backward(*arguments)

    monkeypatch.setattr("sabr.bounds.optimise.backward", counting)
    target = first - 1e-6 if below else torch.where(torch.arange(3) == 2, first + 1e9, first - 1)
    optimise(problem, lines, start_of(problem, lines), iterations=5, rate=0.1, target=target)
    assert len(passes) == (1 if below else 6)


@pytest.mark.parametrize("images", [1, 4])
def test_what_hardly_gains_any_more_is_left_as_it_is(images, monkeypatch):
    problem, _ = drawn_problem(11, images=images, queries=5, sizes=(6, 6))
    lines, asked = lines_of(problem), []

    def counting(own, *arguments):
        asked.append(own.objective.shape[0] * own.objective.shape[1])
        return backward(own, *arguments)

    monkeypatch.setattr("sabr.bounds.optimise.backward", counting)
    options = {"iterations": 40, "rate": 0.25, "target": float("inf")}
    whole = optimise(problem, lines, start_of(problem, lines), **options).passed.lower
    passes, first = sum(asked), bound(problem, lines)
    assert passes == 41 * 5 * images
    asked.clear()
    left = optimise(problem, lines, start_of(problem, lines), **options, least_gain=0.01)
    assert sum(asked) < passes / 2
    assert (first <= left.passed.lower).all() and (left.passed.lower <= whole).all()
    assert float((whole - left.passed.lower).sum()) <= 0.1 * float((whole - first).sum())
    torch.testing.assert_close(backward(problem, lines, left.multipliers).lower, left.passed.lower)


def test_stacked_problems_are_the_single_ones():
    problems, cuts, parts = [], [], []
    for seed, sizes in enumerate([(3, 4, 0), (5, 0, 2), (1, 6, 3)]):
        problem, draw = drawn_problem(seed, images=1, queries=seed + 1, sizes=sizes)
        problems.append(problem)
        cuts.append(drawn_cuts(problem, draw, torch.Generator().manual_seed(seed)))
        parts.append([draw(1, seed + 1, layer.lower.shape[1]).sigmoid() for layer in problem.layers])
    whole, alpha, limits = stack(problems), stack_queries(parts), stack_cuts(cuts)
    assert whole.objective.shape[1] == 3 and [layer.lower.shape[1] for layer in whole.layers] == [5, 6, 3]
    mu = [None if c is None else torch.ones(3, 3, c.limit.shape[1], dtype=torch.float64) for c in limits]
    lines = lines_of(whole)
    together = backward(whole, lines, projected(Multipliers(alpha, None, mu), lines), limits)
    for image, (problem, own, cut) in enumerate(zip(problems, parts, cuts, strict=True)):
        queries, lines = problem.objective.shape[1], lines_of(problem)
        mu = [None if c is None else torch.ones(1, queries, 4, dtype=torch.float64) for c in cut]
        alone = backward(problem, lines, projected(Multipliers(own, None, mu), lines), cut)
        torch.testing.assert_close(together.lower[image, :queries], alone.lower[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together.point[image, :queries], alone.point[0])


def tight_problem():
    """y1 = x in [-1, 1], y2 = z1 - 0.5: where y1 <= 0, y2 is -0.5."""
    box = Box(torch.tensor([[-1.0]]).double(), torch.tensor([[1.0]]).double())
    real, places = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64)

    def layer(row, low, high):
        ends = [torch.tensor([[end]]).double() for end in (low, high)]
        return Layer(torch.tensor([[row]]).double(), *ends, real, places)

    layers = [layer([1.0, 0.0], -1.0, 1.0), layer([0.0, -0.5, 1.0], -0.5, 0.5)]
    return Problem(box, layers, torch.tensor([[[0.0, 1.0, 0.0, -1.0]] * 4]).double())


def test_bounds_behind_a_split_and_splits_that_no_point_fulfils():
    problem = tight_problem()
    splits = [torch.tensor([[[1], [-1], [-1], [0]]]), torch.tensor([[[0], [0], [1], [1]]])]
    known = [Box(*(e.unsqueeze(1).expand(-1, 4, -1) for e in (x.lower, x.upper))) for x in problem.layers]
    none = [torch.zeros(1, 1).double()] * 2
    lines, bounds, infeasible = split_lines(problem, splits, known, allowances=none, memory=MEMORY)
    assert infeasible.tolist() == [[False, False, True, False]]
    assert bounds[0].lower.flatten().tolist() == [0.0, -1.0, -1.0, -1.0]
    assert bounds[0].upper.flatten().tolist() == [1.0, 0.0, 0.0, 1.0]
    assert bounds[1].lower.flatten()[[0, 1, 3]].tolist() == [-0.5, -0.5, 0.0]
    assert bounds[1].upper.flatten()[[0, 1, 3]].tolist() == [0.5, -0.5, 0.5]
    assert lines[1].upper_slope.flatten()[[0, 1]].tolist() == [0.5, 0.0]
    wide = [torch.zeros(1, 1).double(), torch.full((1, 1), 0.6).double()]
    assert not split_lines(problem, splits, known, allowances=wide, memory=MEMORY)[2].any()
    piecewise = split_lines(problem, splits, known, allowances=none, memory=1)
    assert torch.equal(piecewise[2], infeasible)
    assert all(torch.equal(a.lower, b.lower) for a, b in zip(piecewise[1], bounds, strict=True))


@pytest.mark.parametrize("seed", range(9))
def test_bounds_behind_splits_hold_at_points_that_fulfil_them(seed):
    problem = problem_of(seed + 30)
    generator = torch.Generator().manual_seed(seed)
    queries, size = 40, problem.box.lower.shape[1]
    problem = problem._replace(objective=problem.objective[:, :1].expand(-1, queries, -1))
    unit = torch.rand(1, queries, size, generator=generator, dtype=torch.float64)
    points = problem.box.lower.unsqueeze(1) + unit * (problem.box.upper - problem.box.lower).unsqueeze(1)
    values, splits, inputs = torch.cat([points, torch.ones(1, queries, 1, dtype=torch.float64)], 2), [], []
    for layer in problem.layers:
        y = torch.bmm(values, layer.rows.transpose(1, 2))
        inputs.append(y)
        splits.append(torch.where(torch.rand(y.shape, generator=generator) < 0.5, torch.where(y >= 0, 1, -1), 0))
        values = torch.cat([values, y.clamp(min=0)], 2)
    known = [Box(*(e.unsqueeze(1).expand(-1, queries, -1) for e in (x.lower, x.upper))) for x in problem.layers]
    none = [torch.zeros_like(layer.lower) for layer in problem.layers]
    lines, bounds, infeasible = split_lines(problem, splits, known, allowances=none, memory=20_000)
    assert not infeasible.any()
    narrower = 0
    for y, own, before in zip(inputs, bounds, known, strict=True):
        assert (y >= own.lower - 1e-9).all() and (y <= own.upper + 1e-9).all()
        assert (own.lower >= before.lower).all() and (own.upper <= before.upper).all()
        narrower += int((own.lower > before.lower).sum() + (own.upper < before.upper).sum())
    assert narrower >= queries
    start = start_of(problem, lines)
    found = optimise(problem, lines, start, iterations=5, rate=0.1, target=float("inf")).passed.lower
    assert (found <= evaluate(problem, points) + 1e-9).all()


@pytest.mark.parametrize("seed", range(6))
def test_optimised_layers_in_pieces(seed):
    problem, _ = drawn_problem(seed + 60, sizes=(6, 6, 4))
    slack = [torch.full_like(layer.lower, 1e-4) for layer in problem.layers]
    options = {"iterations": 4, "rate": 0.1}
    whole = optimised_layers(problem, **options, allowances=slack, memory=MEMORY)
    pieces = optimised_layers(problem, **options, allowances=slack, memory=1)
    free = optimised_layers(problem, **options, allowances=[torch.zeros_like(s) for s in slack], memory=MEMORY)
    for one, other, tight, before in zip(whole, pieces, free, problem.layers, strict=True):
        torch.testing.assert_close(one.lower, other.lower, rtol=0, atol=1e-9)
        torch.testing.assert_close(one.upper, other.upper, rtol=0, atol=1e-9)
        assert (one.lower >= before.lower).all() and (one.upper <= before.upper).all()
        assert (one.lower <= one.upper).all() and torch.equal(one.rows, before.rows)
        assert (tight.lower >= before.lower).all()
    assert torch.equal(free[0].lower, problem.layers[0].lower)
    assert any(
        ((one.lower > before.lower) | (one.upper < before.upper)).any()
        for one, before in zip(free, problem.layers, strict=True)
    )
