"""Images on their way through the stages."""

from collections import Counter

import pytest
import torch

from sabr.bounds.boxes import Box
from sabr.bounds.interval import margins
from sabr.certification import cascade
from sabr.certification.engines import AutoLirpaEngine, MarginBounds, NativeEngine
from sabr.errors import SabrError
from sabr.networks.steps import LinearStep, cast, forward

BOUNDS = ("interval", "crown-ibp", "crown", "alpha-crown")


class Run:
    """One pass through the stages: verdicts by number, records by stage, lines of text."""

    def __init__(self, steps, regions, labels, spec, numbers=None):
        self.verdicts, self.lines, self.seconds = {}, [], Counter()
        numbers = list(range(100, 100 + len(labels))) if numbers is None else numbers
        cascade.certify(
            steps, regions, labels, numbers, spec, record=self.record, report=self.lines.append, spend=self.spend
        )
        self.records = cascade.account(spec.stages, self.verdicts.values(), self.seconds)

    def spend(self, stage, seconds):
        self.seconds[stage] += seconds

    def record(self, number, verdict):
        assert number not in self.verdicts, "a verdict falls once"
        self.verdicts[number] = verdict

    def kinds(self):
        return {
            n: "certified" if v.certified_by else "refuted" if v.refuted_by else "" for n, v in self.verdicts.items()
        }


def compatible(*runs):
    for number in runs[0].verdicts:
        assert len({run.kinds()[number] for run in runs} - {""}) <= 1, number


@pytest.fixture(scope="module")
def run(trained, changed_spec):
    return Run(*trained, changed_spec())


def test_every_image_has_one_verdict_that_holds(trained, run, changed_spec):
    steps, regions, labels = trained
    doubled = cast(steps, torch.float64)
    assert list(sorted(run.verdicts)) == list(range(100, 160))
    kinds = Counter(run.kinds().values())
    assert kinds["certified"] > 10 and kinds["refuted"] > 2
    for place, number in enumerate(range(100, 160)):
        verdict = run.verdicts[number]
        assert [bool(verdict.certified_by), bool(verdict.refuted_by), bool(verdict.reason)].count(True) == 1
        assert verdict.seconds > 0
        assert (verdict.point is not None) == bool(verdict.refuted_by)
        if verdict.certified_by:
            assert verdict.margin_lower_bound > 0 and verdict.certified_by in (*BOUNDS, "complete")
        if verdict.point is not None:
            assert verdict.point.dtype == torch.float64 and verdict.refuted_by in ("attack", "complete")
            assert (regions.lower[place] <= verdict.point).all() and (verdict.point <= regions.upper[place]).all()
            logits = forward(doubled, verdict.point.unsqueeze(0))
            assert float(margins(logits, labels[place : place + 1]).min()) < 0
    spec = changed_spec()
    certified = [n for n in run.verdicts if run.verdicts[n].certified_by]
    places = [n - 100 for n in sorted(certified)]
    known = {number: run.verdicts[number] for number in sorted(certified)}
    record = cascade.control(steps, Box(regions.lower[places], regions.upper[places]), labels[places], known, spec)
    assert record.entered == len(places) and record.seconds > 0


def test_stages_say_what_verdicts_say(run, changed_spec):
    assert tuple(run.records) == changed_spec().stages
    entered = 60
    for stage, record in run.records.items():
        assert record.entered == entered
        assert record.certified == sum(v.certified_by == stage for v in run.verdicts.values())
        assert record.refuted == sum(v.refuted_by == stage for v in run.verdicts.values())
        entered -= record.certified + record.refuted + record.unknown
    assert entered == 0
    assert len(run.lines) == len(run.records)
    first = run.records["interval"]
    assert run.lines[0].startswith(f"interval: of 60 open {first.certified} certified, 0 refuted, 0 given up, ")


def test_stages_take_only_what_is_open(trained, changed_spec, run, monkeypatch):
    asked, prepared, attacked, original = Counter(), [], [], NativeEngine.margins

    def counted(self, stage, box, labels, numbers, open_margins):
        assert len(labels) == len(box.lower) == len(numbers) == len(open_margins) <= 30
        assert open_margins.any(1).all()
        asked[stage] += len(labels)
        return original(self, stage, box, labels, numbers, open_margins)

    prepare, search = cascade.prepare, cascade.search

    def prepared_for(*arguments, **options):
        prepared.append(arguments[2].shape[1])
        return prepare(*arguments, **options)

    def searched(steps, region, labels, *, open_margins, **options):
        attacked.append(open_margins)
        return search(steps, region, labels, open_margins=open_margins, **options)

    monkeypatch.setattr(NativeEngine, "margins", counted)
    monkeypatch.setattr(cascade, "prepare", prepared_for)
    monkeypatch.setattr(cascade, "search", searched)
    again = Run(*trained, changed_spec())
    assert {stage: asked[stage] for stage in BOUNDS} == {stage: again.records[stage].entered for stage in BOUNDS}
    assert asked["interval"] > asked["alpha-crown"] > 0
    [open_] = attacked
    assert len(open_) == again.records["attack"].entered and open_.any(1).all() and not open_.all()
    assert len(prepared) == again.records["complete"].entered > 0
    assert max(prepared) <= 9 and min(prepared) < 9
    assert {n: v.certified_by for n, v in again.verdicts.items() if v.certified_by in BOUNDS} == {
        n: v.certified_by for n, v in run.verdicts.items() if v.certified_by in BOUNDS
    }


@pytest.mark.parametrize(
    "stages",
    [
        ("complete",),
        ("attack", "interval"),
        ("alpha-crown", "interval", "crown"),
        ("complete", "attack"),
        ("crown-ibp",),
    ],
)
def test_any_order_of_any_stages(trained, run, changed_spec, stages):
    steps, regions, labels = trained
    part = Box(regions.lower[:20], regions.upper[:20])
    other = Run(steps, part, labels[:20], changed_spec(stages=stages, complete={"seconds": 0.5}))
    assert tuple(other.records) == stages and len(other.verdicts) == 20
    for number, kind in other.kinds().items():
        assert {kind, run.kinds()[number]} != {"certified", "refuted"}
    if "complete" not in stages:
        open_ = [v for v in other.verdicts.values() if v.reason]
        assert open_ and all(v.reason == "no stage proved or refuted it" for v in open_)
    if stages == ("attack", "interval"):
        assert all(v.margin_lower_bound is None for v in other.verdicts.values() if v.refuted_by)


def test_the_librarys_engine_agrees(trained, run, changed_spec, monkeypatch):
    asked, original = [], AutoLirpaEngine.margins
    monkeypatch.setattr(AutoLirpaEngine, "margins", lambda self, *a: (asked.append(a[0]), original(self, *a))[1])
    other = Run(*trained, changed_spec(engine="auto_lirpa", complete={"seconds": 0.5}))
    compatible(run, other)
    for stage in ("interval", "crown-ibp"):
        assert abs(other.records[stage].certified - run.records[stage].certified) <= 1
    total = [sum(r.records[stage].certified for stage in BOUNDS) for r in (run, other)]
    assert abs(total[0] - total[1]) <= 3
    assert set(asked) == set(BOUNDS)


def test_shards_give_the_verdicts_of_the_whole(trained, run, changed_spec):
    steps, regions, labels = trained
    spec = changed_spec(stages=BOUNDS)
    whole = Run(steps, regions, labels, spec)
    for first, last in ((0, 23), (23, 60)):
        part = Box(regions.lower[first:last], regions.upper[first:last])
        own = Run(steps, part, labels[first:last], spec, list(range(100 + first, 100 + last)))
        for number, verdict in own.verdicts.items():
            assert verdict.certified_by == whole.verdicts[number].certified_by
    compatible(whole, run)


def test_a_seed_decides_the_attacks(trained, changed_spec):
    spec = changed_spec(stages=("attack",))
    one, other = Run(*trained, spec), Run(*trained, spec)
    assert one.kinds() == other.kinds() and "refuted" in one.kinds().values()
    for number, verdict in one.verdicts.items():
        if verdict.point is not None:
            assert torch.equal(verdict.point, other.verdicts[number].point)
    third = Run(*trained, changed_spec(stages=("attack",), seed=1))
    points = [(v.point, third.verdicts[n].point) for n, v in one.verdicts.items() if v.point is not None]
    assert any(b is None or not torch.equal(a, b) for a, b in points)


def broken(stage):
    """An engine that claims to have proved everything at one stage."""
    original = NativeEngine.margins

    def margins_(self, asked, box, labels, numbers, open_margins):
        if asked != stage:
            return original(self, asked, box, labels, numbers, open_margins)
        return MarginBounds(torch.full(open_margins.shape, 0.125), torch.ones_like(open_margins))

    return margins_


@pytest.mark.parametrize("stage", ["interval", "crown"])
def test_an_unsound_bound_is_caught(trained, run, changed_spec, stage, monkeypatch):
    steps, regions, labels = trained
    monkeypatch.setattr(NativeEngine, "margins", broken(stage))
    spec = changed_spec(stages=BOUNDS, seed=7)
    wrong = Run(steps, regions, labels, spec)
    known = dict(sorted(wrong.verdicts.items()))
    assert all(v.certified_by for v in known.values())
    with pytest.raises(SabrError, match=rf"test image \d+ was certified by {stage} with margin 0\.125") as caught:
        cascade.control(steps, regions, labels, known, spec)
    message = str(caught.value)
    assert "seed 7" in message and "unsound" in message and "report" in message and "\n" not in message
    number = int(message.split()[2])
    assert not run.verdicts[number].certified_by


def test_a_shard_without_time_ends_at_once(trained, changed_spec):
    late = Run(*trained, changed_spec(shard_minutes=1e-9))
    assert set(late.kinds().values()) == {""}
    assert {v.reason for v in late.verdicts.values()} == {"the shard's time is over"}
    assert all(v.margin_lower_bound is None for v in late.verdicts.values())
    assert all(record.seconds < 1 for record in late.records.values())


def test_a_shard_whose_time_ends_midway_keeps_its_verdicts(trained, changed_spec, run, monkeypatch):
    original, asked = NativeEngine.margins, []

    def timed(self, stage, *arguments):
        asked.append(stage)
        return original(self, stage, *arguments)

    monkeypatch.setattr(NativeEngine, "margins", timed)
    # Time runs out when the second stage has had its first batch.
    monkeypatch.setattr(cascade.time, "monotonic", lambda: 1e6 if "crown-ibp" in asked else 0.0)
    late = Run(*trained, changed_spec(shard_minutes=1))
    assert asked == ["interval", "interval", "crown-ibp"]
    compatible(late, run)
    assert late.records["interval"].certified == run.records["interval"].certified > 0
    reasons = {v.reason for v in late.verdicts.values()}
    assert reasons == {"", "the shard's time is over"}
    assert len(late.verdicts) == 60


def test_the_complete_verifiers_limits_are_reasons(trained, changed_spec, monkeypatch):
    late = Run(*trained, changed_spec(stages=("interval", "complete"), complete={"seconds": 1e-9}))
    given_up = [v for v in late.verdicts.values() if v.reason]
    assert given_up and all(v.reason.startswith("out of time after ") for v in given_up)
    assert all(v.subproblems > 0 and v.margin_lower_bound is not None for v in given_up)


def test_little_memory_is_no_crash(trained, changed_spec, run):
    compatible(Run(*trained, changed_spec(memory_mb=1, complete={"seconds": 0.3})), run)


def test_no_images(trained, changed_spec):
    steps, regions, labels = trained
    nothing = Run(steps, Box(regions.lower[:0], regions.upper[:0]), labels[:0], changed_spec())
    assert nothing.verdicts == {} and all(record.entered == 0 for record in nothing.records.values())
    assert (
        cascade.control(steps, Box(regions.lower[:0], regions.upper[:0]), labels[:0], {}, changed_spec()).entered == 0
    )


def test_two_classes(trained, changed_spec):
    steps, regions, labels = trained
    chosen = torch.nonzero(labels < 2).flatten()
    last = steps[-1]
    pair = [*steps[:-1], LinearStep(last.weight[:2], last.bias[:2])]
    own = Run(pair, Box(regions.lower[chosen], regions.upper[chosen]), labels[chosen], changed_spec())
    assert len(own.verdicts) == len(chosen) > 5
    assert Counter(own.kinds().values())["certified"] > 5
