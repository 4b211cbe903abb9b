"""The one training loop."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sabr.data.batches import TrainingBatches
from sabr.data.datasets import Split
from sabr.errors import SabrError
from sabr.networks.affine import clean_pass
from sabr.networks.architectures import Network, build
from sabr.networks.initialisation import initialise_for_intervals
from sabr.provenance import child_seed
from sabr.settings import ARCHITECTURES, DATASETS
from sabr.specs import TrainingSpec
from sabr.training.methods.base import Batch, Objective
from sabr.training.objectives import evaluate
from sabr.training.regularisers import l1_norm, warmup_regulariser
from sabr.training.schedules import EpsRamp, learning_rate


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


@dataclass(frozen=True)
class Progress:
    """Where training is: after step `step` of `steps`; `metrics` is set after the last step of an epoch."""

    step: int
    steps: int
    epoch: int
    eps: float
    metrics: EpochMetrics | None


@dataclass(frozen=True)
class StepLoss:
    """The parts of one step's loss, each a scalar tensor; `total` is what is minimised."""

    robust: Tensor
    regulariser: Tensor
    l1: Tensor
    natural_correct: Tensor
    robust_correct: Tensor

    @property
    def total(self) -> Tensor:
        """Robust loss plus regularisers."""
        return self.robust + self.regulariser + self.l1


def step_loss(
    network: Network, images: Tensor, labels: Tensor, eps: float, spec: TrainingSpec, generator: torch.Generator
) -> StepLoss:
    """Compute the loss of one batch: clean pass, method, warm-up regulariser, L1 (paper, appendix C).

    Parameters
    ----------
    network
        Its running statistics move, its gradients do not.
    images, labels
        (N, channels, height, width) in [0, 1], and (N,).
    eps
        Current radius, in pixel units.
    spec
        Method, weights, and the eps at which the warm-up ends.
    generator
        Source of the attack's random starts.
    """
    clean = clean_pass(network, images)
    objective = evaluate(spec.method, Batch(network, images, labels, eps, eps / spec.eps, clean, generator))
    zero = torch.zeros((), device=images.device)
    return StepLoss(
        robust=objective.losses.mean(),
        regulariser=_warmup(objective, eps, spec) if eps < spec.eps else zero,
        l1=spec.method.l1 * l1_norm(network.parameters()) if spec.method.l1 else zero,
        natural_correct=(clean.logits.detach().argmax(1) == labels).float().mean(),
        robust_correct=objective.correct.float().mean(),
    )


def initial_network(spec: TrainingSpec, device: torch.device) -> Network:
    """Build the untrained network of a specification, its weights drawn from the specification's seed."""
    seed = child_seed(spec.seed, "weights")
    network = build(ARCHITECTURES[spec.architecture], DATASETS[spec.dataset], seed=seed)
    if spec.method.initialisation == "intervals":
        initialise_for_intervals(network, seed=seed)
    return network.to(device)


def train(
    spec: TrainingSpec, split: Split, *, device: torch.device, report: Callable[[Progress], None]
) -> tuple[Network, list[EpochMetrics]]:
    """Train one network; equal specifications give equal weights on one machine and thread count.

    Parameters
    ----------
    spec
        What to train.
    split
        All training images; with `spec.train_images` a random subset, the same for every method and seed.
    device
        Where to compute.
    report
        Called after each step; costs no synchronisation with the device but at the end of an epoch.

    Returns
    -------
    Network, list of EpochMetrics
        The network after the last epoch, in evaluation mode, and one entry per epoch.

    Raises
    ------
    SabrError
        When the loss is not finite (says where), or when there are fewer images than asked for.
    """
    dataset = DATASETS[spec.dataset]
    used = _subset(split, spec.train_images or dataset.train_images, spec.dataset)
    batches = TrainingBatches(used, dataset, spec.batch_size, seed=child_seed(spec.seed, "order"), device=device)
    generator = torch.Generator(device).manual_seed(child_seed(spec.seed, "attack"))
    network = initial_network(spec, device)
    optimiser = torch.optim.Adam(network.parameters(), lr=spec.learning_rate)
    ramp = EpsRamp(spec.eps, spec.ramp_start, spec.ramp_end, len(batches))
    history: list[EpochMetrics] = []
    for epoch in range(1, spec.epochs + 1):
        rate = learning_rate(spec.learning_rate, spec.learning_rate_drops, spec.learning_rate_factor, epoch)
        for group in optimiser.param_groups:
            group["lr"] = rate
        started = time.perf_counter()
        sums: dict[str, Tensor] = {}
        for step, eps, images, labels in _steps_of(epoch, batches, ramp):
            loss = step_loss(network, images, labels, eps, spec, generator)
            optimiser.zero_grad()
            loss.total.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            _add(sums, loss)
            if step < len(batches) - 1:
                report(Progress((epoch - 1) * len(batches) + step + 1, spec.epochs * len(batches), epoch, eps, None))
        seconds = time.perf_counter() - started
        metrics = _metrics(epoch, eps, rate, sums, len(batches), spec.batch_size, seconds)
        history.append(metrics)
        report(Progress(epoch * len(batches), spec.epochs * len(batches), epoch, eps, metrics))
    return network.eval(), history


def _subset(split: Split, count: int, dataset: str) -> Split:
    available = len(split.labels)
    if count > available:
        raise SabrError(
            f"{count} training images are asked for, but only {available} of {dataset} are here; "
            "set training.train_images, or fetch the complete dataset"
        )
    if count == available:
        return split
    generator = torch.Generator().manual_seed(child_seed(0, "subset"))
    chosen = torch.randperm(available, generator=generator)[:count].sort().values
    return Split(split.images[chosen], split.labels[chosen])


def _steps_of(epoch: int, batches: TrainingBatches, ramp: EpsRamp) -> Iterator[tuple[int, float, Tensor, Tensor]]:
    for step, (images, labels) in enumerate(batches.epoch()):
        yield step, ramp.at(epoch * len(batches) + step), images, labels


def _warmup(objective: Objective, eps: float, spec: TrainingSpec) -> Tensor:
    weight = getattr(spec.method, "warmup_weight", 0.0)
    if objective.bounds is None or weight == 0:
        return torch.zeros((), device=objective.losses.device)
    return weight * (1 - eps / spec.eps) * warmup_regulariser(*objective.bounds)


def _add(sums: dict[str, Tensor], loss: StepLoss) -> None:
    for name, value in vars(loss).items():
        sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach()


def _metrics(
    epoch: int, eps: float, rate: float, sums: dict[str, Tensor], steps: int, batch_size: int, seconds: float
) -> EpochMetrics:
    mean = {name: float(value) / steps for name, value in sums.items()}
    loss = mean["robust"] + mean["regulariser"] + mean["l1"]
    if not -float("inf") < loss < float("inf"):
        parts = ", ".join(f"{name} {mean[name]:.4g}" for name in ("robust", "regulariser", "l1"))
        raise SabrError(
            f"training diverged: the mean loss of epoch {epoch} (eps {eps:.6g}) is not finite ({parts}); "
            "lower training.learning_rate or lengthen the ramp"
        )
    return EpochMetrics(
        epoch=epoch,
        eps=eps,
        learning_rate=rate,
        loss=loss,
        robust_loss=mean["robust"],
        regulariser=mean["regulariser"],
        l1=mean["l1"],
        natural_accuracy=mean["natural_correct"],
        robust_accuracy=mean["robust_correct"],
        seconds=seconds,
        images_per_second=steps * batch_size / seconds,
    )
