"""Subproblems in which every ReLU is decided: bounds against SciPy's own optimum."""

import numpy as np
import pytest
import torch
from bounds.tasks import LABEL, MEMORY, evaluate, solved
from scipy.optimize import linprog

from sabr.bounds.condensed import condense
from sabr.bounds.dual import Layer
from sabr.bounds.interval import margin_rows, propagate
from sabr.certification import leaves


def problem_of(seed):
    case, _, _ = solved(seed)
    hidden, (weight, constant) = case.steps[:-1], margin_rows(case.steps[-1], LABEL)
    bounds = propagate(hidden, case.box).relu_inputs
    return condense(hidden, case.box, weight[:, :1], constant[:, :1], bounds, memory=MEMORY)


def none(problem):
    return [torch.zeros_like(layer.lower) for layer in problem.layers]


def splits_at(problem, point):
    """Each ReLU's sign at a point (D,)."""
    values, splits = torch.cat([point, torch.ones(1, dtype=torch.float64)]), []
    for layer in problem.layers:
        y = layer.rows[0] @ values
        splits.append(torch.where(y >= 0, 1, -1).view(1, 1, -1))
        values = torch.cat([values, y.clamp(min=0)])
    return splits


def program(problem, splits):
    """SciPy's optimum over the inputs that fulfil all splits: status, value, point."""
    size = problem.box.lower.shape[1]
    known, above = np.eye(size + 1), []
    for layer, sign in zip(problem.layers, splits, strict=True):
        own, active = layer.rows[0].numpy() @ known, sign[0, 0].numpy()[:, None]
        above.append(active * own)
        known = np.vstack([known, np.where(active > 0, own, 0.0)])
    objective = problem.objective[0, 0].numpy() @ known
    rows = np.vstack(above)
    box = np.stack([problem.box.lower[0].numpy(), problem.box.upper[0].numpy()], 1)
    solved_ = linprog(objective[:size], A_ub=-rows[:, :size], b_ub=rows[:, size], bounds=box, method="highs")
    return solved_.status, None if solved_.x is None else float(solved_.fun + objective[size])


@pytest.mark.parametrize("seed", range(40))
def test_feasible_leaves_are_bounded_exactly(seed):
    problem = problem_of(seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        unit = torch.rand(problem.box.lower.shape[1], generator=generator, dtype=torch.float64)
        inside = problem.box.lower[0] + unit * (problem.box.upper - problem.box.lower)[0]
        splits = splits_at(problem, inside)
        status, value = program(problem, splits) if any(s.numel() for s in splits) else (0, None)
        assert status == 0
        leaf = leaves.solve(problem, splits, none(problem))
        reached = float(evaluate(problem, leaf.point.view(1, 1, -1)))
        if value is not None:
            scale = 1e-7 * (1 + abs(value))
            assert abs(leaf.lower - value) <= scale
            assert abs(reached - value) <= 10 * scale
        assert leaf.lower <= float(evaluate(problem, inside.view(1, 1, -1))) + 1e-9
        assert (leaf.point >= problem.box.lower[0] - 1e-9).all() and (leaf.point <= problem.box.upper[0] + 1e-9).all()


def test_leaves_without_points_are_proved():
    proved = 0
    for seed in range(40):
        problem = problem_of(seed)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            shapes = [(1, 1, layer.lower.shape[1]) for layer in problem.layers]
            splits = [torch.randint(0, 2, shape, generator=generator) * 2 - 1 for shape in shapes]
            if not any(s.numel() for s in splits):
                continue
            status, value = program(problem, splits)
            leaf = leaves.solve(problem, splits, none(problem))
            if status == 2:
                assert leaf.lower > 0
                proved += 1
            else:
                assert abs(leaf.lower - value) <= 1e-7 * (1 + abs(value))
    assert proved > 50


def test_without_unstable_relus_it_is_the_corner():
    problem = problem_of(5)
    size = problem.box.lower.shape[1]
    problem = problem._replace(
        layers=[Layer(*(part[:, :0] for part in problem.layers[0]))], objective=problem.objective[..., : size + 1]
    )
    leaf = leaves.solve(problem, [torch.zeros(1, 1, 0)], none(problem))
    row = problem.objective[0, 0]
    corner = torch.where(row[:size] > 0, problem.box.lower[0], problem.box.upper[0])
    assert leaf.lower == pytest.approx(float(row[:size] @ corner + row[size]), abs=1e-12)


def test_a_solver_that_fails_proves_nothing(monkeypatch):
    class Failed:
        success = False

    monkeypatch.setattr(leaves, "linprog", lambda *arguments, **options: Failed())
    problem = problem_of(0)
    inside = problem.box.lower[0]
    leaf = leaves.solve(problem, splits_at(problem, inside), none(problem))
    assert leaf.lower == -float("inf") and torch.equal(leaf.point, inside)


def test_a_solver_that_is_wrong_cannot_prove_too_much(monkeypatch):
    # Whatever it says are multipliers at best: the bound from them stays below every point.
    problem = problem_of(3)
    inside = (problem.box.lower + problem.box.upper)[0] / 2
    splits = splits_at(problem, inside)
    assert any(s.numel() for s in splits)
    original, generator = leaves.linprog, np.random.default_rng(0)

    def wrong(*arguments, **options):
        found = original(*arguments, **options)
        found.fun = 1e9
        found.ineqlin.marginals = found.ineqlin.marginals + generator.normal(size=len(found.ineqlin.marginals))
        return found

    monkeypatch.setattr(leaves, "linprog", wrong)
    for _ in range(10):
        assert (
            leaves.solve(problem, splits, none(problem)).lower <= float(evaluate(problem, inside.view(1, 1, -1))) + 1e-9
        )


def test_rounding_weighs_as_the_multipliers_do():
    lowered = 0
    for seed in range(10):
        problem = problem_of(seed)
        splits = splits_at(problem, (problem.box.lower + problem.box.upper)[0] / 2)
        allowed = [torch.full_like(layer.lower, 1e-3) for layer in problem.layers]
        free, own = leaves.solve(problem, splits, none(problem)), leaves.solve(problem, splits, allowed)
        assert own.lower <= free.lower
        lowered += own.lower < free.lower - 1e-6
    assert lowered > 3
