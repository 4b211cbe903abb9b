"""Methods that propagate one box by intervals: the whole ball (IBP), or a small box in it (SABR)."""

from collections.abc import Sequence

from sabr.bounds.boxes import Box, ball, small_box
from sabr.training.methods.base import Batch, Objective, adversarial_points, worst_case


def ibp(batch: Batch) -> Objective:
    """Worst-case cross-entropy over the whole ball, bounded by intervals (Gowal et al. 2018; Shi et al. 2021)."""
    return worst_case(batch, ball(batch.images, batch.eps))


def sabr(
    batch: Batch, *, lambda_ratio: float, tau: str, relu_shrinkage: float | None, step_sizes: Sequence[float]
) -> Objective:
    """Worst-case cross-entropy over a small box around an adversarial point (SABR, section 3, equation 4)."""
    region = adversarial_box(batch, lambda_ratio=lambda_ratio, tau=tau, step_sizes=step_sizes)
    return worst_case(batch, region, relu_shrinkage=relu_shrinkage)


def adversarial_box(batch: Batch, *, lambda_ratio: float, tau: str, step_sizes: Sequence[float]) -> Box:
    """The small box around an adversarial point of the ball.

    With lambda_ratio = 1 the box is centred and is the whole ball, as in `ibp`: then no attack is made.

    Parameters
    ----------
    batch
        Images, current eps, the network to attack.
    lambda_ratio
        Radius of the small box in units of the ball's, in (0, 1].
    tau
        scalar: all entries have the radius lambda_ratio * eps (SABR); per-dimension: lambda_ratio times the radius of
        the ball cut to [0, 1], so that the box lies in it (STAPS).
    step_sizes
        Attack steps in units of the largest radius in the batch.
    """
    region = ball(batch.images, batch.eps)
    if lambda_ratio == 1:
        return region
    adversarial = adversarial_points(batch, region, step_sizes)
    return small_box(adversarial, region, lambda_ratio * (batch.eps if tau == "scalar" else region.radius))
