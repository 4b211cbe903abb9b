"""Projected gradient descent: points of a box that a network gets wrong."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.networks.steps import Step, linearise


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy per sample, (N,)."""
    return F.cross_entropy(logits, labels, reduction="none")


class Attacked(NamedTuple):
    """Points (N, ...), and whether the network gets each of them wrong, (N,) bool."""

    points: Tensor
    misclassified: Tensor


def pgd(
    steps: Sequence[Step],
    region: Box,
    labels: Tensor,
    *,
    start: Tensor,
    step_sizes: Sequence[float],
    stop_early: bool = True,
) -> Attacked:
    """Ascend the cross-entropy by signed gradient steps inside a box (the authors' training attack; paper, appendix C).

    The start is evaluated as it is, in the box or not; every later iterate is projected onto the box. An estimate: that
    no point is found proves nothing.

    Parameters
    ----------
    steps
        A folded network; no gradient reaches its weights.
    region
        (N, ...) boxes.
    labels
        (N,) true classes.
    start
        (N, ...) first iterates.
    step_sizes
        One number per step, in units of the largest radius in `region`.
    stop_early
        Stop once every sample has been misclassified at some iterate.

    Returns
    -------
    Attacked
        Per sample the last iterate that was misclassified, or, where none was, the one with the largest loss among
        all iterates but the last.
    """
    unit = float(region.radius.max()) if region.lower.numel() else 0.0
    points = start.detach()
    best = points.clone()
    best_loss = torch.full(labels.shape, -torch.inf, device=labels.device, dtype=points.dtype)
    misclassified = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    for size in [*step_sizes, None]:
        logits, pull = linearise(steps, points)
        with torch.enable_grad():
            logits.requires_grad_(size is not None)
            losses = cross_entropy(logits, labels)
        better = logits.detach().argmax(1) != labels
        misclassified |= better
        if size is not None:  # as the authors do: the last iterate counts only where it is misclassified
            better |= ~misclassified & (losses.detach() > best_loss)
        best = torch.where(_along(better, points), points, best)
        best_loss = torch.where(better, losses.detach(), best_loss)
        if size is None or (stop_early and bool(misclassified.all())):
            break
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        points = region.clamp(points.add(pull(gradient).sign_(), alpha=size * unit))
    return Attacked(best, misclassified)


def training_attack(
    steps: Sequence[Step],
    images: Tensor,
    region: Box,
    labels: Tensor,
    *,
    step_sizes: Sequence[float],
    generator: torch.Generator,
) -> Tensor:
    """The adversarial points that SABR and PGD training start from: one restart of `pgd` on the cross-entropy.

    Starts at images + U(-0.5, 0.5) * (region.upper - region.lower), not projected, as the authors do.
    """
    noise = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype) - 0.5
    start = images + noise * (region.upper - region.lower)
    return pgd(steps, region, labels, start=start, step_sizes=step_sizes).points


def _along(mask: Tensor, points: Tensor) -> Tensor:
    return mask.view(-1, *[1] * (points.dim() - 1))
