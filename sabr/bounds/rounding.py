"""What floating-point rounding may add to a bound, from the network's size and the values in it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.dual import Cuts, Multipliers
from sabr.bounds.interval import Centred
from sabr.networks.steps import ConvolutionStep, LinearStep, ReLUStep, ScaleStep, Step, SumStep

# Standard deviations of a sum of independent rounding errors, for the values and once more for the rows' coefficients.
_DEVIATIONS = 16.0


class Allowances(NamedTuple):
    """What rounding may be off by: (N, ...) at each ReLU's input, (N, Q) for the objective."""

    relu_inputs: list[Tensor]
    objective: Tensor


def allowances(
    steps: Sequence[Step], box: Box, relu_inputs: Sequence[Box | Centred], weight: Tensor, constant: Tensor
) -> Allowances:
    """How far bounds computed in the weights' precision may be from those of exact arithmetic.

    A sum of n rounded products is off by at most gamma(n) times the sum of their absolute values; gamma(n) is n u in
    the worst case (u: half a unit in the last place of 1), and k sqrt(n) u with probability 1 - 2 exp(-k^2 / 2) when
    roundings are independent (Higham and Mary 2019, theorem 2.4). Here k = 16 is used: 8 for the values and 8 for the
    coefficients of linear bounds, whose errors are of the same form. Products below the least normal number are off by
    it at most. Errors of one layer go through the next as a box of that radius would, |W| e; slopes are at most 1 and
    offsets at most the values that they stand for.

    Parameters
    ----------
    steps
        A folded network up to a vector.
    box
        (N, ...) boxes.
    relu_inputs
        Bounds at each ReLU's input.
    weight, constant
        (N, Q, H) and (N, Q): functions of the steps' output.
    """
    at_relus: list[Tensor] = []
    largest = torch.maximum(box.lower.abs(), box.upper.abs())
    error, size = _through(steps, torch.zeros_like(largest), largest, at_relus, relu_inputs)
    share = gamma(weight.shape[2] + 1, size)
    objective = torch.einsum("nqh,nh->nq", weight.abs(), error + share * size) + share * constant.abs()
    objective = objective + underflow(weight.shape[2], size)
    return Allowances(at_relus, objective)


def _through(
    steps: Sequence[Step],
    error: Tensor,
    size: Tensor,
    at_relus: list[Tensor],
    relu_inputs: Sequence[Box | Centred],
) -> tuple[Tensor, Tensor]:
    """Errors and largest absolute values behind some steps; the errors at ReLU inputs are appended."""
    for step in steps:
        match step:
            case ReLUStep():
                bounds = relu_inputs[len(at_relus)]
                at_relus.append(error)
                size = torch.minimum(size, bounds.upper.clamp(min=0))
            case SumStep():
                paths = [_through(path, error, size, at_relus, relu_inputs) for path in step.paths]
                size = torch.stack([s for _, s in paths]).sum(0)
                error = torch.stack([e for e, _ in paths]).sum(0) + gamma(len(paths), size) * size
            case ConvolutionStep() | LinearStep():
                share = gamma(step.weight[0].numel() + 1, size)
                offset = step.bias.abs().view(-1, *[1] * (error.dim() - 2))
                error = step.spread(error + share * size) + share * offset + underflow(step.weight[0].numel(), size)
                size = step.spread(size) + offset
            case ScaleStep():
                share = gamma(2, size)
                error = step.spread(error + share * size) + share * step.shift.abs() + underflow(1, size)
                size = step.spread(size) + step.shift.abs()
            case _:
                error, size = step.apply(error), step.apply(size)
    return error, size


def multiplier_allowance(
    multipliers: Multipliers, cuts: Sequence[Cuts | None] | None, allowances: Sequence[Tensor]
) -> Tensor:
    """What rounding may add to bounds (N, Q) by their multipliers, beyond the threshold, which knows of none.

    A multiplier weighs its constraint, and with it what rounding may be off by in the ReLUs' inputs there.

    Parameters
    ----------
    multipliers, cuts
        As in `sabr.bounds.dual.backward`.
    allowances
        For each layer (N, U).
    """
    total = multipliers.alpha[0].new_zeros(multipliers.alpha[0].shape[:2])
    for number, allowed in enumerate(allowances):
        if multipliers.beta is not None:
            total = total + torch.bmm(multipliers.beta[number], allowed.unsqueeze(2)).squeeze(2)
        cut = None if cuts is None else cuts[number]
        mu = None if multipliers.mu is None else multipliers.mu[number]
        if cut is not None and mu is not None:
            each = allowed.unsqueeze(1).expand(-1, cut.limit.shape[1], -1).gather(2, cut.members)
            own = ((cut.y_weight.abs() + cut.z_weight.abs()) * each).sum(2) + gamma(2, allowed) * cut.limit.abs()
            total = total + torch.bmm(mu, own.unsqueeze(2)).squeeze(2)
    return total


def underflow(terms: int, like: Tensor) -> float:
    """What so many products may lose that are too small for a tensor's precision: its least normal number each."""
    return float(terms * torch.finfo(like.dtype).tiny)


def gamma(terms: int, like: Tensor) -> float:
    """What is allowed for a sum of so many products of a tensor's precision, in units of their absolute values."""
    return float(_DEVIATIONS * terms**0.5 * torch.finfo(like.dtype).eps / 2)
