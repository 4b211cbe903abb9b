"""From a network and one image's box to a task of the complete verifier: ReLUs bounded as well as they can be first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.condensed import condense
from sabr.bounds.cuts import Grouping, cuts_for
from sabr.bounds.dual import Layer, Problem
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
        A folded network up to a vector, in float64.
    box
        (1, ...) its region, in float32.
    weight, constant
        (1, Q, H) and (1, Q): functions of the steps' output that must be positive, in float64.
    relu_inputs
        (1, ...) sound bounds at each ReLU's input, rounding included.
    settings
        How.
    refutes, seconds
        As in `Task`.

    Raises
    ------
    TooLarge
        When the condensed network does not fit into memory.
    """
    single, rows = cast(steps, torch.float32), (weight.float(), constant.float())
    allowed = allowances(single, box, relu_inputs, *rows)
    problem = condense(single, box, *rows, relu_inputs, memory=settings.memory)
    if settings.iterations and relu_inputs:
        relu_inputs = _optimised(problem, relu_inputs, allowed, settings)
        problem = condense(single, box, *rows, relu_inputs, memory=settings.memory)
    own = _own(allowed, problem) or [problem.objective.new_zeros(1, 0)]

    def exactly() -> tuple[Problem, Tensor]:
        ends = Box(box.lower.double(), box.upper.double())
        bounds = [Box(b.lower.double(), b.upper.double()) for b in relu_inputs]
        threshold = allowances(steps, ends, bounds, weight, constant).objective[0]
        return _with_a_layer(condense(steps, ends, weight, constant, bounds, memory=2 * settings.memory)), threshold

    problem = _with_a_layer(problem)
    cuts = None if settings.grouping is None else cuts_for(problem, settings.grouping, allowances=own)
    return Task(problem, own, allowed.objective[0], exactly, refutes, cuts, seconds)


def _with_a_layer(problem: Problem) -> Problem:
    """A network without ReLUs gets an empty layer of them: there is always one then."""
    if problem.layers:
        return problem
    nothing = problem.objective.new_zeros(1, 0)
    rows = problem.objective.new_zeros(1, 0, problem.objective.shape[2])
    return problem._replace(layers=[Layer(rows, nothing, nothing, nothing.bool(), nothing.long())])


def _own(allowed: Allowances, problem: Problem) -> list[Tensor]:
    """Allowances of the unstable ReLUs, for each layer (1, U)."""
    return [flat(a).gather(1, layer.places) for a, layer in zip(allowed.relu_inputs, problem.layers, strict=True)]


def _optimised(problem: Problem, relu_inputs: Sequence[Box], allowed: Allowances, settings: Preparation) -> list[Box]:
    layers = optimised_layers(
        problem,
        iterations=settings.iterations,
        rate=settings.rate,
        allowances=_own(allowed, problem),
        memory=settings.memory,
    )
    result = []
    for bounds, layer in zip(relu_inputs, layers, strict=True):
        shape = bounds.lower.shape[1:]
        lower, upper = flat(bounds.lower).clone(), flat(bounds.upper).clone()
        places = layer.places[layer.real]
        lower[0, places], upper[0, places] = layer.lower[layer.real], layer.upper[layer.real]
        result.append(Box(unflat(lower, shape), unflat(upper, shape)))
    return result
