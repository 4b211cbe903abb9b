"""The engines that the cascade asks for bounds: proofs close to 0, memory, and what is kept between stages."""

import pytest
import torch
from bounds.nets import Draws, outputs

from sabr.bounds.boxes import Box
from sabr.bounds.interval import margin_rows, margins, propagate
from sabr.bounds.rounding import allowances
from sabr.certification import engines
from sabr.certification.engines import AutoLirpaEngine, NativeEngine
from sabr.networks.steps import FlattenStep, LinearStep, ReLUStep, cast, forward

STAGES = ("interval", "crown-ibp", "crown", "alpha-crown")
NUMBERS = list(range(6))
SHAPE = (1, 8, 8)


def network(seed=0, gain=1.6):
    draw = Draws(seed)
    steps = [draw.convolution(1, 4, (3, 3), (2, 2), (1, 1), gain), ReLUStep()]
    steps += [draw.convolution(4, 4, (3, 3), (1, 1), (1, 1), gain), ReLUStep(), FlattenStep()]
    return [*steps, draw.linear(outputs(steps, SHAPE)[0], 16, gain), ReLUStep(), draw.linear(16, 4)]


def boxes(radius=0.05, count=6):
    centre = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    return Box((centre - radius).clamp(0, 1), (centre + radius).clamp(0, 1))


def everything(count=6, others=3):
    return torch.ones(count, others, dtype=torch.bool)


def labels_of(steps, region):
    return forward(steps, region.centre.double()).argmax(1)


def reached(steps, region, labels, points=2000):
    unit = torch.rand(points, *region.lower.shape, generator=torch.Generator().manual_seed(1)).double()
    unit[: points // 2] = unit[: points // 2].round()
    samples = region.lower + unit * (region.upper - region.lower)
    logits = forward(steps, samples.flatten(0, 1))
    return margins(logits, labels.repeat(points)).view(points, len(labels), -1).amin(0)


def engine_of(kind, steps, **changes):
    if kind == "native":
        return NativeEngine(steps, **({"iterations": 10, "rate": 0.1, "memory": 2**27} | changes))
    return AutoLirpaEngine(steps, iterations=10, rate=0.1, shape=SHAPE)


@pytest.mark.parametrize("kind", ["native", "auto_lirpa"])
def test_bounds_are_sound_and_proofs_need_more_than_rounding(kind):
    steps, region = network(), boxes()
    labels = labels_of(steps, region)
    engine, least = engine_of(kind, steps), reached(steps, region, labels)
    threshold = allowances(
        cast(steps[:-1], torch.float32),
        region,
        propagate(cast(steps[:-1], torch.float32), region).relu_inputs,
        *(part.float() for part in margin_rows(steps[-1], labels)),
    ).objective
    proved = []
    for stage in STAGES:
        found = engine.margins(stage, region, labels, NUMBERS, everything())
        assert (found.lower <= least + threshold).all()
        assert not (found.proved & (least <= 0)).any()
        assert found.proved[found.lower > threshold].all() and not found.proved[found.lower <= 0].any()
        proved.append(int(found.proved.sum()))
    assert proved == sorted(proved) and proved[0] < proved[-1]


@pytest.mark.parametrize("kind", ["native", "auto_lirpa"])
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_too_close_for_float32_is_proved_in_float64(kind, stage):
    steps, region = network(3, gain=1.0), boxes(0.01)
    region = Box(region.lower[:1], region.upper[:1])
    labels = labels_of(steps, region)
    first = engine_of(kind, steps).margins(stage, region, labels, [0], everything(1))
    hidden = cast(steps[:-1], torch.float32)
    rows = (part.float() for part in margin_rows(steps[-1], labels))
    threshold = float(allowances(hidden, region, propagate(hidden, region).relu_inputs, *rows).objective.max())
    lowest = float(first.lower.min())
    for share, proved in ((0.3, True), (-0.3, False), (3.0, True)):
        bias = steps[-1].bias.clone()
        bias[labels] += share * threshold - lowest
        moved = [*steps[:-1], LinearStep(steps[-1].weight, bias)]
        found = engine_of(kind, moved).margins(stage, region, labels, [0], everything(1))
        assert abs(float(found.lower.min()) - share * threshold) < 0.2 * threshold
        assert bool(found.proved.all()) == proved


def test_without_float64_it_would_not_be_proved(monkeypatch):
    steps, region = network(3, gain=1.0), boxes(0.01)
    monkeypatch.setattr(engines, "allowances", lambda *arguments: allowances(*arguments)._replace(objective=torch.inf))
    found = engine_of("native", steps).margins("interval", region, labels_of(steps, region), NUMBERS, everything())
    assert not found.proved.any()


@pytest.mark.parametrize("memory", [1, 2**19])
def test_little_memory_changes_nothing(memory, monkeypatch):
    steps, region = network(), boxes()
    labels, sizes = labels_of(steps, region), []
    rich, poor = engine_of("native", steps), engine_of("native", steps, memory=memory)
    plain = engines.optimise
    monkeypatch.setattr(engines, "optimise", lambda p, *a, **k: sizes.append(len(p.objective)) or plain(p, *a, **k))
    for stage in STAGES:
        whole, known = rich.margins(stage, region, labels, NUMBERS, everything()), len(sizes)
        found = poor.margins(stage, region, labels, NUMBERS, everything())
        assert torch.equal(found.proved, whole.proved)
        torch.testing.assert_close(found.lower, whole.lower, rtol=1e-4, atol=1e-5)
    assert sizes[:known] == [18] and sum(sizes[known:]) == 18
    assert (len(sizes) - known == 18) if memory == 1 else (1 < len(sizes) - known < 18)


def test_margins_that_are_proved_are_not_optimised():
    steps, region = network(), boxes(0.2)
    labels, engine = labels_of(steps, region), engine_of("native", steps)
    open_ = everything()
    open_[:4] = False
    open_[4, 1] = False
    found = engine.margins("alpha-crown", region, labels, NUMBERS, open_)
    assert (found.lower[~open_] == -torch.inf).all() and not found.proved[~open_].any()
    whole = engine.margins("alpha-crown", region, labels, NUMBERS, everything())
    assert torch.equal(found.proved[open_], whole.proved[open_])
    # What is proved is not raised any more than the others of its batch ask for.
    same = open_ & ~whole.proved
    assert same.any()
    torch.testing.assert_close(found.lower[same], whole.lower[same], rtol=1e-4, atol=1e-5)
    nothing = engine.margins("alpha-crown", region, labels, NUMBERS, torch.zeros_like(open_))
    assert (nothing.lower == -torch.inf).all() and not nothing.proved.any()


def test_one_class_has_no_margins():
    steps, region = network(), boxes()
    steps = [*steps[:-1], LinearStep(steps[-1].weight[:1], steps[-1].bias[:1])]
    engine, labels = engine_of("native", steps), torch.zeros(6, dtype=torch.int64)
    for stage in STAGES:
        found = engine.margins(stage, region, labels, NUMBERS, everything(others=0))
        assert found.lower.shape == found.proved.shape == (6, 0)


def test_known_bounds_are_used_again_until_they_are_forgotten(monkeypatch):
    steps, region = network(), boxes()
    labels = labels_of(steps, region)
    asked, original = [], engines.crown_inputs

    def counted(part, box, *arguments, **options):
        asked.append(len(box.lower))
        return original(part, box, *arguments, **options)

    monkeypatch.setattr(engines, "crown_inputs", counted)

    def part(chosen):
        return Box(region.lower[chosen], region.upper[chosen]), labels[chosen], chosen, everything(len(chosen))

    engine = engine_of("native", steps)
    first = engine.margins("crown", *part([0, 1, 2])).lower
    again = engine.margins("crown", *part([2, 0, 4])).lower
    assert asked == [3, 1]
    torch.testing.assert_close(again[:2], first[[2, 0]])
    engine.forget({0, 5})
    engine.margins("alpha-crown", *part([0, 1]))
    assert asked == [3, 1, 1]
    small = engine_of("native", steps, memory=1)
    for chosen in ([0], [1], [0, 1]):
        small.margins("crown", *part(chosen))
    assert asked[3:] == [1, 1, 1] or asked[3:] == [1, 1, 1, 1]
    torch.testing.assert_close(small.margins("crown", *part([0, 1, 2])).lower, first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 2, 5])
def test_numbers_that_are_none_prove_nothing(value, place):
    steps, region = network(), boxes()
    labels = labels_of(steps, region)
    steps[place].weight.view(-1)[1] = value
    engine = engine_of("native", steps)
    for stage in STAGES:
        assert not engine.margins(stage, region, labels, NUMBERS, everything()).proved.any(), stage


@pytest.mark.parametrize("value", [1e6, 1e15, 1e30, -1e38])
@pytest.mark.parametrize("place", [0, 2, 5, 7])
def test_huge_weights_prove_nothing_wrong(value, place):
    steps, region = network(), boxes()
    labels = labels_of(steps, region)
    steps[place].weight.view(-1)[1] = value
    engine, least = engine_of("native", steps), reached(steps, region, labels)
    for stage in STAGES:
        found = engine.margins(stage, region, labels, NUMBERS, everything())
        assert not (found.proved & (least <= 0)).any(), stage


def test_networks_without_a_linear_end_are_refused():
    for kind in ("native", "auto_lirpa"):
        with pytest.raises(TypeError, match="ReLUStep"):
            engine_of(kind, network()[:-1])
