"""Subproblems of several images, bounded together in one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.dual import Cuts, Lines, Multipliers, Relaxable, lines_of, relax, start_of
from sabr.bounds.optimise import Optimised, optimise
from sabr.bounds.rounding import multiplier_allowance
from sabr.bounds.stacking import stack, stack_cuts, stack_queries
from sabr.bounds.tighten import split_lines
from sabr.certification.branching import Rule, active_constraints, babsr, filtered


@dataclass(frozen=True)
class Search:
    """How to search.

    Attributes
    ----------
    iterations, rate
        Of the optimisation of each subproblem's slopes and multipliers.
    rule, candidates
        Which ReLU to split; with `filtered`, how many are tried.
    recompute
        Bound the ReLUs behind a split anew in each subproblem.
    queries
        Subproblems at a time.
    memory
        Bytes that waiting subproblems may take in all, and bytes that a batch may use.
    """

    iterations: int
    rate: float
    rule: Rule
    candidates: int
    recompute: bool
    queries: int
    memory: int


@dataclass(frozen=True)
class Task:
    """One image to decide.

    Attributes
    ----------
    problem
        Its network over its box (N = 1), with the functions that must be positive as objective (1, Q, W).
    allowances, threshold
        For each layer (1, U), and (Q,): what float32 rounding may be off by (`sabr.bounds.rounding`).
    exactly
        Makes the same problem and threshold in float64, for proofs too close to 0.
    refutes
        Whether a point (D,) is a counterexample, by a plain forward pass in float64.
    cuts
        Multi-neuron constraints for each layer, or None.
    seconds
        Time limit.
    """

    problem: Relaxable
    allowances: list[Tensor]
    threshold: Tensor
    exactly: Callable[[], tuple[Relaxable, Tensor]]
    refutes: Callable[[Tensor], bool]
    cuts: list[Cuts | None] | None
    seconds: float

    @property
    def sizes(self) -> list[int]:
        """Unstable ReLUs of each layer; U is their sum."""
        return [layer.lower.shape[1] for layer in self.problem.layers]

    @property
    def cut_sizes(self) -> list[int]:
        """Constraints of each layer; C is their sum."""
        return [0] * len(self.sizes) if self.cuts is None else [0 if c is None else c.limit.shape[1] for c in self.cuts]


class Subproblems(NamedTuple):
    """S subproblems of one image.

    Attributes
    ----------
    query
        (S,) which function.
    sign
        (S, U) int8, splits: 1 for y >= 0, -1 for y <= 0, 0 for neither.
    alpha, beta, mu
        (S, U) and (S, C) multipliers, C cuts of all layers; alpha NaN: not known yet.
    lower, upper
        (S, U) bounds of the ReLUs' inputs.
    bound
        (S,) lower bounds of the function, sound up to the task's threshold.
    """

    query: Tensor
    sign: Tensor
    alpha: Tensor
    beta: Tensor
    mu: Tensor
    lower: Tensor
    upper: Tensor
    bound: Tensor

    def take(self, chosen: Tensor) -> "Subproblems":
        """Some of them."""
        return Subproblems(*(part[chosen] for part in self))


class Bounded(NamedTuple):
    """What bounding found for one image's S subproblems.

    Attributes
    ----------
    subproblems
        With new multipliers and bounds.
    infeasible
        (S,) no point of the box fulfils the splits.
    point
        (S, D) where the bound's linear function is least.
    value
        (S,) the function there, by the network itself in the batch's precision.
    place
        (S,) which ReLU, of U, to split next; -1 where none is left.
    """

    subproblems: Subproblems
    infeasible: Tensor
    point: Tensor
    value: Tensor
    place: Tensor


def roots(task: Task) -> Subproblems:
    """Each function over the whole box."""
    like = task.problem.objective
    queries, total = like.shape[1], sum(task.sizes)
    lower, upper = (
        torch.cat([end for end in ends], 1).expand(queries, -1)
        for ends in zip(*((layer.lower, layer.upper) for layer in task.problem.layers), strict=True)
    )
    return Subproblems(
        torch.arange(queries, device=like.device),
        like.new_zeros(queries, total, dtype=torch.int8),
        like.new_full((queries, total), torch.nan),
        like.new_zeros(queries, total),
        like.new_zeros(queries, sum(task.cut_sizes)),
        lower,
        upper,
        like.new_full((queries,), -torch.inf),
    )


def halves(parents: Subproblems, place: Tensor) -> Subproblems:
    """Both halves of each subproblem, split at ReLU `place` (S,): first the active, then the inactive one, in turns."""
    children = parents.take(torch.arange(len(place), device=place.device).repeat_interleave(2))
    at = place.repeat_interleave(2).unsqueeze(1)
    side = torch.tensor([1, -1], dtype=torch.int8, device=place.device).repeat(len(place)).unsqueeze(1)
    lower = children.lower.scatter(1, at, torch.where(side > 0, 0.0, children.lower.gather(1, at)))
    upper = children.upper.scatter(1, at, torch.where(side < 0, 0.0, children.upper.gather(1, at)))
    return children._replace(sign=children.sign.scatter(1, at, side), lower=lower, upper=upper)


def bound_together(tasks: Sequence[Task], parts: Sequence[Subproblems], settings: Search) -> list[Bounded]:
    """Bound subproblems of all images in one batch, and choose where to split what is not proved.

    Parameters
    ----------
    tasks
        Images.
    parts
        Each image's subproblems.
    settings
        How.
    """
    sizes = [task.sizes for task in tasks]
    problem = stack([task.problem.part(part.query, 1) for task, part in zip(tasks, parts, strict=True)])

    def layered(values: Sequence[Tensor]) -> list[Tensor]:
        """Each image's (S, U) as (N, S, U) for each layer."""
        return stack_queries(
            [[p.unsqueeze(0) for p in torch.split(v, s, 1)] for v, s in zip(values, sizes, strict=True)]
        )

    def own(values: Sequence[Tensor], number: int) -> Tensor:
        """The inverse, for one image."""
        count = len(parts[number].query)
        return torch.cat([v[number, :count, :size] for v, size in zip(values, sizes[number], strict=True)], 1)

    signs = layered([p.sign for p in parts])
    ends = [Box(*e) for e in zip(layered([p.lower for p in parts]), layered([p.upper for p in parts]), strict=True)]
    target = stack_vectors([task.threshold[p.query] for task, p in zip(tasks, parts, strict=True)], -torch.inf)
    infeasible = torch.zeros_like(target, dtype=torch.bool)
    allowed = [torch.cat(a) for a in zip(*_filled_allowances(tasks, problem), strict=True)]
    if settings.recompute and any(bool((s != 0).any()) for s in signs):
        lines, ends, infeasible = split_lines(problem, signs, ends, allowances=allowed, memory=settings.memory)
    else:
        lines = [relax(end.lower, end.upper, sign) for end, sign in zip(ends, signs, strict=True)]
    cuts = stack_cuts([t.cuts or [None] * len(t.sizes) for t in tasks]) if any(t.cuts for t in tasks) else None
    start = start_of(problem, lines, cuts)
    inherited = layered([p.alpha for p in parts])
    alpha = [torch.where(i.isnan(), a, i) for i, a in zip(inherited, start.alpha, strict=True)]
    mu: list[Tensor | None] | None = None
    if cuts is not None:
        own_cuts = [
            [m.unsqueeze(0) for m in torch.split(part.mu, task.cut_sizes, 1)]
            for task, part in zip(tasks, parts, strict=True)
        ]
        mu = [None if cut is None else m for cut, m in zip(cuts, stack_queries(own_cuts), strict=True)]
    start = Multipliers(alpha, layered([p.beta for p in parts]), mu)
    found = optimise(
        problem,
        lines,
        start,
        iterations=settings.iterations,
        rate=settings.rate,
        target=torch.where(infeasible, -torch.inf, target),
        cuts=cuts,
    )
    place = _places(problem, lines, found, cuts, target, settings)
    value = evaluate(problem, found.passed.point)
    lower = found.passed.lower - multiplier_allowance(found.multipliers, cuts, allowed)
    results = []
    for number, part in enumerate(parts):
        count = len(part.query)
        improved = Subproblems(
            part.query,
            part.sign,
            own(found.multipliers.alpha, number),
            own(found.multipliers.beta or start.beta or [], number),
            _own_cuts(found.multipliers.mu, number, count, tasks[number].cut_sizes, like=part.mu),
            own([end.lower for end in ends], number),
            own([end.upper for end in ends], number),
            torch.maximum(lower[number, :count], part.bound),
        )
        results.append(
            Bounded(
                improved,
                infeasible[number, :count],
                found.passed.point[number, :count],
                value[number, :count],
                _own_places(place[number, :count], problem, sizes[number]),
            )
        )
    return results


def evaluate(problem: Relaxable, points: Tensor) -> Tensor:
    """The objective itself (N, Q) at points (N, Q, D) of the boxes."""
    return problem.push(points, lambda number, y: y.clamp(min=0))


def stack_vectors(vectors: Sequence[Tensor], value: float) -> Tensor:
    """(N, S) of vectors (s,), filled up with a value."""
    size = max(len(v) for v in vectors)
    return torch.stack([F.pad(v, [0, size - len(v)], value=value) for v in vectors])


def _own_cuts(
    mu: Sequence[Tensor | None] | None, number: int, count: int, sizes: Sequence[int], *, like: Tensor
) -> Tensor:
    """One image's multipliers of cuts, (S, C), out of all images' ones for each layer."""
    parts = [m[number, :count, :size] for m, size in zip(mu or [], sizes, strict=False) if m is not None]
    return torch.cat(parts, 1) if parts else like


def _filled_allowances(tasks: Sequence[Task], problem: Relaxable) -> list[list[Tensor]]:
    sizes = [layer.lower.shape[1] for layer in problem.layers]
    return [
        [F.pad(a, [0, size - a.shape[1]]) for a, size in zip(task.allowances, sizes, strict=True)] for task in tasks
    ]


def _places(
    problem: Relaxable,
    lines: Sequence[Lines],
    found: Optimised,
    cuts: Sequence[Cuts | None] | None,
    target: Tensor,
    settings: Search,
) -> Tensor:
    """(N, S) places in all layers of the stacked problem; -1 where nothing is left to split."""
    if settings.rule == "babsr":
        scores = babsr(problem, lines, found.passed)
    else:
        scores = active_constraints(problem, lines, found.passed, found.multipliers, cuts)
    flat = torch.cat(scores, 2)
    if flat.shape[2] == 0:
        return torch.full(flat.shape[:2], -1, device=flat.device)
    if settings.rule == "filtered":
        place = filtered(
            problem, lines, found.multipliers, scores, candidates=settings.candidates, target=target, cuts=cuts
        )
    else:
        place = flat.argmax(2)
    return torch.where(flat.amax(2).isneginf(), -1, place)


def _own_places(place: Tensor, problem: Relaxable, sizes: Sequence[int]) -> Tensor:
    """Places in the stacked layers as places in one image's own."""
    result, start, own = place.clone(), 0, 0
    for layer, size in zip(problem.layers, sizes, strict=True):
        filled = layer.lower.shape[1]
        here = (place >= start) & (place < start + filled)
        result = torch.where(here, place - start + own, result)
        start, own = start + filled, own + size
    return result


def lines_for(problem: Relaxable, part: Subproblems, sizes: Sequence[int]) -> list[Lines]:
    """How one image's subproblems relax its ReLUs, in the problem's precision."""
    dtype = problem.objective.dtype
    if not sizes:
        return lines_of(problem)
    return [
        relax(low.unsqueeze(0).to(dtype), high.unsqueeze(0).to(dtype), sign.unsqueeze(0))
        for low, high, sign in zip(
            torch.split(part.lower, list(sizes), 1),
            torch.split(part.upper, list(sizes), 1),
            torch.split(part.sign, list(sizes), 1),
            strict=True,
        )
    ]
