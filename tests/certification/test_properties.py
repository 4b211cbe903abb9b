"""Answers about properties, read from files as others write them, against exact optima."""

import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from bounds.milp import exact_minimum, unrolled
from bounds.nets import KINDS, Draws, outputs
from bounds.tasks import solved

from sabr.bounds.boxes import Box
from sabr.certification import properties
from sabr.certification.exchange import run_verification
from sabr.certification.verdicts import Verdict
from sabr.config import read_cascade
from sabr.networks.instances import read_counterexample, read_instance
from sabr.networks.onnx_export import write_onnx
from sabr.networks.steps import ConvolutionStep, FlattenStep, LinearStep, ReLUStep, SumStep, cast, forward

CASCADE = Path(__file__).parents[2] / "config" / "verify.yaml"
SECONDS = 120.0  # a limit that no answer here comes near, on a busy machine either


class Case(NamedTuple):
    """A box, and conjunctions of (coefficients of the outputs, offset): all of coefficients @ y + offset <= 0."""

    box: Box
    conjunctions: list


def affine(coefficients, offset):
    terms = [f"(* {value!r} Y_{i})" for i, value in enumerate(coefficients)]
    return f"(+ {' '.join(terms)} {offset!r})"


def text(cases, classes):
    """A property as VNN-LIB: a counterexample of any of the cases is one of the whole."""
    inputs = cases[0].box.lower.numel()
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(classes)]
    written = []
    for box, conjunctions in cases:
        ends = list(zip(box.lower.flatten().tolist(), box.upper.flatten().tolist(), strict=True))
        bounds = " ".join(f"(>= X_{i} {low!r}) (<= X_{i} {high!r})" for i, (low, high) in enumerate(ends))
        for conjunction in conjunctions:
            atoms = " ".join(f"(<= {affine(list(c), o)} 0)" for c, o in conjunction)
            written.append(f"(and {bounds} {atoms})")
    return "\n".join([*lines, f"(assert (or {' '.join(written)}))", ""])


@pytest.fixture
def answer(tmp_path):
    """A function that puts a network and a property into files, and checks what `sabr verify` says of them.

    The first line of the answer comes back, and the inputs of a counterexample, which has been checked.
    """

    def ask(steps, cases, seconds=SECONDS, cascade=CASCADE):
        shape = cases[0].box.lower.shape[1:]
        double = any(isinstance(step, LinearStep) and step.weight.dtype == torch.float64 for step in steps)
        classes = outputs(cast(steps, torch.float64), shape)[0]
        onnx, vnnlib = tmp_path / "net.onnx", tmp_path / "property.vnnlib"
        write_onnx(steps if double else cast(steps, torch.float32), shape, onnx)
        vnnlib.write_text(text(cases, classes))
        said = run_verification(onnx, vnnlib, read_cascade(cascade, seconds=seconds))
        result, _, rest = said.partition("\n")
        if result != "sat":
            assert (result == "unsat" and not rest) or (result == "unknown" and rest.startswith("; ") and rest[2:])
            return result, rest
        x, y = read_counterexample(rest)
        attained = forward(cast(steps, torch.float64), x.view(1, *shape))[0]
        torch.testing.assert_close(y, attained, rtol=1e-12, atol=1e-12)
        _, asked = read_instance(onnx, vnnlib)
        assert any(one.violated_by(x, y) for one in asked)
        inside = [c for c in cases if bool(((c.box.lower.flatten() <= x) & (x <= c.box.upper.flatten())).all())]
        assert any(
            all(float(torch.tensor(c, dtype=torch.float64) @ attained) + o <= 1e-12 for c, o in conjunction)
            for case in inside
            for conjunction in case.conjunctions
        )
        return result, x

    return ask


def float32(steps):
    return cast(steps, torch.float32)


def relu_net(seed, *widths):
    """A random network of these widths, and the box of radius 0.3 around a point."""
    draw = Draws(seed)
    steps = []
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        steps += [draw.linear(fan_in, fan_out), ReLUStep()]
    centre = torch.rand(1, widths[0], generator=draw.generator).double()
    return steps[:-1], Box(centre - 0.3, centre + 0.3), draw


def least(steps, box, coefficients):
    return exact_minimum(steps, box, torch.tensor(coefficients, dtype=torch.float64))[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("shift", "expected"), [(0.02, "unsat"), (-0.02, "sat")])
def test_answers_agree_with_the_exact_optimum(answer, kind, seed, shift, expected):
    case, optimum, _ = solved(seed, kind)
    scale = max(1.0, float(optimum.abs().max()))
    offset = float(shift * scale - optimum.min())
    conjunctions = []
    for other in range(1, case.classes):
        row = [0.0] * case.classes
        row[0], row[other] = 1.0, -1.0
        conjunctions.append([(row, offset)])
    assert answer(float32(case.steps), [Case(case.box, conjunctions)])[0] == expected


class TestDisjunctionsAndConjunctions:
    """Rows a and b with their least values on the box."""

    @pytest.fixture(params=range(3))
    def net(self, request):
        steps, box, draw = relu_net(request.param, 4, 10, 8, 3)
        rows = [draw.normal(3).tolist() for _ in range(3)]
        return steps, box, rows, [least(steps, box, row) for row in rows]

    @pytest.mark.parametrize("margins", [(1, 1, 1), (1, 1, -1), (-1, 1, 1), (-1, -1, -1)])
    def test_one_of_several_disjuncts_is_enough(self, answer, net, margins):
        steps, box, rows, minima = net
        asked = [[(row, 0.05 * m - low)] for row, low, m in zip(rows, minima, margins, strict=True)]
        assert answer(steps, [Case(box, asked)])[0] == ("sat" if min(margins) < 0 else "unsat")

    @pytest.mark.parametrize("provable", range(3))
    def test_a_conjunction_is_proved_by_any_one_of_its_inequalities(self, answer, net, provable):
        steps, box, rows, minima = net
        asked = [(row, -low - 0.5) for row, low in zip(rows, minima, strict=True)]
        asked[provable] = (rows[provable], 0.05 - minima[provable])
        assert answer(steps, [Case(box, [asked])])[0] == "unsat"

    def test_a_conjunction_that_holds_everywhere_is_refuted(self, answer, net):
        steps, box, rows, _ = net
        asked = [(row, least(steps, box, [-v for v in row]) - 0.05) for row in rows]
        result, _ = answer(steps, [Case(box, [asked])])
        assert result == "sat"

    @pytest.mark.parametrize("overlap", [0.05, -0.05])
    def test_a_conjunction_that_no_inequality_decides_alone(self, answer, net, overlap):
        steps, box, rows, minima = net
        row, low = rows[0], minima[0]
        high = -least(steps, box, [-v for v in row])
        assert high - low > 0.2
        middle = (low + high) / 2
        # Both hold somewhere; in one place only if they overlap.
        both = [(row, -middle - overlap), ([-v for v in row], middle - overlap)]
        alone = "sat" if overlap > 0 else "unsat"
        assert answer(steps, [Case(box, [both])])[0] == alone
        for margin in (0.05, -0.05):
            other = [(rows[1], -minima[1] + margin), (rows[1], -minima[1] + margin), (rows[1], -100.0)]
            expected = "sat" if margin < 0 else alone
            assert answer(steps, [Case(box, [both, other])])[0] == expected
            assert answer(steps, [Case(box, [other, both])])[0] == expected

    def test_many_inequalities_hold_at_a_point_and_one_more_does_not(self, answer, net):
        steps, box, _, _ = net
        generator = torch.Generator().manual_seed(1)
        at = forward(steps, box.sample(generator))[0]
        rows = torch.randn(7, 3, generator=generator, dtype=torch.float64)
        asked = [(row.tolist(), -float(row @ at) - 0.02) for row in rows]
        assert answer(steps, [Case(box, [asked])])[0] == "sat"
        # What the first one wants is impossible by now.
        last = ((-rows[0]).tolist(), float(rows[0] @ at) + 0.08)
        assert answer(steps, [Case(box, [[*asked, last]])])[0] == "unsat"

    def test_each_of_several_boxes_has_its_own_answer(self, answer, net):
        steps, box, rows, _ = net
        boxes = [Box(box.lower + by, box.upper + by) for by in (0.0, 1.0, -1.0)]
        minima = [least(steps, one, rows[0]) for one in boxes]
        for failing in (None, 0, 2):
            margins = [-0.05 if place == failing else 0.05 for place in range(3)]
            asked = [
                Case(one, [[(rows[0], margin - low)]]) for one, low, margin in zip(boxes, minima, margins, strict=True)
            ]
            result, point = answer(steps, asked)
            assert result == ("unsat" if failing is None else "sat")
            if failing is not None:
                own = boxes[failing]
                assert (own.lower[0] <= point).all() and (point <= own.upper[0]).all()


@pytest.mark.parametrize(("shift", "expected"), [(0.05, "unsat"), (-0.05, "sat")])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_networks_with_one_output(answer, shift, expected, sign):
    for seed in range(3):
        steps, box, _ = relu_net(seed, 3, 12, 10, 1)
        low = least(steps, box, [sign])
        assert answer(steps, [Case(box, [[([sign], shift - low)]])])[0] == expected


def endings(name):
    draw = Draws(7)
    first, second = draw.linear(4, 8), draw.linear(8, 8)
    if name == "relu":
        return [first, ReLUStep(), second, ReLUStep()], (4,)
    if name == "sum":
        return [first, ReLUStep(), SumStep(((second, ReLUStep(), draw.linear(8, 8)), ()))], (4,)
    if name == "convolution":
        step = ConvolutionStep(draw.normal(2, 1, 2, 2), draw.normal(2), (1, 1), (0, 0))
        return [draw.convolution(1, 1, (2, 2), (1, 1), (0, 0)), ReLUStep(), step, FlattenStep()], (1, 4, 4)
    if name == "affine":
        return [draw.linear(4, 3), draw.linear(3, 3)], (4,)
    return [FlattenStep()], (1, 2, 2)


@pytest.mark.parametrize("name", ["relu", "sum", "convolution", "affine", "nothing"])
@pytest.mark.parametrize(("shift", "expected"), [(0.02, "unsat"), (-0.02, "sat")])
def test_networks_that_end_in_anything(answer, name, shift, expected):
    steps, shape = endings(name)
    generator = torch.Generator().manual_seed(3)
    centre = torch.rand(1, *shape, generator=generator).double()
    box = Box(centre - 0.25, centre + 0.25)
    row = torch.randn(outputs(steps, shape)[0], generator=generator, dtype=torch.float64)
    low, _ = exact_minimum(steps, box, row, unrolled(steps, box))
    assert answer(steps, [Case(box, [[(row.tolist(), shift - low)]])])[0] == expected


def test_ties_are_never_proved(answer):
    steps, box, _ = relu_net(1, 4, 10, 2)
    last = steps[-1]
    twice = [*steps[:-1], LinearStep(last.weight[[0, 0]], last.bias[[0, 0]])]
    equal = [([1.0, -1.0], 0.0), ([-1.0, 1.0], 0.0)]
    # Both outputs are the same everywhere: by the text of the property, every point is a counterexample.
    assert answer(twice, [Case(box, [equal])])[0] != "unsat"
    result, reason = answer(twice, [Case(box, [equal[:1]])])
    assert result == "unknown" and "tie" in reason


def test_an_equation_is_proved_impossible(answer):
    steps, box, _ = relu_net(1, 4, 10, 2)
    for row in ([1.0, -1.0], [-1.0, 1.0]):
        asked = [(row, 0.05 - least(steps, box, row)), ([-v for v in row], least(steps, box, row) - 0.05)]
        assert answer(steps, [Case(box, [asked])])[0] == "unsat"


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ends_that_are_no_float32_numbers_are_not_cut_off(answer, sign):
    # The nearest float32 number to 0.1 is 1.5e-9 above it: a counterexample within 1e-10 of the end is outside of that.
    steps = [LinearStep(torch.tensor([[sign]]), torch.zeros(1))]
    ends = Box(*(torch.tensor([[end]], dtype=torch.float64) for end in ((0.1, 0.2) if sign > 0 else (-0.2, -0.1))))
    result, point = answer(steps, [Case(ends, [[([1.0], -0.1 - 1e-10)]])])
    assert result == "sat" and abs(abs(float(point)) - 0.1) < 1e-10
    assert answer(steps, [Case(ends, [[([1.0], -0.1 + 1e-10)]])])[0] != "sat"
    assert answer(steps, [Case(ends, [[([1.0], -0.1 + 1e-6)]])])[0] == "unsat"


def test_weights_of_more_than_float32_are_not_rounded(answer):
    steps = [LinearStep(torch.tensor([[1 + 1e-10]], dtype=torch.float64), torch.zeros(1, dtype=torch.float64))]
    one = torch.ones(1, 1, dtype=torch.float64)
    result, point = answer(steps, [Case(Box(one, one), [[([-1.0], 1 + 5e-11)]])])
    assert result == "sat" and point.tolist() == [1.0]
    assert answer(steps, [Case(Box(one, one), [[([-1.0], 1 + 2e-10)]])])[0] == "unsat"
    assert answer(steps, [Case(Box(one, one), [[([1.0], -1 - 5e-11)]])])[0] == "unsat"


def test_inputs_beyond_float32_are_survived(answer):
    steps = [LinearStep(torch.ones(1, 1), torch.zeros(1)), ReLUStep(), LinearStep(torch.ones(1, 1), torch.zeros(1))]
    ends = torch.full((1, 1), 1e300, dtype=torch.float64)
    assert answer(steps, [Case(Box(-ends, ends), [[([-1.0], 0.5)]])])[0] != "unsat"


@pytest.fixture
def hard(small_network):
    """A network, a box that nothing decides quickly, and a function of the outputs."""
    _, steps = small_network()
    images = torch.rand(1, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double()
    return steps, Box((images - 0.3).clamp(0, 1), (images + 0.3).clamp(0, 1)), [1.0] + [0.0] * 9


def test_out_of_time_is_said(answer, hard):
    steps, box, row = hard
    assert answer(steps, [Case(box, [[(row, 0.0)]])], seconds=1e-9) == ("unknown", "; out of time")


def test_the_time_is_shared_by_all_boxes(answer, hard, monkeypatch):
    limits = []

    def certify(steps, regions, labels, numbers, spec, *, record, report):
        limits.append(60 * spec.shard_minutes)
        if len(limits) < 3:
            time.sleep(0.2)
        record(0, Verdict("", "", "the shard's time is over", None, 0, 0.0))

    monkeypatch.setattr(properties, "certify", certify)
    steps, box, row = hard
    cases = [Case(Box(box.lower - by, box.upper), [[(row, 0.0)], [(row, 1.0), (row, 2.0)]]) for by in range(4)]
    assert answer(steps, cases, seconds=3.0) == ("unknown", "; out of time")
    assert limits == pytest.approx([3 / 4, 2.8 / 3, 2.6 / 2, 2.6], abs=0.1)


def test_a_box_that_is_not_decided_hides_no_other(answer, hard, monkeypatch):
    steps, box, row = hard
    first = []

    def certify(*arguments, record, **options):
        if first:
            return actual(*arguments, record=record, **options)
        first.append(True)
        record(0, Verdict("", "", "too hard", None, 0, 0.0))

    actual = properties.certify
    for offset, expected in ((-1e4, "sat"), (1e4, "unknown")):
        first.clear()
        monkeypatch.setattr(properties, "certify", certify)
        cases = [Case(box, [[(row, 1e4)]]), Case(Box(box.lower - 1, box.upper), [[(row, offset)]])]
        result, rest = answer(steps, cases)
        assert result == expected and (expected == "sat" or rest == "; too hard")
