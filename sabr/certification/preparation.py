"""From a network and one image's box to a task of the complete verifier: ReLUs bounded as well as they can be first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.condensed import TooLarge, condense, entries
from sabr.bounds.cuts import Grouping, cuts_for
from sabr.bounds.dual import Layer, Problem, Relaxable
from sabr.bounds.rounding import Allowances, allowances
from sabr.bounds.rows import flat, unflat
from sabr.bounds.tighten import optimised_layers
from sabr.bounds.unrolled import unroll, work_of_a_pass
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

    Notes
    -----
    Where a condensed network would not fit into memory, or be slower than the network itself, that is used as it is,
    and its ReLUs keep their bounds: optimising them would take longer than most searches.
    """
    single, rows = cast(steps, torch.float32), (weight.float(), constant.float())
    allowed = allowances(single, box, relu_inputs, *rows)
    condensed = _condensed(single, box, *rows, relu_inputs, memory=settings.memory)
    if condensed is not None and settings.iterations and relu_inputs:
        relu_inputs = _optimised(condensed, relu_inputs, allowed, settings)
        condensed = condense(single, box, *rows, relu_inputs, memory=settings.memory)
    problem: Relaxable = unroll(single, box, *rows, relu_inputs) if condensed is None else _with_a_layer(condensed)
    own = _own(allowed, problem) if relu_inputs else [problem.objective.new_zeros(1, 0)]

    def exactly() -> tuple[Relaxable, Tensor]:
        ends = Box(box.lower.double(), box.upper.double())
        bounds = [Box(b.lower.double(), b.upper.double()) for b in relu_inputs]
        threshold = allowances(steps, ends, bounds, weight, constant).objective[0]
        if condensed is None:
            return unroll(steps, ends, weight, constant, bounds), threshold
        exact = condense(steps, ends, weight, constant, bounds, memory=2 * settings.memory)
        return _with_a_layer(exact), threshold

    cuts = None
    if settings.grouping is not None:
        cuts = cuts_for(problem, settings.grouping, allowances=own, memory=settings.memory)
    return Task(problem, own, allowed.objective[0], exactly, refutes, cuts, seconds)


def _condensed(
    steps: Sequence[Step],
    box: Box,
    weight: Tensor,
    constant: Tensor,
    relu_inputs: Sequence[Box],
    *,
    memory: int,
) -> Problem | None:
    """The condensed network where it fits and passes through it are cheaper than through the network itself."""
    if entries(box.lower.numel(), relu_inputs) > work_of_a_pass(steps, box.lower.shape[1:]):
        return None
    try:
        return condense(steps, box, weight, constant, relu_inputs, memory=memory)
    except TooLarge:
        return None


def _with_a_layer(problem: Problem) -> Problem:
    """A network without ReLUs gets an empty layer of them: there is always one then."""
    if problem.layers:
        return problem
    nothing = problem.objective.new_zeros(1, 0)
    rows = problem.objective.new_zeros(1, 0, problem.objective.shape[2])
    return problem._replace(layers=[Layer(rows, nothing, nothing, nothing.bool(), nothing.long())])


def _own(allowed: Allowances, problem: Relaxable) -> list[Tensor]:
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
