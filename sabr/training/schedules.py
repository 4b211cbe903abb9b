"""What changes over the epochs: eps and the learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EpsRamp:
    """The smoothed ramp of eps: 0, then a quartic start, then linear to `eps_end` (paper, appendix C; Shi et al. 2021).

    Attributes
    ----------
    eps_end
        Where the ramp ends, in pixel units.
    start_epoch, end_epoch
        Epochs, counted from 1 at step `steps_per_epoch`; the ramp covers the quarter-smoothed span between them.
    steps_per_epoch
        Optimiser steps in an epoch.
    """

    eps_end: float
    start_epoch: int
    end_epoch: int
    steps_per_epoch: int

    def at(self, step: int) -> float:
        """Return eps at `step` = epoch * steps_per_epoch + batch, with epochs from 1 and batches from 0."""
        first = self.start_epoch * self.steps_per_epoch - 1
        last = self.end_epoch * self.steps_per_epoch
        middle = first + int(0.25 * (last - first))
        if step < self.start_epoch * self.steps_per_epoch:
            return 0.0
        if step >= last:
            return self.eps_end
        cubed = float(middle - first) ** 3
        slope = self.eps_end / (4 * (last - middle) * cubed + (middle - first) * cubed)
        if step <= middle:
            return slope * float(step - first) ** 4
        at_middle = slope * float(middle - first) ** 4
        return at_middle + (self.eps_end - at_middle) * (step - middle) / (last - middle)


def learning_rate(initial: float, drops: Sequence[int], factor: float, epoch: int) -> float:
    """The learning rate in `epoch` (from 1): `initial`, times `factor` from each epoch in `drops` on."""
    return float(initial * factor ** sum(epoch >= drop for drop in drops))
