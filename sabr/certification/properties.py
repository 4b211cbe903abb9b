"""A property of a network, such as VNN-COMP's: a counterexample found, or its absence proved."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.certification.cascade import certify
from sabr.certification.verdicts import Verdict
from sabr.errors import SabrError
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
        Stages, and how each of them works.
    """
    reason = ""
    for one in properties:
        box = Box(*(end.view(1, *network.input_shape) for end in (one.lower, one.upper)))
        simple = [d for d in one.disjuncts if len(d.rows) == 1]
        parts = [simple] if simple else []
        parts += [[d] for d in one.disjuncts if len(d.rows) > 1]
        for part in parts:
            answer = _decide(network.steps, one, box, part, spec)
            if answer.result == "sat":
                return answer
            reason = reason or answer.reason
    return Answer("unknown", reason=reason) if reason else Answer("unsat")


def _decide(steps: Sequence[Step], asked: Property, box: Box, disjuncts: Sequence[Disjunct], spec: Cascade) -> Answer:
    rows = torch.cat([d.rows for d in disjuncts])
    offsets = torch.cat([d.offsets for d in disjuncts])
    joint = len(disjuncts) == 1 and len(rows) > 1
    reason = ""
    for chosen in range(len(rows)) if joint else [slice(None)]:
        verdict = _one(steps, box, rows[chosen].view(-1, rows.shape[1]), offsets[chosen].view(-1), spec)
        if verdict.certified_by:
            return Answer("unsat")
        reason = verdict.reason or "a conjunction of inequalities is proved by one of them only"
        if verdict.point is not None:
            inputs = verdict.point.unsqueeze(0)
            outputs = forward(cast(steps, torch.float64), inputs)[0]
            if asked.violated_by(inputs.flatten(), outputs):
                return Answer("sat", inputs.flatten(), outputs)
    return Answer("unknown", reason=reason)


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
    if not found:
        raise SabrError("no stage gave a verdict: the cascade has none that can")
    return found[0]


def _with_margins(steps: Sequence[Step], rows: Tensor, offsets: Tensor) -> list[Step]:
    """The network with the logits 0, -(rows @ y + offsets), in float64."""
    weight, bias = F.pad(-rows, (0, 0, 1, 0)), F.pad(-offsets, (1, 0))
    doubled = cast(steps, torch.float64)
    last = doubled[-1]
    if isinstance(last, LinearStep):
        return [*doubled[:-1], LinearStep(weight @ last.weight, weight @ last.bias + bias)]
    return [*doubled, LinearStep(weight, bias)]
