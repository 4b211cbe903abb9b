"""CROWN-IBP: linear bounds on top of interval bounds, early in training where intervals are loose."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.bounds.boxes import Box, ball
from sabr.bounds.crown import backward_bound
from sabr.bounds.interval import Centred, margin_rows, propagate
from sabr.networks.affine import folded_steps
from sabr.networks.steps import LinearStep
from sabr.training.methods.base import Batch, Objective, bounds, worst_case_cross_entropy


def crown_ibp(batch: Batch, *, kappa: float, beta: float, loss_fusion: bool) -> Objective:
    """Mixed clean and worst-case cross-entropy (Zhang et al. 2020, section 3).

    kappa * CE(clean) + (1 - kappa) * CE(worst case), where the worst case has the margins
    beta * (CROWN-IBP) + (1 - beta) * (interval); with `loss_fusion` the worst case is `fused_cross_entropy`. Where beta
    is 0, no linear bounds are computed. Linear and interval bounds are sound, and so is their mixture; gradients flow
    through both, and through the clean batch's statistics.

    Parameters
    ----------
    batch
        The whole ball of its eps is bounded.
    kappa, beta
        In [0, 1].
    loss_fusion
        One linear function for each image instead of one for each wrong class (Xu et al. 2020).
    """
    region = ball(batch.images, batch.eps)
    steps = folded_steps(batch.network, batch.clean.statistics)
    last = steps[-1]
    if not isinstance(last, LinearStep):
        raise TypeError(f"margins need a network that ends in a linear layer, not in {type(last).__name__}")
    hidden = propagate(steps[:-1], region)
    weight, bias = margin_rows(last, batch.labels)
    interval = row_bounds(weight, bias, hidden.output)

    def linear(rows: Tensor, offset: Tensor) -> Tensor:
        return backward_bound(steps[:-1], region, hidden.relu_inputs, rows, offset)

    lower = interval.lower
    if beta == 0:
        robust = worst_case_cross_entropy(lower)
    elif loss_fusion:
        chords = exponential_chords(interval)
        least = linear(
            torch.einsum("nk,nkh->nh", chords.slope, weight).unsqueeze(1), (chords.slope * bias).sum(1, True)
        )
        robust = fused_cross_entropy(chords, least.squeeze(1), interval, beta=beta)
    else:
        lower = beta * linear(weight, bias) + (1 - beta) * lower
        robust = worst_case_cross_entropy(lower)
    clean = F.cross_entropy(batch.clean.logits, batch.labels, reduction="none")
    losses = kappa * clean + (1 - kappa) * robust
    return Objective(losses, (lower > 0).all(1), bounds(steps, region, hidden.relu_inputs))


def row_bounds(weight: Tensor, bias: Tensor, hidden: Box | Centred) -> Box:
    """Interval bounds (N, R) of the functions weight (N, R, H), bias (N, R) over boxes (N, H)."""
    middle = torch.einsum("nrh,nh->nr", weight, hidden.centre) + bias
    spread = torch.einsum("nrh,nh->nr", weight.abs(), hidden.radius)
    return Box(middle - spread, middle + spread)


class Chords(NamedTuple):
    """For each margin m in [l, u]: exp(-m - shift) <= start - slope (m - u); all (N, K-1), shift (N, 1)."""

    start: Tensor
    slope: Tensor
    shift: Tensor


def exponential_chords(margins: Box) -> Chords:
    """The chord of the convex exp(-m) over each margin's interval, scaled so that nothing overflows."""
    shift = (-margins.lower).amax(1, keepdim=True).clamp_min(0).detach()
    start, end = torch.exp(-margins.upper - shift), torch.exp(-margins.lower - shift)
    width = margins.upper - margins.lower
    wide = width > 1e-6  # below it the steepest tangent is a bound too, and no division by 0
    slope = torch.where(wide, (end - start) / torch.where(wide, width, torch.ones_like(width)), end)
    return Chords(start, slope, shift)


def fused_cross_entropy(chords: Chords, least: Tensor, interval: Box, *, beta: float) -> Tensor:
    """Upper bounds (N,) of the cross-entropy over a box by loss fusion (Xu et al. 2020).

    CE = log S with S = 1 + sum_j exp(-m_j). The chords bound S by a linear function of the margins, whose largest value
    linear bounds give; it is mixed, beta to 1 - beta, with S of the interval bounds, as Shi et al. (2021) do.

    Parameters
    ----------
    chords
        Over the interval bounds of the margins.
    least
        (N,) lower bounds of sum_j slope_j m_j.
    interval
        (N, K-1) interval bounds of the margins.
    beta
        In [0, 1].
    """
    one = torch.exp(-chords.shift)
    linear = one.squeeze(1) + (chords.start + chords.slope * interval.upper).sum(1) - least
    # S is at least 1: rounding must not take it below.
    linear = torch.maximum(linear, one.squeeze(1).clamp_min(torch.finfo(one.dtype).tiny))
    loose = one.squeeze(1) + torch.exp(-interval.lower - chords.shift).sum(1)
    return chords.shift.squeeze(1) + torch.log(beta * linear + (1 - beta) * loose)
