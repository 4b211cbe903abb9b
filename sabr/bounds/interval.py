"""A box through a network by interval arithmetic (IBP), as centre and radius."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.kernels import alike, kernel, shaped
from sabr.networks.steps import LinearStep, ReLUStep, Step, SumStep


class Centred(NamedTuple):
    """A box by its centre and radius, as intervals carry it through a network; both of one shape, (N, ...)."""

    centre: Tensor
    radius: Tensor

    @property
    def lower(self) -> Tensor:
        """Lower ends, entry by entry."""
        return self.centre - self.radius

    @property
    def upper(self) -> Tensor:
        """Upper ends, entry by entry."""
        return self.centre + self.radius


class Propagated(NamedTuple):
    """What interval propagation leaves behind.

    Attributes
    ----------
    output
        Box of the last step's output.
    relu_inputs
        Box at the input of each ReLU, in order.
    """

    output: Centred
    relu_inputs: list[Centred]


def propagate(
    steps: Sequence[Step],
    box: Box | Centred,
    *,
    relu_shrinkage: float | None = None,
    known: Sequence[Box | Centred | None] | None = None,
) -> Propagated:
    """Bounds of every ReLU input and of the output over a box.

    Sound in exact arithmetic when `relu_shrinkage` is None; float32 rounding is not accounted for. Affine steps map
    (centre, radius) to (W centre + b, |W| radius); ReLU maps each end (Gowal et al. 2018, section 3).

    Parameters
    ----------
    steps
        A folded network, or a part of one.
    box
        (N, ...) input boxes; differentiable.
    relu_shrinkage
        c_s of the paper (section 3, "ReLU shrinking"): the upper bound behind a ReLU whose input crosses zero is
        multiplied by it. No sound bound then.
    known
        Sound bounds at the input of each ReLU from elsewhere, or None; what is propagated is cut to them.
    """
    relu_inputs: list[Centred] = []
    shrinkage = 1.0 if relu_shrinkage is None else relu_shrinkage

    output = _through(steps, Centred(box.centre, box.radius), relu_inputs, shrinkage, known)
    return Propagated(output, relu_inputs)


def _through(
    steps: Sequence[Step],
    current: Centred,
    relu_inputs: list[Centred],
    shrinkage: float,
    known: Sequence[Box | Centred | None] | None,
) -> Centred:
    """The box behind `steps`; those at ReLU inputs are appended.

    Not a closure: one that calls itself is freed by the garbage collector only, and its tensors with it.
    """
    for step in steps:
        if isinstance(step, ReLUStep):
            cut = None if known is None else known[len(relu_inputs)]
            if cut is not None:
                current = _intersection(current, cut)
            relu_inputs.append(current)
            current = Centred(*_ReLU.apply(*current, shrinkage))
        elif isinstance(step, SumStep):
            paths = [_through(path, current, relu_inputs, shrinkage, known) for path in step.paths]
            current = Centred(
                sum(p.centre for p in paths[1:]) + paths[0].centre,
                sum(p.radius for p in paths[1:]) + paths[0].radius,
            )
        else:
            current = Centred(step.apply(current.centre), step.spread(current.radius))
    return current


def _intersection(one: Centred, other: Box | Centred) -> Centred:
    lower, upper = torch.maximum(one.lower, other.lower), torch.minimum(one.upper, other.upper)
    lower = torch.minimum(lower, upper)  # they cross by rounding only
    return Centred((lower + upper) / 2, (upper - lower) / 2)


class _ReLU(torch.autograd.Function):
    """ReLU of both ends of a box; upper ends over crossing inputs times `shrinkage`."""

    @staticmethod
    def forward(ctx: Any, centre: Tensor, radius: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
        flat = _relu_forward(alike(centre, radius), shrinkage)
        result = shaped(flat[0], centre), shaped(flat[1], centre)
        ctx.shrinkage = shrinkage
        ctx.save_for_backward(*result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        centre, radius = ctx.saved_tensors
        flat = _relu_backward(alike(centre, radius, *gradients), ctx.shrinkage)
        return shaped(flat[0], centre), shaped(flat[1], centre), None


@kernel
def _relu_forward(box: list[Tensor], shrinkage: float) -> tuple[Tensor, Tensor]:
    centre, radius = box
    lower, upper = torch.relu(centre - radius), torch.relu(centre + radius)
    if shrinkage != 1:
        upper = upper * torch.where(lower > 0, 1.0, shrinkage)
    return (upper + lower) * 0.5, (upper - lower) * 0.5


@kernel
def _relu_backward(box_and_gradients: list[Tensor], shrinkage: float) -> tuple[Tensor, Tensor]:
    centre, radius, towards_centre, towards_radius = box_and_gradients
    active = centre > radius  # behind the ReLU: the lower end is above zero
    lower = torch.where(active, (towards_centre - towards_radius) * 0.5, 0.0)
    upper = torch.where(centre > 0, (towards_centre + towards_radius) * 0.5, 0.0)
    if shrinkage != 1:
        upper = upper * torch.where(active, 1.0, shrinkage)
    return upper + lower, upper - lower


class Margins(NamedTuple):
    """Lower bounds (N, K-1) of logit_y - logit_j for j != y in increasing j, and the boxes at the ReLU inputs."""

    lower: Tensor
    relu_inputs: list[Centred]


def margin_bounds(
    steps: Sequence[Step], box: Box | Centred, labels: Tensor, *, relu_shrinkage: float | None = None
) -> Margins:
    """Lower bounds of the classification margins over a box, the last layer folded with the margin rows.

    As sound as `propagate`. Folding makes the bounds tighter than differences of logit bounds (Gowal et al. 2018,
    section 3, "elision of the last layer").

    Parameters
    ----------
    steps
        A folded network that ends in a linear layer.
    box
        (N, ...) input boxes.
    labels
        (N,) true classes.
    relu_shrinkage
        As in `propagate`.
    """
    last = steps[-1]
    if not isinstance(last, LinearStep):
        raise TypeError(f"margins need a network that ends in a linear layer, not in {type(last).__name__}")
    hidden = propagate(steps[:-1], box, relu_shrinkage=relu_shrinkage)
    weight, bias = margin_rows(last, labels)
    centre, radius = hidden.output.centre, hidden.output.radius
    lower = torch.einsum("nkh,nh->nk", weight, centre) + bias - torch.einsum("nkh,nh->nk", weight.abs(), radius)
    return Margins(lower, hidden.relu_inputs)


def margin_rows(last: LinearStep, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (N, K-1, H) and bias (N, K-1) of the margins logit_y - logit_j, j != y in increasing j."""
    classes = last.weight.shape[0]
    others = other_classes(labels, classes)
    weight = last.weight[labels].unsqueeze(1) - last.weight[others]
    return weight, last.bias[labels].unsqueeze(1) - last.bias[others]


def other_classes(labels: Tensor, classes: int) -> Tensor:
    """(N, K-1): for each label the classes that it is not, in increasing order."""
    counting = torch.arange(classes - 1, device=labels.device).expand(len(labels), -1)
    return counting + (counting >= labels.unsqueeze(1))


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """(N, K-1): logit_y - logit_j of point logits (N, K), for j != y in increasing j."""
    return logits.gather(1, labels.unsqueeze(1)) - logits.gather(1, other_classes(labels, logits.shape[1]))
