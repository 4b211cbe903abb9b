"""A subproblem in which every ReLU is decided: an exact linear program."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from sabr.bounds.dual import Lines, Multipliers, Relaxable, backward, lines_of, start_of
from sabr.bounds.rounding import multiplier_allowance

# Prices of leaving a split's half-space, in units of the objective's largest coefficient, tried one after another.
_PRICES = (1e2, 1e4, 1e6)


class Leaf(NamedTuple):
    """A lower bound of the objective, sound up to the task's threshold (-inf: none), and the program's point (D,)."""

    lower: float
    point: Tensor


def solve(problem: Relaxable, splits: Sequence[Tensor], allowances: Sequence[Tensor]) -> Leaf:
    """Minimise one objective where the sign of every unstable ReLU's input is given (HiGHS).

    What the solver says is not taken on trust: its multipliers go through `sabr.bounds.dual.backward`, whose bound is
    sound whatever they are. Splits that no point fulfils are left at a price, so that there is always an optimum.

    Parameters
    ----------
    problem
        One image, one query, in float64.
    splits
        For each layer (1, 1, U), 1 or -1.
    allowances
        For each layer (1, U): what rounding in float64 may be off by.
    """
    size = problem.box.lower.shape[1]
    passing = [(sign > 0).to(problem.objective.dtype) for sign in splits]

    def decided(number: int, own: Tensor) -> tuple[Tensor, Tensor]:
        return own * passing[number], own.new_zeros(own.shape[:2])

    # Each ReLU's input, and the objective, as functions of the network's input alone: columns (D + 1).
    inputs = []
    for number, sign in enumerate(splits):
        each = torch.eye(sign.shape[2], dtype=problem.objective.dtype).unsqueeze(0)
        weight, constant = problem.inner(number, each).pull(decided)
        inputs.append(torch.cat([weight[0], constant[0].unsqueeze(1)], 1))
    weight, constant = problem.pull(decided)
    objective = torch.cat([weight[0, 0], constant[0]]).numpy()
    signs = torch.cat([s[0, 0] for s in splits]).to(problem.objective.dtype).unsqueeze(1)
    rows = (signs * torch.cat(inputs)).numpy() if inputs else np.zeros((0, size + 1))
    box = list(zip(problem.box.lower[0].tolist(), problem.box.upper[0].tolist(), strict=True))
    unit = max(float(np.abs(objective).max(initial=0.0)), 1e-12) / max(float(np.abs(rows).max(initial=0.0)), 1e-12)
    lines = lines_of(problem, splits)
    best = Leaf(-float("inf"), problem.box.lower[0])
    for price in _PRICES:
        count = len(rows)
        solved = linprog(
            np.concatenate([objective[:size], np.full(count, price * unit)]),
            A_ub=np.hstack([-rows[:, :size], -np.eye(count)]) if count else None,
            b_ub=rows[:, size] if count else None,
            bounds=[*box, *[(0, None)] * count],
            method="highs",
        )
        if not solved.success:
            continue
        multipliers = -np.asarray(solved.ineqlin.marginals) if count else np.zeros(0)
        found = _multipliers(problem, lines, multipliers)
        lower = float(backward(problem, lines, found).lower - multiplier_allowance(found, None, allowances))
        if lower > best.lower:
            best = Leaf(lower, torch.tensor(solved.x[:size], dtype=problem.objective.dtype))
        if lower > 0 or float(solved.x[size:].sum()) <= 1e-9:
            break
    return best


def _multipliers(problem: Relaxable, lines: Sequence[Lines], flat: np.ndarray) -> Multipliers:
    sizes = [layer.lower.shape[1] for layer in problem.layers]
    parts = torch.split(torch.tensor(flat, dtype=problem.objective.dtype).clamp(min=0), sizes)
    return Multipliers(start_of(problem, lines).alpha, [part.view(1, 1, -1) for part in parts])
