"""From a network and one image's box to a task of the complete verifier: ReLUs bounded as well as they can be first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.condensed import Condensed, condense
from sabr.bounds.cuts import Grouping, cuts_for
from sabr.bounds.dual import Problem
from sabr.bounds.rounding import Allowances, allowances
from sabr.bounds.rows import flat, unflat
from sabr.bounds.tighten import optimised_layers
from sabr.certification.subproblems import Task
from sabr.networks.steps import Step, cast


@dataclass(frozen=True)
class Preparation:
    """How a task is prepared.

    Attributes
    ----------
    iterations, rate
        Of the optimisation of the ReLUs' own bounds; 0 iterations: as they are.
    grouping
        Multi-neuron constraints; None: without.
    memory
        Bytes that may be used at a time.
    """

    iterations: int
    rate: float
    grouping: Grouping | None
    memory: int


def prepare(
    steps: Sequence[Step],
    box: Box,
    weight: Tensor,
    constant: Tensor,
    relu_inputs: Sequence[Box],
    settings: Preparation,
    *,
    refutes: Callable[[Tensor], bool],
    seconds: float,
) -> Task:
    """Make a task of one image (N = 1).

    Parameters
    ----------
    steps
        A folded network up to a vector, in float32.
    box
        (1, ...) its region.
    weight, constant
        (1, Q, H) and (1, Q): functions of the steps' output that must be positive.
    relu_inputs
        (1, ...) sound bounds at each ReLU's input, rounding included.
    settings
        How.
    refutes, seconds
        As in `Task`.
    """
    allowed = allowances(steps, box, relu_inputs, weight, constant)
    condensed = condense(steps, box, weight, constant, relu_inputs, refine=False, memory=settings.memory)
    if settings.iterations:
        relu_inputs = _optimised(condensed, allowed, settings)
        condensed = condense(steps, box, weight, constant, relu_inputs, refine=False, memory=settings.memory)
    problem, own = condensed.problem, _own(allowed, condensed.problem)

    def exactly() -> tuple[Problem, Tensor]:
        doubled = cast(steps, torch.float64)
        ends = Box(box.lower.double(), box.upper.double())
        bounds = [Box(b.lower.double(), b.upper.double()) for b in relu_inputs]
        rows = weight.double(), constant.double()
        threshold = allowances(doubled, ends, bounds, *rows).objective[0]
        return condense(doubled, ends, *rows, bounds, refine=False, memory=settings.memory).problem, threshold

    cuts = None if settings.grouping is None else cuts_for(problem, settings.grouping, allowances=own)
    return Task(problem, own, allowed.objective[0], exactly, refutes, cuts, seconds)


def _own(allowed: Allowances, problem: Problem) -> list[Tensor]:
    """Allowances of the unstable ReLUs, for each layer (1, U)."""
    return [flat(a).gather(1, layer.places) for a, layer in zip(allowed.relu_inputs, problem.layers, strict=True)]


def _optimised(condensed: Condensed, allowed: Allowances, settings: Preparation) -> list[Box]:
    problem = condensed.problem
    layers = optimised_layers(
        problem,
        iterations=settings.iterations,
        rate=settings.rate,
        allowances=_own(allowed, problem),
        memory=settings.memory,
    )
    result = []
    for bounds, layer in zip(condensed.relu_inputs, layers, strict=True):
        shape = bounds.lower.shape[1:]
        lower = flat(bounds.lower).scatter(1, layer.places, layer.lower)
        upper = flat(bounds.upper).scatter(1, layer.places, layer.upper)
        result.append(Box(unflat(lower, shape), unflat(upper, shape)))
    return result
