"""Random cases with their exact optima, and as tasks of the complete verifier."""

from functools import cache
from typing import NamedTuple

import torch
from bounds.milp import exact_minimum, unrolled
from bounds.nets import random_case

from sabr.bounds.boxes import Box
from sabr.bounds.cuts import Grouping
from sabr.bounds.inner import crown_inputs
from sabr.bounds.interval import margin_rows, propagate
from sabr.bounds.rounding import allowances
from sabr.bounds.rows import unflat
from sabr.certification.preparation import Preparation, prepare
from sabr.networks.steps import cast, forward

LABEL = torch.tensor([0])
MEMORY = 2**28


@cache
def solved(seed, kind=None):
    """A random case, the least value (1, Q) of each margin of class 0 there, and the points (Q, 1, ...)."""
    case = random_case(seed, kind)
    network = unrolled(case.steps, case.box)
    values, points = [], []
    for other in range(1, case.classes):
        objective = torch.zeros(case.classes, dtype=torch.float64)
        objective[0], objective[other] = 1, -1
        value, point = exact_minimum(case.steps, case.box, objective, network)
        values.append(value)
        points.append(point)
    return case, torch.tensor([values], dtype=torch.float64), torch.stack(points)


def in_float32(case):
    return cast(case.steps, torch.float32), Box(case.box.lower.float(), case.box.upper.float())


def evaluate(problem, points):
    """The objective itself (N, Q) at points (N, Q, D) of a condensed network's boxes."""
    values = torch.cat([points, torch.ones_like(points[..., :1])], 2)
    for layer in problem.layers:
        values = torch.cat([values, torch.bmm(values, layer.rows.transpose(1, 2)).clamp(min=0)], 2)
    return (values * problem.objective).sum(2)


class Posed(NamedTuple):
    """A task, and the least of its functions, in float64, at a point (D,) in the order of `flat`."""

    task: object
    value: object
    asked: list


def pose(case, optimum, shift, *, group=0, inner=0, seconds=60.0, memory=MEMORY, refutes=None):
    """The margins of class 0, all moved so that the least of them has the minimum `shift`, as a task."""
    steps, box = in_float32(case)
    hidden, (weight, constant) = case.steps[:-1], margin_rows(case.steps[-1], LABEL)
    moved = constant + shift - optimum.min()
    single = steps[:-1], box
    intervals = propagate(*single).relu_inputs
    allowed = allowances(*single, intervals, weight.float(), moved.float()).relu_inputs
    widened = [Box(b.lower - a, b.upper + a) for b, a in zip(intervals, allowed, strict=True)]
    asked = []

    def value(point):
        shaped = unflat(point.double().unsqueeze(0), case.box.lower.shape[1:])
        return float((forward(hidden, shaped) @ weight[0].t() + moved).min())

    def refuting(point):
        asked.append(point)
        return value(point) < 0 if refutes is None else refutes(point)

    task = prepare(
        hidden,
        box,
        weight,
        moved,
        crown_inputs(*single, widened, allowances=allowed, memory=memory),
        Preparation(inner, 0.1, Grouping(group, 20, 6, 12) if group else None, memory),
        refutes=refuting,
        seconds=seconds,
    )
    return Posed(task, value, asked)
