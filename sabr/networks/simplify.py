"""Fewer steps that compute the same: products and sums per channel folded into each other and into affine steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sabr.networks.steps import ConvolutionStep, LinearStep, ScaleStep, Step, SumStep


def simplify(steps: Sequence[Step]) -> list[Step]:
    """Fold each `ScaleStep` into the affine step before it, where it acts per channel; also inside the paths of sums.

    Computed in float64 and rounded once, to the precision of the weights.
    """
    result: list[Step] = []
    for step in steps:
        if isinstance(step, SumStep):
            step = SumStep(tuple(tuple(simplify(path)) for path in step.paths))
        folded = _fold(result[-1], step) if result and isinstance(step, ScaleStep) else None
        if folded is None:
            result.append(step)
        else:
            result[-1] = folded
    return result


def _fold(step: Step, following: ScaleStep) -> Step | None:
    """One step for two, or None where there is none."""
    if isinstance(step, ScaleStep):
        scale, shift = following.scale.double(), following.shift.double()
        return ScaleStep(
            (step.scale.double() * scale).to(step.scale.dtype),
            (step.shift.double() * scale + shift).to(step.shift.dtype),
        )
    if not isinstance(step, ConvolutionStep | LinearStep):
        return None
    channels, sizes = len(step.bias), (1,) * (step.weight.dim() - 2)
    scale_or_none, shift_or_none = (
        _per_channel(values, channels, sizes) for values in (following.scale, following.shift)
    )
    if scale_or_none is None or shift_or_none is None:
        return None
    dtype = step.weight.dtype
    weight = (step.weight.double() * scale_or_none.view(-1, *(1,) * (step.weight.dim() - 1))).to(dtype)
    bias = (step.bias.double() * scale_or_none + shift_or_none).to(dtype)
    if isinstance(step, LinearStep):
        return LinearStep(weight, bias)
    return ConvolutionStep(weight, bias, step.stride, step.padding)


def _per_channel(values: Tensor, channels: int, sizes: tuple[int, ...]) -> Tensor | None:
    """(channels,) float64 if `values`, broadcast to (1, channels, *sizes), are one a channel, else None."""
    try:
        return values.double().broadcast_to(torch.Size((1, channels, *sizes))).flatten()
    except RuntimeError:
        return None
