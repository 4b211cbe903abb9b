"""Search for misclassified points: many starts an image, diversified by their outputs, several losses in turn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.attacks.losses import Aim, Gama, Loss, cross_entropy, diversity, lead, margin
from sabr.attacks.pgd import Attacked
from sabr.bounds.boxes import Box
from sabr.bounds.interval import margins, other_classes
from sabr.networks.steps import Step, SumStep, linearise

LOSSES: dict[str, Loss] = {"margin": margin, "gama": Gama(), "cross_entropy": cross_entropy}


class Move(NamedTuple):
    """One signed gradient step: the loss to ascend, the number that it knows the step by, and the step's size.

    The size is in units of each entry's own radius.
    """

    loss: Loss
    number: int
    size: float


@dataclass(frozen=True)
class Round:
    """Many starts on each image that still resists, all in the same way.

    Attributes
    ----------
    loss
        A name in `LOSSES`.
    targets
        largest: every point goes for the class with the largest logit, at each of its steps, among the open ones;
        each: every point goes for one open class, all in turn, from the nearest at the centre on.
    starts
        Points per image, drawn uniformly from its region.
    diversify
        Sizes of the steps up a random linear function of the logits, another for each point, taken first.
    step_sizes
        Sizes of the steps up the loss, all in units of each entry's own radius.
    """

    loss: Literal["margin", "gama", "cross_entropy"]
    targets: Literal["largest", "each"]
    starts: int
    diversify: tuple[float, ...]
    step_sizes: tuple[float, ...]

    @property
    def moves(self) -> list[Move]:
        """All steps of a point."""
        first = [Move(diversity, number, size) for number, size in enumerate(self.diversify)]
        return first + [Move(LOSSES[self.loss], number, size) for number, size in enumerate(self.step_sizes)]


# A pass may have so many times the starts of all passes before it: what the first starts refute costs no more of them.
_GROWTH = 4

_MN_BAB_STEPS = (*[0.2] * 25, *[0.02] * 15, *[0.002] * 5, *[0.0002] * 5)

# The attack of MN-BaB (Ferrari et al. 2022; numbers from its code): 50 points, started 5, 5 and 1 times. Only here are
# classes tried from the nearest on, and starts uniform where an image border cuts the ball.
MN_BAB = (
    Round("margin", "each", starts=5 * 50, diversify=(1.0,) * 10, step_sizes=_MN_BAB_STEPS),
    Round("gama", "each", starts=5 * 50, diversify=(1.0,) * 10, step_sizes=_MN_BAB_STEPS),
    Round("margin", "each", starts=50, diversify=(), step_sizes=_MN_BAB_STEPS),
)


def search(
    steps: Sequence[Step],
    region: Box,
    labels: Tensor,
    *,
    rounds: Sequence[Round],
    generator: torch.Generator,
    rows: int,
    open_margins: Tensor | None = None,
) -> Attacked:
    """Attack images round after round, each until it is refuted; an estimate, as that no point is found proves nothing.

    The centre of each region is tried first. Images walk together: one start of each, then more and more of them, as
    many as `rows` lets through the network at once; those that are refuted leave at that very step.

    Parameters
    ----------
    steps
        A folded network; no gradient reaches its weights.
    region
        (N, ...) boxes.
    labels
        (N,) true classes.
    rounds
        In the order in which they are tried.
    generator
        Draws starts and directions; equal states give equal results for equal images and `rows`.
    rows
        Largest number of points in one pass through the network; `rows_within` turns memory into it.
    open_margins
        (N, K-1) bool, columns as in `sabr.bounds.interval.margins`: only these classes are attacked and only they
        refute, because the other margins are proved for instance; an image without any is left alone. None: all.

    Returns
    -------
    Attacked
        Points of `region` only. Per image: the point where an open class leads the right one by most, among all
        iterates seen, and whether it does lead, up to the precision of the weights (`confirm` decides).
    """
    if len(labels) == 0:
        return Attacked(region.centre, torch.zeros_like(labels, dtype=torch.bool))
    points = region.clamp(region.centre)
    reference = torch.cat([linearise(steps, part).logits for part in torch.split(points, rows)])
    open_ = _open_classes(labels, reference.shape[1], open_margins)
    boxes = Box(region.lower.unsqueeze(1), region.upper.unsqueeze(1))
    classes = open_.unsqueeze(1)
    aims = Aim(labels.unsqueeze(1), classes, classes, reference.unsqueeze(1), torch.zeros_like(reference).unsqueeze(1))
    value = lead(aims.reference, aims.labels, aims.open).squeeze(1)
    for round_ in rounds:
        done = 0
        while done < round_.starts:
            left = torch.nonzero((value <= 0) & open_.any(1)).squeeze(1)
            if len(left) == 0:
                break
            count = min(round_.starts - done, max(1, _GROWTH * done), max(1, rows // len(left)))
            for images in torch.split(left, rows):
                box = Box(boxes.lower[images], boxes.upper[images])
                aim = _aim_of_starts(aims.of(images), round_, done, count, generator)
                found = climb(steps, box, aim, start=uniform_starts(box, count, generator), moves=round_.moves)
                better = found.lead > value[images]
                points[images[better]] = found.points[better]
                value[images[better]] = found.lead[better]
            done += count
    return Attacked(points, value > 0)


def confirm(network: Callable[[Tensor], Tensor], region: Box, points: Tensor, labels: Tensor) -> Tensor:
    """Whether points refute their images beyond the precision of the attack: the only thing that counts.

    Each point is moved into its region, `region.clamp(points.double())` (store that), and goes forward through the
    network once, in float64. A tie is no refutation, and neither is a logit that is not a number.

    Parameters
    ----------
    network
        Points to logits in float64: a network after `.double()`, or `forward` of steps in float64.
    region
        (N, ...) boxes in float64, made of the images in float64.
    points
        (N, ...), of any precision.
    labels
        (N,) true classes.

    Returns
    -------
    Tensor
        (N,) bool: some wrong logit is larger than the right one.

    Raises
    ------
    TypeError
        When region or logits are not in float64.
    """
    with torch.no_grad():
        logits = network(region.clamp(points.double()))
    for tensor, name in ((region.lower, "the region"), (region.upper, "the region"), (logits, "the network")):
        if tensor.dtype != torch.float64:
            raise TypeError(f"a refutation is confirmed in float64; {name} is {tensor.dtype}")
    return (margins(logits, labels) < 0).any(1)


class Climbed(NamedTuple):
    """Per image the best of all iterates, (N, ...), and by how much an open class leads there, (N,)."""

    points: Tensor
    lead: Tensor


def climb(steps: Sequence[Step], region: Box, aim: Aim, *, start: Tensor, moves: Sequence[Move]) -> Climbed:
    """Take several points of each image up losses by signed gradient steps inside its box, until one refutes it.

    Every iterate counts, start and last included. An image is finished, with all its points, at the step at which an
    open class first leads at one of them.

    Parameters
    ----------
    steps
        A folded network; no gradient reaches its weights.
    region
        (N, 1, ...) boxes.
    aim
        Of N images.
    start
        (N, S, ...) points in `region`.
    moves
        The steps to take.
    """
    best = start[:, 0].clone()
    value = torch.full(start.shape[:1], -torch.inf, device=start.device, dtype=start.dtype)
    images = torch.arange(len(start), device=start.device)
    points, radius = start, region.radius
    for move in [*moves, None]:
        logits, pull = linearise(steps, points.flatten(0, 1))
        logits = logits.view(*points.shape[:2], -1)
        leads, which = lead(logits, aim.labels, aim.open).max(1)
        better = torch.nonzero(leads > value[images]).squeeze(1)
        best[images[better]] = points[better, which[better]]
        value[images[better]] = leads[better]
        resists = ~(leads > 0)
        if move is None or not bool(resists.any()):
            break
        with torch.enable_grad():
            logits.requires_grad_()
            losses = move.loss(logits, aim, move.number)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        direction = pull(gradient.flatten(0, 1)).sign_().view_as(points)
        if not bool(resists.all()):
            images, points, direction, radius = images[resists], points[resists], direction[resists], radius[resists]
            region, aim = Box(region.lower[resists], region.upper[resists]), aim.of(resists)
        points = region.clamp(points.addcmul(direction, radius, value=move.size))
    return Climbed(best, value)


def uniform_starts(region: Box, count: int, generator: torch.Generator) -> Tensor:
    """(N, count, ...) points drawn uniformly from (N, 1, ...) boxes."""
    shape = (-1, count, *region.lower.shape[2:])
    return Box(region.lower.expand(shape), region.upper.expand(shape)).sample(generator)


def rows_within(steps: Sequence[Step], region: Box, megabytes: float) -> int:
    """How many points a pass of `search` may have at once, at least one, to stay within so much memory, roughly.

    Counted are all values of the network at a point, twice (what is kept for the way back, and the working space of
    the layers), and the point itself six times (draws, iterates, directions).

    Parameters
    ----------
    steps
        A network.
    region
        (N, ...) boxes, at least one.
    megabytes
        Of 10^6 bytes.
    """
    point = region.lower[:1]
    values = 6 * point.numel() + 2 * _values(steps, point)
    return max(1, int(megabytes * 1e6 // (values * point.element_size())))


def _values(steps: Sequence[Step], point: Tensor) -> int:
    """How many numbers a network computes at a point, (1, ...)."""
    total = 0
    with torch.no_grad():
        for step in steps:
            if isinstance(step, SumStep):
                total += sum(_values(path, point) for path in step.paths)
            point = step.apply(point)
            total += point.numel()
    return total


def _open_classes(labels: Tensor, classes: int, open_margins: Tensor | None) -> Tensor:
    """(N, K) bool: the wrong classes, or those of them that are open."""
    if open_margins is None:
        open_margins = torch.ones(len(labels), classes - 1, dtype=torch.bool, device=labels.device)
    wrong = torch.zeros(len(labels), classes, dtype=torch.bool, device=labels.device)
    return wrong.scatter(1, other_classes(labels, classes), open_margins)


def _aim_of_starts(aim: Aim, round_: Round, first: int, count: int, generator: torch.Generator) -> Aim:
    """What the starts of numbers `first` to `first + count` of a round are after."""
    reference, classes = aim.reference.squeeze(1), aim.open.squeeze(1)
    shape = (len(reference), count, reference.shape[1])
    directions = torch.rand(shape, generator=generator, device=reference.device, dtype=reference.dtype) * 2 - 1
    if round_.targets == "largest":
        return aim._replace(directions=directions)
    nearest_first = reference.masked_fill(~classes, -torch.inf).argsort(dim=1, descending=True, stable=True)
    turns = torch.arange(first, first + count, device=reference.device) % classes.sum(1, keepdim=True)
    targets = F.one_hot(nearest_first.gather(1, turns), shape[2]).bool()
    return aim._replace(targets=targets, directions=directions)
