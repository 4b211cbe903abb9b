"""What is recorded of training: parts of the loss at every step, on the device, and their means over an epoch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sabr.errors import SabrError
from sabr.training.step import StepLoss

_PARTS = ("robust", "regulariser", "l1", "natural_correct", "robust_correct")


@dataclass(frozen=True)
class EpochMetrics:
    """Means over one epoch's training batches; accuracies in [0, 1], eps as at the epoch's last step."""

    epoch: int
    eps: float
    learning_rate: float
    loss: float
    robust_loss: float
    regulariser: float
    l1: float
    natural_accuracy: float
    robust_accuracy: float
    seconds: float
    images_per_second: float

    def as_row(self) -> dict[str, float]:
        """Return the metrics by name."""
        return asdict(self)


class EpochRecord:
    """The parts of the loss at each step of one epoch; nothing is copied from the device until it is looked at.

    Parameters
    ----------
    parts
        (steps, parts) to write into; zeros, or those of an epoch that was interrupted.
    """

    def __init__(self, parts: Tensor) -> None:
        self.parts = parts

    @classmethod
    def empty(cls, steps: int, device: torch.device) -> "EpochRecord":
        """For an epoch that begins."""
        return cls(torch.zeros(steps, len(_PARTS), device=device))

    def add(self, step: int, loss: StepLoss) -> None:
        """Note step `step`, from 0."""
        self.parts[step] = torch.stack([getattr(loss, name).detach() for name in _PARTS])

    def check(self, epoch: int, epsilons: Sequence[float]) -> None:
        """Stop at the first step whose loss is not finite.

        Parameters
        ----------
        epoch
            For the message.
        epsilons
            eps at each step that is done.

        Raises
        ------
        SabrError
            Names epoch, step, eps and the parts of the loss.
        """
        done = self.parts[: len(epsilons)].cpu()
        bad = torch.nonzero(~done.isfinite().all(1))
        if len(bad):
            step = int(bad[0])
            parts = ", ".join(f"{name} {float(done[step, column]):.4g}" for column, name in enumerate(_PARTS[:3]))
            raise SabrError(
                f"training diverged in epoch {epoch}, step {step + 1}, at eps {epsilons[step]:.6g}: the loss is not "
                f"finite ({parts}); lower training.learning_rate, lengthen the ramp, or set the method's gradient_clip"
            )

    def metrics(self, epoch: int, eps: float, rate: float, batch_size: int, seconds: float) -> EpochMetrics:
        """Means over the whole epoch."""
        mean = dict(zip(_PARTS, self.parts.double().mean(0).tolist(), strict=True))
        return EpochMetrics(
            epoch=epoch,
            eps=eps,
            learning_rate=rate,
            loss=mean["robust"] + mean["regulariser"] + mean["l1"],
            robust_loss=mean["robust"],
            regulariser=mean["regulariser"],
            l1=mean["l1"],
            natural_accuracy=mean["natural_correct"],
            robust_accuracy=mean["robust_correct"],
            seconds=seconds,
            images_per_second=len(self.parts) * batch_size / seconds,
        )
