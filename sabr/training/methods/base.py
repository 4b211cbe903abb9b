"""What every training method works with: the batch, what it answers, worst cases over boxes, adversarial points."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.attacks.pgd import training_attack
from sabr.bounds.boxes import Box
from sabr.bounds.interval import Centred, margin_bounds
from sabr.networks.affine import CleanPass, folded_steps
from sabr.networks.architectures import Network
from sabr.networks.steps import ScaleStep, Step, cast


@dataclass(frozen=True)
class Batch:
    """What an objective may use.

    Attributes
    ----------
    network
        In the state after the clean pass: running statistics already moved.
    images, labels
        (N, channels, height, width) in [0, 1], and (N,).
    eps
        Current radius, in pixel units; 0 before the ramp.
    ramp
        Where the ramp of eps is: `eps` in units of its largest value, in [0, 1].
    clean
        The batch's clean pass in training mode, with its graph.
    generator
        Source of the attack's random starts.
    attack_dtype
        Precision of the network's passes in the attack.
    """

    network: Network
    images: Tensor
    labels: Tensor
    eps: float
    ramp: float
    clean: CleanPass
    generator: torch.Generator
    attack_dtype: torch.dtype = torch.float32

    def between(self, start: float, end: float) -> float:
        """`start` at the start of the ramp, `end` at its end, linear in eps."""
        return start + self.ramp * (end - start)


class Objective(NamedTuple):
    """What a method says of a batch.

    Attributes
    ----------
    losses
        (N,) losses, not yet averaged or regularised.
    correct
        (N,) bool: the worst case that the method looks at is classified correctly.
    bounds
        What the warm-up regulariser looks at; None for methods without bounds.
    """

    losses: Tensor
    correct: Tensor
    bounds: "Bounds | None"


class Bounds(NamedTuple):
    """Boxes at the ReLU inputs, and the mean radius at the input of the first layer with weights, a scalar."""

    relu_inputs: list[Centred]
    input_radius: Tensor


def worst_case(batch: Batch, region: Box, *, relu_shrinkage: float | None = None) -> Objective:
    """Worst-case cross-entropy over a box by intervals, with the clean batch's statistics (paper, section 2.2)."""
    steps = folded_steps(batch.network, batch.clean.statistics)
    lower, relu_inputs = margin_bounds(steps, region, batch.labels, relu_shrinkage=relu_shrinkage)
    return Objective(worst_case_cross_entropy(lower), (lower > 0).all(1), bounds(steps, region, relu_inputs))


def bounds(steps: Sequence[Step], region: Box, relu_inputs: list[Centred]) -> Bounds:
    """What the warm-up regulariser looks at, of an interval propagation."""
    radius = steps[0].spread(region.radius) if isinstance(steps[0], ScaleStep) else region.radius
    return Bounds(relu_inputs, radius.mean())


def worst_case_cross_entropy(margin_lower: Tensor) -> Tensor:
    """Cross-entropy (N,) of the logits [0, -margins] with label 0, from margin lower bounds (N, K-1)."""
    worst = F.pad(-margin_lower, (1, 0))
    return torch.logsumexp(worst, 1)


def adversarial_points(batch: Batch, region: Box, step_sizes: Sequence[float]) -> Tensor:
    """Points of the region, or near it, that the training attack finds, in evaluation mode (paper, appendix C)."""
    steps = attacked_steps(batch)
    return training_attack(steps, batch.images, region, batch.labels, step_sizes=step_sizes, generator=batch.generator)


def attacked_steps(batch: Batch) -> list[Step]:
    """The network as an attack sees it: in evaluation mode, without gradients, in the attack's precision."""
    with torch.no_grad():
        return cast(folded_steps(batch.network), batch.attack_dtype)
