"""The one training loop."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from sabr.data.batches import TrainingBatches, evaluation_images, held_out
from sabr.data.datasets import Split
from sabr.errors import SabrError, ToBeContinued
from sabr.networks.affine import clean_pass
from sabr.networks.architectures import Network
from sabr.provenance import child_seed
from sabr.settings import DATASETS, Dataset
from sabr.specs import TrainingSpec
from sabr.training.metrics import EpochMetrics, EpochRecord
from sabr.training.schedules import EpsRamp, learning_rate
from sabr.training.state import State
from sabr.training.step import initial_network, step_loss

# So many steps pass before a loss that is not finite is noticed at the latest: to look costs a GPU a pause.
_CHECK_EVERY = 50


@dataclass(frozen=True)
class Progress:
    """Where training is: after step `step` of `steps`; `metrics` is set after the last step of an epoch."""

    step: int
    steps: int
    epoch: int
    eps: float
    metrics: EpochMetrics | None


class Trained(NamedTuple):
    """The network after the last epoch, in evaluation mode, and the metrics of every epoch."""

    network: Network
    history: list[EpochMetrics]


def train(
    spec: TrainingSpec,
    split: Split,
    *,
    device: torch.device,
    report: Callable[[Progress], None],
    state: State | None = None,
    save: Callable[[State], None] | None = None,
    save_seconds: float = float("inf"),
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train one network; equal specifications give equal weights on one machine and thread count.

    Whether it runs through or is stopped and continued from its states any number of times makes no difference to the
    weights, bit for bit. On a GPU both hold with `spec.deterministic` only.

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
    state
        Where to go on from; None: from the start.
    save
        Called with the state after each epoch, and whenever `save_seconds` have passed since. The state's tensors are
        those that are being trained: write or copy them before returning.
    save_seconds
        How long may be lost when the process is killed.
    stop
        Asked after each step; if true, the state is saved and training ends.

    Raises
    ------
    ToBeContinued
        When `stop` said so.
    SabrError
        When the loss is not finite (says where), or when there are fewer images than asked for.
    """
    dataset = DATASETS[spec.dataset]
    used = _subset(split, spec, dataset)
    batches = TrainingBatches(used, dataset, spec.batch_size, seed=child_seed(spec.seed, "order"), device=device)
    generator = torch.Generator(device).manual_seed(child_seed(spec.seed, "attack"))
    network = initial_network(spec, device)
    optimiser = torch.optim.Adam(network.parameters(), lr=spec.learning_rate, fused=True)
    ramp = EpsRamp(spec.eps, spec.ramp_start, spec.ramp_end, len(batches))
    history: list[EpochMetrics] = []
    first_epoch, done, seconds = 1, 0, 0.0
    record = EpochRecord.empty(len(batches), device)
    if state is not None:
        network.load_state_dict(state.network)
        optimiser.load_state_dict(state.optimiser)
        batches.restore(state.order)
        generator.set_state(state.attack)
        record.parts.copy_(state.parts)
        history = [EpochMetrics(**row) for row in state.history]  # type: ignore[arg-type]
        first_epoch, done, seconds = state.epoch, state.step, state.seconds
    saved = time.monotonic()

    for epoch in range(first_epoch, spec.epochs + 1):
        rate = learning_rate(spec.learning_rate, spec.learning_rate_drops, spec.learning_rate_factor, epoch)
        for group in optimiser.param_groups:
            group["lr"] = rate
        started = time.perf_counter() - seconds
        order = batches.state()
        epsilons = [ramp.at(epoch * len(batches) + step) for step in range(len(batches))]
        for step, (images, labels) in enumerate(batches.epoch(skip=done), start=done):
            loss = step_loss(network, images, labels, epsilons[step], spec, generator)
            optimiser.zero_grad()
            loss.total.backward()  # type: ignore[no-untyped-call]
            if spec.method.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(network.parameters(), spec.method.gradient_clip, foreach=True)
            optimiser.step()
            record.add(step, loss)
            done = step + 1
            last = done == len(batches)
            stopping = stop() and not (last and epoch == spec.epochs)
            saving = save is not None and (stopping or last or time.monotonic() - saved >= save_seconds)
            if saving or last or stopping or done % _CHECK_EVERY == 0:
                record.check(epoch, epsilons[:done])
            if last:
                seconds = time.perf_counter() - started
                history.append(record.metrics(epoch, epsilons[step], rate, spec.batch_size, seconds))
            at = (epoch - 1) * len(batches) + done
            report(Progress(at, spec.epochs * len(batches), epoch, epsilons[step], history[-1] if last else None))
            if saving and save is not None:
                rows = [metrics.as_row() for metrics in history]
                running = (epoch + 1, 0, batches.state()) if last else (epoch, done, order)
                spent = 0.0 if last else time.perf_counter() - started
                _refuse_bad_weights(network, epoch, done)
                save(
                    State(
                        *running[:2],
                        network.state_dict(),
                        optimiser.state_dict(),
                        running[2],
                        generator.get_state(),
                        record.parts,
                        rows,
                        spent,
                    )
                )
                saved = time.monotonic()
            if stopping:
                raise ToBeContinued(f"stopped after step {done} of epoch {epoch}")
        done, seconds = 0, 0.0
    if spec.batch_norm_statistics == "population":
        recompute_statistics(network, used, dataset, spec.batch_size, device)
    return Trained(network.eval(), history)


def recompute_statistics(
    network: Network, split: Split, dataset: Dataset, batch_size: int, device: torch.device
) -> None:
    """Replace the running statistics by the mean of the batches' statistics over all images, not augmented, in order.

    The population statistics of CTBench, and what `torch.optim.swa_utils.update_bn` computes.
    """
    count = len(split.labels) // batch_size
    with torch.no_grad():
        for index in range(count):
            rows = slice(index * batch_size, (index + 1) * batch_size)
            images, _ = evaluation_images(split, dataset, rows, device)
            clean_pass(network, images, momentum=1 / (index + 1))


def _refuse_bad_weights(network: Network, epoch: int, step: int) -> None:
    if not all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
        raise SabrError(
            f"training diverged in epoch {epoch}, step {step}: the loss is finite, but a weight is not any more; "
            "lower training.learning_rate, or set the method's gradient_clip"
        )


def _subset(split: Split, spec: TrainingSpec, dataset: Dataset) -> Split:
    rest = split if spec.validation_images is None else held_out(split, spec.validation_images).rest
    available = len(rest.labels)
    count = spec.train_images or dataset.train_images - (spec.validation_images or 0)
    if count > available:
        raise SabrError(
            f"{count} training images are asked for, but only {available} of {dataset.name} are here; "
            "set training.train_images, or fetch the complete dataset"
        )
    if count == available:
        return rest
    generator = torch.Generator().manual_seed(child_seed(0, "subset"))
    chosen = torch.randperm(available, generator=generator)[:count].sort().values
    return Split(rest.images[chosen], rest.labels[chosen])
