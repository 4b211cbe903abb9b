"""Problems of single images put together into one, filled up to common sizes; and their queries' tensors likewise."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.dual import Cuts, Layer, Problem, Relaxable
from sabr.bounds.unrolled import Unrolled


def stack(problems: Sequence[Relaxable]) -> Relaxable:
    """One problem of all images; what is filled up has rows and columns of zeros.

    Parameters
    ----------
    problems
        Of any numbers of images, with as many layers each, all condensed or all unrolled, of one network.
    """
    if len(problems) == 1:
        return problems[0]
    condensed = [p for p in problems if isinstance(p, Problem)]
    if condensed:
        return _stack_condensed(condensed)
    return _stack_unrolled([p for p in problems if isinstance(p, Unrolled)])


def _stack_unrolled(problems: Sequence[Unrolled]) -> Unrolled:
    box = Box(torch.cat([p.box.lower for p in problems]), torch.cat([p.box.upper for p in problems]))
    layers = []
    for parts in zip(*(p.layers for p in problems), strict=True):
        size = max(part.lower.shape[1] for part in parts)
        filled = [
            part._replace(
                lower=_fill(part.lower, size, 1, -1.0),
                upper=_fill(part.upper, size, 1, 1.0),
                real=_fill(part.real, size, 1),
                places=_fill(part.places, size, 1),
            )
            for part in parts
        ]
        layers.append(type(parts[0])(*(torch.cat(field) for field in zip(*filled, strict=True))))
    queries = max(p.objective.shape[1] for p in problems)
    objective, constant = (
        torch.cat([_fill(values, queries, 1) for values in own])
        for own in ([p.objective for p in problems], [p.constant for p in problems])
    )
    return problems[0]._replace(box=box, layers=layers, objective=objective, constant=constant)


def _stack_condensed(problems: Sequence[Problem]) -> Problem:
    box = Box(torch.cat([p.box.lower for p in problems]), torch.cat([p.box.upper for p in problems]))
    sizes = [max(layer.rows.shape[1] for layer in parts) for parts in _layers(problems)]
    layers = []
    for number, (parts, size) in enumerate(zip(_layers(problems), sizes, strict=True)):
        rows = [_columns(part.rows, p, sizes[:number]) for part, p in zip(parts, problems, strict=True)]
        filled = [
            Layer(
                _fill(row, size, 1),
                _fill(part.lower, size, 1, -1.0),
                _fill(part.upper, size, 1, 1.0),
                _fill(part.real, size, 1),
                _fill(part.places, size, 1),
            )
            for row, part in zip(rows, parts, strict=True)
        ]
        layers.append(Layer(*(torch.cat(field) for field in zip(*filled, strict=True))))
    queries = max(p.objective.shape[1] for p in problems)
    objective = [_fill(_columns(p.objective, p, sizes), queries, 1) for p in problems]
    return Problem(box, layers, torch.cat(objective))


def stack_queries(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """For each layer one tensor (N, Q, U) of the images' own ones (1, q, u), filled up with zeros."""
    result = []
    for layer in zip(*parts, strict=True):
        queries, size = max(p.shape[1] for p in layer), max(p.shape[2] for p in layer)
        result.append(torch.cat([_fill(_fill(p, size, 2), queries, 1) for p in layer]))
    return result


def stack_cuts(parts: Sequence[Sequence[Cuts | None]]) -> list[Cuts | None]:
    """For each layer the images' constraints, filled up with 0 <= 0; None where no image has any."""
    result: list[Cuts | None] = []
    for layer in zip(*parts, strict=True):
        present = [c for c in layer if c is not None]
        if not present:
            result.append(None)
            continue
        count, members = max(c.limit.shape[1] for c in present), max(c.members.shape[2] for c in present)
        like = present[0]
        empty = Cuts(
            like.members.new_zeros(1, 0, members),
            like.y_weight.new_zeros(1, 0, members),
            like.z_weight.new_zeros(1, 0, members),
            like.limit.new_zeros(1, 0),
        )
        filled = []
        for cut in layer:
            own = empty if cut is None else cut
            sides = [_fill(_fill(f, members, 2), count, 1) for f in (own.members, own.y_weight, own.z_weight)]
            filled.append(Cuts(sides[0], sides[1], sides[2], _fill(own.limit, count, 1)))
        result.append(Cuts(*(torch.cat(field) for field in zip(*filled, strict=True))))
    return result


def _layers(problems: Sequence[Problem]) -> list[list[Layer]]:
    return [[p.layers[number] for p in problems] for number in range(len(problems[0].layers))]


def _columns(rows: Tensor, problem: Problem, sizes: Sequence[int]) -> Tensor:
    """Rows (1, R, W) with each layer's columns filled up to its size."""
    start = problem.box.lower.shape[1] + 1
    blocks = [rows[..., :start]]
    for columns, size in zip(problem.columns, sizes, strict=False):
        blocks.append(_fill(rows[..., columns], size, 2))
    return torch.cat(blocks, 2)


def _fill(values: Tensor, size: int, dim: int, value: float = 0.0) -> Tensor:
    missing = size - values.shape[dim]
    if missing == 0:
        return values
    return F.pad(values, [0, 0] * (values.dim() - 1 - dim) + [0, missing], value=value)
