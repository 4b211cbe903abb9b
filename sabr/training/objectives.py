"""From a method's specification to its loss on a batch."""

from dataclasses import replace

from sabr.bounds.boxes import Box, ball
from sabr.methods import (
    IBP,
    PGD,
    SABR,
    STAPS,
    TAPS,
    Bounded,
    Classifier,
    CrownIBP,
    Expressive,
    Method,
    SmallBox,
    Standard,
)
from sabr.training.methods.base import Batch, Objective, worst_case
from sabr.training.methods.boxes import adversarial_box, ibp, sabr
from sabr.training.methods.crown_ibp import crown_ibp
from sabr.training.methods.expressive import at_adversarial_points, cc_ibp, exp_ibp, mtl_ibp
from sabr.training.methods.plain import pgd, standard
from sabr.training.methods.taps import taps

_EPS_BEFORE_RAMP = 1e-6
_COMBINATIONS = {"cc-ibp": cc_ibp, "mtl-ibp": mtl_ibp, "exp-ibp": exp_ibp}


def evaluate(method: Method, batch: Batch) -> Objective:
    """Apply a method to a batch; before the ramp (eps = 0) every method trains on the clean cross-entropy."""
    if batch.eps == 0:
        return _before_ramp(batch) if isinstance(method, Bounded) else standard(batch)
    if isinstance(method, Bounded):
        batch = replace(batch, eps=method.eps_ratio * batch.eps)
    match method:
        case Standard():
            return standard(batch)
        case PGD():
            return pgd(batch, step_sizes=method.attack.step_sizes)
        case IBP():
            return ibp(batch)
        case SABR():
            return sabr(
                batch,
                lambda_ratio=_lambda(method, batch),
                tau=method.tau,
                relu_shrinkage=method.relu_shrinkage,
                step_sizes=method.attack.step_sizes,
            )
        case CrownIBP():
            return crown_ibp(
                batch,
                kappa=batch.between(method.kappa_start, method.kappa_end),
                beta=batch.between(method.beta_start, method.beta_end),
                loss_fusion=method.loss_fusion,
            )
        case Expressive():
            attacked = at_adversarial_points(
                batch, attack_eps_ratio=method.attack_eps_ratio, step_sizes=method.attack.step_sizes
            )
            return _COMBINATIONS[method.objective](attacked, alpha=method.alpha)
        case TAPS():
            return _taps(method.classifier, batch, ball(batch.images, batch.eps), None)
        case STAPS():
            region = adversarial_box(
                batch,
                lambda_ratio=_lambda(method, batch),
                tau=method.tau,
                step_sizes=method.attack.step_sizes,
            )
            return _taps(method.classifier, batch, region, method.relu_shrinkage)
        case _:
            raise TypeError(f"no objective is known for {type(method).__name__}")


def _before_ramp(batch: Batch) -> Objective:
    """Clean cross-entropy, and the bounds of a tiny box for the warm-up regulariser (paper, appendix C)."""
    tiny = Box(batch.images - _EPS_BEFORE_RAMP, batch.images + _EPS_BEFORE_RAMP)
    return standard(batch)._replace(bounds=worst_case(batch, tiny).bounds)


def _lambda(method: SmallBox, batch: Batch) -> float:
    return batch.between(method.lambda_ratio, method.lambda_ratio if method.lambda_end is None else method.lambda_end)


def _taps(classifier: Classifier, batch: Batch, region: Box, relu_shrinkage: float | None) -> Objective:
    return taps(
        batch,
        region,
        classifier_relus=classifier.relus,
        gradient_weight=classifier.gradient_weight,
        connector=classifier.connector,
        step_sizes=classifier.attack.step_sizes,
        relu_shrinkage=relu_shrinkage,
    )
