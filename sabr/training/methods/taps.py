"""TAPS and STAPS: bounds for the first part of a network, an attack in their box for the rest (Mao et al. 2023)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sabr.attacks.ascent import ascend
from sabr.bounds.boxes import Box
from sabr.bounds.interval import Centred, margin_bounds, margin_rows, propagate
from sabr.errors import SabrError
from sabr.networks.affine import folded_steps
from sabr.networks.steps import LinearStep, ReLUStep, Step, forward
from sabr.training.methods.base import Batch, Objective, worst_case, worst_case_cross_entropy


def taps(
    batch: Batch,
    region: Box,
    *,
    classifier_relus: int,
    gradient_weight: float,
    connector: float,
    step_sizes: Sequence[float],
    relu_shrinkage: float | None,
) -> Objective:
    """The loss of an attack in a latent box, times the interval bound's (Mao et al. 2023, section 3).

    The latent box at the input of the classifier is searched once for each wrong class (multi-estimator), and its
    points pass their gradient on to the box (`connect`). While eps grows it is the interval bound alone, as in the
    authors' code; so is the product of the *batch means* of both losses. An estimate: no sound bound.

    Parameters
    ----------
    batch
        Network, labels, clean statistics, with which all is computed, the attack too.
    region
        The box to propagate: the whole ball in TAPS, SABR's small box in STAPS.
    classifier_relus
        How many ReLU layers belong to the classifier.
    gradient_weight
        w_TAPS: weight of the attacked loss in the gradient of the product, against 1 of the interval loss.
    connector
        c of the gradient connector, in (0, 1].
    step_sizes
        Attack steps in units of each latent entry's radius, from a uniform start; the best iterate is kept.
    relu_shrinkage
        As in `sabr.bounds.interval.propagate`.
    """
    if batch.ramp < 1:
        return worst_case(batch, region, relu_shrinkage=relu_shrinkage)
    first, classifier = split(folded_steps(batch.network, batch.clean.statistics), classifier_relus)
    latent = propagate(first, region, relu_shrinkage=relu_shrinkage).output
    with torch.no_grad():
        frozen = split(folded_steps(batch.network, batch.clean.statistics), classifier_relus).classifier
    points = latent_points(frozen, latent, batch.labels, step_sizes=step_sizes, generator=batch.generator)
    margins = own_margins(classifier, connect(latent, points, connector), batch.labels)
    bounded = margin_bounds(classifier, latent, batch.labels, relu_shrinkage=relu_shrinkage).lower
    attacked = worst_case_cross_entropy(margins)
    weighted = attacked.detach() + gradient_weight * (attacked - attacked.detach())
    losses = weighted * worst_case_cross_entropy(bounded).mean()
    return Objective(losses, (margins > 0).all(1), None)


class Parts(NamedTuple):
    """The two parts of a folded network."""

    first: list[Step]
    classifier: list[Step]


def split(steps: Sequence[Step], classifier_relus: int) -> Parts:
    """Cut a folded network behind a ReLU, so that `classifier_relus` ReLU layers follow.

    Raises
    ------
    SabrError
        When there are not more ReLU layers than that.
    """
    relus = [index for index, step in enumerate(steps) if isinstance(step, ReLUStep)]
    if classifier_relus >= len(relus):
        raise SabrError(
            f"classifier.relus is {classifier_relus}, but the network has {len(relus)} ReLU layers, "
            "and one must be left to be bounded"
        )
    cut = relus[-classifier_relus - 1] + 1
    return Parts(list(steps[:cut]), list(steps[cut:]))


def latent_points(
    classifier: Sequence[Step],
    latent: Box | Centred,
    labels: Tensor,
    *,
    step_sizes: Sequence[float],
    generator: torch.Generator,
) -> Tensor:
    """For each image and wrong class a point (N, K-1, ...) of the latent box with a small margin over that class."""
    rows = _last(classifier).weight.shape[0] - 1
    region = Box(
        *(ends.detach().unsqueeze(1).expand(-1, rows, *ends.shape[1:]) for ends in (latent.lower, latent.upper))
    )
    return ascend(
        lambda points: -own_margins(classifier, points, labels),
        region,
        start=region.sample(generator),
        step_sizes=step_sizes,
    )


def own_margins(classifier: Sequence[Step], points: Tensor, labels: Tensor) -> Tensor:
    """Margins (N, K-1): logit_y - logit_j at a point of its own for each j != y, points (N, K-1, ...)."""
    weight, bias = margin_rows(_last(classifier), labels)
    hidden = forward(classifier[:-1], points.flatten(0, 1)).view(weight.shape)
    return (weight * hidden).sum(2) + bias


def connect(latent: Box | Centred, points: Tensor, connector: float) -> Tensor:
    """Points (N, R, ...) of boxes (N, ...), unchanged, with a gradient towards the boxes (Mao et al. 2023, section 3).

    The rectified linear connector: the upper bound gets the share (x - (u - c w)) / (c w) of a point's gradient where
    that is positive, w = u - l the width; the lower bound likewise from below. Without width both get one half.
    """
    return _Connector.apply(latent.lower, latent.upper, points, connector)  # type: ignore[no-any-return]


class _Connector(torch.autograd.Function):
    _NO_WIDTH = 1e-5

    @staticmethod
    def forward(ctx: Any, lower: Tensor, upper: Tensor, points: Tensor, connector: float) -> Tensor:
        ctx.save_for_backward(lower, upper, points)
        ctx.connector = connector
        return points.view_as(points)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        lower, upper, points = ctx.saved_tensors
        reach = ctx.connector * (upper - lower).unsqueeze(1)
        wide = reach > _Connector._NO_WIDTH
        reach = torch.where(wide, reach, torch.ones_like(reach))

        def pulled(distance: Tensor) -> Tensor:
            share = torch.where(wide, (1 - distance / reach).clamp_min(0), 0.5)
            return (share * gradients[0]).sum(1)

        return pulled(points - lower.unsqueeze(1)), pulled(upper.unsqueeze(1) - points), None, None


def _last(classifier: Sequence[Step]) -> LinearStep:
    last = classifier[-1]
    if not isinstance(last, LinearStep):
        raise TypeError(f"margins need a network that ends in a linear layer, not in {type(last).__name__}")
    return last
