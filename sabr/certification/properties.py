"""A property of a network, such as VNN-COMP's: a counterexample found, or its absence proved."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.certification.cascade import certify
from sabr.certification.verdicts import Verdict
from sabr.networks.onnx_import import Imported
from sabr.networks.steps import LinearStep, Step, cast, forward
from sabr.networks.vnnlib import Disjunct, Property
from sabr.specs import Cascade


class Answer(NamedTuple):
    """What became of a property.

    Attributes
    ----------
    result
        sat: there is a counterexample; unsat: there is none, proved; unknown, with a reason.
    inputs, outputs
        Of the counterexample, float64, as checked by a plain forward pass; None if there is none.
    reason
        Empty unless unknown.
    """

    result: str
    inputs: Tensor | None = None
    outputs: Tensor | None = None
    reason: str = ""


def verify(network: Imported, properties: Sequence[Property], spec: Cascade) -> Answer:
    """Decide whether any of the properties has a counterexample.

    A disjunct with one inequality is decided like an image: its left side is the margin over a wrong class. One with
    several is proved by any of them alone, and refuted only by a point that meets all.

    Parameters
    ----------
    network
        As `sabr.networks.onnx_import.read_onnx` gives it.
    properties
        One for each box of inputs.
    spec
        Stages, and how each of them works. `shard_minutes` is the time for all together: each part of the properties
        may take its share of what is left.
    """
    reason = ""
    budget = _Budget.of(spec, sum(_count(one) for one in properties))
    for one in properties:
        box = Box(*(end.view(1, *network.input_shape) for end in (one.lower, one.upper)))
        simple = [d for d in one.disjuncts if len(d.rows) == 1]
        parts = [simple] if simple else []
        parts += [[d] for d in one.disjuncts if len(d.rows) > 1]
        for part in parts:
            answer = _decide(network.steps, one, box, part, budget)
            if answer.result == "sat":
                return answer
            reason = reason or answer.reason
    return Answer("unknown", reason=reason) if reason else Answer("unsat")


@dataclass
class _Budget:
    """The cascade for one part after another, of `parts` that are left, until a deadline."""

    spec: Cascade
    deadline: float
    parts: int

    @classmethod
    def of(cls, spec: Cascade, parts: int) -> "_Budget":
        """All of a cascade's time."""
        limit = float("inf") if spec.shard_minutes is None else 60 * spec.shard_minutes
        return cls(spec, time.monotonic() + limit, parts)

    def next(self) -> Cascade:
        """The cascade with an equal share of the time that is left."""
        share = max(0.0, self.deadline - time.monotonic()) / max(1, self.parts)
        self.parts -= 1
        return self.spec.model_copy(update={"shard_minutes": share / 60})


def _count(asked: Property) -> int:
    """How many parts `verify` makes of a property: those with one inequality together, else one for each of them."""
    several = sum(len(d.rows) for d in asked.disjuncts if len(d.rows) > 1)
    return several + any(len(d.rows) == 1 for d in asked.disjuncts)


def _decide(steps: Sequence[Step], asked: Property, box: Box, disjuncts: Sequence[Disjunct], budget: _Budget) -> Answer:
    rows = torch.cat([d.rows for d in disjuncts])
    offsets = torch.cat([d.offsets for d in disjuncts])
    joint = len(disjuncts) == 1 and len(rows) > 1
    choices = list(zip(torch.split(rows, 1), torch.split(offsets, 1), strict=True)) if joint else [(rows, offsets)]
    reason = ""
    for number, chosen in enumerate(choices, 1):
        verdict = _one(steps, box, *chosen, budget.next())
        if verdict.certified_by:
            budget.parts -= len(choices) - number
            return Answer("unsat")
        own = verdict.reason or (_JOINT if joint else _CLOSE)
        reason = reason or own.replace("the shard's time is over", "out of time")
        if verdict.point is not None:
            inputs = verdict.point.unsqueeze(0)
            outputs = forward(cast(steps, torch.float64), inputs)[0]
            if asked.violated_by(inputs.flatten(), outputs):
                return Answer("sat", inputs.flatten(), outputs)
    return Answer("unknown", reason=reason)


# Reasons for unknown where an inequality fails somewhere, though not for sure together with all others.
_JOINT = "no inequality of a conjunction is proved by itself, and no point was found that meets all of them"
_CLOSE = "a counterexample is one up to rounding only"


def _one(steps: Sequence[Step], box: Box, rows: Tensor, offsets: Tensor, spec: Cascade) -> Verdict:
    """Are all rows @ y + offsets positive on the box? As the margins of class 0 over one class for each row."""
    found: list[Verdict] = []
    certify(
        _with_margins(steps, rows, offsets),
        box,
        torch.zeros(1, dtype=torch.int64),
        [0],
        spec,
        record=lambda number, verdict: found.append(verdict),
        report=lambda line: None,
    )
    (verdict,) = found
    return verdict


def _with_margins(steps: Sequence[Step], rows: Tensor, offsets: Tensor) -> list[Step]:
    """The network with the logits 0, -(rows @ y + offsets), in float64."""
    weight, bias = F.pad(-rows, (0, 0, 1, 0)), F.pad(-offsets, (1, 0))
    doubled = cast(steps, torch.float64)
    last = doubled[-1]
    if isinstance(last, LinearStep):
        return [*doubled[:-1], LinearStep(weight @ last.weight, weight @ last.bias + bias)]
    return [*doubled, LinearStep(weight, bias)]
