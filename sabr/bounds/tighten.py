"""Bounds at the unstable ReLUs of a network, improved: by optimised slopes, or under splits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.dual import Layer, Lines, Multipliers, Problem, Relaxable, backward, lines_of, relax, start_of
from sabr.bounds.optimise import optimise
from sabr.bounds.rows import at_a_time


def optimised_layers(
    problem: Problem, *, iterations: int, rate: float, allowances: Sequence[Tensor], memory: int
) -> list[Layer]:
    """The layers with bounds of alpha-CROWN, each ReLU's two sides with slopes of their own (Xu et al. 2021).

    Sound in exact arithmetic, and moved outwards by `allowances`.

    Parameters
    ----------
    problem
        N images.
    iterations, rate
        As in `sabr.bounds.optimise.optimise`.
    allowances
        For each layer (N, U).
    memory
        Bytes that may be used at a time.
    """
    layers: list[Layer] = []
    for number, layer in enumerate(problem.layers):
        if number and layer.rows.shape[1]:
            before = Problem(problem.box, layers, layer.rows)
            lows, highs = [], []
            for rows in torch.split(layer.rows, at_a_time(2 * len(layer.rows) * before.bytes_of_a_query, memory), 1):
                both = before._replace(objective=torch.cat([rows, -rows], 1))
                lines = lines_of(both)
                found = optimise(
                    both, lines, start_of(both, lines), iterations=iterations, rate=rate, target=float("inf")
                ).passed.lower
                low, high = found.chunk(2, 1)
                lows.append(low)
                highs.append(-high)
            lower = torch.maximum(layer.lower, torch.cat(lows, 1) - allowances[number])
            upper = torch.minimum(layer.upper, torch.cat(highs, 1) + allowances[number])
            lower = torch.where(layer.real, torch.minimum(lower, upper), layer.lower)
            layer = layer._replace(lower=lower, upper=torch.where(layer.real, upper, layer.upper))
        layers.append(layer)
    return layers


def split_lines(
    problem: Relaxable, splits: Sequence[Tensor], bounds: Sequence[Box], *, allowances: Sequence[Tensor], memory: int
) -> tuple[list[Lines], list[Box], Tensor]:
    """Bound the ReLUs of each query anew under its splits, layer by layer, by CROWN with adaptive slopes.

    Parameters
    ----------
    problem
        N images with Q queries each.
    splits
        For each layer (N, Q, U): 1 for y >= 0, -1 for y <= 0, 0 for neither.
    bounds
        For each layer (N, Q, U) bounds that hold under the splits; they are cut to them here.
    allowances
        For each layer (N, U): what rounding may be off by.
    memory
        Bytes that may be used at a time.

    Returns
    -------
    lines, bounds, infeasible
        For each layer; and (N, Q): whether no point of the box fulfils a query's splits.
    """
    count, queries = splits[0].shape[:2]
    infeasible = torch.zeros(count, queries, dtype=torch.bool, device=problem.objective.device)
    lines: list[Lines] = []
    tightened: list[Box] = []
    for number, (layer, sign, known) in enumerate(zip(problem.layers, splits, bounds, strict=True)):
        lower, upper = known
        if number and layer.lower.shape[1]:
            low, high = _each_query(problem, number, lines, queries, memory)
            slack = allowances[number].unsqueeze(1)
            lower, upper = torch.maximum(lower, low - slack), torch.minimum(upper, high + slack)
        lower = torch.where(sign > 0, lower.clamp(min=0), lower)
        upper = torch.where(sign < 0, upper.clamp(max=0), upper)
        infeasible |= ((lower > upper) & layer.real.unsqueeze(1)).any(2)
        lower = torch.minimum(lower, upper)
        tightened.append(Box(lower, upper))
        lines.append(relax(lower, upper, sign))
    return lines, tightened, infeasible


def _each_query(
    problem: Relaxable, number: int, lines: Sequence[Lines], queries: int, memory: int
) -> tuple[Tensor, Tensor]:
    """Bounds (N, Q, U) of the inputs of one layer's ReLUs, each under the lines of each of Q queries."""
    count, size = problem.layers[number].lower.shape
    each = torch.eye(size, dtype=problem.objective.dtype, device=problem.objective.device)
    found = []
    for rows in torch.split(torch.cat([each, -each]), at_a_time(count * problem.bytes_of_a_query, memory)):
        own = at_a_time(count * len(rows) * problem.bytes_of_a_query, memory)
        turns = []
        for chosen in torch.split(torch.arange(queries, device=each.device), own):
            before = problem.inner(number, rows.repeat(len(chosen), 1).expand(count, -1, -1))
            part = [_of_queries(line, chosen, queries, len(rows)) for line in lines]
            lower = backward(before, part, Multipliers([line.alpha for line in part])).lower
            turns.append(lower.view(count, len(chosen), len(rows)))
        found.append(torch.cat(turns, 1))
    low, high = torch.cat(found, 2).chunk(2, 2)
    return low, -high


def _of_queries(lines: Lines, chosen: Tensor, queries: int, times: int) -> Lines:
    """Those of some queries, without splits' multipliers, each several times."""

    def own(values: Tensor) -> Tensor:
        return values.expand(-1, queries, -1)[:, chosen].repeat_interleave(times, 1)

    return Lines(own(lines.alpha), own(lines.upper_slope), own(lines.upper_offset), own(lines.free), None)
