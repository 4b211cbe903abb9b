"""Every bound and every verdict against the exact optimum of 300 random networks over random boxes."""

from itertools import pairwise

import pytest
import torch
from bounds.tasks import LABEL, MEMORY, in_float32, pose, solved

from sabr.bounds.boxes import Box
from sabr.bounds.condensed import condense
from sabr.bounds.crown import crown_margins
from sabr.bounds.cuts import Grouping, cuts_for
from sabr.bounds.dual import Multipliers, bound, lines_of, start_of
from sabr.bounds.inner import crown_inputs
from sabr.bounds.interval import margin_bounds, margin_rows
from sabr.bounds.optimise import optimise
from sabr.bounds.rounding import allowances
from sabr.bounds.rows import flat
from sabr.bounds.tighten import optimised_layers
from sabr.bounds.unrolled import Unrolled, unroll
from sabr.certification.branch_and_bound import search
from sabr.certification.subproblems import Search

NETWORKS = 300
# Rule, recompute, constraints on groups of so many (0: none), iterations on the ReLUs' own bounds.
SEARCHES = [
    (rule, recompute, group, inner)
    for rule in ("filtered", "babsr", "active-constraints")
    for recompute in (False, True)
    for group, inner in ((0, 0), (2, 0), (3, 4))
]


def all_bounds(steps, box):
    """Bounds of the margins by each method, and what rounding may have added to them."""
    hidden, rows = steps[:-1], margin_rows(steps[-1], LABEL)
    found = margin_bounds(steps, box, LABEL)
    allowed = allowances(hidden, box, found.relu_inputs, *rows)
    widened = [Box(b.lower - a, b.upper + a) for b, a in zip(found.relu_inputs, allowed.relu_inputs, strict=True)]
    bounds = {"interval": found.lower, "crown-ibp": crown_margins(steps, box, widened, LABEL)}
    relu_inputs = crown_inputs(hidden, box, widened, allowances=allowed.relu_inputs, memory=MEMORY)
    problem = condense(hidden, box, *rows, relu_inputs, memory=MEMORY)
    lines = lines_of(problem)
    bounds["crown"] = bound(problem, lines)
    options = {"iterations": 8, "rate": 0.1, "target": float("inf")}
    alpha = optimise(problem, lines, start_of(problem, lines), **options)
    bounds["alpha-crown"] = alpha.passed.lower
    whole = unroll(hidden, box, *rows, relu_inputs)
    whole_lines = lines_of(whole)
    bounds["unrolled alpha-crown"] = optimise(whole, whole_lines, start_of(whole, whole_lines), **options).passed.lower
    own = [flat(a).gather(1, layer.places) for a, layer in zip(allowed.relu_inputs, problem.layers, strict=True)]
    for size in (2, 3):
        cuts = cuts_for(problem, Grouping(size, 20, 6, 12), allowances=own, memory=MEMORY)
        start = Multipliers(alpha.multipliers.alpha, None, start_of(problem, lines, cuts).mu)
        bounds[f"cuts of {size}"] = optimise(problem, lines, start, cuts=cuts, **options).passed.lower
        own_cuts = cuts_for(whole, Grouping(size, 20, 6, 12), allowances=own, memory=MEMORY)
        start = start_of(whole, whole_lines, own_cuts)
        bounds[f"unrolled cuts of {size}"] = optimise(whole, whole_lines, start, cuts=own_cuts, **options).passed.lower
    tightened = optimised_layers(problem, iterations=4, rate=0.1, allowances=own, memory=MEMORY)
    bounds["tightened"] = bound(problem._replace(layers=tightened))
    for before, after in zip(problem.layers, tightened, strict=True):
        assert (after.lower >= before.lower).all() and (after.upper <= before.upper).all()
    return bounds, allowed.objective


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_no_bound_crosses_the_optimum(seed):
    case, optimum, _ = solved(seed)
    bounds, _ = all_bounds(case.steps, case.box)
    slack = 1e-9 * (1 + optimum.abs())
    for method, lower in bounds.items():
        assert lower.dtype == torch.float64
        assert (lower <= optimum + slack).all(), method
    torch.testing.assert_close(bounds["unrolled alpha-crown"], bounds["alpha-crown"], rtol=1e-3, atol=1e-3)
    for looser, tighter in (("crown", "alpha-crown"), ("alpha-crown", "cuts of 2"), ("alpha-crown", "cuts of 3")):
        assert (bounds[tighter] >= bounds[looser]).all(), tighter
    single, rounding = all_bounds(*in_float32(case))
    for method, lower in single.items():
        assert lower.dtype == torch.float32
        assert (lower.double() - rounding <= optimum).all(), method


def test_bounds_are_worth_something():
    gaps = {}
    for seed in range(0, NETWORKS, 7):
        case, optimum, _ = solved(seed)
        bounds, _ = all_bounds(case.steps, case.box)
        for method, lower in bounds.items():
            gaps.setdefault(method, []).append(float(((optimum - lower) / (1 + optimum.abs())).mean()))
    total = {method: sum(gap) for method, gap in gaps.items()}
    order = ["interval", "crown-ibp", "crown", "alpha-crown", "cuts of 2", "cuts of 3"]
    assert all(total[one] > total[other] for one, other in pairwise(order)), total
    assert total["cuts of 3"] < 0.5 * total["crown"], total
    assert total["tightened"] < total["crown"], total


@pytest.mark.parametrize("seed", range(NETWORKS))
def test_complete_verdicts_agree_with_the_optimum(seed):
    case, optimum, _ = solved(seed)
    scale = max(1.0, float(optimum.abs().max()))
    shifts = [0.02 * scale, -0.02 * scale, 1e-5 * scale, -1e-5 * scale]
    rule, recompute, group, inner = SEARCHES[seed % len(SEARCHES)]
    # A network whose condensed form does not fit is taken as it is.
    memory = MEMORY if seed // len(SEARCHES) % 2 else 1
    posed = [pose(case, optimum, shift, group=group, inner=inner, memory=memory, seconds=600.0) for shift in shifts]
    assert memory > 1 or all(isinstance(one.task.problem, Unrolled) for one in posed if any(one.task.sizes))
    outcomes = search([one.task for one in posed], Search(20, 0.1, rule, 4, recompute, 64, MEMORY))
    for shift, outcome, one in zip(shifts, outcomes, posed, strict=True):
        assert outcome.proved == (shift > 0), (shift, outcome)
        assert (outcome.point is not None) == (shift < 0), (shift, outcome)
        if outcome.proved:
            assert not outcome.reason and (outcome.lower > 0).all()
        else:
            flat_box = Box(flat(case.box.lower)[0], flat(case.box.upper)[0])
            point = outcome.point.double()
            assert (point >= flat_box.lower - 1e-12).all() and (point <= flat_box.upper + 1e-12).all()
            assert one.value(point) < 0
