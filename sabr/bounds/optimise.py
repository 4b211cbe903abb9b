"""Bounds of a relaxed network made as tight as slopes and multipliers can make them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sabr.bounds.dual import Cuts, Lines, Multipliers, Passed, Relaxable, backward, gradient, projected
from sabr.kernels import kernel

# Adam's decay rates.
_MOMENTUM, _SQUARES, _TINY = 0.9, 0.999, 1e-8
# Of so many iterations together a query's gain is looked at.
_PATIENCE = 3


class Optimised(NamedTuple):
    """The best of all passes, for each query by itself, and the multipliers that gave it."""

    passed: Passed
    multipliers: Multipliers


def optimise(
    problem: Relaxable,
    lines: Sequence[Lines],
    start: Multipliers,
    *,
    iterations: int,
    rate: float,
    target: float | Tensor = 0.0,
    cuts: Sequence[Cuts | None] | None = None,
    decay: float = 0.98,
    multiplier_rate: float = 0.2,
    least_gain: float | None = None,
) -> Optimised:
    """Raise lower bounds by Adam on slopes and multipliers (alpha-CROWN, Xu et al. 2021; beta-CROWN, Wang et al. 2021).

    No graph is built: `sabr.bounds.dual.gradient` evaluates the relaxed network instead.

    Parameters
    ----------
    problem
        N images with Q queries each.
    lines
        For each layer.
    start
        Where to start.
    iterations, rate, decay
        Of Adam on the slopes; the rate is multiplied by `decay` after each iteration.
    target
        A number, or (N, Q): a query above it is done, and keeps what it has. Once half of the images (of the queries,
        if there is one image) are done, they take no more time; when all are, it ends.
    cuts
        For each layer constraints, or None.
    multiplier_rate
        Adam's first rate for the multipliers, in units of each query's largest coefficient.
    least_gain
        A query is done, too, when its last three iterations have raised its bound by no more than this share of all
        that has been gained.
    """
    climb = _Climb(problem, list(lines), cuts, target, iterations, rate, multiplier_rate, decay, least_gain)
    return climb.from_(_Reached(projected(start, lines), _Adam()), 0)


@dataclass(frozen=True)
class _Climb:
    """The arguments of `optimise`, of all images or of those that are still open."""

    problem: Relaxable
    lines: list[Lines]
    cuts: Sequence[Cuts | None] | None
    target: float | Tensor
    iterations: int
    rate: float
    multiplier_rate: float
    decay: float
    least_gain: float | None

    def from_(self, at: "_Reached", first: int) -> Optimised:
        """Iterate from `first` on; what is done is left behind on the way."""
        for iteration in range(first, self.iterations + 1):
            passed = backward(self.problem, self.lines, at.current, self.cuts)
            best, open_ = at.note(Optimised(passed, at.current), self.target, self.least_gain)
            if iteration == self.iterations or not bool(open_.any()):
                break
            slopes = gradient(self.problem, self.lines, at.current, passed, self.cuts)
            fade = self.decay**iteration
            at.current = projected(
                at.adam.step(at.current, slopes, self.rate * fade, self.multiplier_rate * fade), self.lines
            )
            left = _Part.open(open_)
            if 2 * len(left.places) <= left.size:
                left.put_back(best, self.of(left).from_(at.of(left), iteration + 1))
                break
        return best

    def of(self, part: "_Part") -> "_Climb":
        """The same for a part."""
        problem, cuts = self.problem.part(part.places, part.dim), self.cuts
        if part.dim == 0 and cuts is not None:
            cuts = [None if c is None else Cuts(*(part.of(f) for f in c)) for c in cuts]
        lines = [
            Lines(
                part.of(line.alpha),
                part.of(line.upper_slope),
                part.of(line.upper_offset),
                part.of(line.free),
                None if line.sign is None else part.of(line.sign),
            )
            for line in self.lines
        ]
        target = part.of(self.target) if isinstance(self.target, Tensor) else self.target
        return replace(self, problem=problem, lines=lines, cuts=cuts, target=target)


class _Reached:
    """Where the ascent is, the best that it has found, and which queries (N, Q) are still open."""

    def __init__(self, current: Multipliers, adam: "_Adam") -> None:
        self.current, self.adam = current, adam
        self.best: Optimised | None = None
        self.open: Tensor | None = None
        # The first bounds, and the best ones of the last few iterations.
        self.bounds: list[Tensor] = []

    def note(self, found: Optimised, target: float | Tensor, least_gain: float | None) -> tuple[Optimised, Tensor]:
        """Take in what a pass has found; gives the best so far, and what is open."""
        if self.best is None or self.open is None:
            best, rising = found, torch.ones_like(found.passed.lower, dtype=torch.bool)
            self.adam.unit = _unit(found.passed)
        else:
            best, rising = _better(found, self.best, self.open), self.open
        lower = best.passed.lower
        self.bounds = [*self.bounds[:1], *self.bounds[1:][-_PATIENCE:], lower]
        rising = rising & (lower <= target)
        if least_gain is not None and len(self.bounds) > _PATIENCE + 1:
            rising &= lower - self.bounds[-1 - _PATIENCE] > least_gain * (lower - self.bounds[0])
        self.best, self.open = best, rising
        return best, rising

    def of(self, part: "_Part") -> "_Reached":
        """The same for a part."""
        result = _Reached(self.current.map(part.of), self.adam.of(part))
        if self.best is not None and self.open is not None:
            passed, multipliers = self.best
            own = Passed(part.of(passed.lower), [part.of(c) for c in passed.coefficients], part.of(passed.point))
            result.best, result.open = Optimised(own, multipliers.map(part.of)), part.of(self.open)
        result.bounds = [part.of(bound) for bound in self.bounds]
        return result


@dataclass(frozen=True)
class _Part:
    """Some of the images (dim 0), or, where there is one image only, of its queries (dim 1)."""

    places: Tensor
    dim: int
    size: int

    @classmethod
    def open(cls, open_: Tensor) -> "_Part":
        """What is open of (N, Q)."""
        if len(open_) > 1:
            return cls(torch.nonzero(open_.any(1)).flatten(), 0, open_.shape[0])
        return cls(torch.nonzero(open_[0]).flatten(), 1, open_.shape[1])

    def of(self, values: Tensor) -> Tensor:
        """The part of a tensor; what all queries share stays as it is."""
        return values.index_select(self.dim, self.places) if values.shape[self.dim] == self.size else values

    def put_back(self, whole: Optimised, part: Optimised) -> None:
        """Write what was found for the part into the tensors of the whole."""
        pairs = [(whole.passed.lower, part.passed.lower), (whole.passed.point, part.passed.point)]
        pairs += list(zip(whole.passed.coefficients, part.passed.coefficients, strict=True))
        for name in ("alpha", "beta", "mu"):
            ours, theirs = getattr(whole.multipliers, name), getattr(part.multipliers, name)
            pairs += [(a, b) for a, b in zip(ours or [], theirs or [], strict=True) if a is not None]
        for old, new in pairs:
            old.index_copy_(self.dim, self.places, new)


def _unit(passed: Passed) -> Tensor:
    """(N, Q, 1): each query's largest coefficient."""
    largest = [c.abs().amax(2) for c in passed.coefficients if c.shape[2]] or [torch.zeros_like(passed.lower)]
    return torch.stack(largest).amax(0).unsqueeze(2)


def _better(new: Optimised, old: Optimised, open_: Tensor) -> Optimised:
    """The better one of each query that is still open: what a query gets does not depend on those beside it."""
    improved = (new.passed.lower > old.passed.lower) & open_
    if bool(improved.all()):
        return new
    mask = improved.unsqueeze(2)

    def pick(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if a is None or b is None else torch.where(mask, a, b) for a, b in zip(one, other, strict=True)]

    def pick_all(one: Sequence[Tensor] | None, other: Sequence[Tensor] | None) -> list[Tensor] | None:
        return None if one is None or other is None else pick(one, other)  # type: ignore[return-value]

    passed = Passed(
        torch.where(improved, new.passed.lower, old.passed.lower),
        pick(new.passed.coefficients, old.passed.coefficients),  # type: ignore[arg-type]
        torch.where(mask, new.passed.point, old.passed.point),
    )
    own, its = new.multipliers, old.multipliers
    alpha = pick_all(own.alpha, its.alpha)
    mu = None if own.mu is None or its.mu is None else pick(own.mu, its.mu)
    return Optimised(passed, Multipliers(alpha or [], pick_all(own.beta, its.beta), mu))


class _Adam:
    """Ascent with momentum, in place of `torch.optim.Adam`: rates that are tensors, and no graph."""

    def __init__(self) -> None:
        self.means: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.count = 0
        self.unit: Tensor | None = None

    def of(self, part: _Part) -> "_Adam":
        """The same for a part."""
        result = _Adam()
        result.means = {name: part.of(t) for name, t in self.means.items()}
        result.squares = {name: part.of(t) for name, t in self.squares.items()}
        result.count = self.count
        result.unit = None if self.unit is None else part.of(self.unit)
        return result

    def step(self, at: Multipliers, slopes: Multipliers, rate: float, multiplier_rate: float) -> Multipliers:
        """One step up; multipliers of splits and cuts move in units of `unit`."""
        if not at.alpha:
            return at
        self.count += 1
        # As tensors: a kernel would be compiled for each number anew.
        slope_rate, *corrections = (
            at.alpha[0].new_full((), number) for number in (rate, 1 - _MOMENTUM**self.count, 1 - _SQUARES**self.count)
        )
        own = slope_rate.new_full((), multiplier_rate) if self.unit is None else multiplier_rate * self.unit

        def climb(name: str, values: Sequence[Tensor | None], up: Sequence[Tensor | None], rate: Tensor) -> Any:
            return [
                None if v is None or g is None else self._climb(f"{name}{i}", v, g, rate, corrections)
                for i, (v, g) in enumerate(zip(values, up, strict=True))
            ]

        return Multipliers(
            climb("alpha", at.alpha, slopes.alpha, slope_rate),
            None if at.beta is None or slopes.beta is None else climb("beta", at.beta, slopes.beta, own),
            None if at.mu is None or slopes.mu is None else climb("mu", at.mu, slopes.mu, own),
        )

    def _climb(self, name: str, value: Tensor, slope: Tensor, rate: Tensor, corrections: Sequence[Tensor]) -> Tensor:
        """One tensor, whose means have a name."""
        mean, square = self.means.get(name), self.squares.get(name)
        if mean is None or square is None:
            mean, square = torch.zeros_like(slope), torch.zeros_like(slope)
        value, self.means[name], self.squares[name] = _moved(value, slope, mean, square, rate, *corrections)
        return value


@kernel
def _moved(
    value: Tensor, slope: Tensor, mean: Tensor, square: Tensor, rate: Tensor, momentum: Tensor, squares: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's step: the new value, mean and mean square; `momentum` and `squares` correct those for their start at 0."""
    mean, square = mean.lerp(slope, 1 - _MOMENTUM), square.lerp(slope * slope, 1 - _SQUARES)
    direction = (mean / momentum).div_((square / squares).sqrt_().add_(_TINY))
    return torch.addcmul(value, direction, rate), mean, square
