"""Training methods: each takes a batch and a network to a loss per image."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.attacks.pgd import training_attack
from sabr.bounds.boxes import Box, ball, small_box
from sabr.bounds.interval import margin_bounds
from sabr.networks.affine import CleanPass, ScaleStep, folded_steps, forward
from sabr.networks.architectures import Network
from sabr.specs import IBP, PGD, SABR, Method, Standard

_EPS_BEFORE_RAMP = 1e-6


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
    clean
        The batch's clean pass in training mode, with its graph.
    generator
        Source of the attack's random starts.
    """

    network: Network
    images: Tensor
    labels: Tensor
    eps: float
    clean: CleanPass
    generator: torch.Generator


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

    relu_inputs: list[Box]
    input_radius: Tensor


def evaluate(method: Method, batch: Batch) -> Objective:
    """Apply a method to a batch; before the ramp (eps = 0) every method trains on the clean cross-entropy."""
    match method:
        case Standard():
            return standard(batch)
        case PGD():
            return standard(batch) if batch.eps == 0 else pgd(batch, step_sizes=method.attack.step_sizes)
        case IBP():
            return _before_ramp(batch) if batch.eps == 0 else ibp(batch)
        case SABR():
            if batch.eps == 0:
                return _before_ramp(batch)
            return sabr(
                batch,
                lambda_ratio=method.lambda_ratio,
                relu_shrinkage=method.relu_shrinkage,
                step_sizes=method.attack.step_sizes,
            )
        case _:
            raise TypeError(f"no objective is known for {type(method).__name__}")


def standard(batch: Batch) -> Objective:
    """Cross-entropy on the clean images."""
    logits = batch.clean.logits
    losses = F.cross_entropy(logits, batch.labels, reduction="none")
    return Objective(losses, logits.argmax(1) == batch.labels, None)


def pgd(batch: Batch, *, step_sizes: list[float]) -> Objective:
    """Cross-entropy at an adversarial point of the ball, with the clean batch's statistics (Madry et al. 2018).

    The limit of `sabr` for lambda_ratio -> 0.
    """
    region = ball(batch.images, batch.eps)
    adversarial = region.clamp(_adversarial(batch, region, step_sizes))
    steps = folded_steps(batch.network, batch.clean.statistics)
    logits = forward(steps, adversarial)
    losses = F.cross_entropy(logits, batch.labels, reduction="none")
    return Objective(losses, logits.argmax(1) == batch.labels, None)


def ibp(batch: Batch) -> Objective:
    """Worst-case cross-entropy over the whole ball, bounded by intervals (Gowal et al. 2018; Shi et al. 2021)."""
    return _worst_case(batch, ball(batch.images, batch.eps))


def sabr(batch: Batch, *, lambda_ratio: float, relu_shrinkage: float | None, step_sizes: list[float]) -> Objective:
    """Worst-case cross-entropy over a small box around an adversarial point (SABR, section 3, equation 4).

    With lambda_ratio = 1 the box is centred and is the whole ball, that is `ibp`: then no attack is made.
    """
    region = ball(batch.images, batch.eps)
    if lambda_ratio < 1:
        adversarial = _adversarial(batch, region, step_sizes)
        region = small_box(adversarial, region, lambda_ratio * batch.eps)
    return _worst_case(batch, region, relu_shrinkage=relu_shrinkage)


def _before_ramp(batch: Batch) -> Objective:
    """Clean cross-entropy, and the bounds of a tiny box for the warm-up regulariser (paper, appendix C)."""
    tiny = Box(batch.images - _EPS_BEFORE_RAMP, batch.images + _EPS_BEFORE_RAMP)
    return standard(batch)._replace(bounds=_worst_case(batch, tiny).bounds)


def _worst_case(batch: Batch, region: Box, *, relu_shrinkage: float | None = None) -> Objective:
    steps = folded_steps(batch.network, batch.clean.statistics)
    lower, relu_inputs = margin_bounds(steps, region, batch.labels, relu_shrinkage=relu_shrinkage)
    radius = steps[0].spread(region.radius) if isinstance(steps[0], ScaleStep) else region.radius
    bounds = Bounds(relu_inputs, radius.mean())
    return Objective(worst_case_cross_entropy(lower), (lower > 0).all(1), bounds)


def worst_case_cross_entropy(margin_lower: Tensor) -> Tensor:
    """Cross-entropy (N,) of the logits [0, -margins] with label 0, from margin lower bounds (N, K-1)."""
    worst = F.pad(-margin_lower, (1, 0))
    return torch.logsumexp(worst, 1)


def _adversarial(batch: Batch, region: Box, step_sizes: list[float]) -> Tensor:
    with torch.no_grad():
        steps = folded_steps(batch.network)
    return training_attack(steps, batch.images, region, batch.labels, step_sizes=step_sizes, generator=batch.generator)
