"""What is added to the loss: the warm-up regulariser of Shi et al. (2021), and L1."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sabr.bounds.interval import Centred
from sabr.kernels import alike, kernel, shaped

_TINY = 1e-12


def warmup_regulariser(relu_inputs: Sequence[Centred], input_radius: Tensor, *, tolerance: float = 0.5) -> Tensor:
    """Keep bounds tight and ReLU states balanced: mean over ReLU layers of tightness + balance (paper, appendix C).

    Parameters
    ----------
    relu_inputs
        Boxes at the input of each ReLU; gradients flow.
    input_radius
        Mean radius at the input of the first affine layer, a scalar.
    tolerance
        r in Shi et al. (2021), equations 8 and 10: what is above it costs nothing.

    Returns
    -------
    Tensor
        Scalar, before its weight. A layer without inactive neurons has no balance term; the authors drop it where it
        is NaN or infinite, which differs by a constant at most.
    """
    terms = []
    for box in relu_inputs:
        layer = _Layer(*_LayerSums.apply(box.centre, box.radius).unbind())
        terms.append(_tightness(layer, input_radius, tolerance) + _balance(layer, tolerance))
    return torch.stack(terms).mean()


def l1_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Sum of absolute values over all weights, biases and batch-norm parameters.

    Not by `torch.linalg.vector_norm`, which adds one value after the other: over ten million weights it is 1 % off.
    """
    return torch.stack([_L1.apply(parameter) for parameter in parameters]).sum()


class _L1(torch.autograd.Function):
    """The sum of absolute values; neither these nor signs are ever tensors of their own."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return _absolute_sum(*alike(values))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        return torch.sign(values).mul_(gradients[0])


@kernel
def _absolute_sum(values: Tensor) -> Tensor:
    return values.abs().sum()


class _Layer(NamedTuple):
    """Scalars of one layer: the mean radius, and of its active and of its inactive neurons the centres.

    A group's mean is over all entries, zero outside the group; its squares are summed, from the mean of all centres.
    """

    radius: Tensor
    active_mean: Tensor
    inactive_mean: Tensor
    active_squares: Tensor
    inactive_squares: Tensor


class _LayerSums(torch.autograd.Function):
    """The numbers of `_Layer`, (5,), in few passes over memory; only the centres of stable neurons are kept."""

    @staticmethod
    def forward(ctx: Any, centre: Tensor, radius: Tensor) -> Tensor:
        count, mean = centre.numel(), centre.mean()
        flat, *sums = _stable_sums(alike(centre, radius), mean)
        stable = shaped(flat, centre)
        radii, totals, squares, sizes = sums[0], torch.stack(sums[1:3]), torch.stack(sums[3:5]), torch.stack(sums[5:7])
        ctx.save_for_backward(stable, mean, totals, sizes)
        return torch.cat([(radii / count).view(1), totals / count, squares])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        stable, mean, totals, sizes = ctx.saved_tensors
        count = stable.numel()
        towards_radius, towards_means, towards_squares = torch.split(gradients[0], [1, 2, 2])
        slopes = 2 * towards_squares
        offsets = towards_means / count - slopes * mean
        through_mean = -(slopes * (totals - mean * sizes)).sum() / count
        flat = _towards_stable(alike(stable)[0], slopes, offsets, through_mean)
        return shaped(flat, stable), (towards_radius / count).expand_as(stable)


@kernel
def _stable_sums(box: list[Tensor], mean: Tensor) -> tuple[Tensor, ...]:
    centre, radius = box
    stable = torch.where(centre.abs() > radius, centre, 0.0)  # positive: active, negative: inactive
    squared = (centre - mean).square()
    active, inactive = (stable > 0).to(centre.dtype), (stable < 0).to(centre.dtype)
    return (
        stable,
        radius.sum(),
        (stable * active).sum(),
        (stable * inactive).sum(),
        (squared * active).sum(),
        (squared * inactive).sum(),
        active.sum(),
        inactive.sum(),
    )


@kernel
def _towards_stable(stable: Tensor, slopes: Tensor, offsets: Tensor, through_mean: Tensor) -> Tensor:
    active = stable > 0
    own = torch.where(active, slopes[0], slopes[1]) * stable + torch.where(active, offsets[0], offsets[1])
    return torch.where(stable == 0, 0.0, own) + through_mean


def _tightness(layer: _Layer, input_radius: Tensor, tolerance: float) -> Tensor:
    return torch.relu(tolerance - input_radius / layer.radius.clamp_min(_TINY)) / tolerance


def _balance(layer: _Layer, tolerance: float) -> Tensor:
    mean_term = _shortfall(layer.active_mean, -layer.inactive_mean, tolerance)
    variance_term = _shortfall(layer.active_squares, layer.inactive_squares, tolerance)
    return (mean_term + variance_term) / tolerance


def _shortfall(active: Tensor, inactive: Tensor, tolerance: float) -> Tensor:
    defined = inactive != 0
    ratio = active / torch.where(defined, inactive, torch.ones_like(inactive))  # never divide by 0: NaN gradients
    folded = torch.minimum(ratio, 1 / ratio.clamp_min(_TINY))
    return torch.relu(tolerance - folded) * defined
