"""Methods that propagate one box by intervals: the whole ball (IBP), or a small box in it (SABR)."""

from collections.abc import Sequence

from sabr.bounds.boxes import ball, small_box
from sabr.training.methods.base import Batch, Objective, adversarial_points, worst_case


def ibp(batch: Batch) -> Objective:
    """Worst-case cross-entropy over the whole ball, bounded by intervals (Gowal et al. 2018; Shi et al. 2021)."""
    return worst_case(batch, ball(batch.images, batch.eps))


def sabr(batch: Batch, *, lambda_ratio: float, relu_shrinkage: float | None, step_sizes: Sequence[float]) -> Objective:
    """Worst-case cross-entropy over a small box around an adversarial point (SABR, section 3, equation 4).

    With lambda_ratio = 1 the box is centred and is the whole ball, that is `ibp`: then no attack is made.
    """
    region = ball(batch.images, batch.eps)
    if lambda_ratio < 1:
        adversarial = adversarial_points(batch, region, step_sizes)
        region = small_box(adversarial, region, lambda_ratio * batch.eps)
    return worst_case(batch, region, relu_shrinkage=relu_shrinkage)
