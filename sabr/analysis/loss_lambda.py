"""Standard, adversarial and Box loss as the propagated region grows from a point to the ball (paper: loss analysis)."""

from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.analysis.adversarial import worst_points
from sabr.analysis.batches import means, parts
from sabr.bounds.boxes import Box, ball, small_box
from sabr.bounds.interval import margin_bounds
from sabr.networks.steps import Step, forward
from sabr.specs import AttackRound
from sabr.training.methods.base import worst_case_cross_entropy

_LOSSES = ("standard", "adversarial", "box", "centred_adversarial", "centred_box")


@torch.no_grad()
def measure(
    steps: Sequence[Step],
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    lambda_ratios: Sequence[float],
    rounds: Sequence[AttackRound],
    generator: torch.Generator,
    memory_mb: float,
) -> pd.DataFrame:
    """Mean cross-entropies over images, all in evaluation mode, without regularisers.

    Two ways to place the region of radius lambda * eps are measured. Around the adversarial point, as SABR trains: the
    box of radius min(lambda * eps, radius of the ball cut to [0, 1]), entry by entry, around the worst point found in
    the whole ball, moved into the ball. It is the box of training for lambda <= 1/2, the point for lambda = 0, the
    ball for lambda = 1, and each lies in the next. Around the image: the ball of radius lambda * eps, cut to [0, 1].

    Parameters
    ----------
    steps
        A folded network that ends in a linear layer, without gradients.
    images, labels
        (N, channels, height, width) in [0, 1], and (N,).
    eps
        Radius of the ball, in pixel units.
    lambda_ratios
        In [0, 1], each once; rows are in increasing order.
    rounds, generator
        As in `worst_points`.
    memory_mb
        What the tensors of a batch may take, roughly.

    Returns
    -------
    pandas.DataFrame
        lambda_ratio; images; standard, at the images; adversarial, at the worst points found in the whole ball, both
        the same in every row; box, the bound by intervals over the box around the adversarial point, at least
        `adversarial`; centred_adversarial and centred_box, at the worst point found in the ball of radius
        lambda * eps around the image, and the bound over it. Adversarial losses are estimates from below, bounds are
        as sound as `sabr.bounds.interval.propagate`.
    """
    ratios = sorted(lambda_ratios)
    collected = []
    for part in parts(steps, images, memory_mb):
        points, truth = images[part], labels[part]

        def loss(at: Tensor, truth: Tensor = truth) -> Tensor:
            return F.cross_entropy(forward(steps, at), truth, reduction="none")

        def bound(box: Box, truth: Tensor = truth) -> Tensor:
            return worst_case_cross_entropy(margin_bounds(steps, box, truth).lower)

        found = [points]  # the worst points of smaller regions are points of the larger ones
        for ratio in ratios:
            own = ball(points, ratio * eps)
            found.append(
                worst_points(steps, own, truth, known=found[-1], rounds=rounds, generator=generator)
                if ratio
                else points
            )
        region = ball(points, eps)
        worst = found[-1]
        if ratios[-1] < 1:
            worst = worst_points(steps, region, truth, known=worst, rounds=rounds, generator=generator)
        standard, adversarial = loss(points), loss(worst)
        rows = []
        for ratio, near in zip(ratios, found[1:], strict=True):
            small = small_box(worst, region, region.radius.clamp(max=ratio * eps))
            rows.append(
                torch.stack([standard, adversarial, bound(small), loss(near), bound(ball(points, ratio * eps))])
            )
        collected.append(torch.stack(rows))
    table = pd.DataFrame(means(collected).numpy(), columns=list(_LOSSES))
    table.insert(0, "lambda_ratio", ratios)
    table.insert(1, "images", len(images))
    return table
