"""The stages that bound margins, batch by batch: by our own bounds, or by auto_LiRPA; rounding is accounted for."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from sabr.bounds.auto_lirpa import BoundedNetwork
from sabr.bounds.boxes import Box
from sabr.bounds.crown import crown_margins
from sabr.bounds.dual import Multipliers, backward, lines_of, start_of
from sabr.bounds.inner import crown_inputs
from sabr.bounds.interval import Centred, margin_bounds, margin_rows, propagate
from sabr.bounds.optimise import optimise
from sabr.bounds.rounding import allowances
from sabr.bounds.rows import at_a_time
from sabr.bounds.unrolled import bytes_of_a_query, unroll_each
from sabr.networks.steps import LinearStep, Step, cast

# A margin whose last three iterations of alpha-CROWN have raised its bound by no more than this share of the gain so
# far is left as it is: nine passes prove what all 20 iterations do (measured).
LEAST_GAIN = 0.02

BoundStage = Literal["interval", "crown-ibp", "crown", "alpha-crown"]


class MarginBounds(NamedTuple):
    """Lower bounds (N, K-1) of the margins, and which of these are proved to be positive, rounding included."""

    lower: Tensor
    proved: Tensor


class Engine(Protocol):
    """What the cascade asks of an engine."""

    def margins(
        self, stage: BoundStage, box: Box, labels: Tensor, numbers: Sequence[int], open_margins: Tensor
    ) -> MarginBounds:
        """Bound the margins over boxes, numbered so that knowledge of them can be used again.

        Only those of `open_margins` (N, K-1) are needed; others may come back as -inf.
        """
        ...


class NativeEngine:
    """Our own bounds.

    Parameters
    ----------
    steps
        A folded network that ends in a linear layer, without gradients, in float32 or float64: what is too close for
        float32 is proved for the network as it is given.
    iterations, rate
        Of alpha-CROWN.
    memory
        Bytes for a batch, and again for what is kept of images between stages.
    """

    def __init__(self, steps: Sequence[Step], *, iterations: int, rate: float, memory: int) -> None:
        self.steps = cast(steps, torch.float32)
        self.last = _last(self.steps)
        self.iterations, self.rate, self.memory = iterations, rate, memory
        self._doubled = cast(steps, torch.float64)
        self._known: dict[int, list[Box]] = {}
        self._kept = 0

    @torch.no_grad()
    def margins(
        self, stage: BoundStage, box: Box, labels: Tensor, numbers: Sequence[int], open_margins: Tensor
    ) -> MarginBounds:
        """Bound the margins over boxes by one stage.

        A bound above what rounding may be off by is a proof; one between that and 0 is computed again in float64.
        """
        if stage == "alpha-crown":
            return self._optimised(box, labels, self.relu_inputs(box, labels, numbers), open_margins)
        if stage == "crown":
            return self._crown(box, labels, self.relu_inputs(box, labels, numbers))
        intervals = margin_bounds(self.steps, box, labels)
        if stage == "crown-ibp":
            return self._crown(box, labels, self._widened(box, labels, intervals.relu_inputs))
        return self._checked(intervals.lower, box, labels, intervals.relu_inputs, _intervals)

    @torch.no_grad()
    def relu_inputs(self, box: Box, labels: Tensor, numbers: Sequence[int]) -> list[Box]:
        """Bounds at every ReLU's input by CROWN, rounding included; those of boxes seen before are used again."""
        missing = [place for place, number in enumerate(numbers) if number not in self._known]
        if missing:
            if self._kept > self.memory:
                self.forget(set(self._known) - set(numbers))
            chosen = torch.tensor(missing, device=labels.device)
            ends, own = Box(box.lower[chosen], box.upper[chosen]), labels[chosen]
            intervals = propagate(self.steps[:-1], ends).relu_inputs
            allowed = allowances(self.steps[:-1], ends, intervals, *margin_rows(self.last, own)).relu_inputs
            found = crown_inputs(
                self.steps[:-1], ends, _moved(intervals, allowed), allowances=allowed, memory=self.memory
            )
            for row, place in enumerate(missing):
                one = [Box(b.lower[row : row + 1].clone(), b.upper[row : row + 1].clone()) for b in found]
                self._known[numbers[place]] = one
                self._kept += _bytes(one)
        layers = zip(*(self._known[number] for number in numbers), strict=True)
        return [Box(torch.cat([b.lower for b in layer]), torch.cat([b.upper for b in layer])) for layer in layers]

    def forget(self, numbers: set[int]) -> None:
        """Free what is kept of images."""
        for number in numbers & set(self._known):
            self._kept -= _bytes(self._known.pop(number))

    def _crown(self, box: Box, labels: Tensor, relu_inputs: list[Box]) -> MarginBounds:
        bounded = partial(crown_margins, memory=self.memory)
        return self._checked(bounded(self.steps, box, relu_inputs, labels), box, labels, relu_inputs, bounded)

    def _checked(
        self,
        lower: Tensor,
        box: Box,
        labels: Tensor,
        relu_inputs: Sequence[Box | Centred],
        again: Callable[[Sequence[Step], Box, Sequence[Box], Tensor], Tensor],
    ) -> MarginBounds:
        """What is proved in float32, or, where that is too close, by the same bound in float64."""
        threshold = allowances(self.steps[:-1], box, relu_inputs, *margin_rows(self.last, labels)).objective
        proved = lower > threshold
        close = (~proved & (lower > 0)).any(1)
        if bool(close.any()):
            ends, own = _doubled(Box(box.lower[close], box.upper[close])), labels[close]
            bounds = [_doubled(Box(b.lower[close], b.upper[close])) for b in relu_inputs]
            exact = again(self._doubled, ends, bounds, own)
            rows = margin_rows(_last(self._doubled), own)
            proved[close] |= exact > allowances(self._doubled[:-1], ends, bounds, *rows).objective
        return MarginBounds(lower, proved)

    def _widened(self, box: Box, labels: Tensor, relu_inputs: Sequence[Centred]) -> list[Box]:
        rows = margin_rows(self.last, labels)
        return _moved(relu_inputs, allowances(self.steps[:-1], box, relu_inputs, *rows).relu_inputs)

    def _optimised(self, box: Box, labels: Tensor, relu_inputs: list[Box], open_margins: Tensor) -> MarginBounds:
        """Alpha-CROWN of the open margins, each by itself, as many at a time as fit into memory."""
        weight, constant = margin_rows(self.last, labels)
        result = MarginBounds(torch.full_like(constant, -torch.inf), torch.zeros_like(open_margins))
        threshold = allowances(self.steps[:-1], box, relu_inputs, weight, constant).objective
        unstable = [int(((b.lower < 0) & (b.upper > 0)).flatten(1).sum(1).amax()) for b in relu_inputs]
        each = bytes_of_a_query(self.steps[:-1], box.lower.shape[1:], unstable, constant)
        pairs = torch.nonzero(open_margins)
        # An eighth: there is also what is kept of images, and what inner bounds have left on the heap (measured).
        turns = torch.split(pairs, at_a_time(each, self.memory / 8))
        for image, margin in (part.unbind(1) for part in turns if len(part)):
            problem = unroll_each(self.steps[:-1], box, weight, constant, relu_inputs, image, margin)
            lines = lines_of(problem)
            found = optimise(
                problem,
                lines,
                start_of(problem, lines),
                iterations=self.iterations,
                rate=self.rate,
                target=threshold[image, margin].unsqueeze(1),
                least_gain=LEAST_GAIN,
            )
            lower = found.passed.lower.squeeze(1)
            proved = lower > threshold[image, margin]
            for row in torch.nonzero(~proved & (lower > 0)).flatten().tolist():
                proved[row] = self._proved_exactly(
                    box, labels, relu_inputs, image[row], margin[row], [a[row] for a in found.multipliers.alpha]
                )
            result.lower[image, margin], result.proved[image, margin] = lower, proved
        return result

    def _proved_exactly(
        self, box: Box, labels: Tensor, relu_inputs: list[Box], image: Tensor, margin: Tensor, alpha: list[Tensor]
    ) -> Tensor:
        """Whether one margin of one image is proved in float64 with slopes found in float32, (1, U) each."""
        own = slice(int(image), int(image) + 1)
        ends = _doubled(Box(box.lower[own], box.upper[own]))
        bounds = [_doubled(Box(b.lower[own], b.upper[own])) for b in relu_inputs]
        rows = margin_rows(_last(self._doubled), labels[own])
        exact = unroll_each(self._doubled[:-1], ends, *rows, bounds, torch.zeros_like(image)[None], margin[None])
        sizes = [layer.lower.shape[1] for layer in exact.layers]
        slopes = Multipliers([a[None, :, :size].double() for a, size in zip(alpha, sizes, strict=True)])
        threshold = allowances(self._doubled[:-1], ends, bounds, *rows).objective[0, margin]
        return (backward(exact, lines_of(exact), slopes).lower > threshold).squeeze()


class AutoLirpaEngine:
    """auto_LiRPA's bounds; what is too close to 0 for float32 is computed again in float64.

    Parameters
    ----------
    steps, iterations, rate
        As in `NativeEngine`.
    shape
        Of one input.
    """

    def __init__(self, steps: Sequence[Step], *, iterations: int, rate: float, shape: Sequence[int]) -> None:
        self.steps, self._doubled = cast(steps, torch.float32), cast(steps, torch.float64)
        self._bounded = partial(BoundedNetwork, input_shape=shape, alpha_iterations=iterations, alpha_rate=rate)
        self._single = self._bounded(self.steps)
        self._double: BoundedNetwork | None = None

    def margins(
        self, stage: BoundStage, box: Box, labels: Tensor, numbers: Sequence[int], open_margins: Tensor
    ) -> MarginBounds:
        """Bound all margins over boxes by one stage."""
        lower = self._single.margin_lower_bounds(box, labels, method=stage)
        with torch.no_grad():
            proved = lower > self._threshold(self.steps, box, labels)
        close = (~proved & (lower > 0)).any(1)
        if bool(close.any()):
            if self._double is None:
                self._double = self._bounded(self._doubled)
            ends, own = Box(box.lower[close].double(), box.upper[close].double()), labels[close]
            again = self._double.margin_lower_bounds(ends, own, method=stage)
            with torch.no_grad():
                proved[close] |= again > self._threshold(self._doubled, ends, own)
        return MarginBounds(lower, proved)

    @staticmethod
    def _threshold(steps: Sequence[Step], box: Box, labels: Tensor) -> Tensor:
        relu_inputs = propagate(steps[:-1], box).relu_inputs
        return allowances(steps[:-1], box, relu_inputs, *margin_rows(_last(steps), labels)).objective


def _intervals(steps: Sequence[Step], box: Box, relu_inputs: Sequence[Box], labels: Tensor) -> Tensor:
    return margin_bounds(steps, box, labels).lower


def _moved(bounds: Sequence[Box | Centred], allowed: Sequence[Tensor]) -> list[Box]:
    """Bounds moved outwards by what rounding may be off by."""
    return [Box(b.lower - a, b.upper + a) for b, a in zip(bounds, allowed, strict=True)]


def _doubled(box: Box) -> Box:
    return Box(box.lower.double(), box.upper.double())


def _last(steps: Sequence[Step]) -> LinearStep:
    last = steps[-1]
    if not isinstance(last, LinearStep):
        raise TypeError(f"margins need a network that ends in a linear layer, not in {type(last).__name__}")
    return last


def _bytes(bounds: Sequence[Box]) -> int:
    return sum(end.numel() * end.element_size() for box in bounds for end in box)
