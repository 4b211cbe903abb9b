"""Seconds a training step, in units of one plain forward pass of the same network (the yardstick Y).

    python benchmarks/training.py --dataset mnist --threads 2

    python benchmarks/training.py --scale quick --threads 1 --methods ibp sabr mtl-ibp

Steps of all methods and the yardstick are measured in turns in one process, so that a noisy machine slows all of them;
"CPU Y" is the same ratio in CPU seconds, which what else runs on the machine hardly changes (with one thread: threads
that wait for each other count too). "loop" is what the loop does for a step beside the step itself. Peak memory is that
of a process which takes a few steps of one method alone. Network and hyper-parameters are those of the scale.
"""

import argparse
import io
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from sabr.data.batches import TrainingBatches
from sabr.data.datasets import Split
from sabr.kernels import compile_kernels
from sabr.layers import read_yaml
from sabr.machine import use
from sabr.networks.affine import as_module, folded_steps
from sabr.networks.steps import ScaleStep
from sabr.plan import resolve
from sabr.settings import DATASETS
from sabr.specs import TrainingSpec
from sabr.training.metrics import EpochRecord
from sabr.training.progress import progress
from sabr.training.step import StepLoss, initial_network, step_loss
from sabr.training.trainer import Progress

ROOT = Path(__file__).parents[1]
SETTINGS = {"mnist": "mnist-eps-0.1", "cifar10": "cifar10-eps-2_255", "tinyimagenet": "tinyimagenet-eps-1_255"}
METHODS = ["standard", "pgd", "ibp", "sabr", "crown-ibp", "mtl-ibp", "cc-ibp", "exp-ibp", "taps", "staps"]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=SETTINGS, default="mnist")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["pgd", "ibp", "sabr"])
    parser.add_argument("--phase", choices=["ramp", "end"], default="ramp", help="half-way up the ramp, or after it")
    parser.add_argument("--scale", default="paper", help="a name in config/scales; paper: CNN7")
    parser.add_argument("--batch-size", type=int, help="default: the scale's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7, help="medians are over so many turns")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="compile the kernels")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not measure peak memory")
    parser.add_argument("--steps-of", choices=METHODS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = use(asked.threads, asked.device)
    compiled = asked.compile and compile_kernels()
    specs = {name: spec for name, spec in specifications(asked.dataset, asked.scale, asked.batch_size)}
    batch_size, network = specs["ibp"].batch_size, specs["ibp"].architecture
    split = random_images(asked.dataset, 4 * batch_size)
    if asked.steps_of:
        step = stepper(specs[asked.steps_of], split, asked.phase, device)
        for _ in range(3):
            step()
        print(peak_memory(device))
        return
    # First of all: a process inherits its parent's peak.
    memory = {name: memory_of(name) for name in asked.methods} if asked.memory else {}
    runs: dict[str, Callable[[], None]] = {"Y": yardstick(specs["ibp"], split, device)}
    runs["loop"] = housekeeping(specs["ibp"], random_images(asked.dataset, 32 * batch_size), device)
    runs |= {name: stepper(specs[name], split, asked.phase, device) for name in asked.methods}
    times = in_turns(runs, asked.rounds, device)
    table = Table(
        title=f"{network}, {asked.dataset} shape, {asked.phase}, batch {batch_size}, {asked.threads} threads"
        f"{', compiled' if compiled else ''}"
    )
    for column in ("", "s/step", "images/s", "Y", "CPU Y", "peak MB"):
        table.add_column(column, justify="right")
    for name, (taken, cpu) in times.items():
        ratios = (f"{taken / times['Y'].clock:.2f}", f"{cpu / times['Y'].cpu:.2f}")
        table.add_row(name, f"{taken:.4f}", f"{batch_size / taken:.0f}", *ratios, memory.get(name, ""))
    Console().print(table)


def specifications(dataset: str, scale: str, batch_size: int | None) -> Iterator[tuple[str, TrainingSpec]]:
    """Every method at a scale."""
    changes = {
        "scale": scale,
        "overrides": {
            "run": {"settings": [SETTINGS[dataset]], "methods": METHODS, "lambda_sweep": None, "comparisons": {}},
            "training": {} if batch_size is None else {"batch_size": batch_size},
        },
    }
    plan = resolve(read_yaml(ROOT / "config/config.yaml") | changes, ROOT / "config")
    for row in plan.main:
        yield row.method, row.training


def random_images(dataset: str, count: int) -> Split:
    """Random images and labels: a step costs the same whatever they show."""
    known, generator = DATASETS[dataset], torch.Generator().manual_seed(0)
    shape = (count, known.channels, known.stored_size, known.stored_size)
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(known.classes, (count,), generator=generator))


def stepper(spec: TrainingSpec, split: Split, phase: str, device: torch.device) -> Callable[[], None]:
    """A function that takes one whole step of training, data and metrics included.

    All labels are 0, and the network is sure of it: an attack that had misled it on all images would stop early.
    """
    labels = torch.zeros_like(split.labels)
    batches = TrainingBatches(
        Split(split.images, labels), DATASETS[spec.dataset], spec.batch_size, seed=0, device=device
    )
    network = initial_network(spec, device)
    with torch.no_grad():
        list(network.parameters())[-1][0] += 20  # the bias of the last layer
    optimiser = torch.optim.Adam(network.parameters(), lr=spec.learning_rate, fused=True)
    generator = torch.Generator(device).manual_seed(0)
    record = EpochRecord.empty(1, device)
    eps = spec.eps if phase == "end" else spec.eps / 2
    source = numbered(batches)

    def step() -> None:
        _, (images, labels) = next(source)
        loss = step_loss(network, images, labels, eps, spec, generator)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        record.add(0, loss)

    return step


def yardstick(spec: TrainingSpec, split: Split, device: torch.device) -> Callable[[], None]:
    """One evaluation pass by torch's own layers: batch norm folded, no gradients, channels-last, the same batch."""
    network = initial_network(spec, device)
    dataset = DATASETS[spec.dataset]
    images, _ = next(TrainingBatches(split, dataset, spec.batch_size, seed=0, device=device).epoch())
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        steps = folded_steps(network)
    first = [network[0]] if isinstance(steps[0], ScaleStep) else []  # the normalisation
    plain = torch.nn.Sequential(*first, as_module(steps[len(first) :])).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def run() -> None:
        plain(images)

    return run


def housekeeping(spec: TrainingSpec, split: Split, device: torch.device) -> Callable[[], None]:
    """What the training loop does beside its steps: data, metrics, log; with an epoch as short as `split`."""
    batches = TrainingBatches(split, DATASETS[spec.dataset], spec.batch_size, seed=0, device=device)
    loss = StepLoss(*torch.ones(5, device=device))
    source = numbered(batches)
    record = EpochRecord.empty(len(batches), device)
    silent = io.StringIO()
    with redirect_stderr(silent), progress("benchmark", 1) as report:  # a log, not a bar: it outlives its context
        pass

    def run() -> None:
        step, _ = next(source)
        record.add(step, loss)
        metrics = None
        if step + 1 == len(batches):
            record.check(1, [spec.eps] * len(batches))
            metrics = record.metrics(1, spec.eps, spec.learning_rate, spec.batch_size, 1.0)
        with redirect_stderr(silent):
            report(Progress(step + 1, len(batches), 1, spec.eps, metrics))

    return run


def numbered(batches: TrainingBatches) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Batches for ever, each with its number in its epoch."""
    while True:
        yield from enumerate(batches.epoch())


class Times(NamedTuple):
    """Seconds by the clock, and of CPU time."""

    clock: float
    cpu: float


def in_turns(runs: dict[str, Callable[[], None]], rounds: int, device: torch.device) -> dict[str, Times]:
    """Medians of each, after a warm-up of two turns."""
    taken: dict[str, list[Times]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            started = Times(time.perf_counter(), time.process_time())
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn >= 2:
                taken[name].append(Times(time.perf_counter() - started.clock, time.process_time() - started.cpu))
    return {name: Times(*map(statistics.median, zip(*times, strict=True))) for name, times in taken.items()}


def memory_of(method: str) -> str:
    """Peak memory in MB of a process that takes three steps of one method."""
    command = [sys.executable, __file__, *sys.argv[1:], "--steps-of", method]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]


def peak_memory(device: torch.device) -> int:
    """Peak memory in MB: on a GPU of its tensors, else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device)) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
