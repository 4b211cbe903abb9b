"""Expressive losses: convex combinations of an adversarial point and an interval bound (De Palma et al. 2024)."""

from collections.abc import Sequence
from dataclasses import replace

import torch.nn.functional as F

from sabr.attacks.ascent import ascend
from sabr.attacks.pgd import cross_entropy
from sabr.bounds.boxes import ball
from sabr.bounds.interval import margin_bounds, margins
from sabr.networks.affine import clean_pass, folded_steps
from sabr.networks.steps import forward
from sabr.training.methods.base import Batch, Objective, attacked_steps, bounds, worst_case, worst_case_cross_entropy


def cc_ibp(batch: Batch, *, alpha: float) -> Objective:
    """CC-IBP: CE(alpha * interval margins + (1 - alpha) * adversarial margins) (De Palma et al. 2024, section 4).

    Parameters
    ----------
    batch
        Its clean pass is one over adversarial points: see `at_adversarial_points`.
    alpha
        Weight of the interval bounds over the whole ball of the batch's eps, in [0, 1].
    """
    region = ball(batch.images, batch.eps)
    steps = folded_steps(batch.network, batch.clean.statistics)
    lower, relu_inputs = margin_bounds(steps, region, batch.labels)
    mixed = alpha * lower + (1 - alpha) * margins(batch.clean.logits, batch.labels)
    return Objective(worst_case_cross_entropy(mixed), (mixed > 0).all(1), bounds(steps, region, relu_inputs))


def mtl_ibp(batch: Batch, *, alpha: float) -> Objective:
    """MTL-IBP: alpha * CE_interval + (1 - alpha) * CE_adversarial (De Palma et al. 2024, section 4).

    Parameters are those of `cc_ibp`.
    """
    bound = worst_case(batch, ball(batch.images, batch.eps))
    adversarial = F.cross_entropy(batch.clean.logits, batch.labels, reduction="none")
    return bound._replace(losses=alpha * bound.losses + (1 - alpha) * adversarial)


def exp_ibp(batch: Batch, *, alpha: float) -> Objective:
    """Exp-IBP: CE_interval^alpha * CE_adversarial^(1 - alpha) (De Palma et al. 2024, section 4).

    As in the authors' code both losses are means over the batch: an image's own may be 0, where a power has no
    gradient. Every entry of `losses` is the product. Parameters are those of `cc_ibp`.
    """
    bound = worst_case(batch, ball(batch.images, batch.eps))
    adversarial = F.cross_entropy(batch.clean.logits, batch.labels)
    loss = bound.losses.mean() ** alpha * adversarial ** (1 - alpha)
    return bound._replace(losses=loss.expand(len(batch.labels)))


def at_adversarial_points(batch: Batch, *, attack_eps_ratio: float, step_sizes: Sequence[float]) -> Batch:
    """The batch with its clean pass replaced by one over adversarial points, whose statistics the bounds use too.

    As in the authors' code: the attack sees the network in evaluation mode, its result goes through it in training
    mode (and moves the running statistics once more), and the interval bounds use the statistics of that pass.

    Parameters
    ----------
    batch
        Images, labels, eps of the bounds.
    attack_eps_ratio
        Radius that is attacked, in units of the batch's eps.
    step_sizes
        Signed gradient steps on the cross-entropy from a uniform start, in units of each entry's radius.
    """
    region = ball(batch.images, attack_eps_ratio * batch.eps)
    steps = attacked_steps(batch)
    points = ascend(
        lambda points: cross_entropy(forward(steps, points.to(batch.attack_dtype)).to(points.dtype), batch.labels),
        region,
        start=region.sample(batch.generator),
        step_sizes=step_sizes,
    )
    return replace(batch, clean=clean_pass(batch.network, points))
