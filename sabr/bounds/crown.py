"""Linear bounds backward through a network (CROWN, DeepPoly): the outputs bounded by linear functions of the input."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.interval import Centred, margin_rows
from sabr.bounds.rows import at_a_time, input_shapes
from sabr.networks.steps import LinearStep, ReLUStep, Step, SumStep


class Relaxation(NamedTuple):
    """Linear bounds of z = max(y, 0) for l <= y <= u: lower_slope y <= z <= upper_slope y + upper_offset."""

    lower_slope: Tensor
    upper_slope: Tensor
    upper_offset: Tensor


def relax(inputs: Box | Centred) -> Relaxation:
    """The ReLU triangle with the adaptive lower slope: 1 where u > -l, else 0 (Zhang et al. 2018).

    A sound bound. The upper line goes through (l, 0) and (u, u); gradients flow through it to l and u. Where the ReLU
    is stable both lines are the ReLU itself.

    Parameters
    ----------
    inputs
        (N, ...) boxes at the input of a ReLU.
    """
    lower, upper = inputs.lower, inputs.upper
    unstable = (lower < 0) & (upper > 0)
    width = torch.where(unstable, upper - lower, torch.ones_like(upper))  # never divide by 0: NaN gradients
    upper_slope = torch.where(unstable, upper / width, (lower >= 0).to(upper.dtype))
    upper_offset = torch.where(unstable, -upper_slope * lower, torch.zeros_like(upper))
    lower_slope = torch.where(unstable, upper > -lower, lower >= 0).to(upper.dtype)
    return Relaxation(lower_slope, upper_slope, upper_offset)


def backward_bound(
    steps: Sequence[Step], box: Box, relu_inputs: Sequence[Box | Centred], weight: Tensor, bias: Tensor
) -> Tensor:
    """Lower bounds of linear functions of a network's output over a box, by one pass from the output to the input.

    Sound in exact arithmetic; float32 rounding is not accounted for. With interval bounds at the ReLUs it is CROWN-IBP
    (Zhang et al. 2020, section 3), with bounds of this kind CROWN (Zhang et al. 2018, section 3). Convolutions are
    pulled back as transposed convolutions; no matrix of one is ever formed.

    Parameters
    ----------
    steps
        A folded network, or the first part of one.
    box
        (N, ...) input boxes.
    relu_inputs
        Bounds at the input of each ReLU of `steps`, in order, sound over `box`; differentiable.
    weight, bias
        (N, R, H) and (N, R): R functions of the output (N, H) for each image, weight @ output + bias.

    Returns
    -------
    Tensor
        (N, R) lower bounds.
    """
    remaining = list(relu_inputs)

    weight, bias = _back(steps, box.lower.new_zeros(1, *box.lower.shape[1:]), remaining, weight, bias)
    return bias + _inner(weight, box.centre) - _inner(weight.abs(), box.radius)


def _back(
    steps: Sequence[Step], zero: Tensor, remaining: list[Box | Centred], weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Functions of the output as functions of the input, whose zero (1, ...) is given; takes from `remaining`'s end.

    Not a closure: one that calls itself is freed by the garbage collector only, and its tensors with it.
    """
    shapes = input_shapes(steps, zero.shape[1:])[:-1]
    for step, own in zip(reversed(steps), reversed(shapes), strict=True):
        if isinstance(step, ReLUStep):
            relaxation = relax(remaining.pop())
            falling = weight < 0  # a falling function of z is least at z's upper bound
            bias = bias + _inner(torch.where(falling, weight, 0), relaxation.upper_offset)
            slope = torch.where(falling, relaxation.upper_slope.unsqueeze(1), relaxation.lower_slope.unsqueeze(1))
            weight = weight * slope
        elif isinstance(step, SumStep):
            at = zero.new_zeros(1, *own)
            paths = [_back(path, at, remaining, weight, torch.zeros_like(bias)) for path in reversed(step.paths)]
            weight = torch.stack([rows for rows, _ in paths]).sum(0)
            bias = bias + torch.stack([offset for _, offset in paths]).sum(0)
        else:
            bias = bias + _inner(weight, step.apply(zero.new_zeros(1, *own)))
            weight = step.pull(weight.flatten(0, 1), own).reshape(*bias.shape, *own)
    return weight, bias


def crown_margins(
    steps: Sequence[Step],
    box: Box,
    relu_inputs: Sequence[Box | Centred],
    labels: Tensor,
    *,
    memory: float = float("inf"),
) -> Tensor:
    """Lower bounds (N, K-1) of logit_y - logit_j for j != y in increasing j, by `backward_bound`.

    Parameters
    ----------
    steps
        A folded network that ends in a linear layer.
    box, relu_inputs
        As in `backward_bound`.
    labels
        (N,) true classes.
    memory
        Bytes that may be used at a time, roughly; margins are bounded by turns if need be.
    """
    last = steps[-1]
    if not isinstance(last, LinearStep):
        raise TypeError(f"margins need a network that ends in a linear layer, not in {type(last).__name__}")
    weight, bias = margin_rows(last, labels)
    largest = max(torch.Size(shape).numel() for shape in input_shapes(steps, box.lower.shape[1:]))
    rows = min(at_a_time(10 * largest * bias.element_size(), memory), max(1, bias.numel()))
    each = max(1, bias.shape[1])  # networks with one class have no margins
    images, margins = max(1, rows // each), min(rows, each)
    parts = []
    for first in range(0, len(labels), images):
        own = slice(first, first + images)
        ends = Box(box.lower[own], box.upper[own])
        inner = [type(b)(b[0][own], b[1][own]) for b in relu_inputs]
        turns = zip(torch.split(weight[own], margins, 1), torch.split(bias[own], margins, 1), strict=True)
        parts.append(torch.cat([backward_bound(steps[:-1], ends, inner, w, b) for w, b in turns], 1))
    return torch.cat(parts) if parts else bias


def _inner(rows: Tensor, points: Tensor) -> Tensor:
    """Inner products (N, R) of rows (N, R, ...) with one point an image, (N, ...), or one for all, (1, ...)."""
    return torch.matmul(rows.flatten(2), points.flatten(1).unsqueeze(2)).squeeze(2)
