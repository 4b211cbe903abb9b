"""Bounds at the unstable ReLUs of a condensed network, improved: by optimised slopes, or under splits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.dual import Layer, Lines, Multipliers, Problem, backward, lines_of, relax, start_of
from sabr.bounds.optimise import optimise


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
            each = 10 * layer.rows.shape[2] * layer.rows.element_size() * len(layer.rows)
            lows, highs = [], []
            for rows in torch.split(layer.rows, max(1, memory // (2 * each)), 1):
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
    problem: Problem, splits: Sequence[Tensor], bounds: Sequence[Box], *, allowances: Sequence[Tensor], memory: int
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
        if number and layer.rows.shape[1]:
            before = Problem(problem.box, problem.layers[:number], layer.rows)
            low, high = _each_query(before, lines, queries, memory)
            slack = allowances[number].unsqueeze(1)
            lower, upper = torch.maximum(lower, low - slack), torch.minimum(upper, high + slack)
        lower = torch.where(sign > 0, lower.clamp(min=0), lower)
        upper = torch.where(sign < 0, upper.clamp(max=0), upper)
        infeasible |= ((lower > upper) & layer.real.unsqueeze(1)).any(2)
        lower = torch.minimum(lower, upper)
        tightened.append(Box(lower, upper))
        lines.append(relax(lower, upper, sign))
    return lines, tightened, infeasible


def _each_query(problem: Problem, lines: Sequence[Lines], queries: int, memory: int) -> tuple[Tensor, Tensor]:
    """Bounds (N, Q, U) of the objective's U rows, each under the lines of each of Q queries."""
    count, size, width = problem.objective.shape
    each = max(1, 8 * count * size * width * problem.objective.element_size())
    lows, highs = [], []
    for chosen in torch.split(torch.arange(queries), max(1, memory // (2 * each))):
        both = torch.cat([problem.objective, -problem.objective], 1).repeat(1, len(chosen), 1)

        def own(values: Tensor, chosen: Tensor = chosen) -> Tensor:
            return values.expand(-1, queries, -1)[:, chosen].repeat_interleave(2 * size, 1)

        part = [Lines(own(li.alpha), own(li.upper_slope), own(li.upper_offset), own(li.free), None) for li in lines]
        lower = backward(problem._replace(objective=both), part, Multipliers([line.alpha for line in part])).lower.view(
            count, len(chosen), 2, size
        )
        lows.append(lower[:, :, 0])
        highs.append(-lower[:, :, 1])
    return torch.cat(lows, 1), torch.cat(highs, 1)
