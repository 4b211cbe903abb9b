"""The complete verifier: images split into subproblems at unstable ReLUs until all are proved, or one is refuted."""

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sabr.bounds.dual import Cuts, Multipliers, Relaxable, backward
from sabr.bounds.rounding import multiplier_allowance
from sabr.certification import leaves
from sabr.certification.subproblems import (
    Bounded,
    Search,
    Subproblems,
    Task,
    bound_together,
    halves,
    lines_for,
    roots,
)


@dataclass
class Outcome:
    """What became of a task.

    Attributes
    ----------
    proved
        Every function is positive on the whole box.
    point
        (D,) a counterexample, or None.
    reason
        Why neither; empty if either.
    lower
        (Q,) sound lower bounds of the functions, as far as the search went.
    subproblems
        How many were bounded.
    seconds
        The image's share of the time.
    """

    lower: Tensor
    proved: bool = False
    point: Tensor | None = None
    reason: str = ""
    subproblems: int = 0
    seconds: float = 0.0


def search(tasks: Sequence[Task], settings: Search, *, stop: Callable[[], bool] = lambda: False) -> list[Outcome]:
    """Prove or refute each task, or run out of its time or memory.

    Sound: what is dropped has a lower bound above what rounding may be off by, in float32 or, if it is too close for
    that, in float64. Complete but for time, memory and ties: a subproblem without unstable ReLUs is a linear program.
    Subproblems with the lowest bounds go first (Bunel et al. 2020, section 3).

    Parameters
    ----------
    tasks
        Images. Those that are open share each batch, and each batch's time goes to them by their shares.
    settings
        How.
    stop
        Asked before each batch; if true, what is open stays unknown.
    """
    runs = [_Run(task) for task in tasks]
    each = 0.0  # seconds that a subproblem took in the last batch
    while True:
        open_ = [run for run in runs if run.open]
        if stop():
            for run in open_:
                run.give_up("the shard's time is over")
        _keep_to_memory(open_, settings.memory)
        open_ = sorted((run for run in open_ if run.open), key=lambda run: run.outcome.seconds)
        if not open_:
            return [run.outcome for run in runs]
        started = time.perf_counter()
        chosen = _together(open_, settings)
        parts = [run.next(_parents(run, len(chosen), settings, each)) for run in chosen]
        for run, bounded in zip(chosen, bound_together([run.task for run in chosen], parts, settings), strict=True):
            run.settle(bounded)
        taken = time.perf_counter() - started
        total = sum(len(part.query) for part in parts)
        each = taken / total
        for run, part in zip(chosen, parts, strict=True):
            run.charge(each * len(part.query))


@dataclass
class _Run:
    """One task on its way: what waits to be split, lowest bound first."""

    task: Task
    waiting: list[tuple[float, int, Subproblems, int]] = field(default_factory=list)
    tied: bool = False

    def __post_init__(self) -> None:
        self.roots = roots(self.task)
        queries = len(self.roots.query)
        self.outcome = Outcome(torch.full((queries,), -torch.inf))
        self.counter = itertools.count()
        self.dropped = torch.full((queries,), torch.inf)
        self.exact: tuple[Relaxable, Tensor] | None = None

    @property
    def open(self) -> bool:
        return not (self.outcome.proved or self.outcome.point is not None or self.outcome.reason)

    @property
    def bytes_waiting(self) -> int:
        return len(self.waiting) * sum(self.task.sizes) * 17

    def next(self, count: int) -> Subproblems:
        """Both halves of so many subproblems; before that the whole box, twice as many functions at a time."""
        if len(self.roots.query):
            fresh = Subproblems(*(part[: 2 * count] for part in self.roots))
            self.roots = Subproblems(*(part[2 * count :] for part in self.roots))
            return fresh
        taken = [heapq.heappop(self.waiting) for _ in range(min(count, len(self.waiting)))]
        parents = Subproblems(*(torch.cat(fields) for fields in zip(*(node for _, _, node, _ in taken), strict=True)))
        return halves(parents, torch.tensor([place for *_, place in taken], device=parents.query.device))

    def settle(self, bounded: Bounded) -> None:
        """Drop what is proved, look at what may be refuted, keep the rest."""
        part = bounded.subproblems
        self.outcome.subproblems += len(part.query)
        for index in torch.nonzero(bounded.value <= 0).flatten()[:1]:
            if self.task.refutes(bounded.point[index]):
                self.outcome.point = bounded.point[index]
                return
        proved = bounded.infeasible | (part.bound > self.task.threshold[part.query])
        proved |= self._proved_exactly(part, ~proved & (part.bound > 0))
        for index in torch.nonzero(proved & ~bounded.infeasible).flatten().tolist():
            query = int(part.query[index])
            self.dropped[query] = torch.minimum(self.dropped[query], part.bound[index].cpu())
        for index in torch.nonzero(~proved).flatten().tolist():
            place, own = int(bounded.place[index]), part.take(torch.tensor([index]))
            if place >= 0:
                heapq.heappush(self.waiting, (float(own.bound), next(self.counter), own, place))
            else:
                self._settle_leaf(own)
                if self.outcome.point is not None:
                    return
        self._note()

    def charge(self, seconds: float) -> None:
        self.outcome.seconds += seconds
        if self.open and self.outcome.seconds >= self.task.seconds:
            self.give_up(f"out of time after {self.outcome.subproblems} subproblems")

    def give_up(self, reason: str) -> None:
        self.outcome.reason = reason
        self.waiting.clear()

    def _note(self) -> None:
        lower = self.dropped.clone()
        lower[self.roots.query.cpu()] = -torch.inf
        for bound, _, node, _ in self.waiting:
            query = int(node.query)
            lower[query] = min(float(lower[query]), bound)
        self.outcome.lower = lower
        if not self.waiting and not len(self.roots.query):
            self.outcome.proved = not self.tied
            self.outcome.reason = "a tie: a margin is 0 up to rounding" if self.tied else ""

    def _proved_exactly(self, part: Subproblems, close: Tensor) -> Tensor:
        """Which of the subproblems with bounds too close to 0 are proved in float64, by the same multipliers."""
        result = torch.zeros_like(close)
        chosen = torch.nonzero(close).flatten()
        if len(chosen):
            problem, threshold = self._exactly()
            own, task = part.take(chosen), self.task
            lines = lines_for(problem, own, task.sizes)
            alpha, beta = (_by_layer(values, task.sizes) for values in (own.alpha, own.beta))
            cuts = None if task.cuts is None else [None if c is None else _doubled(c) for c in task.cuts]
            mu: list[Tensor | None] = []
            for cut, values in zip(cuts or [], _by_layer(own.mu, task.cut_sizes), strict=False):
                mu.append(None if cut is None else values)
            multipliers = Multipliers(alpha, beta, None if cuts is None else mu)
            asked = problem.part(own.query, 1)
            slack = multiplier_allowance(multipliers, cuts, self._exact_allowances())
            lower = backward(asked, lines, multipliers, cuts).lower - slack
            result[chosen] = lower[0] > threshold[own.query]
        return result

    def _settle_leaf(self, own: Subproblems) -> None:
        """Decide a subproblem whose ReLUs are all stable or split; after a tie others may still refute the image."""
        problem, threshold = self._exactly()
        query = int(own.query)
        decided = torch.where(own.sign != 0, own.sign, torch.where(own.lower >= 0, 1, -1).to(torch.int8))
        asked = problem.part(own.query, 1)
        splits = [s.unsqueeze(0) for s in torch.split(decided, self.task.sizes, 1)]
        leaf = leaves.solve(asked, splits, self._exact_allowances())
        if leaf.lower > float(threshold[query]):
            self.dropped[query] = min(float(self.dropped[query]), leaf.lower)
        elif self.task.refutes(leaf.point):
            self.outcome.point = leaf.point
        else:
            self.dropped[query] = min(float(self.dropped[query]), float(own.bound))
            self.tied = True

    def _exactly(self) -> tuple[Relaxable, Tensor]:
        if self.exact is None:
            self.exact = self.task.exactly()
        return self.exact

    def _exact_allowances(self) -> list[Tensor]:
        """The task's allowances for float64: they are proportional to the precision."""
        ratio = torch.finfo(torch.float64).eps / torch.finfo(self.task.threshold.dtype).eps
        return [allowed.double() * ratio for allowed in self.task.allowances]


def _by_layer(values: Tensor, sizes: list[int]) -> list[Tensor]:
    """(S, all layers') as (1, S, own) for each layer, in float64."""
    return [part.unsqueeze(0).double() for part in torch.split(values, sizes, 1)]


def _doubled(cut: Cuts) -> Cuts:
    return Cuts(cut.members, cut.y_weight.double(), cut.z_weight.double(), cut.limit.double())


def _keep_to_memory(runs: Sequence[_Run], memory: int) -> None:
    """Give up the images with the most waiting subproblems, until all others fit."""
    open_ = sorted((run for run in runs if run.open), key=lambda run: run.bytes_waiting)
    while open_ and sum(run.bytes_waiting for run in open_) > memory:
        run = open_.pop()
        run.give_up(f"out of memory: {len(run.waiting)} subproblems wait")


def _together(runs: Sequence[_Run], settings: Search) -> list[_Run]:
    """The first images that fit in one batch, in memory and in number: each brings at least one subproblem's halves.

    Condensed networks are never in one batch with others.
    """
    chosen: list[_Run] = []
    largest = 0
    for run in runs:
        problem = run.task.problem
        if type(problem) is not type(runs[0].task.problem):
            continue
        largest = max(largest, problem.bytes + 2 * problem.bytes_of_a_query)
        if chosen and (len(chosen) + 1 > settings.queries // 2 or (len(chosen) + 1) * largest > settings.memory):
            break
        chosen.append(run)
    return chosen


def _parents(run: _Run, images: int, settings: Search, each: float) -> int:
    """How many subproblems of one of so many images to split in a batch: within memory, and within its time."""
    in_memory = settings.memory // (2 * images * run.task.problem.bytes_of_a_query)
    in_time = (run.task.seconds - run.outcome.seconds) / (2 * each) if each else settings.queries
    return int(max(1, min(settings.queries // (2 * images), in_memory, in_time)))
