"""Bounds of a condensed network made as tight as slopes and multipliers can make them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sabr.bounds.dual import Cuts, Lines, Multipliers, Passed, Problem, backward, gradient, projected

# Adam's decay rates.
_MOMENTUM, _SQUARES, _TINY = 0.9, 0.999, 1e-8


class Optimised(NamedTuple):
    """The best of all passes, for each query by itself, and the multipliers that gave it."""

    passed: Passed
    multipliers: Multipliers


def optimise(
    problem: Problem,
    lines: Sequence[Lines],
    start: Multipliers,
    *,
    iterations: int,
    rate: float,
    target: float | Tensor = 0.0,
    cuts: Sequence[Cuts | None] | None = None,
    decay: float = 0.98,
    multiplier_rate: float = 0.2,
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
        A number, or (N, Q): a query whose bound is above it is left as it is, and when all are, it ends.
    cuts
        For each layer constraints, or None.
    multiplier_rate
        Adam's first rate for the multipliers, in units of each query's largest coefficient.
    """
    current = projected(start, lines)
    adam = _Adam()
    best: Optimised | None = None
    for iteration in range(iterations + 1):
        passed = backward(problem, lines, current, cuts)
        best = Optimised(passed, current) if best is None else _better(Optimised(passed, current), best)
        open_ = best.passed.lower <= target
        if iteration == iterations or not bool(open_.any()):
            break
        if iteration == 0:
            scale = torch.stack([c.abs().amax(2) for c in passed.coefficients if c.shape[2]] or [passed.lower * 0])
            unit = scale.amax(0).unsqueeze(2)
        slopes = gradient(problem, lines, current, passed, cuts)
        current = adam.step(current, slopes, rate * decay**iteration, multiplier_rate * decay**iteration * unit)
        current = projected(current, lines)
    assert best is not None
    return best


def _better(new: Optimised, old: Optimised) -> Optimised:
    improved = new.passed.lower > old.passed.lower
    mask = improved.unsqueeze(2)

    def pick(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if a is None or b is None else torch.where(mask, a, b) for a, b in zip(one, other, strict=True)]

    def pick_all(one: Sequence[Tensor] | None, other: Sequence[Tensor] | None) -> list[Tensor] | None:
        return None if one is None or other is None else pick(one, other)  # type: ignore[return-value]

    passed = Passed(
        torch.maximum(new.passed.lower, old.passed.lower),
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

    def step(self, at: Multipliers, slopes: Multipliers, rate: float, multiplier_rate: Tensor) -> Multipliers:
        self.count += 1

        def moved(name: str, values: Sequence[Tensor | None], up: Sequence[Tensor | None], rate: float | Tensor) -> Any:
            return [
                None if v is None or g is None else v + rate * self.direction(f"{name}{i}", g)
                for i, (v, g) in enumerate(zip(values, up, strict=True))
            ]

        return Multipliers(
            moved("alpha", at.alpha, slopes.alpha, rate),
            None if at.beta is None or slopes.beta is None else moved("beta", at.beta, slopes.beta, multiplier_rate),
            None if at.mu is None or slopes.mu is None else moved("mu", at.mu, slopes.mu, multiplier_rate),
        )

    def direction(self, name: str, slope: Tensor) -> Tensor:
        if name not in self.means:
            self.means[name], self.squares[name] = torch.zeros_like(slope), torch.zeros_like(slope)
        mean = self.means[name].lerp_(slope, 1 - _MOMENTUM)
        square = self.squares[name].lerp_(slope * slope, 1 - _SQUARES)
        unbiased = (square / (1 - _SQUARES**self.count)).sqrt_().add_(_TINY)
        return mean / (1 - _MOMENTUM**self.count) / unbiased
