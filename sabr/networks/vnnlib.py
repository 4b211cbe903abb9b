"""Properties of a network as VNN-LIB text: what a counterexample would be."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sabr.errors import SabrError
from sabr.files import write_text
from sabr.networks.expressions import Expression, MalformedText, parse

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_VARIABLE = re.compile(r"([XY])_(0|[1-9]\d{0,8})")
_MOST_DISJUNCTS = 100_000


class Disjunct(NamedTuple):
    """A conjunction about the outputs y (K,): all of rows @ y + offsets <= 0; (m, K) and (m,), float64."""

    rows: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Property:
    """Inputs x between `lower` and `upper`, (n,) float64, for which one of `disjuncts` holds, are counterexamples."""

    lower: Tensor
    upper: Tensor
    disjuncts: list[Disjunct]

    def violated_by(self, inputs: Tensor, outputs: Tensor) -> bool:
        """Whether inputs (n,), with the outputs (K,) of the network there, are a counterexample, in float64."""
        x, y = inputs.flatten().double().cpu(), outputs.flatten().double().cpu()
        inside = bool(((self.lower <= x) & (x <= self.upper)).all())
        return inside and any(bool((d.rows @ y + d.offsets <= 0).all()) for d in self.disjuncts)


def robustness_text(lower: Tensor, upper: Tensor, label: int, classes: int) -> str:
    """The property "some other class scores at least as high as the label, somewhere in the box", as VNN-LIB text.

    Parameters
    ----------
    lower, upper
        The box of one image, such as its ball cut to [0, 1]; any shape, numbered in row-major order. Each value is
        printed so that it is read back exactly.
    label, classes
        The class that should win, and how many there are.

    Raises
    ------
    SabrError
        When there is no other class, or the box is empty or not finite.
    """
    if not 0 <= label < classes or classes < 2:
        raise SabrError(f"no property for label {label} of {classes} classes: the label must be one of two or more")
    low, high = (values.detach().flatten().tolist() for values in (lower, upper))
    if lower.shape != upper.shape or not all(-torch.inf < a <= b < torch.inf for a, b in zip(low, high, strict=True)):
        raise SabrError("no property for a box that is empty or not finite: check the image and eps")
    lines = [f"; Unsatisfiable if all inputs of the box are classified as {label}."]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(low))]
    lines += [f"(declare-const Y_{i} Real)" for i in range(classes)]
    for i, (a, b) in enumerate(zip(low, high, strict=True)):
        lines += [f"(assert (>= X_{i} {_decimal(a)}))", f"(assert (<= X_{i} {_decimal(b)}))"]
    lines += ["(assert (or", *(f"    (and (>= Y_{i} Y_{label}))" for i in range(classes) if i != label), "))"]
    return "\n".join(lines) + "\n"


def write_robustness(path: Path, lower: Tensor, upper: Tensor, label: int, classes: int) -> None:
    """Write `robustness_text` whole or not at all."""
    write_text(path, robustness_text(lower, upper, label, classes))


def read_vnnlib(path: Path) -> list[Property]:
    """Read a VNN-LIB property (version 1, as in VNN-COMP).

    Understood are bounds of single inputs X_i and linear inequalities (<=, >=, =) of outputs Y_j, under any nesting of
    ``and`` and ``or``. Numbers are read as the nearest float64.

    Returns
    -------
    list of Property
        One for each box of inputs; a counterexample of any of them is one of the whole.

    Raises
    ------
    SabrError
        When the text is cut off or malformed, has anything that is not understood (strict inequalities, inputs and
        outputs in one inequality), an input without bounds, or an empty box: the line is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SabrError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SabrError(f"{path} is not text: give an unpacked VNN-LIB file") from error
    try:
        return _Reader().read(text)
    except MalformedText as error:
        raise SabrError(f"{path} is not a VNN-LIB property that can be read here: {error}") from error


class _Atom(NamedTuple):
    """sum of coefficients * variables + offset <= 0; all variables are X or all are Y."""

    coefficients: tuple[tuple[str, int, float], ...]
    offset: float


_Formula = list[list[_Atom]]  # one of these lists holds, all of it


class _Reader:
    """The declarations and assertions of one text."""

    def __init__(self) -> None:
        self._declared: dict[str, set[int]] = {"X": set(), "Y": set()}
        self._disjuncts: _Formula = [[]]
        self._bounds: list[_Atom] = []

    def read(self, text: str) -> list[Property]:
        """All of a text."""
        for expression in parse(text):
            match [item.word for item in expression.items]:
                case ["declare-const", str(name), "Real"] | ["declare-fun", str(name), _, "Real"]:
                    self._declare(name, expression.line)
                case ["assert", _]:
                    self._assert(expression.items[1])
                case ["set-logic" | "set-info" | "set-option" | "check-sat" | "get-model" | "exit", *_]:
                    pass
                case _:
                    raise MalformedText(f"line {expression.line}: {expression} is not a declaration or an assertion")
        sizes = {kind: len(numbers) for kind, numbers in self._declared.items()}
        for kind, numbers in self._declared.items():
            if not numbers or max(numbers) != len(numbers) - 1:
                raise MalformedText(f"the {kind}_i that it declares are not numbered from 0 without gaps")
        return self._properties(sizes["X"], sizes["Y"])

    def _declare(self, name: str, line: int) -> None:
        match = _VARIABLE.fullmatch(name)
        if match is None:
            raise MalformedText(f"line {line}: {name[:40]} is neither an input X_i nor an output Y_i")
        kind, number = match[1], int(match[2])
        if number in self._declared[kind]:
            raise MalformedText(f"line {line}: {name} is declared twice")
        self._declared[kind].add(number)

    def _assert(self, expression: Expression) -> None:
        formula = self._formula(expression)
        if len(formula) == 1:
            # Kept apart, so that thousands of bounds are not copied into every disjunct.
            self._bounds += [atom for atom in formula[0] if _is_bound(atom)]
            formula = [[atom for atom in formula[0] if not _is_bound(atom)]]
        self._disjuncts = _both([self._disjuncts, formula], expression.line)

    def _formula(self, expression: Expression) -> _Formula:
        """In disjunctive normal form."""
        head, *arguments = expression.items or (expression,)
        match head.word:
            case "and" if arguments:
                return _both([self._formula(argument) for argument in arguments], expression.line)
            case "or" if arguments:
                return [atoms for argument in arguments for atoms in self._formula(argument)]
            case "<=" | ">=" | "=" if len(arguments) == 2:
                left, right = (self._linear(argument) for argument in arguments)
                at_most, at_least = (self._atom(a, b, expression) for a, b in ((left, right), (right, left)))
                return [{"<=": [at_most], ">=": [at_least], "=": [at_most, at_least]}[head.word]]
            case "<" | ">":
                raise MalformedText(f"line {expression.line}: {expression} is strict; only <=, >= and = are supported")
        raise MalformedText(f"line {expression.line}: {expression} is not made of and, or, <=, >= and =")

    def _linear(self, expression: Expression) -> dict[str, float]:
        """Coefficients by variable; the constant's name is empty."""
        if expression.word is not None:
            if _NUMBER.fullmatch(expression.word):
                return {"": _finite(float(expression.word), expression)}
            match = _VARIABLE.fullmatch(expression.word)
            if match is None or int(match[2]) not in self._declared[match[1]]:
                raise MalformedText(f"line {expression.line}: {expression} is neither a number nor a declared variable")
            return {expression.word: 1.0}
        operator = expression.items[0].word if expression.items else None
        terms = [self._linear(item) for item in expression.items[1:]]
        match operator, terms:
            case "+", [_, *_]:
                return _sum(terms)
            case "-", [only]:
                return {name: -value for name, value in only.items()}
            case "-", [first, *others]:
                return _sum([first, *({name: -value for name, value in term.items()} for term in others)])
            case "*", [first, second]:
                factor, term = (first, second) if set(first) <= {""} else (second, first)
                if set(factor) <= {""}:
                    by = factor.get("", 0.0)
                    return {name: _finite(by * value, expression) for name, value in term.items()}
        raise MalformedText(f"line {expression.line}: {expression} is not linear with operators +, - and *")

    def _atom(self, left: dict[str, float], right: dict[str, float], expression: Expression) -> _Atom:
        """The inequality left <= right."""
        total = _sum([left, {name: -value for name, value in right.items()}])
        offset = _finite(total.pop("", 0.0), expression)
        coefficients = tuple((name[0], int(name[2:]), value) for name, value in total.items() if value != 0)
        if len({kind for kind, _, _ in coefficients}) != 1:
            raise MalformedText(f"line {expression.line}: {expression} is not about inputs alone or outputs alone")
        if coefficients[0][0] == "X" and len(coefficients) > 1:
            raise MalformedText(f"line {expression.line}: {expression} ties inputs together; only bounds are supported")
        return _Atom(coefficients, offset)

    def _properties(self, inputs: int, outputs: int) -> list[Property]:
        boxes: dict[tuple[_Atom, ...], list[Disjunct]] = {}
        for atoms in self._disjuncts:
            about_outputs = [atom for atom in atoms if not _is_bound(atom)]
            if not about_outputs:
                raise MalformedText("it asks nothing of the outputs, in one of its cases")
            rows = torch.zeros(len(about_outputs), outputs, dtype=torch.float64)
            for row, atom in zip(rows, about_outputs, strict=True):
                for _, number, value in atom.coefficients:
                    row[number] += value
            offsets = torch.tensor([atom.offset for atom in about_outputs], dtype=torch.float64)
            box = tuple(atom for atom in atoms if _is_bound(atom))
            boxes.setdefault(box, []).append(Disjunct(rows, offsets))
        lower, upper = [-torch.inf] * inputs, [torch.inf] * inputs
        _tighten(lower, upper, self._bounds)
        return [_property(list(lower), list(upper), box, disjuncts) for box, disjuncts in boxes.items()]


def _property(lower: list[float], upper: list[float], box: Sequence[_Atom], disjuncts: list[Disjunct]) -> Property:
    """The disjuncts over the common bounds and those of `box`."""
    _tighten(lower, upper, box)
    for number, (low, high) in enumerate(zip(lower, upper, strict=True)):
        if low == -torch.inf or high == torch.inf:
            side = "lower" if low == -torch.inf else "upper"
            raise MalformedText(f"X_{number} has no {side} bound")
        if low > high:
            raise MalformedText(f"X_{number} has lower bound {low} above its upper bound {high}")
    return Property(torch.tensor(lower, dtype=torch.float64), torch.tensor(upper, dtype=torch.float64), disjuncts)


def _tighten(lower: list[float], upper: list[float], bounds: Sequence[_Atom]) -> None:
    for atom in bounds:
        _, number, coefficient = atom.coefficients[0]
        limit = -atom.offset / coefficient + 0.0  # no minus zeros
        if coefficient > 0:
            upper[number] = min(upper[number], limit)
        else:
            lower[number] = max(lower[number], limit)


def _both(formulas: Sequence[_Formula], line: int) -> _Formula:
    """The conjunction, in disjunctive normal form."""
    count = 1
    for formula in formulas:
        count *= len(formula)
    if count > _MOST_DISJUNCTS:
        raise MalformedText(f"line {line}: it has more than {_MOST_DISJUNCTS} cases when written out")
    return [[atom for atoms in choice for atom in atoms] for choice in product(*formulas)]


def _is_bound(atom: _Atom) -> bool:
    return atom.coefficients[0][0] == "X"


def _sum(terms: Sequence[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for term in terms:
        for name, value in term.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _finite(value: float, expression: Expression) -> float:
    if not -torch.inf < value < torch.inf:
        raise MalformedText(f"line {expression.line}: {expression} is too large for float64")
    return value


def _decimal(value: float) -> str:
    """The shortest decimal, without exponent, that is read back as the same float64."""
    return format(Decimal(repr(value)), "f")
