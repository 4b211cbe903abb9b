"""A property of a network, such as VNN-COMP's: a counterexample found, or its absence proved."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.certification.cascade import certify
from sabr.certification.verdicts import Verdict
from sabr.networks.onnx_import import Imported
from sabr.networks.steps import LinearStep, ReLUStep, Step, SumStep, cast, forward
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

    A disjunct holds where the largest of the left sides of its inequalities is not positive; maxima are made of ReLUs,
    u + max(v - u, 0), behind the network. Then all disjuncts of a box are decided like an image: each function is the
    margin over a wrong class.

    Parameters
    ----------
    network
        As `sabr.networks.onnx_import.read_onnx` gives it.
    properties
        One for each box of inputs.
    spec
        Stages, and how each of them works. `shard_minutes` is the time for all boxes together: each may take its share
        of what is left.
    """
    limit = float("inf") if spec.shard_minutes is None else 60 * spec.shard_minutes
    deadline = time.monotonic() + limit
    reason = ""
    for number, asked in enumerate(properties):
        share = max(0.0, deadline - time.monotonic()) / (len(properties) - number)
        answer = _decide(network, asked, spec.model_copy(update={"shard_minutes": share / 60}))
        if answer.result == "sat":
            return answer
        reason = reason or answer.reason
    return Answer("unknown", reason=reason) if reason else Answer("unsat")


def _decide(network: Imported, asked: Property, spec: Cascade) -> Answer:
    found: list[Verdict] = []
    certify(
        _with_margins(network.steps, asked.disjuncts),
        Box(*(end.view(1, *network.input_shape) for end in (asked.lower, asked.upper))),
        torch.zeros(1, dtype=torch.int64),
        [0],
        spec,
        record=lambda number, verdict: found.append(verdict),
        report=lambda line: None,
    )
    (verdict,) = found
    if verdict.certified_by:
        return Answer("unsat")
    if verdict.point is None:
        return Answer("unknown", reason=verdict.reason.replace("the shard's time is over", "out of time"))
    inputs = verdict.point.unsqueeze(0)
    outputs = forward(cast(network.steps, torch.float64), inputs)[0]
    if asked.violated_by(inputs.flatten(), outputs):
        return Answer("sat", inputs.flatten(), outputs)
    return Answer("unknown", reason="a counterexample was found that is one up to rounding only")


def _with_margins(steps: Sequence[Step], disjuncts: Sequence[Disjunct]) -> list[Step]:
    """The network with the logits 0 and, for each disjunct, minus its largest left side, in float64."""
    rows, offsets = torch.cat([d.rows for d in disjuncts]), torch.cat([d.offsets for d in disjuncts])
    result = _followed(cast(steps, torch.float64), rows, offsets)
    sizes = [len(d.rows) for d in disjuncts]
    while max(sizes) > 1:
        result.append(_maxima_of_pairs(sizes))
        sizes = [(size + 1) // 2 for size in sizes]
    logits = F.pad(-torch.eye(len(sizes), dtype=torch.float64), (0, 0, 1, 0))
    return _followed(result, logits, logits.new_zeros(len(logits)))


def _followed(steps: list[Step], weight: Tensor, bias: Tensor) -> list[Step]:
    """The steps and a linear one, which is folded into a linear one before it."""
    last = steps[-1]
    if isinstance(last, LinearStep):
        return [*steps[:-1], LinearStep(weight @ last.weight, weight @ last.bias + bias)]
    return [*steps, LinearStep(weight, bias)]


def _maxima_of_pairs(sizes: Sequence[int]) -> SumStep:
    """Values in groups of these sizes to the larger one of each two neighbours in a group; the odd one out is kept."""
    total = sum(sizes)
    kept, others = torch.zeros(2, sum((size + 1) // 2 for size in sizes), total, dtype=torch.float64)
    row = start = 0
    for size in sizes:
        for place in range(start, start + size, 2):
            kept[row, place] = 1
            if place + 1 < start + size:
                others[row, place], others[row, place + 1] = -1, 1
            row += 1
        start += size
    nothing = kept.new_zeros(row)
    return SumStep(((LinearStep(kept, nothing),), (LinearStep(others, nothing), ReLUStep())))
