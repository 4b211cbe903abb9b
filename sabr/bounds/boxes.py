"""Boxes of images: the l_inf ball cut to [0, 1], a small box inside it, samples from it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Box(NamedTuple):
    """All points between `lower` and `upper`, entry by entry; both of one shape, (N, ...)."""

    lower: Tensor
    upper: Tensor

    @property
    def centre(self) -> Tensor:
        """Midpoint of the box."""
        return (self.upper + self.lower) / 2

    @property
    def radius(self) -> Tensor:
        """Half the width of the box, entry by entry."""
        return (self.upper - self.lower) / 2

    def clamp(self, points: Tensor) -> Tensor:
        """The nearest point of the box to each of `points`."""
        return torch.minimum(torch.maximum(points, self.lower), self.upper)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One point of the box per row, uniform, the same shape as `lower`."""
        unit = torch.rand(self.lower.shape, generator=generator, device=self.lower.device, dtype=self.lower.dtype)
        return self.clamp(self.lower + unit * (self.upper - self.lower))


def outwards(box: Box) -> Box:
    """The smallest box in float32 around a box in float64."""
    lower, upper = box.lower.float(), box.upper.float()
    below, above = torch.full_like(lower, -torch.inf), torch.full_like(upper, torch.inf)
    return Box(
        torch.where(lower.double() > box.lower, torch.nextafter(lower, below), lower),
        torch.where(upper.double() < box.upper, torch.nextafter(upper, above), upper),
    )


def ball(images: Tensor, eps: float) -> Box:
    """The l_inf ball of radius `eps` around each image, cut to [0, 1].

    Parameters
    ----------
    images
        (N, ...) in [0, 1].
    eps
        Radius in pixel units, where the whole range of a pixel is 1.
    """
    return Box((images - eps).clamp(0, 1), (images + eps).clamp(0, 1))


def small_box(adversarial: Tensor, region: Box, tau: float | Tensor) -> Box:
    """The box of radius `tau` around an adversarial point, moved into `region` and cut to [0, 1] (SABR, section 3).

    The centre is clamp(adversarial, region.lower + tau, region.upper - tau). Where an image border has cut `region` to
    a width below 2 tau the upper limit wins, as in the authors' code: near pixels of value 1 the box then reaches
    below `region.lower` (for lambda > 1/2 only). Training does not need soundness, and the golden values ask for this.
    With tau = lambda_ratio * region.radius, entry by entry, the box always lies in `region` (as in the code of TAPS;
    SABR's has min(tau, region.radius) as an option).

    Parameters
    ----------
    adversarial
        (N, ...) points of `region`.
    region
        The ball of radius eps cut to [0, 1].
    tau
        lambda_ratio * eps, or lambda_ratio times the radius of each entry, in pixel units.
    """
    centre = torch.minimum(torch.maximum(adversarial, region.lower + tau), region.upper - tau)
    return Box((centre - tau).clamp(0, 1), (centre + tau).clamp(0, 1))
