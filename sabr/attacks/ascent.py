"""Ascent of any function over a box by signed gradient steps, each entry in units of its own radius."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sabr.bounds.boxes import Box


def ascend(objective: Callable[[Tensor], Tensor], region: Box, *, start: Tensor, step_sizes: Sequence[float]) -> Tensor:
    """Look for a large value of an objective in each of many boxes; what is found is an estimate from below.

    The best of all iterates is kept, box by box; a single step is taken without looking where it leads, as in the
    attack of De Palma et al. (2024). TAPS searches its latent boxes in the same way (Mao et al. 2023, section 3).

    Parameters
    ----------
    objective
        Maps points (M..., features...) to values (M...), each from its own point alone.
    region
        (M..., features...) boxes.
    start
        First iterates, of the same shape, in `region`.
    step_sizes
        One number per step, in units of each entry's radius; every iterate is projected onto the box.

    Returns
    -------
    Tensor
        Points of `region`, without a graph.
    """
    radius = region.radius
    points = best = start.detach()
    best_values: Tensor | None = None
    for size in step_sizes:
        points.requires_grad_()
        with torch.enable_grad():
            values = objective(points)
        (gradient,) = torch.autograd.grad(values.sum(), points)
        points = points.detach()
        best, best_values = _better(points, values.detach(), best, best_values)
        points = region.clamp(points + size * radius * gradient.sign())
    if len(step_sizes) == 1:
        return points
    with torch.no_grad():
        best, _ = _better(points, objective(points), best, best_values)
    return best


def _better(points: Tensor, values: Tensor, best: Tensor, best_values: Tensor | None) -> tuple[Tensor, Tensor]:
    if best_values is None:
        return points, values
    improved = values > best_values
    mask = improved.view(*improved.shape, *[1] * (points.dim() - improved.dim()))
    return torch.where(mask, points, best), torch.where(improved, values, best_values)
