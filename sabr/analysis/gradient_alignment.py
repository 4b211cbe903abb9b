"""How well the gradient of a robust loss agrees with that of the cross-entropy (paper: Table 3)."""

import copy
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from sabr.analysis.adversarial import worst_points
from sabr.analysis.batches import parts
from sabr.bounds.boxes import Box, ball, small_box
from sabr.bounds.interval import margin_bounds
from sabr.networks.affine import folded_steps
from sabr.networks.architectures import Network
from sabr.specs import AttackRound
from sabr.training.methods.base import worst_case_cross_entropy

# lambda of the robust losses: IBP's is the whole ball, SABR's is that of the paper's Table 3.
LAMBDA_RATIOS = {"ibp": 1.0, "sabr": 0.05}
_AT = ("clean", "adversarial")


def measure(
    network: Network,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    rounds: Sequence[AttackRound],
    generator: torch.Generator,
    memory_mb: float,
) -> pd.DataFrame:
    """Cosine similarities, image by image, of gradients with respect to all parameters of the network.

    Each image has gradients of its own, whose cosine is averaged over images, so that no choice of a batch size changes
    the result; whether the paper takes them of images or of batches we do not know. All losses are those of evaluation
    mode, without regularisers; biases in front of a batch norm count like all other parameters.

    Parameters
    ----------
    network
        In evaluation mode; it is left as it is.
    images, labels
        (N, channels, height, width) in [0, 1], and (N,).
    eps
        Radius of the ball, in pixel units.
    rounds, generator
        Of the adversarial points, the worst ones found in the ball, as in `worst_points`.
    memory_mb
        What the tensors of the attack's batches may take, roughly.

    Returns
    -------
    pandas.DataFrame
        loss, "ibp" (intervals over the whole ball) or "sabr" (over the small box around the adversarial point);
        lambda_ratio, the size of that box; at, where the cross-entropy is taken, "clean" or "adversarial"; images,
        those at which no gradient vanishes; cosine, the mean over them, and deviation, the standard deviation (n - 1)
        over them, missing for fewer than two.
    """
    adversarial = _adversarial(network, images, labels, eps, rounds, generator, memory_mb)
    trained = copy.deepcopy(network).eval().requires_grad_(True)
    cosines: dict[tuple[str, str], list[float]] = {(loss, at): [] for loss in LAMBDA_RATIOS for at in _AT}
    for place in range(len(images)):
        one = slice(place, place + 1)
        clean, worst, label = images[one], adversarial[one], labels[one]
        towards = {
            at: direction(trained, Box(points, points), label) for at, points in zip(_AT, (clean, worst), strict=True)
        }
        region = ball(clean, eps)
        for loss, ratio in LAMBDA_RATIOS.items():
            own = direction(trained, small_box(worst, region, region.radius.clamp(max=ratio * eps)), label)
            for at, other in towards.items():
                if own is not None and other is not None:
                    cosines[loss, at].append(float(own @ other))
    lines = []
    for (loss, at), found in cosines.items():
        values = pd.Series(found, dtype="float64")
        lines.append((loss, LAMBDA_RATIOS[loss], at, len(found), values.mean(), values.std()))
    return pd.DataFrame(lines, columns=["loss", "lambda_ratio", "at", "images", "cosine", "deviation"])


@torch.no_grad()
def _adversarial(
    network: Network,
    images: Tensor,
    labels: Tensor,
    eps: float,
    rounds: Sequence[AttackRound],
    generator: torch.Generator,
    memory_mb: float,
) -> Tensor:
    steps = folded_steps(network)
    found = [
        worst_points(
            steps, ball(images[part], eps), labels[part], known=images[part], rounds=rounds, generator=generator
        )
        for part in parts(steps, images, memory_mb)
    ]
    return torch.cat(found)


def direction(network: Network, box: Box, label: Tensor) -> Tensor | None:
    """The gradient of the worst-case cross-entropy over a box, or of that at a point, as a vector of length 1.

    It is taken by way of the margins: in float32 the probability of a confident prediction is 1, and the gradient that
    goes through it is lost, while those of the other classes are small but known.

    Parameters
    ----------
    network
        In evaluation mode; gradients are taken towards all its parameters.
    box, label
        (1, ...) and (1,).

    Returns
    -------
    Tensor or None
        None where the gradient vanishes.
    """
    loss = worst_case_cross_entropy(margin_bounds(folded_steps(network), box, label).lower).sum()
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])
    size = float(gradient.norm())
    return gradient.div_(size) if size > 0 else None
