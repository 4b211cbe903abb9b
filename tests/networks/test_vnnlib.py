import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sabr.errors import SabrError
from sabr.networks.vnnlib import Property, read_vnnlib, robustness_text, write_robustness


@pytest.fixture
def read(tmp_path):
    """A function that reads a property from text, in front of which two inputs and three outputs are declared."""

    def make(text, declarations=None):
        if declarations is None:
            names = ["X_0", "X_1", "Y_0", "Y_1", "Y_2"]
            declarations = "".join(f"(declare-const {name} Real)\n" for name in names)
        path = tmp_path / "property.vnnlib"
        path.write_text(declarations + text)
        return read_vnnlib(path)

    return make


BOX = "(assert (>= X_0 0))(assert (<= X_0 1))(assert (>= X_1 -0.5))(assert (<= X_1 0.5))"


def test_robustness_is_read_as_written(tmp_path):
    lower = torch.rand(2, 3)
    upper = lower + 0.1 * torch.rand(2, 3)
    write_robustness(tmp_path / "a.vnnlib", lower, upper, 1, 3)
    (found,) = read_vnnlib(tmp_path / "a.vnnlib")
    assert torch.equal(found.lower, lower.flatten().double()) and torch.equal(found.upper, upper.flatten().double())
    assert [d.rows.tolist() for d in found.disjuncts] == [[[-1, 1, 0]], [[0, 1, -1]]]
    assert all(d.offsets.tolist() == [0] for d in found.disjuncts)


@given(
    arrays("float64", 4, elements=st.floats(-1e300, 1e300)), arrays("float32", 4, elements=st.floats(0, 1, width=32))
)
def test_every_number_is_read_back_exactly(tmp_path_factory, lower, width):
    lower = torch.from_numpy(lower)
    upper = lower + torch.from_numpy(width)
    path = tmp_path_factory.mktemp("vnnlib") / "a.vnnlib"
    write_robustness(path, lower, upper, 0, 2)
    (found,) = read_vnnlib(path)
    assert torch.equal(found.lower, lower) and torch.equal(found.upper, upper)


def test_numbers_have_no_exponents():
    text = robustness_text(
        torch.tensor([1e-5, -2e-7], dtype=torch.float64), torch.tensor([1e25, 1.0], dtype=torch.float64), 0, 2
    )
    assert "e" not in text.partition("(assert")[2].replace("assert", "")
    assert "(>= X_1 -0.0000002)" in text


@pytest.mark.parametrize(("label", "classes"), [(3, 3), (-1, 3), (0, 1)])
def test_there_must_be_another_class(label, classes):
    with pytest.raises(SabrError, match="label"):
        robustness_text(torch.zeros(2), torch.ones(2), label, classes)


@pytest.mark.parametrize(("lower", "upper"), [(0.5, 0.4), (0, torch.nan), (-torch.inf, 0)])
def test_the_box_must_hold_a_point(lower, upper):
    with pytest.raises(SabrError, match="empty or not finite"):
        robustness_text(torch.tensor([lower]), torch.tensor([upper]), 0, 2)


def test_conjunctions_over_assertions(read):
    (found,) = read(BOX + "(assert (<= Y_0 Y_1)) ; a comment (\n(assert (>= Y_2 3.5e-1))")
    (disjunct,) = found.disjuncts
    assert disjunct.rows.tolist() == [[1, -1, 0], [0, 0, -1]] and disjunct.offsets.tolist() == [0, 0.35]
    assert found.lower.tolist() == [0, -0.5] and found.upper.tolist() == [1, 0.5]


def test_disjunctions_multiply_out(read):
    text = "(assert (or (<= Y_0 0) (and (<= Y_1 1) (<= Y_2 2))))(assert (or (<= Y_0 5) (<= Y_1 6)))"
    (found,) = read(BOX + text)
    assert [d.offsets.tolist() for d in found.disjuncts] == [[0, -5], [0, -6], [-1, -2, -5], [-1, -2, -6]]


def test_linear_expressions(read):
    text = "(assert (<= (+ (* 2 Y_0) (* Y_1 -3.0) (- Y_2) 1) (- 4 (* 0.5 Y_0) (- 2))))(assert (= Y_0 1))"
    (found,) = read(BOX + text)
    (disjunct,) = found.disjuncts
    assert disjunct.rows.tolist() == [[2.5, -3, -1], [1, 0, 0], [-1, 0, 0]]
    assert disjunct.offsets.tolist() == [-5, -1, 1]


def test_boxes_in_disjunctions(read):
    text = """(assert (>= X_1 0)) (assert (<= X_1 1)) (assert (or
      (and (>= X_0 0) (<= X_0 1) (<= Y_0 Y_1))
      (and (>= X_0 0) (<= X_0 1) (<= Y_0 Y_2))
      (and (= X_0 -2) (<= X_1 0.25) (>= Y_0 Y_2))))"""
    first, second = read(text)
    assert first.lower.tolist() == [0, 0] and first.upper.tolist() == [1, 1] and len(first.disjuncts) == 2
    assert second.lower.tolist() == [-2, 0] and second.upper.tolist() == [-2, 0.25] and len(second.disjuncts) == 1


def test_the_tightest_bounds_count(read):
    (found,) = read(BOX + "(assert (<= (* 4 X_0) 2))(assert (<= 0.25 X_0))(assert (<= (- X_1) 0))(assert (<= Y_0 0))")
    assert found.lower.tolist() == [0.25, 0] and found.upper.tolist() == [0.5, 0.5]


def test_other_commands_and_ways_to_declare(read):
    text = "(set-logic QF_LRA)(declare-fun X_0 () Real)(declare-fun Y_0 () Real)(assert (= X_0 1))(assert (<= Y_0 0))"
    (found,) = read(text + "(check-sat)", declarations="")
    assert found.lower.tolist() == [1] and found.disjuncts[0].rows.tolist() == [[1]]


BAD = {
    "cut off": (BOX + "(assert (or (and (<= Y_0 Y_1)", "line 6 is never closed"),
    "closed too often": (BOX + ")", "never opened"),
    "cut off between bounds": (BOX[: BOX.index("(assert (<= X_1")] + "(assert (<= Y_0 0))", "X_1 has no upper bound"),
    "no outputs": (BOX, "nothing of the outputs"),
    "no outputs in one case": (BOX + "(assert (or (<= Y_0 1) (<= X_0 0.5)))", "nothing of the outputs"),
    "undeclared": (BOX + "(assert (<= Y_3 0))", "line 6: Y_3 is neither"),
    "misspelt": (BOX + "\n(assert (<= Y0 0))", "line 7: Y0 is neither"),
    "crossing": (BOX + "(assert (<= X_0 -1))(assert (<= Y_0 0))", "X_0 has lower bound 0.0 above its upper bound -1.0"),
    "crossing in a case": (BOX + "(assert (or (<= Y_0 0) (and (<= Y_0 0) (>= X_0 2))))", "X_0 has lower bound 2.0"),
    "mixed": (BOX + "(assert (<= Y_0 X_0))", r"line 6: \(<= Y_0 X_0\) is not about inputs alone"),
    "tied inputs": (BOX + "(assert (<= X_1 X_0))", "ties inputs together"),
    "constants": (BOX + "(assert (<= 1 0))", "not about inputs alone"),
    "product": (BOX + "(assert (<= (* Y_0 Y_1) 0))", "not linear"),
    "strict": (BOX + "(assert (< Y_0 Y_1))", "strict"),
    "not": (BOX + "(assert (not (< Y_0 Y_1)))", "not made of and, or"),
    "too many arguments": (BOX + "(assert (<= Y_0 Y_1 Y_2))", "not made of and, or"),
    "empty or": (BOX + "(assert (or))", "not made of and, or"),
    "huge": (BOX + "(assert (<= Y_0 1e999))", "too large"),
    "huge product": (BOX + "(assert (<= (* 1e200 (* 1e200 Y_0)) 1))", "too large"),
    "not a number": (BOX + "(assert (<= Y_0 nan))", "nan is neither"),
    "other command": (BOX + "(declare-network f)", r"line 6: \(declare-network f\) is not a declaration"),
    "a word": (BOX + "assert", "line 6: assert is not a declaration"),
    "declared twice": ("(declare-const X_0 Real)" + BOX, "X_0 is declared twice"),
    "a gap": ("(declare-const Y_4 Real)" + BOX, "the Y_i that it declares are not numbered"),
    "other name": ("(declare-const Z_0 Real)" + BOX, "Z_0 is neither"),
    "a long number": ("(declare-const X_" + "9" * 5000 + " Real)", "is neither"),
    "integers": ("(declare-const X_2 Int)", "not a declaration"),
    "deep": ("(assert " + "(and " * 5000, "nested deeper"),
    "many cases": (BOX + "(assert (or (<= Y_0 0) (<= Y_1 0)))" * 30, "more than 100000 cases"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named(read, name):
    text, message = BAD[name]
    with pytest.raises(SabrError, match=message) as caught:
        read(text)
    assert "property.vnnlib" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_no_text_of_the_kind(tmp_path, read):
    with pytest.raises(SabrError, match="No such file"):
        read_vnnlib(tmp_path / "missing.vnnlib")
    (tmp_path / "packed").write_bytes(b"\x1f\x8b\xff\x00")
    with pytest.raises(SabrError, match="not text"):
        read_vnnlib(tmp_path / "packed")
    with pytest.raises(SabrError, match="the X_i"):
        read("", declarations="")


def test_a_text_cut_off_anywhere_is_refused(tmp_path):
    text = robustness_text(torch.zeros(2), torch.ones(2), 0, 3)
    path = tmp_path / "a.vnnlib"
    for length in range(len(text.rstrip())):
        path.write_text(text[:length])
        with pytest.raises(SabrError):
            read_vnnlib(path)


def test_counterexamples_are_told(read):
    (found,) = read(BOX + "(assert (or (and (<= Y_0 Y_1) (<= Y_0 Y_2)) (>= Y_0 10)))")
    assert isinstance(found, Property)
    inside, outside = torch.tensor([1.0, -0.5]), torch.tensor([1.0001, 0])
    assert found.violated_by(inside, torch.tensor([[0.0, 0, 1]]))
    assert found.violated_by(inside, torch.tensor([10.0, 0, 0]))
    assert not found.violated_by(inside, torch.tensor([1.0, 0, 1]))
    assert not found.violated_by(outside, torch.tensor([0.0, 0, 1]))
    assert not found.violated_by(inside, torch.full((3,), torch.nan))
