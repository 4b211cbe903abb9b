"""Batch norm in training mode, with its ReLU, as one operation that also gives its statistics."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sabr.kernels import kernel


class Normalised(NamedTuple):
    """Normalised (and rectified) values, and the batch's mean and biased variance per channel; all differentiable."""

    values: Tensor
    mean: Tensor
    variance: Tensor


def normalise(values: Tensor, weight: Tensor, bias: Tensor, eps: float, *, relu: bool) -> Normalised:
    """Normalise (N, C, ...) by the batch's own statistics per channel, scale, shift, and rectify if `relu`.

    The same as batch norm and ReLU of torch; but the statistics come out too, gradients flow back through them, and
    nothing between the two is kept.
    """
    return Normalised(*_BatchNorm.apply(values, weight, bias, eps, relu))


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = torch.batch_norm_update_stats(values, None, None, 0.0)
        inverse = torch.rsqrt(variance + eps)
        scale = weight * inverse
        result = _shaped(_affine(_rows(values), scale, bias - mean * scale, relu), values)
        ctx.eps, ctx.relu = eps, relu
        ctx.save_for_backward(values, weight, mean, inverse, result if relu else None)
        return result, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        values, weight, mean, inverse, result = ctx.saved_tensors
        towards_result, towards_mean, towards_variance = gradients
        if ctx.relu:
            towards_result = torch.ops.aten.threshold_backward(towards_result, result, 0)
        needed = list(ctx.needs_input_grad[:3])
        towards_values, towards_weight, towards_bias = torch.ops.aten.native_batch_norm_backward(
            towards_result, values, weight, None, None, mean, inverse, True, ctx.eps, needed
        )
        if needed[0]:
            count = values.numel() // values.shape[1]
            slope = towards_variance * (2 / count)
            offset = towards_mean / count - slope * mean
            towards_values = _shaped(_add_affine(_rows(values), slope, offset, _rows(towards_values)), values)
        return towards_values, towards_weight, towards_bias, None, None


@kernel
def _affine(values: Tensor, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    result = torch.addcmul(shift, values, scale)
    return torch.relu(result) if relu else result


@kernel
def _add_affine(values: Tensor, scale: Tensor, shift: Tensor, other: Tensor) -> Tensor:
    return other + torch.addcmul(shift, values, scale)


def _rows(values: Tensor) -> Tensor:
    """(N, C, ...) as (rows, C), without a copy where it is channels-last."""
    return values.movedim(1, -1).reshape(-1, values.shape[1])


def _shaped(rows: Tensor, like: Tensor) -> Tensor:
    n, channels, *sizes = like.shape
    return rows.view(n, *sizes, channels).movedim(-1, 1)
