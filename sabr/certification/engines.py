"""The stages that bound margins, batch by batch: by our own bounds, or by auto_LiRPA; rounding is accounted for."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from sabr.bounds.auto_lirpa import BoundedNetwork
from sabr.bounds.boxes import Box, ball
from sabr.bounds.condensed import TooLarge, condense
from sabr.bounds.crown import crown_margins
from sabr.bounds.dual import Problem, backward, bound, lines_of, start_of
from sabr.bounds.interval import margin_bounds, margin_rows, propagate
from sabr.bounds.optimise import Optimised, optimise
from sabr.bounds.rounding import allowances
from sabr.bounds.stacking import stack
from sabr.networks.steps import LinearStep, Step, cast

BoundStage = Literal["interval", "crown-ibp", "crown", "alpha-crown"]


class MarginBounds(NamedTuple):
    """Lower bounds (N, K-1) of the margins, and which of these are proved to be positive, rounding included."""

    lower: Tensor
    proved: Tensor


class Engine(Protocol):
    """What the cascade asks of an engine."""

    def margins(self, stage: BoundStage, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> MarginBounds:
        """Bound the margins of images, numbered so that knowledge of them can be used again."""
        ...


class Known(NamedTuple):
    """What is known of one image (N = 1): bounds at the ReLUs' inputs, rounding included, and its condensed network.

    The problem is None where it would not fit into memory.
    """

    relu_inputs: list[Box]
    problem: Problem | None


class NativeEngine:
    """Our own bounds.

    Parameters
    ----------
    steps
        A folded network that ends in a linear layer, without gradients, in float32.
    eps
        Radius.
    iterations, rate
        Of alpha-CROWN.
    memory
        Bytes for a batch, and again for what is kept of images between stages.
    """

    def __init__(self, steps: Sequence[Step], eps: float, *, iterations: int, rate: float, memory: int) -> None:
        last = steps[-1]
        if not isinstance(last, LinearStep):
            raise TypeError(f"margins need a network that ends in a linear layer, not in {type(last).__name__}")
        self.steps, self.last, self.eps = list(steps), last, eps
        self.iterations, self.rate, self.memory = iterations, rate, memory
        self._doubled = cast(self.steps, torch.float64)
        self._known: dict[int, Known] = {}
        self._kept = 0

    @torch.no_grad()
    def margins(self, stage: BoundStage, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> MarginBounds:
        """Bound the margins of images by one stage.

        A bound above what rounding may be off by is a proof; one between that and 0 is computed again in float64.
        """
        box = ball(images, self.eps)
        if stage in ("interval", "crown-ibp"):
            return self._direct(stage, box, labels)
        known = self.known(images, labels, numbers)
        results = []
        for number, one in enumerate(known):
            if one.problem is None:
                part = Box(box.lower[number : number + 1], box.upper[number : number + 1])
                results.append((number, self._over(part, labels[number : number + 1], one.relu_inputs)))
        whole = [number for number, one in enumerate(known) if one.problem is not None]
        lower = images.new_full((len(images), len(self.last.bias) - 1), -torch.inf)
        proved = torch.zeros_like(lower, dtype=torch.bool)
        for number, bounds in results:
            lower[number], proved[number] = bounds.lower[0], bounds.proved[0]
        if whole:
            chosen = torch.tensor(whole, device=images.device)
            own = [known[number] for number in whole]
            part = Box(box.lower[chosen], box.upper[chosen])
            lower[chosen], proved[chosen] = self._condensed(stage, part, labels[chosen], own)
        return MarginBounds(lower, proved)

    def known(self, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> list[Known]:
        """What is known of images, found if need be: their ReLUs bounded by CROWN, their networks condensed."""
        missing = [place for place, number in enumerate(numbers) if number not in self._known]
        if missing and self._kept > self.memory:
            self.forget(set(self._known) - set(numbers))
        found: dict[int, Known] = {}
        if missing:
            chosen = torch.tensor(missing, device=images.device)
            for place, one in zip(missing, self._find(images[chosen], labels[chosen]), strict=True):
                found[numbers[place]] = one
        self._known |= found
        self._kept += sum(_bytes(one) for one in found.values())
        return [self._known[number] for number in numbers]

    def forget(self, numbers: set[int]) -> None:
        """Free what is kept of images."""
        for number in numbers & set(self._known):
            self._kept -= _bytes(self._known.pop(number))

    def _find(self, images: Tensor, labels: Tensor) -> list[Known]:
        box = ball(images, self.eps)
        weight, constant = margin_rows(self.last, labels)
        hidden = self.steps[:-1]
        relu_inputs = list(propagate(hidden, box).relu_inputs)
        allowed = allowances(hidden, box, relu_inputs, weight, constant).relu_inputs
        widened = [Box(b.lower - a, b.upper + a) for b, a in zip(relu_inputs, allowed, strict=True)]
        try:
            condensed = condense(
                hidden, box, weight, constant, widened, refine=True, allowances=allowed, memory=self.memory
            )
        except TooLarge as error:
            if len(images) == 1:
                return [Known(error.relu_inputs, None)]
            half = len(images) // 2
            return self._find(images[:half], labels[:half]) + self._find(images[half:], labels[half:])
        result = []
        for number in range(len(images)):
            own = slice(number, number + 1)
            bounds = [Box(b.lower[own], b.upper[own]) for b in condensed.relu_inputs]
            result.append(Known(bounds, condensed.problem.trimmed(number)))
        return result

    def _direct(self, stage: BoundStage, box: Box, labels: Tensor) -> MarginBounds:
        hidden = self.steps[:-1]
        found = margin_bounds(self.steps, box, labels)
        if stage == "interval":
            lower = found.lower
        else:
            lower = crown_margins(self.steps, box, self._widened(box, labels, found.relu_inputs), labels)
        weight, constant = margin_rows(self.last, labels)
        threshold = allowances(hidden, box, found.relu_inputs, weight, constant).objective
        proved = lower > threshold
        close = (~proved & (lower > 0)).any(1)
        if bool(close.any()):
            ends, own = Box(box.lower[close].double(), box.upper[close].double()), labels[close]
            again = margin_bounds(self._doubled, ends, own)
            if stage == "interval":
                exact = again.lower
            else:
                exact = crown_margins(self._doubled, ends, again.relu_inputs, own)
            last = self._doubled[-1]
            assert isinstance(last, LinearStep)
            exact_threshold = allowances(self._doubled[:-1], ends, again.relu_inputs, *margin_rows(last, own)).objective
            proved[close] |= exact > exact_threshold
        return MarginBounds(lower, proved)

    def _widened(self, box: Box, labels: Tensor, relu_inputs: Sequence) -> list[Box]:  # type: ignore[type-arg]
        weight, constant = margin_rows(self.last, labels)
        allowed = allowances(self.steps[:-1], box, relu_inputs, weight, constant).relu_inputs
        return [Box(b.lower - a, b.upper + a) for b, a in zip(relu_inputs, allowed, strict=True)]

    def _over(self, box: Box, labels: Tensor, relu_inputs: list[Box]) -> MarginBounds:
        """CROWN on the whole network, for an image whose condensed network does not fit into memory."""
        lower = crown_margins(self.steps, box, relu_inputs, labels)
        threshold = allowances(self.steps[:-1], box, relu_inputs, *margin_rows(self.last, labels)).objective
        return MarginBounds(lower, lower > threshold)

    def _condensed(self, stage: BoundStage, box: Box, labels: Tensor, known: list[Known]) -> MarginBounds:
        problem = stack([one.problem for one in known if one.problem is not None])
        bounds = [Box(torch.cat(low), torch.cat(high)) for low, high in _by_layer(known)]
        threshold = allowances(self.steps[:-1], box, bounds, *margin_rows(self.last, labels)).objective
        lines = lines_of(problem)
        found: Optimised | None = None
        if stage == "alpha-crown":
            found = optimise(
                problem, lines, start_of(problem, lines), iterations=self.iterations, rate=self.rate, target=threshold
            )
            lower = found.passed.lower
        else:
            lower = bound(problem, lines)
        proved = lower > threshold
        close = torch.nonzero((~proved & (lower > 0)).any(1)).flatten()
        for number in close.tolist():
            one = slice(number, number + 1)
            exact, exact_threshold = self.exactly(
                Box(box.lower[one], box.upper[one]), labels[one], known[number].relu_inputs
            )
            own_lines = lines_of(exact)
            multipliers = start_of(exact, own_lines)
            if found is not None:
                sizes = [layer.lower.shape[1] for layer in exact.layers]
                alpha = [a[one, :, :size].double() for a, size in zip(found.multipliers.alpha, sizes, strict=True)]
                multipliers = type(multipliers)(alpha)
            again = backward(exact, own_lines, multipliers).lower
            proved[one] |= again > exact_threshold
        return MarginBounds(lower, proved)

    def exactly(self, box: Box, labels: Tensor, relu_inputs: Sequence[Box]) -> tuple[Problem, Tensor]:
        """The condensed network in float64, and what its rounding may be off by, (N, K-1)."""
        ends = Box(box.lower.double(), box.upper.double())
        bounds = [Box(b.lower.double(), b.upper.double()) for b in relu_inputs]
        last = self._doubled[-1]
        assert isinstance(last, LinearStep)
        rows = margin_rows(last, labels)
        problem = condense(self._doubled[:-1], ends, *rows, bounds, refine=False, memory=self.memory).problem
        return problem, allowances(self._doubled[:-1], ends, bounds, *rows).objective


class AutoLirpaEngine:
    """auto_LiRPA's bounds; what is too close to 0 for float32 is computed again in float64.

    Parameters are those of `NativeEngine`.
    """

    def __init__(self, steps: Sequence[Step], eps: float, *, iterations: int, shape: Sequence[int]) -> None:
        self.steps, self.eps, self.shape, self.iterations = list(steps), eps, shape, iterations
        self._single = BoundedNetwork(steps, shape, alpha_iterations=iterations)
        self._double: BoundedNetwork | None = None

    def margins(self, stage: BoundStage, images: Tensor, labels: Tensor, numbers: Sequence[int]) -> MarginBounds:
        """Bound the margins of images by one stage."""
        box = ball(images, self.eps)
        lower = self._single.margin_lower_bounds(box, labels, method=stage)
        with torch.no_grad():
            proved = lower > self._threshold(self.steps, box, labels)
        close = (~proved & (lower > 0)).any(1)
        if bool(close.any()):
            doubled = cast(self.steps, torch.float64)
            if self._double is None:
                self._double = BoundedNetwork(doubled, self.shape, alpha_iterations=self.iterations)
            ends, own = Box(box.lower[close].double(), box.upper[close].double()), labels[close]
            again = self._double.margin_lower_bounds(ends, own, method=stage)
            with torch.no_grad():
                proved[close] |= again > self._threshold(doubled, ends, own)
        return MarginBounds(lower, proved)

    @staticmethod
    def _threshold(steps: Sequence[Step], box: Box, labels: Tensor) -> Tensor:
        last = steps[-1]
        assert isinstance(last, LinearStep)
        relu_inputs = propagate(steps[:-1], box).relu_inputs
        return allowances(steps[:-1], box, relu_inputs, *margin_rows(last, labels)).objective


def _by_layer(known: Sequence[Known]) -> list[tuple[list[Tensor], list[Tensor]]]:
    layers = zip(*(one.relu_inputs for one in known), strict=True)
    return [([b.lower for b in layer], [b.upper for b in layer]) for layer in layers]


def _bytes(one: Known) -> int:
    tensors = [end for bounds in one.relu_inputs for end in bounds]
    if one.problem is not None:
        tensors += [layer.rows for layer in one.problem.layers] + [one.problem.objective]
    return sum(t.numel() * t.element_size() for t in tensors)
