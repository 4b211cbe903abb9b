"""From a method's specification to its loss on a batch."""

from sabr.bounds.boxes import Box
from sabr.specs import IBP, PGD, SABR, Method, Standard
from sabr.training.methods.base import Batch, Objective, worst_case
from sabr.training.methods.boxes import ibp, sabr
from sabr.training.methods.plain import pgd, standard

_EPS_BEFORE_RAMP = 1e-6


def evaluate(method: Method, batch: Batch) -> Objective:
    """Apply a method to a batch; before the ramp (eps = 0) every method trains on the clean cross-entropy."""
    match method:
        case Standard():
            return standard(batch)
        case PGD():
            return standard(batch) if batch.eps == 0 else pgd(batch, step_sizes=method.attack.step_sizes)
        case IBP():
            return _before_ramp(batch) if batch.eps == 0 else ibp(batch)
        case SABR():
            if batch.eps == 0:
                return _before_ramp(batch)
            return sabr(
                batch,
                lambda_ratio=method.lambda_ratio,
                relu_shrinkage=method.relu_shrinkage,
                step_sizes=method.attack.step_sizes,
            )
        case _:
            raise TypeError(f"no objective is known for {type(method).__name__}")


def _before_ramp(batch: Batch) -> Objective:
    """Clean cross-entropy, and the bounds of a tiny box for the warm-up regulariser (paper, appendix C)."""
    tiny = Box(batch.images - _EPS_BEFORE_RAMP, batch.images + _EPS_BEFORE_RAMP)
    return standard(batch)._replace(bounds=worst_case(batch, tiny).bounds)
