"""A shard of images through the stages: bounds from cheap to tight, a strong attack, the complete verifier."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sabr.attacks.search import confirm, rows_within, search
from sabr.bounds.boxes import Box, outwards
from sabr.bounds.cuts import Grouping
from sabr.bounds.interval import margin_rows
from sabr.bounds.rows import unflat
from sabr.certification.attacking import as_rounds
from sabr.certification.branch_and_bound import search as branch_and_bound
from sabr.certification.engines import AutoLirpaEngine, BoundStage, Engine, NativeEngine
from sabr.certification.preparation import Preparation, prepare
from sabr.certification.subproblems import Search, Task
from sabr.certification.verdicts import Verdict
from sabr.errors import SabrError, first_line
from sabr.kernels import uncompiled
from sabr.networks.steps import LinearStep, Step, cast, forward
from sabr.provenance import child_seed
from sabr.specs import Cascade, Stage

# At most so many images does the complete verifier work on together.
_TOGETHER = 16


@dataclass
class StageRecord:
    """What one stage did: images that entered it, that it certified, refuted or gave up; and the seconds it took."""

    entered: int = 0
    certified: int = 0
    refuted: int = 0
    unknown: int = 0
    seconds: float = 0.0


@dataclass
class Shard:
    """Images on their way through the stages.

    Attributes
    ----------
    steps
        A folded network that ends in a linear layer, without gradients.
    exact_region, labels
        (N, ...) boxes in float64, one for each image, and (N,).
    numbers
        Each image's place in the test set.
    spec
        How to certify.
    record, spend
        Called with an image's number and its verdict as it falls, and with a stage and the seconds of a batch.
    best, proved
        (N, K-1) the best lower bound of each margin, and whether it is proved to be positive.
    open, certified, refuted
        (N,) what became of each; none of them: given up.
    seconds
        (N,) each image's share of the time so far.
    """

    steps: list[Step]
    exact_region: Box
    labels: Tensor
    numbers: list[int]
    spec: Cascade
    record: Callable[[int, Verdict], None]
    spend: Callable[[Stage, float], None]
    stop: Callable[[], bool]
    best: Tensor = field(init=False)
    proved: Tensor = field(init=False)
    open: Tensor = field(init=False)
    seconds: Tensor = field(init=False)
    certified: Tensor = field(init=False)
    refuted: Tensor = field(init=False)

    def __post_init__(self) -> None:
        last = self.steps[-1]
        if not isinstance(last, LinearStep):
            raise TypeError(f"margins need a network that ends in a linear layer, not in {type(last).__name__}")
        self.last = last
        count, device = len(self.labels), self.labels.device
        self.best = torch.full((count, len(last.bias) - 1), -torch.inf, device=device)
        self.proved = torch.zeros_like(self.best, dtype=torch.bool)
        self.open = torch.ones(count, dtype=torch.bool, device=device)
        self.certified, self.refuted = torch.zeros(2, count, dtype=torch.bool, device=device)
        self.seconds = torch.zeros(count, dtype=torch.float64)
        self.region = outwards(self.exact_region)
        self.doubled, self.steps = cast(self.steps, torch.float64), cast(self.steps, torch.float32)

    def waiting(self) -> list[int]:
        """Places of the images that are open."""
        return torch.nonzero(self.open).flatten().tolist()

    def part(self, places: Tensor) -> Box:
        """The regions of some images."""
        return Box(self.region.lower[places], self.region.upper[places])

    def confirmed(self, places: Tensor, points: Tensor) -> Tensor:
        """Which of the points (P, ...) refute their images, by a plain forward pass in float64."""
        part = Box(self.exact_region.lower[places], self.exact_region.upper[places])
        return confirm(lambda x: forward(self.doubled, x), part, points, self.labels[places])

    def count(self) -> tuple[int, int, int]:
        """How many images are certified, refuted, given up."""
        closed, certified, refuted = (int(t.sum()) for t in (~self.open, self.certified, self.refuted))
        return certified, refuted, closed - certified - refuted

    def close(
        self, place: int, stage: Stage, point: Tensor | None = None, reason: str = "", subproblems: int = 0
    ) -> None:
        """Record what is known of an image now: certified if there is neither point nor reason."""
        self.open[place] = False
        certified = point is None and not reason
        self.certified[place], self.refuted[place] = certified, point is not None
        if point is not None:
            point = Box(self.exact_region.lower[place], self.exact_region.upper[place]).clamp(point.double())
        margin = float(self.best[place].min())
        verdict = Verdict(
            certified_by=stage if certified else "",
            refuted_by=stage if point is not None else "",
            reason=reason,
            margin_lower_bound=margin if margin > -float("inf") else None,
            subproblems=subproblems,
            seconds=float(self.seconds[place]),
            point=None if point is None else point.cpu(),
        )
        self.record(self.numbers[place], verdict)


def certify(
    steps: Sequence[Step],
    regions: Box,
    labels: Tensor,
    numbers: Sequence[int],
    spec: Cascade,
    *,
    record: Callable[[int, Verdict], None],
    report: Callable[[str], None],
    spend: Callable[[Stage, float], None] = lambda stage, seconds: None,
) -> None:
    """Take images that are classified correctly and resist the quick attack through the stages.

    Each stage takes only what is still open, and of that only the margins that are; a verdict is recorded as it falls.
    Afterwards every certified image belongs before `control`.

    Parameters
    ----------
    steps
        A folded network that ends in a linear layer, without gradients. Verdicts are about it as it is given, in
        float32 or float64; bounds are computed in float32, and in float64 where they are too close to 0.
    regions, labels, numbers
        (N, ...) boxes in float64, one for each image, (N,), and each image's place in the test set.
    spec
        Stages and how each of them works.
    record
        Called with an image's number and verdict, once for each image.
    report
        Called with a line of text after each stage.
    spend
        Called with a stage and the seconds that it took for a batch.

    Raises
    ------
    SabrError
        When a region is empty or not finite or no input of the network, or a label none of its classes.
    """
    _refuse_bad_input(steps, regions, labels)
    deadline = float("inf") if spec.shard_minutes is None else time.monotonic() + 60 * spec.shard_minutes
    shard = Shard(list(steps), regions, labels, list(numbers), spec, record, spend, lambda: time.monotonic() > deadline)
    memory = spec.memory_mb * 10**6
    iterations, rate = spec.alpha.iterations, spec.alpha.learning_rate
    native = NativeEngine(shard.doubled, iterations=iterations, rate=rate, memory=memory)
    engine: Engine = native
    if spec.engine == "auto_lirpa":
        engine = AutoLirpaEngine(shard.doubled, iterations=iterations, rate=rate, shape=regions.lower.shape[1:])
    for stage in spec.stages:
        entered, before, started = int(shard.open.sum()), shard.count(), time.perf_counter()
        if entered and not shard.stop():
            if stage == "attack":
                _attack(shard)
            elif stage == "complete":
                _complete(shard, native)
            else:
                _bound(shard, stage, engine)
        certified, refuted, unknown = (now - then for now, then in zip(shard.count(), before, strict=True))
        native.forget(set(torch.nonzero(~shard.open).flatten().tolist()))
        report(
            f"{stage}: of {entered} open {certified} certified, {refuted} refuted, {unknown} given up, "
            f"{time.perf_counter() - started:.1f} s"
        )
    late = "the shard's time is over" if shard.stop() else "no stage proved or refuted it"
    for place in shard.waiting():
        shard.close(place, spec.stages[-1], reason=late)


def account(stages: Sequence[Stage], found: Iterable[Verdict], seconds: Mapping[str, float]) -> dict[str, StageRecord]:
    """What each stage did, by the verdicts on all images that entered the first; what none decided the last gave up.

    Parameters
    ----------
    stages
        In order.
    found
        The verdicts.
    seconds
        Of each stage, all batches and, of a job that was killed, all runs together.
    """
    left = list(found)
    records: dict[str, StageRecord] = {}
    for stage in stages:
        entered = len(left)
        certified, refuted = (sum(getattr(v, by) == stage for v in left) for by in ("certified_by", "refuted_by"))
        left = [v for v in left if stage not in (v.certified_by, v.refuted_by)]
        unknown = len(left) if stage == stages[-1] else 0
        records[stage] = StageRecord(entered, certified, refuted, unknown, seconds.get(stage, 0.0))
    return records


def _refuse_bad_input(steps: Sequence[Step], regions: Box, labels: Tensor) -> None:
    if len(regions.lower) != len(labels):
        raise SabrError(f"there are {len(regions.lower)} regions, but {len(labels)} labels")
    if not (torch.isfinite(regions.lower) & torch.isfinite(regions.upper) & (regions.lower <= regions.upper)).all():
        raise SabrError("there are regions that are empty or not finite; check the images and eps")
    shape = tuple(regions.lower.shape[1:])
    try:
        with torch.no_grad():
            classes = forward(cast(steps, torch.float64), regions.lower[:1]).shape[1]
    except RuntimeError as error:
        raise SabrError(f"the network does not take inputs of shape {shape}: {first_line(error)}") from error
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise SabrError(f"the label {int(wrong[0])} is none of the network's classes 0 to {classes - 1}")


def _bound(shard: Shard, stage: BoundStage, engine: Engine) -> None:
    waiting = shard.waiting()
    for first in range(0, len(waiting), shard.spec.batch_size):
        if shard.stop():
            return
        chosen = waiting[first : first + shard.spec.batch_size]
        started = time.perf_counter()
        places = torch.tensor(chosen, device=shard.labels.device)
        found = engine.margins(stage, shard.part(places), shard.labels[places], chosen, ~shard.proved[places])
        shard.best[places] = torch.maximum(shard.best[places], found.lower)
        shard.proved[places] |= found.proved
        taken = time.perf_counter() - started
        shard.spend(stage, taken)
        shard.seconds[chosen] += taken / len(chosen)
        for place in places[shard.proved[places].all(1)].tolist():
            shard.close(place, stage)


def _attack(shard: Shard) -> None:
    waiting = shard.waiting()
    started = time.perf_counter()
    places = torch.tensor(waiting, device=shard.labels.device)
    refuted, points = _strongest(shard, places, "strong attack", ~shard.proved[places])
    taken = time.perf_counter() - started
    shard.spend("attack", taken)
    shard.seconds[waiting] += taken / len(waiting)
    for place, point in zip(places[refuted].tolist(), points[refuted], strict=True):
        shard.close(place, "attack", point=point)


def _strongest(shard: Shard, places: Tensor, purpose: str, open_margins: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which images the strong attack refutes, (P,), and the points that it found, (P, ...)."""
    generator = torch.Generator(shard.labels.device).manual_seed(child_seed(shard.spec.seed, purpose))
    region = shard.part(places)
    found = search(
        shard.steps,
        region,
        shard.labels[places],
        rounds=as_rounds(shard.spec.strong_attack),
        generator=generator,
        rows=rows_within(shard.steps, region, shard.spec.memory_mb),
        open_margins=open_margins,
    )
    return shard.confirmed(places, found.points), found.points


def _complete(shard: Shard, engine: NativeEngine) -> None:
    asked, memory = shard.spec.complete, shard.spec.memory_mb * 10**6
    grouping = None if asked.multi_neuron is None else Grouping(**asked.multi_neuron.model_dump())
    preparation = Preparation(asked.inner_iterations, asked.learning_rate, grouping, memory)
    settings = Search(
        iterations=asked.iterations,
        rate=asked.learning_rate,
        rule=asked.branching,
        candidates=asked.candidates,
        recompute=asked.recompute,
        queries=asked.subproblems,
        memory=memory // 2,
    )
    # What was compiled now would be charged to the images' time.
    with uncompiled():
        _branch_and_bound(shard, engine, preparation, settings)


def _branch_and_bound(shard: Shard, engine: NativeEngine, preparation: Preparation, settings: Search) -> None:
    """Images that are open, as many together as memory holds."""
    waiting, memory = shard.waiting(), shard.spec.memory_mb * 10**6
    while waiting and not shard.stop():
        begun, tasks = time.perf_counter(), dict[int, Task]()
        while waiting and len(tasks) < _TOGETHER and sum(t.problem.bytes for t in tasks.values()) < memory // 4:
            place = waiting.pop(0)
            started = time.perf_counter()
            tasks[place] = _task(shard, engine, place, preparation)
            shard.seconds[place] += time.perf_counter() - started
        outcomes = branch_and_bound(list(tasks.values()), settings, stop=shard.stop)
        for place, outcome in zip(tasks, outcomes, strict=True):
            shard.seconds[place] += outcome.seconds
            unproved = torch.nonzero(~shard.proved[place]).flatten()
            own = outcome.lower.to(shard.best).clamp(max=float(torch.finfo(shard.best.dtype).max))
            shard.best[place, unproved] = torch.maximum(shard.best[place, unproved], own)
            point = (
                None if outcome.point is None else unflat(outcome.point.unsqueeze(0), shard.region.lower.shape[1:])[0]
            )
            shard.close(place, "complete", point, outcome.reason, outcome.subproblems)
        shard.spend("complete", time.perf_counter() - begun)


def _task(shard: Shard, engine: NativeEngine, place: int, preparation: Preparation) -> Task:
    """One image's open margins as a task."""
    own = slice(place, place + 1)
    box = Box(shard.region.lower[own], shard.region.upper[own])
    relu_inputs = engine.relu_inputs(box, shard.labels[own], [place])
    last = shard.doubled[-1]
    assert isinstance(last, LinearStep)
    weight, constant = margin_rows(last, shard.labels[own])
    open_ = ~shard.proved[place]

    def refutes(point: Tensor) -> bool:
        shaped = unflat(point.unsqueeze(0), shard.region.lower.shape[1:])
        return bool(shard.confirmed(torch.tensor([place], device=shard.labels.device), shaped)[0])

    return prepare(
        shard.doubled[:-1],
        box,
        weight[:, open_],
        constant[:, open_],
        relu_inputs,
        preparation,
        refutes=refutes,
        seconds=shard.spec.complete.seconds,
    )


def control(
    steps: Sequence[Step],
    regions: Box,
    labels: Tensor,
    verdicts: Mapping[int, Verdict],
    spec: Cascade,
) -> StageRecord:
    """Attack certified images once more, with the strong attack from other starts, all margins open.

    Parameters
    ----------
    steps, regions, labels, spec
        As in `certify`, of the certified images.
    verdicts
        Theirs, by each image's place in the test set, in that order.

    Raises
    ------
    SabrError
        When an image is refuted: a bound is unsound.
    """
    numbers = list(verdicts)
    shard = Shard(list(steps), regions, labels, numbers, spec, lambda *verdict: None, lambda *time: None, lambda: False)
    started = time.perf_counter()
    places = torch.arange(len(labels), device=labels.device)
    if len(places):
        refuted, _ = _strongest(shard, places, "control", None)
        for place in places[refuted].tolist():
            known = verdicts[numbers[place]]
            raise SabrError(
                f"test image {numbers[place]} was certified by {known.certified_by} with margin "
                f"{known.margin_lower_bound} although an attack with seed {spec.seed} refutes it; a bound is unsound, "
                "and no result of this run can be trusted: please report it with this line"
            )
    return StageRecord(entered=len(places), seconds=time.perf_counter() - started)
