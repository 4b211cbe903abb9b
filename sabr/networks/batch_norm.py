"""Batch norm in training mode, with its ReLU, as one operation that also gives its statistics."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


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
        result = torch.addcmul(_along(bias - mean * scale, values), values, _along(scale, values))
        if relu:
            result.relu_()
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
            towards_values.addcmul_(values, _along(slope, values)).add_(
                _along(towards_mean / count - slope * mean, values)
            )
        return towards_values, towards_weight, towards_bias, None, None


def _along(channels: Tensor, values: Tensor) -> Tensor:
    return channels.view(1, -1, *[1] * (values.dim() - 2))
