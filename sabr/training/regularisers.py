"""What is added to the loss: the warm-up regulariser of Shi et al. (2021), and L1."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sabr.bounds.boxes import Box

_TINY = 1e-12


def warmup_regulariser(relu_inputs: Sequence[Box], input_radius: Tensor, *, tolerance: float = 0.5) -> Tensor:
    """Keep bounds tight and ReLU states balanced: mean over ReLU layers of tightness + balance (paper, appendix C).

    Parameters
    ----------
    relu_inputs
        Boxes at the input of each ReLU; gradients flow.
    input_radius
        Mean radius at the input of the first affine layer, a scalar.
    tolerance
        r in Shi et al. (2021), equations 8 and 10: what is above it costs nothing.

    Returns
    -------
    Tensor
        Scalar, before its weight. A layer without inactive neurons has no balance term; the authors drop it where it
        is NaN or infinite, which differs by a constant at most.
    """
    terms = [_tightness(box, input_radius, tolerance) + _balance(box, tolerance) for box in relu_inputs]
    return torch.stack(terms).mean()


def l1_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Sum of absolute values over all weights, biases and batch-norm parameters."""
    return torch.stack([parameter.abs().sum() for parameter in parameters]).sum()


def _tightness(box: Box, input_radius: Tensor, tolerance: float) -> Tensor:
    mean_radius = box.radius.mean()
    return torch.relu(tolerance - input_radius / mean_radius.clamp_min(_TINY)) / tolerance


def _balance(box: Box, tolerance: float) -> Tensor:
    centre = box.centre
    active = (box.lower > 0).to(centre.dtype)
    inactive = (box.upper < 0).to(centre.dtype)
    squared = (centre - centre.mean()).square()
    mean_term = _shortfall((centre * active).mean(), -(centre * inactive).mean(), tolerance)
    variance_term = _shortfall((squared * active).sum(), (squared * inactive).sum(), tolerance)
    return (mean_term + variance_term) / tolerance


def _shortfall(active: Tensor, inactive: Tensor, tolerance: float) -> Tensor:
    defined = inactive != 0
    ratio = active / torch.where(defined, inactive, torch.ones_like(inactive))  # never divide by 0: NaN gradients
    folded = torch.minimum(ratio, 1 / ratio.clamp_min(_TINY))
    return torch.relu(tolerance - folded) * defined
