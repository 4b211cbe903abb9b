"""Losses that an attack ascends, functions of the logits alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Aim(NamedTuple):
    """What the points of an attack are after: S points for each of N images, K classes.

    Attributes
    ----------
    labels
        (N, 1) true classes.
    open
        (N, 1, K) bool: the wrong classes by which an image may be refuted.
    targets
        (N, S or 1, K) bool: those of them that a point goes for.
    reference
        (N, 1, K) logits at the centre of the region.
    directions
        (N, S or 1, K) random weights of the logits.
    """

    labels: Tensor
    open: Tensor
    targets: Tensor
    reference: Tensor
    directions: Tensor

    def of(self, images: Tensor) -> "Aim":
        """The same for some of the images, given by a mask (N,) or by their numbers."""
        return Aim(*(tensor[images] for tensor in self))


# Logits (N, S, K), aim and number of the step, from 0, to one value per point, (N, S): each from its own logits alone.
Loss = Callable[[Tensor, Aim, int], Tensor]


def margin(logits: Tensor, aim: Aim, step: int) -> Tensor:
    """The largest target logit minus the right one."""
    return lead(logits, aim.labels, aim.targets)


def cross_entropy(logits: Tensor, aim: Aim, step: int) -> Tensor:
    """Cross-entropy, as if the label and the targets were all classes."""
    right = _right(logits, aim.labels)
    others = logits.masked_fill(~aim.targets, -float("inf")).logsumexp(-1)
    return others.logaddexp(right) - right


@dataclass(frozen=True)
class Gama:
    """Guided adversarial margin attack: a margin of probabilities, and at first the way away from the centre.

    Sriramanan et al. (2020), section 4: the largest target probability minus the right one, plus a weight times the
    squared distance of the probabilities from those at the reference. The weight falls, so that the guide is gone when
    the margin decides. Numbers and geometric decay are those of MN-BaB's code, which however measures the distance
    from the reference's logits.

    Attributes
    ----------
    weight
        Of the distance in the first step.
    decay
        Factor of the weight from each step to the next.
    """

    weight: float = 10.0
    decay: float = 0.9

    def __call__(self, logits: Tensor, aim: Aim, step: int) -> Tensor:
        """Loss of each point in the step of that number."""
        probabilities, reference = logits.softmax(-1), aim.reference.softmax(-1)
        distance = (probabilities - reference).square().sum(-1)
        return lead(probabilities, aim.labels, aim.targets) + self.weight * self.decay**step * distance


def diversity(logits: Tensor, aim: Aim, step: int) -> Tensor:
    """A random linear function of the logits, for output-diversified starts (Tashiro et al. 2020, section 3)."""
    return (logits * aim.directions).sum(-1)


def lead(scores: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
    """The largest score among some classes minus the right one, (N, S): positive where one of them wins.

    Parameters
    ----------
    scores
        (N, S, K).
    labels
        (N, 1) true classes.
    classes
        (N, S or 1, K) bool.
    """
    return scores.masked_fill(~classes, -float("inf")).amax(-1) - _right(scores, labels)


def _right(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.gather(-1, labels.expand(scores.shape[:-1]).unsqueeze(-1)).squeeze(-1)
