"""How well the gradient of a robust loss agrees with that of the cross-entropy (paper: Table 3)."""

import copy
from collections.abc import Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.analysis.adversarial import worst_points
from sabr.analysis.batches import parts
from sabr.bounds.boxes import Box, ball, small_box
from sabr.bounds.interval import margin_bounds
from sabr.networks.affine import folded_steps
from sabr.networks.architectures import Network
from sabr.networks.steps import forward
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

    The paper says "mean cosine similarity across the test set" and nothing of batches; here it is the mean over images
    of the cosine of each image's own gradients, which no choice of a batch size changes. All losses are those of
    evaluation mode, without regularisers; biases in front of a batch norm count like all other parameters. They are
    computed in float64: at confident predictions the gradients are smaller than float32 can tell from 0.

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
    exact = _copy(network)
    cosines: dict[tuple[str, str], list[float]] = {(loss, at): [] for loss in LAMBDA_RATIOS for at in _AT}
    for place in range(len(images)):
        one = slice(place, place + 1)
        clean, worst, label = images[one].double(), adversarial[one].double(), labels[one]
        towards = {
            at: _gradient(exact, _at_point(exact, points, label))
            for at, points in zip(_AT, (clean, worst), strict=True)
        }
        region = ball(clean, eps)
        for loss, ratio in LAMBDA_RATIOS.items():
            box = small_box(region.clamp(worst), region, region.radius.clamp(max=ratio * eps))
            own = _gradient(exact, _over_box(exact, box, label))
            for at, other in towards.items():
                sizes = own.norm() * other.norm()
                if sizes > 0:
                    cosines[loss, at].append(float(own @ other / sizes))
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


def _copy(network: Network) -> Network:
    """The same network in float64, whose parameters take gradients."""
    return copy.deepcopy(network).double().eval().requires_grad_(True)


def _at_point(network: Network, point: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(forward(folded_steps(network), point), label)


def _over_box(network: Network, box: Box, label: Tensor) -> Tensor:
    return worst_case_cross_entropy(margin_bounds(folded_steps(network), box, label).lower).sum()


def _gradient(network: Network, loss: Tensor) -> Tensor:
    """The gradient towards all parameters, as one vector."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(network.parameters()))])
