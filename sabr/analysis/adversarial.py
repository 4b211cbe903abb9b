"""Points of a box at which a network's cross-entropy is large: what the studies call adversarial."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sabr.attacks.ascent import ascend
from sabr.attacks.pgd import cross_entropy
from sabr.bounds.boxes import Box
from sabr.networks.steps import Step, forward
from sabr.specs import AttackRound


def worst_points(
    steps: Sequence[Step],
    region: Box,
    labels: Tensor,
    *,
    known: Tensor,
    rounds: Sequence[AttackRound],
    generator: torch.Generator,
) -> Tensor:
    """The points with the largest cross-entropy that signed gradient ascent finds: estimates from below.

    Attacks of accuracy stop at the first error; here every start goes all its steps, and all that count are losses.

    Parameters
    ----------
    steps
        A folded network, without gradients.
    region
        (N, ...) boxes.
    labels
        (N,) true classes.
    known
        (N, ...) points of `region` to beat: the result is never better for the network than these.
    rounds
        Starts, drawn uniformly from `region`, and steps in units of each entry's radius; losses, targets and
        diversified starts are those of attacks of accuracy and do not count here.
    generator
        Draws the starts.

    Returns
    -------
    Tensor
        (N, ...) points of `region`, without a graph.
    """

    def losses(points: Tensor) -> Tensor:
        return cross_entropy(forward(steps, points), labels)

    best = known
    with torch.no_grad():
        largest = losses(best)
    for one in rounds:
        for _ in range(one.starts):
            with torch.enable_grad():
                points = ascend(losses, region, start=region.sample(generator), step_sizes=one.step_sizes)
            with torch.no_grad():
                found = losses(points)
            better = found > largest
            best = torch.where(better.view(-1, *[1] * (points.dim() - 1)), points, best)
            largest = torch.where(better, found, largest)
    return best
