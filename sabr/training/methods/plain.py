"""Methods that look at points only: clean images, adversarial images."""

from collections.abc import Sequence

import torch.nn.functional as F

from sabr.bounds.boxes import ball
from sabr.networks.affine import folded_steps
from sabr.networks.steps import forward
from sabr.training.methods.base import Batch, Objective, adversarial_points


def standard(batch: Batch) -> Objective:
    """Cross-entropy on the clean images."""
    logits = batch.clean.logits
    losses = F.cross_entropy(logits, batch.labels, reduction="none")
    return Objective(losses, logits.argmax(1) == batch.labels, None)


def pgd(batch: Batch, *, step_sizes: Sequence[float]) -> Objective:
    """Cross-entropy at an adversarial point of the ball, with the clean batch's statistics (Madry et al. 2018).

    The limit of `sabr` for lambda_ratio -> 0.
    """
    region = ball(batch.images, batch.eps)
    adversarial = region.clamp(adversarial_points(batch, region, step_sizes))
    steps = folded_steps(batch.network, batch.clean.statistics)
    logits = forward(steps, adversarial)
    losses = F.cross_entropy(logits, batch.labels, reduction="none")
    return Objective(losses, logits.argmax(1) == batch.labels, None)
