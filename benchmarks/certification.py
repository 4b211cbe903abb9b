"""Bounds and cascade: seconds an image, against auto_LiRPA and against the complete verifier alone.

    python benchmarks/certification.py bounds results/quick/mnist/eps-0.1/sabr/seed-1/model.pt --threads 2
    python benchmarks/certification.py cascade results/quick/mnist/eps-0.1/sabr/seed-1/model.pt --images 1000
    python benchmarks/certification.py memory --dataset cifar10 --memory-mb 2000

`bounds` measures CROWN (all inner bounds by CROWN) and alpha-CROWN in turns with auto_LiRPA's, which gets the same
slopes to optimise: those of the last backward pass. Medians after one warm-up. auto_LiRPA gets batches of
`--library-batch` images (it bounds what is unstable in any image of a batch in all of them: small batches are faster,
and 16 images of a narrow CNN7 take more than 24 GB). "Until proved" optimises each margin until it is proved, which is
at once for those that CROWN proves, or hardly rises any more, as the cascade does with those that it finds open; "up to
auto_LiRPA's" until its bound is above the one that auto_LiRPA found for it. `cascade` takes images that are classified
correctly through the default scale's stages, parts of them and several shards to see growth, and some of them alone
through the complete verifier. `memory` bounds images of a CNN7 with random weights.
"""

import argparse
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sabr.bounds.auto_lirpa import BoundedNetwork
from sabr.bounds.boxes import Box, ball
from sabr.bounds.crown import crown_margins
from sabr.bounds.dual import lines_of, start_of
from sabr.bounds.inner import crown_inputs
from sabr.bounds.interval import margin_rows, propagate
from sabr.bounds.optimise import optimise
from sabr.bounds.rows import at_a_time
from sabr.bounds.unrolled import bytes_of_a_query, unroll_each
from sabr.certification.cascade import StageRecord, account, certify
from sabr.certification.engines import LEAST_GAIN, NativeEngine
from sabr.certification.verdicts import Verdict
from sabr.data.batches import evaluation_images
from sabr.data.datasets import load
from sabr.kernels import compile_if
from sabr.layers import read_yaml
from sabr.machine import use
from sabr.networks import checkpoints
from sabr.networks.affine import folded_steps
from sabr.networks.architectures import build
from sabr.networks.initialisation import initialise_for_intervals
from sabr.networks.steps import Step, forward
from sabr.plan import resolve
from sabr.settings import ARCHITECTURES, DATASETS
from sabr.specs import CertificationSpec

ROOT = Path(__file__).parents[1]
MEMORY = 2 * 10**9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["bounds", "cascade", "memory"])
    parser.add_argument("model", nargs="?", type=Path, help="checkpoint")
    parser.add_argument("--dataset", choices=list(DATASETS), default="cifar10", help="of `memory`")
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--setting", default="mnist-eps-0.1")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--alone", type=int, default=20, help="images that go alone to the complete verifier")
    parser.add_argument("--iterations", type=int, default=20, help="of alpha-CROWN")
    parser.add_argument("--rate", type=float, default=0.25, help="of alpha-CROWN, ours and auto_LiRPA's")
    parser.add_argument("--library-batch", type=int, default=64, help="images that auto_LiRPA gets at a time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile our kernels")
    parser.add_argument("--memory-mb", type=int, default=2000)
    asked = parser.parse_args()
    use(asked.threads, "cpu")
    compiled = compile_if(asked.compile)
    if asked.what == "memory":
        return memory(asked.dataset, asked.memory_mb)
    if asked.model is None:
        parser.error("a checkpoint is needed")
    network, about = checkpoints.load(asked.model)
    with torch.no_grad():
        steps = folded_steps(network)
    dataset = DATASETS[about["dataset"]]
    spec = specification(asked.setting)
    split = load(dataset, asked.data, "test")
    images, labels = evaluation_images(split, dataset, slice(0, asked.images), torch.device("cpu"))
    name = f"{about['architecture']}, {about['dataset']}, eps {spec.eps:g}, {asked.threads} threads"
    name += ", compiled" * compiled
    if asked.what == "bounds":
        box, batch = ball(images, spec.eps), asked.library_batch
        bounds(steps, box, labels, asked.iterations, asked.rate, asked.rounds, batch, name)
    else:
        cascade(steps, images, labels, spec, asked.alone, name)


def specification(setting: str) -> CertificationSpec:
    """How the default scale certifies a setting."""
    asked = {"settings": [setting], "methods": ["sabr"], "lambda_sweep": None, "comparisons": {}}
    plan = resolve(read_yaml(ROOT / "config/config.yaml") | {"overrides": {"run": asked}}, ROOT / "config")
    return plan.main[0].certification


def bounds(
    steps: list[Step], box: Box, labels: Tensor, iterations: int, rate: float, rounds: int, batch: int, name: str
) -> None:
    """CROWN and alpha-CROWN, ours and auto_LiRPA's, in turns."""
    library = BoundedNetwork(steps, box.lower.shape[1:], alpha_iterations=iterations, alpha_rate=rate)
    ours = partial(alpha_crown, steps, box, labels, iterations, rate)

    def theirs(method: str) -> Tensor:
        parts = zip(*(torch.split(t, batch) for t in (box.lower, box.upper, labels)), strict=True)
        return torch.cat([library.margin_lower_bounds(Box(*ends), own, method=method).detach() for *ends, own in parts])

    runs: dict[str, Callable[[], Tensor]] = {
        "CROWN, native": lambda: crown(steps, box, labels),
        "CROWN, auto_LiRPA": lambda: theirs("crown"),
        "alpha-CROWN, auto_LiRPA": lambda: theirs("alpha-crown"),
        "alpha-CROWN, native, all iterations": lambda: ours(float("inf")),
        "alpha-CROWN, native, while bounds rise": lambda: ours(float("inf"), least_gain=LEAST_GAIN),
        "alpha-CROWN, native, up to auto_LiRPA's": lambda: ours(found["alpha-CROWN, auto_LiRPA"]),
        "alpha-CROWN, native, until proved": lambda: ours(0.0, least_gain=LEAST_GAIN),
    }
    taken: dict[str, list[float]] = {key: [] for key in runs}
    found: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        for key, run in runs.items():
            started = time.perf_counter()
            found[key] = run()
            if turn:
                taken[key].append(time.perf_counter() - started)
    seconds = {key: statistics.median(times) for key, times in taken.items()}
    table = Table(title=f"{len(labels)} images, {name}")
    for column in ("", "s", "ms/image", "times faster", "mean margin", "proved"):
        table.add_column(column, justify="right")
    for key, value in seconds.items():
        other = seconds[key.split(",")[0] + ", auto_LiRPA"]
        margins = found[key]
        table.add_row(
            key,
            f"{value:.2f}",
            f"{1000 * value / len(labels):.1f}",
            f"{other / value:.1f}",
            f"{float(margins.mean()):.4f}",
            f"{float((margins > 0).all(1).float().mean()):.1%}",
        )
    Console(width=140).print(table)


@torch.no_grad()
def crown(steps: list[Step], box: Box, labels: Tensor) -> Tensor:
    """CROWN with CROWN's inner bounds."""
    inner = crown_inputs(steps[:-1], box, propagate(steps[:-1], box).relu_inputs, memory=MEMORY)
    return crown_margins(steps, box, inner, labels, memory=MEMORY)


@torch.no_grad()
def alpha_crown(
    steps: list[Step],
    box: Box,
    labels: Tensor,
    iterations: int,
    rate: float,
    target: float | Tensor,
    least_gain: float | None = None,
) -> Tensor:
    """Optimised slopes of the last backward pass, until above the target, as the engine does; CROWN's inner bounds."""
    inner = crown_inputs(steps[:-1], box, propagate(steps[:-1], box).relu_inputs, memory=MEMORY)
    rows = margin_rows(steps[-1], labels)
    lower = torch.empty_like(rows[1])
    target = torch.as_tensor(target).expand_as(lower)
    unstable = [int(((b.lower < 0) & (b.upper > 0)).flatten(1).sum(1).amax()) for b in inner]
    each = bytes_of_a_query(steps[:-1], box.lower.shape[1:], unstable, rows[1])
    pairs = torch.nonzero(torch.ones_like(lower, dtype=torch.bool))
    for image, margin in (part.unbind(1) for part in torch.split(pairs, at_a_time(each, MEMORY)) if len(part)):
        problem = unroll_each(steps[:-1], box, *rows, inner, image, margin)
        lines, own = lines_of(problem), target[image, margin].unsqueeze(1)
        options = {"iterations": iterations, "rate": rate, "target": own, "least_gain": least_gain}
        found = optimise(problem, lines, start_of(problem, lines), **options)
        lower[image, margin] = found.passed.lower.squeeze(1)
    return lower


def cascade(steps: list[Step], images: Tensor, labels: Tensor, spec: CertificationSpec, alone: int, name: str) -> None:
    """The stages on all images, on parts of them, in several shards, and the complete verifier alone on some."""
    with torch.no_grad():
        right = torch.nonzero(forward(steps, images).argmax(1) == labels).flatten()
    images, labels = images[right], labels[right]
    free = spec.model_copy(update={"shard_minutes": None})
    whole, records, verdicts = run(steps, images, labels, free)
    only = free.model_copy(update={"stages": ("complete",)})
    chosen = torch.linspace(0, len(images) - 1, min(alone, len(images))).long()
    single = sum(run(steps, images[i : i + 1], labels[i : i + 1], only)[0] for i in chosen.tolist())
    table = Table(title=f"Cascade, {len(images)} images, {name}")
    for column in ("stage", "entered", "certified", "refuted", "unknown", "s", "images/s", "share of time"):
        table.add_column(column, justify="right")
    for stage, own in records.items():
        table.add_row(
            stage,
            *(str(n) for n in (own.entered, own.certified, own.refuted, own.unknown)),
            f"{own.seconds:.2f}",
            f"{own.entered / max(own.seconds, 1e-9):.0f}",
            f"{own.seconds / whole:.1%}",
        )
    console = Console(width=140)
    console.print(table)
    certified = [v.seconds for v in verdicts.values() if v.certified_by]
    limits = ", ".join(f"{limit} s: {sum(s <= limit for s in certified) / len(images):.2%}" for limit in (1, 3, 10, 30))
    console.print(f"certified within a limit an image: {limits}")
    growth = Table(title="Growth")
    for column in ("images", "shards", "s", "ms/image"):
        growth.add_column(column, justify="right")
    total = len(images)
    for count, shards in ((total // 4, 1), (total // 2, 1), (total, 1), (total, 2), (total, 4)):
        parts = zip(torch.tensor_split(images[:count], shards), torch.tensor_split(labels[:count], shards), strict=True)
        seconds = sum(run(steps, *part, free)[0] for part in parts)
        growth.add_row(str(count), str(shards), f"{seconds:.2f}", f"{1000 * seconds / count:.2f}")
    console.print(growth)
    rate = single / len(chosen)
    ratio = rate * len(images) / whole
    console.print(
        f"each alone to the complete verifier: {rate:.3f} s an image ({len(chosen)} tried), {ratio:.1f} times"
    )


def run(
    steps: list[Step], images: Tensor, labels: Tensor, spec: CertificationSpec
) -> tuple[float, dict[str, StageRecord], dict[int, Verdict]]:
    """Seconds, what each stage did, and the verdicts."""
    verdicts: dict[int, Verdict] = {}
    started = time.perf_counter()
    seconds: dict[str, float] = defaultdict(float)
    certify(
        steps,
        ball(images.double(), spec.eps),
        labels,
        list(range(len(labels))),
        spec,
        record=verdicts.__setitem__,
        report=lambda line: None,
        spend=lambda stage, taken: seconds.__setitem__(stage, seconds[stage] + taken),
    )
    return time.perf_counter() - started, account(spec.stages, verdicts.values(), seconds), verdicts


def memory(name: str, megabytes: int) -> None:
    """All bounds on two images of a CNN7 with random weights: peak memory beyond what was there before."""
    dataset = DATASETS[name]
    network = build(ARCHITECTURES["cnn7"], dataset, seed=0)
    initialise_for_intervals(network, seed=0)
    network.eval()
    with torch.no_grad():
        steps = folded_steps(network)
    box = ball(torch.rand(2, *dataset.shape, generator=torch.Generator().manual_seed(0)), 1 / 255)
    labels = torch.tensor([0, 1])
    open_ = torch.ones(2, dataset.classes - 1, dtype=torch.bool)
    engine = NativeEngine(steps, iterations=5, rate=0.1, memory=megabytes * 10**6)
    before = peak()
    table = Table(title=f"CNN7 with random weights, {name} shape, memory_mb {megabytes}")
    for column in ("stage", "s", "smallest margin", "peak MB"):
        table.add_column(column, justify="right")
    for stage in ("interval", "crown-ibp", "crown", "alpha-crown"):
        started = time.perf_counter()
        found = engine.margins(stage, box, labels, [0, 1], open_)
        table.add_row(
            stage, f"{time.perf_counter() - started:.1f}", f"{float(found.lower.min()):.3g}", f"{peak() - before:.0f}"
        )
    Console(width=140).print(table)


def peak() -> float:
    """Peak memory of the process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
