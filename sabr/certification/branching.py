"""Which ReLU to split next."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sabr.bounds.dual import Cuts, Lines, Multipliers, Passed, Relaxable, backward

Rule = Literal["babsr", "filtered", "active-constraints"]


def babsr(problem: Relaxable, lines: Sequence[Lines], passed: Passed) -> list[Tensor]:
    """How much a split of each ReLU may help, for each layer (N, Q, U); -inf where there is nothing to split.

    The estimate of Bunel et al. (2020, section 5): the triangle's offset that goes away, and what the constant in the
    ReLU's input then contributes.
    """
    scores = []
    offsets = problem.offsets()
    for layer, offset, line, own in zip(problem.layers, offsets, lines, passed.coefficients, strict=True):
        constant = offset.unsqueeze(1)
        kept = constant * own * line.upper_slope
        gone = constant * own * (line.upper_slope - 1)
        score = (torch.maximum(kept, gone) + own.clamp(max=0) * line.upper_offset).abs()
        scores.append(_allowed(score, line, layer.real))
    return scores


def active_constraints(
    problem: Relaxable,
    lines: Sequence[Lines],
    passed: Passed,
    multipliers: Multipliers,
    cuts: Sequence[Cuts | None] | None,
) -> list[Tensor]:
    """The same by how much each ReLU's constraints take part in the bound (Ferrari et al. 2022, section 4).

    The weight of a ReLU's triangle, times its height, and the multipliers of all cuts that it is part of.
    """
    scores = []
    for number, (layer, line, own) in enumerate(zip(problem.layers, lines, passed.coefficients, strict=True)):
        score = own.clamp(max=0).abs() * line.upper_offset
        cut = None if cuts is None else cuts[number]
        mu = None if multipliers.mu is None else multipliers.mu[number]
        if cut is not None and mu is not None:
            weight = cut.y_weight.abs() + cut.z_weight.abs()
            shares = weight.new_zeros(*cut.limit.shape, score.shape[2]).scatter_add_(2, cut.members, weight)
            score = score + torch.bmm(mu, shares) * line.upper_offset
        scores.append(_allowed(score, line, layer.real))
    return scores


def filtered(
    problem: Relaxable,
    lines: Sequence[Lines],
    multipliers: Multipliers,
    scores: Sequence[Tensor],
    *,
    candidates: int,
    target: Tensor,
    cuts: Sequence[Cuts | None] | None = None,
) -> Tensor:
    """Of the ReLUs with the largest scores the one whose two halves have the best bounds (De Palma et al. 2021, FSB).

    The scores may be any; those of `active_constraints` prove several times as many images here as those of `babsr`.

    Parameters
    ----------
    problem, lines, multipliers, cuts
        Of the queries to branch on.
    scores
        For each layer (N, Q, U).
    candidates
        How many are tried, each with one backward pass for both halves.
    target
        (N, Q) what a bound must exceed; more is of no use.

    Returns
    -------
    Tensor
        (N, Q) places in the concatenation of all layers' ReLUs.
    """
    flat = torch.cat(list(scores), 2)
    count, queries, total = flat.shape
    tried = min(candidates, total)
    top, chosen = flat.topk(tried, 2)
    if tried == 1:
        return chosen[..., 0]
    halves = 2 * tried

    def repeated(values: Tensor) -> Tensor:
        return values.expand(count, queries, -1).repeat_interleave(halves, 1)

    # Queries in the order: query, candidate, half.
    place = chosen.repeat_interleave(2, 2).flatten(1)
    side = torch.tensor([1, -1], device=flat.device).repeat(queries * tried)
    copies, start = [], 0
    for line in lines:
        size = line.free.shape[2]
        here = (place >= start) & (place < start + size)
        at = torch.where(here, place - start, 0).unsqueeze(2)
        active = (here & (side > 0)).unsqueeze(2)
        slope, offset = repeated(line.upper_slope).clone(), repeated(line.upper_offset).clone()
        if size:
            slope.scatter_(2, at, torch.where(here.unsqueeze(2), active.to(slope.dtype), slope.gather(2, at)))
            offset.scatter_(2, at, torch.where(here.unsqueeze(2), 0.0, offset.gather(2, at)))
        copies.append((slope, offset, here, at, active))
        start += size
    alpha, relaxed = [], []
    for line, own, (slope, offset, here, at, active) in zip(lines, multipliers.alpha, copies, strict=True):
        values = repeated(own).clone()
        if values.shape[2]:
            values.scatter_(2, at, torch.where(here.unsqueeze(2), active.to(values.dtype), values.gather(2, at)))
        alpha.append(values)
        sign = None if line.sign is None else repeated(line.sign)
        relaxed.append(Lines(values, slope, offset, line.free, sign))
    beta = None if multipliers.beta is None else [repeated(b) for b in multipliers.beta]
    mu = None if multipliers.mu is None else [None if m is None else repeated(m) for m in multipliers.mu]
    each = problem.part(torch.arange(queries, device=flat.device).repeat_interleave(halves), 1)
    lower = backward(each, relaxed, Multipliers(alpha, beta, mu), cuts).lower.view(count, queries, tried, 2)
    gain = torch.minimum(lower, target.view(count, queries, 1, 1))
    # The worse half counts; the better one decides between equals.
    value = gain.amin(3) + 1e-3 * gain.amax(3)
    value = torch.where(top.isneginf(), -torch.inf, value)
    return chosen.gather(2, value.argmax(2, keepdim=True)).squeeze(2)


def _allowed(score: Tensor, line: Lines, real: Tensor) -> Tensor:
    return torch.where(line.free & real.unsqueeze(1), score, -torch.inf)
