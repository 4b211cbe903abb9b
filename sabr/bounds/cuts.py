"""Multi-neuron constraints of one image's network: groups of its unstable ReLUs, bounded together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sabr.bounds.dual import Cuts, Relaxable, bound
from sabr.bounds.multi_neuron import choose_groups, group_constraints, octahedral_directions, triangle_areas
from sabr.bounds.rows import at_a_time


@dataclass(frozen=True)
class Grouping:
    """Which groups get constraints.

    Attributes
    ----------
    size
        ReLUs in a group, 2 or 3.
    partition
        ReLUs of similar triangle area from which groups are drawn.
    groups
        At most so many in each layer.
    constraints
        At most so many for each group.
    """

    size: int
    partition: int
    groups: int
    constraints: int


def cuts_for(problem: Relaxable, grouping: Grouping, *, allowances: Sequence[Tensor], memory: int) -> list[Cuts | None]:
    """Constraints for each layer, None where it has too few unstable ReLUs, or where groups bring nothing.

    Sound: each group's octahedron is bounded by CROWN, and moved outwards by what rounding may be off by.

    Parameters
    ----------
    problem
        One image (N = 1).
    grouping
        Which groups.
    allowances
        For each layer (1, U).
    memory
        Bytes that may be used at a time.
    """
    directions = torch.from_numpy(octahedral_directions(grouping.size)).to(problem.objective)
    result: list[Cuts | None] = []
    for number, layer in enumerate(problem.layers):
        lower, upper = layer.lower[0], layer.upper[0]
        groups = choose_groups(
            triangle_areas(lower, upper),
            lower,
            upper,
            size=grouping.size,
            partition=grouping.partition,
            most=grouping.groups,
        )
        if len(groups) == 0:
            result.append(None)
            continue
        weight = directions.new_zeros(len(groups), len(directions), len(lower))
        weight.scatter_(2, groups.unsqueeze(1).expand(-1, len(directions), -1), directions.expand(len(groups), -1, -1))
        lows = _bounded(problem, number, weight.flatten(0, 1), memory)
        # Row d and row -1 - d are opposite: the one's lower bound is the other's limit.
        limits = -lows.view(len(groups), -1).flip(1) + allowances[number][0, groups] @ directions.abs().t()
        coordinates = directions.abs().sum(1) == 1
        own = (
            directions.unsqueeze(0)
            * torch.where(directions > 0, upper[groups].unsqueeze(1), lower[groups].unsqueeze(1))
        ).sum(2)
        limits = torch.where(coordinates, torch.minimum(limits, own), limits)
        found = group_constraints(limits, most=grouping.constraints)
        used = found.y.abs().sum(2) + found.z.abs().sum(2) > 0
        if not bool(used.any()):
            result.append(None)
            continue
        members = groups.unsqueeze(1).expand(-1, found.offset.shape[1], -1)[used]
        result.append(
            Cuts(*(part.unsqueeze(0) for part in (members, found.y[used], found.z[used], found.offset[used])))
        )
    return result


def _bounded(problem: Relaxable, number: int, weight: Tensor, memory: int) -> Tensor:
    """Lower bounds (Q,) of weight @ y, (Q, U), for the inputs y of one layer's ReLUs."""
    turns = torch.split(weight, at_a_time(problem.bytes_of_a_query, memory))
    return torch.cat([bound(problem.inner(number, rows.unsqueeze(0)))[0] for rows in turns])
