"""The complete verifier: limits, ties, infeasible splits, several images at once; verdicts are tested by the oracle."""

import itertools
import time
from dataclasses import replace

import pytest
import torch
from bounds.nets import Draws, random_case
from bounds.tasks import LABEL, MEMORY, pose, solved

from sabr.bounds import optimise
from sabr.bounds.boxes import Box
from sabr.bounds.cuts import Grouping
from sabr.bounds.dual import bound
from sabr.bounds.interval import margin_rows, propagate
from sabr.certification import branch_and_bound
from sabr.certification.branch_and_bound import search
from sabr.certification.preparation import Preparation, prepare
from sabr.certification.subproblems import Search, bound_together, halves, roots
from sabr.networks.steps import LinearStep, ReLUStep, forward

SETTINGS = Search(20, 0.1, "filtered", 4, True, 64, MEMORY)
# A case with two hidden layers of 20 and 16 ReLUs whose search takes hundreds of subproblems near 0.
HARD = 37


def hard(shift=1e-5, **changes):
    case, optimum, _ = solved(HARD)
    return pose(case, optimum, shift, **changes), optimum


def plain_task(steps, box, *, seconds=60.0):
    """The margin of class 0 over class 1 of a network (float64) whose bounds are intervals."""
    weight, constant = margin_rows(steps[-1], LABEL)
    ends = Box(box.lower.double(), box.upper.double())
    bounds = [Box(b.lower.float(), b.upper.float()) for b in propagate(steps[:-1], ends).relu_inputs]

    def refutes(point):
        return float((forward(steps[:-1], point.double().view(1, -1)) @ weight[0].t() + constant).min()) < 0

    return prepare(
        steps[:-1], box, weight, constant, bounds, Preparation(0, 0.1, None, MEMORY), refutes=refutes, seconds=seconds
    )


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def chain(offset):
    """y1 = x, y2 = relu(y1) - 0.5, margin relu(y2) + offset: where y1 <= 0, y2 >= 0 has no point."""
    steps = [LinearStep(tensor([[1.0]]), tensor([0.0])), ReLUStep(), LinearStep(tensor([[1.0]]), tensor([-0.5]))]
    return [*steps, ReLUStep(), LinearStep(tensor([[1.0], [0.0]]), tensor([offset, 0.0]))]


CHAIN_BOX = Box(torch.tensor([[-1.0]]), torch.tensor([[1.0]]))


@pytest.mark.parametrize("recompute", [True, False])
def test_infeasible_splits(recompute):
    settings = replace(SETTINGS, recompute=recompute)
    task = plain_task(chain(0.25), CHAIN_BOX)
    assert task.sizes == [1, 1]
    inactive = halves(roots(task), torch.tensor([0])).take(torch.tensor([1]))
    both = halves(inactive, torch.tensor([1]))
    assert both.sign.tolist() == [[-1, 1], [-1, -1]]
    [bounded] = bound_together([task], [both], settings)
    assert bounded.infeasible.tolist() == [recompute, False]
    assert (bounded.place == -1).all()
    assert search([task], settings)[0].proved
    outcome = search([plain_task(chain(-0.25), CHAIN_BOX)], settings)[0]
    assert outcome.point is not None and -1 <= float(outcome.point) <= 0.75


def test_halves():
    task = plain_task(chain(0.25), CHAIN_BOX)
    parents = roots(task).take(torch.tensor([0, 0]))
    children = halves(parents, torch.tensor([1, 0]))
    assert children.sign.tolist() == [[0, 1], [0, -1], [1, 0], [-1, 0]]
    assert children.lower.tolist() == [[-1.0, 0.0], [-1.0, -0.5], [0.0, -0.5], [-1.0, -0.5]]
    assert children.upper.tolist() == [[1.0, 0.5], [1.0, 0.0], [1.0, 0.5], [0.0, 0.5]]
    assert parents.sign.abs().sum() == 0


def test_out_of_memory():
    posed, optimum = hard()
    search_with = replace(SETTINGS, memory=2000, queries=8, recompute=False)
    [outcome] = search([posed.task], search_with)
    assert not outcome.proved and outcome.point is None
    assert outcome.reason.startswith("out of memory: ") and outcome.reason.endswith("subproblems wait")
    assert int(outcome.reason.split()[3]) > 2000 / (17 * sum(posed.task.sizes))
    least = optimum - optimum.min() + 1e-5
    assert (outcome.lower <= least[0].float() + 1e-4).all() and torch.isfinite(outcome.lower).all()


def test_of_two_images_the_one_with_less_waiting_is_kept():
    hungry, _ = hard()
    modest = plain_task(chain(0.25), CHAIN_BOX)
    settings = replace(SETTINGS, memory=2000, queries=8, recompute=False)
    first, second = search([hungry.task, modest], settings)
    assert first.reason.startswith("out of memory") and second.proved


def test_out_of_time():
    posed, _ = hard(seconds=1e-9)
    [outcome] = search([posed.task], SETTINGS)
    assert not outcome.proved and outcome.point is None
    # The first batch is always bounded: its bounds count.
    assert outcome.reason == f"out of time after {posed.task.problem.objective.shape[1]} subproblems"
    assert torch.isfinite(outcome.lower).all()
    assert outcome.seconds > 0


def test_a_limit_of_time_is_kept_roughly():
    posed, _ = hard(seconds=0.3)
    posed.task.exactly()
    started = time.perf_counter()
    [outcome] = search([posed.task], replace(SETTINGS, iterations=2, recompute=False, queries=16))
    assert outcome.reason.startswith("out of time after ")
    assert 0.3 <= outcome.seconds <= time.perf_counter() - started < 3


@pytest.mark.parametrize("batches", [0, 3])
def test_stopped_from_outside(batches):
    posed = [hard()[0] for _ in range(2)]
    asked = itertools.count()
    outcomes = search([one.task for one in posed], SETTINGS, stop=lambda: next(asked) >= batches)
    for outcome in outcomes:
        assert outcome.reason == "the shard's time is over" and not outcome.proved
        assert (outcome.subproblems > 0) == (batches > 0)
        assert torch.isfinite(outcome.lower).all() == (batches > 0)


def test_functions_that_do_not_fit_together_are_bounded_by_turns(monkeypatch):
    last = LinearStep(tensor([[1.0], [0.0], [0.0], [0.0], [0.0]]), tensor([0.25, 0.0, 0.0, 0.0, 0.0]))
    task = plain_task([*chain(0.25)[:-1], last], CHAIN_BOX)
    sizes, original = [], branch_and_bound.bound_together

    def counted(tasks, parts, settings):
        sizes.append([len(part.query) for part in parts])
        return original(tasks, parts, settings)

    monkeypatch.setattr(branch_and_bound, "bound_together", counted)
    [outcome] = search([task], replace(SETTINGS, memory=1))
    assert outcome.proved and (outcome.lower > 0).all() and sizes[:2] == [[2], [2]]
    # What was bounded says nothing of the others.
    asked = itertools.count()
    [outcome] = search([task], replace(SETTINGS, queries=2), stop=lambda: next(asked) >= 1)
    assert not outcome.proved and torch.isinf(outcome.lower).tolist() == [False, False, True, True]


def test_nothing_to_do():
    assert search([], SETTINGS) == []


def alike(inputs=4, layers=2, cases=12):
    """Tasks of networks of one shape of inputs and one depth, of different sizes and numbers of queries."""
    found = []
    for seed in range(0, 3000, 3):
        case = random_case(seed)
        if case.box.lower.shape[1] == inputs and sum(isinstance(step, ReLUStep) for step in case.steps) == layers:
            found.append(seed)
        if len(found) == cases:
            return found
    raise AssertionError("too few cases")


@pytest.mark.parametrize(("rule", "group"), [("filtered", 0), ("babsr", 2), ("active-constraints", 3)])
def test_images_together_are_images_alone(rule, group):
    posed = []
    for seed in alike():
        case, optimum, _ = solved(seed)
        scale = max(1.0, float(optimum.abs().max()))
        posed += [pose(case, optimum, shift * scale, group=group) for shift in (0.02, -0.02, 1e-4)]
    assert len({one.task.problem.objective.shape for one in posed}) > 4
    settings = replace(SETTINGS, rule=rule)
    together = search([one.task for one in posed], settings)
    alone = [search([one.task], settings)[0] for one in posed]
    assert [o.proved for o in together] == [o.proved for o in alone] == [True, False, True] * (len(posed) // 3)
    assert [o.point is None for o in together] == [o.point is None for o in alone] == [True, False, True] * 12
    assert {o.reason for o in together} == {""}
    # Shared batches change which subproblems come first, and so only how many there are.
    assert sum(o.subproblems for o in together) < 2 * sum(o.subproblems for o in alone)


def test_a_batch_ends_when_all_its_queries_are_proved(monkeypatch):
    # Images with fewer queries are filled up: what is filled up must not keep the others waiting.
    few, many = (next(s for s in alike() if random_case(s).classes == k) for k in (2, 3))
    tasks = []
    for seed in (few, many):
        case, optimum, _ = solved(seed)
        tasks.append(pose(case, optimum, 100.0 * float(optimum.abs().max())).task)
    passes, original = [], optimise.backward

    def counted(*arguments):
        passes.append(1)
        return original(*arguments)

    monkeypatch.setattr(optimise, "backward", counted)
    parts = [roots(task) for task in tasks]
    assert len({len(part.query) for part in parts}) == 2
    bounded = bound_together(tasks, parts, SETTINGS)
    assert all((b.subproblems.bound > 0).all() for b in bounded)
    assert len(passes) == 1


def counting(monkeypatch, tasks):
    """Let time pass by one second for each batch, and take down which tasks are in it."""
    clock, batches = itertools.count(), []
    original = branch_and_bound.bound_together

    def together(chosen, parts, settings):
        batches.append([next(i for i, task in enumerate(tasks) if task is one) for one in chosen])
        return original(chosen, parts, settings)

    monkeypatch.setattr(branch_and_bound, "bound_together", together)
    monkeypatch.setattr(branch_and_bound.time, "perf_counter", lambda: float(next(clock)))
    return batches


def test_shares_of_time_are_fair(monkeypatch):
    tasks = [hard(seconds=6.5)[0].task for _ in range(3)]
    batches = counting(monkeypatch, tasks)
    # Each batch has room for one image only: the one that had least time goes next.
    outcomes = search(tasks, replace(SETTINGS, queries=2, iterations=1, recompute=False))
    assert all(len(batch) == 1 for batch in batches)
    assert [batch[0] for batch in batches] == [0, 1, 2] * 7
    assert [outcome.seconds for outcome in outcomes] == [7.0] * 3


def test_a_batch_is_charged_by_shares(monkeypatch):
    tasks = [hard(seconds=100.0)[0].task for _ in range(2)]
    batches = counting(monkeypatch, tasks)
    asked = itertools.count()
    outcomes = search(tasks, replace(SETTINGS, iterations=1), stop=lambda: next(asked) >= 4)
    assert batches == [[0, 1]] * 4 or batches == [[0, 1], [1, 0], [0, 1], [1, 0]]
    assert sum(outcome.seconds for outcome in outcomes) == pytest.approx(4.0)
    assert outcomes[0].seconds == pytest.approx(outcomes[1].seconds)


def linear_over_the_box(seed):
    """A network with its ReLUs stable: bounds are exact, so that only rounding stands between a margin and its proof."""
    draw = Draws(seed)
    steps = [draw.linear(20, 30), ReLUStep(), draw.linear(30, 20), ReLUStep(), draw.linear(20, 2)]
    centre = torch.rand(1, 20, generator=draw.generator)
    box = Box(centre - 1e-4, centre + 1e-4)
    bounds = propagate(steps[:-1], Box(box.lower.double(), box.upper.double())).relu_inputs
    stable = all(((b.lower > 1e-3) | (b.upper < -1e-3)).all() for b in bounds)
    return (steps, box) if stable else None


def test_close_to_zero_float64_decides():
    decided = 0
    for seed in range(40):
        drawn = linear_over_the_box(seed)
        if drawn is None:
            continue
        steps, box = drawn
        task = plain_task(steps, box)
        least, threshold = float(bound(task.exactly()[0])), float(task.threshold[0])
        assert threshold > 1e-6 and task.sizes == [0, 0]
        for share in (2.0, 0.5, 1e-2, 1e-6, -1e-6, -1e-2, -0.5):
            moved = LinearStep(steps[-1].weight, steps[-1].bias + tensor([share * threshold - least, 0.0]))
            task = plain_task([*steps[:-1], moved], box)
            calls = []
            original = task.exactly
            task = replace(task, exactly=lambda original=original, calls=calls: (calls.append(1), original())[1])
            [outcome] = search([task], replace(SETTINGS, iterations=1))
            assert outcome.proved == (share > 0), (seed, share, outcome)
            assert (outcome.point is not None) == (share < 0)
            if share == 2.0:
                assert not calls
            elif share > 0:
                assert calls
                decided += 1
    assert decided >= 30


def test_ties_are_not_proved_and_not_refuted():
    # relu(x) and relu(x) + relu(-x) are 0 somewhere, and nowhere less.
    both = [LinearStep(tensor([[1.0], [-1.0]]), tensor([0.0, 0.0])), ReLUStep()]
    for last in ([[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]):
        steps = [*both, LinearStep(tensor(last), tensor([0.0, 0.0]))]
        [outcome] = search([plain_task(steps, CHAIN_BOX)], SETTINGS)
        assert not outcome.proved and outcome.point is None
        assert outcome.reason == "a tie: a margin is 0 up to rounding"
        for shift, proved in ((1e-12, True), (-1e-12, False)):
            moved = LinearStep(tensor(last), tensor([shift, 0.0]))
            [outcome] = search([plain_task([*both, moved], CHAIN_BOX)], SETTINGS)
            assert outcome.proved == proved and (outcome.point is None) == proved


@pytest.mark.parametrize("group", [0, 2])
def test_networks_without_relus(group):
    for offset, proved in ((1.5, True), (0.5, False)):
        steps = [LinearStep(tensor([[1.0], [0.0]]), tensor([offset, 0.0]))]
        weight, constant = margin_rows(steps[-1], LABEL)
        grouping = Grouping(group, 20, 6, 12) if group else None

        def refutes(point, offset=offset):
            return float(point) + offset < 0

        task = prepare(
            [], CHAIN_BOX, weight, constant, [], Preparation(3, 0.1, grouping, MEMORY), refutes=refutes, seconds=9.0
        )
        [outcome] = search([task], SETTINGS)
        assert outcome.proved == proved and (outcome.point is None) == proved


def test_points_that_are_no_counterexamples_do_not_refute():
    # The verifier asks; it does not decide what a counterexample is.
    case, optimum, _ = solved(HARD)
    posed = pose(case, optimum, -0.02 * float(optimum.abs().max()), refutes=lambda point: False, seconds=3.0)
    [outcome] = search([posed.task], SETTINGS)
    assert outcome.point is None and not outcome.proved and outcome.reason
    assert posed.asked
