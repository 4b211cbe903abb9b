"""Ways through a network of steps, into the paths of its sums: what lies in front of each ReLU."""

from collections.abc import Sequence
from typing import NamedTuple

from sabr.networks.steps import ReLUStep, Step, SumStep


class Prefix(NamedTuple):
    """What computes the input of one ReLU.

    Attributes
    ----------
    steps
        From the network's input to the ReLU's input. Inside a path of a sum: the steps before the sum, then the
        path's; a sum that is passed whole stays one.
    relus
        For each ReLU of `steps`, in the order in which they are met in them, its number in the whole network.
    """

    steps: list[Step]
    relus: list[int]


def relu_prefixes(steps: Sequence[Step]) -> list[Prefix]:
    """What computes the input of each ReLU, in the order in which they are met, the paths of a sum first to last."""
    prefixes: list[Prefix] = []

    def walk(following: Sequence[Step], before: list[Step], relus: list[int]) -> None:
        for step in following:
            first = len(prefixes)
            if isinstance(step, ReLUStep):
                prefixes.append(Prefix(before, relus))
            elif isinstance(step, SumStep):
                for path in step.paths:
                    walk(path, before, relus)
            before, relus = [*before, step], [*relus, *range(first, len(prefixes))]

    walk(steps, [], [])
    return prefixes
