"""A network over boxes as it is, layer by layer, with its unstable ReLUs relaxed: where condensing it would not pay."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.dual import AtReLUBackward, AtReLUForward
from sabr.bounds.interval import Centred
from sabr.bounds.rows import flat, input_shapes, unflat
from sabr.networks.steps import ConvolutionStep, FlattenStep, LinearStep, ReLUStep, Step, SumStep
from sabr.networks.walks import relu_prefixes


class Neurons(NamedTuple):
    """The unstable ReLUs of one layer, as in `sabr.bounds.dual.Layer`, and which others are the identity, (N, 1, F)."""

    lower: Tensor
    upper: Tensor
    real: Tensor
    places: Tensor
    active: Tensor


class Placed(NamedTuple):
    """A step where it stands in a network.

    Attributes
    ----------
    step
        The step itself.
    shape
        Of one of its inputs.
    bias
        (F,) what it adds to each output, in the order of `flat`; None: nothing. What a sum adds, its paths say.
    paths
        Those of a sum.
    """

    step: Step
    shape: tuple[int, ...]
    bias: Tensor | None
    paths: tuple[Sequence["Placed"], ...]


class Unrolled(NamedTuple):
    """Minimise functions of a network's output over each of N boxes, by passes through its own steps.

    It answers what `sabr.bounds.dual.Problem` answers, without matrices: by passes through the network itself.

    Attributes
    ----------
    steps
        A folded network up to a vector, without gradients.
    placed
        The same, where they stand.
    shape, output_shape
        Of one input, and of one output.
    box
        (N, D) ends of the boxes, in the order of `flat`.
    layers
        The unstable ReLUs.
    relus
        The numbers of the layers that the steps have, in the order in which they are met.
    objective, constant
        (N, Q, H) and (N, Q): Q functions of each output.
    """

    steps: Sequence[Step]
    placed: Sequence[Placed]
    shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    box: Box
    layers: list[Neurons]
    relus: list[int]
    objective: Tensor
    constant: Tensor

    @property
    def bytes(self) -> int:
        """Memory of what is known of the ReLUs, of the objective, and of biases."""
        tensors = [self.objective, *(t for layer in self.layers for t in layer), *_kept(self.placed)]
        return sum(t.numel() * t.element_size() for t in tensors)

    @property
    def bytes_of_a_query(self) -> int:
        """Memory that optimising one query of one image takes, roughly."""
        unstable = [layer.lower.shape[1] for layer in self.layers]
        return bytes_of_a_query(self.steps, self.shape, unstable, self.objective)

    def pull(self, at_relu: AtReLUBackward) -> tuple[Tensor, Tensor]:
        """As `sabr.bounds.dual.Problem.pull`."""
        count, queries, _ = self.objective.shape
        rows = unflat(self.objective.flatten(0, 1), self.output_shape)
        rows, constant = self._back(self.placed, rows, self.constant, list(self.relus), at_relu)
        return flat(rows).reshape(count, queries, self.box.lower.shape[1]), constant

    def push(self, points: Tensor, at_relu: AtReLUForward) -> Tensor:
        """As `sabr.bounds.dual.Problem.push`."""
        values = self._forward(self.placed, unflat(points.flatten(0, 1), self.shape), iter(self.relus), at_relu)
        return (flat(values).view_as(self.objective) * self.objective).sum(2) + self.constant

    def inner(self, number: int, weight: Tensor) -> "Unrolled":
        """As `sabr.bounds.dual.Problem.inner`."""
        prefix, layer = relu_prefixes(self.steps)[number], self.layers[number]
        objective = weight.new_zeros(*weight.shape[:2], layer.active.shape[2])
        places = layer.places.unsqueeze(1).expand(-1, weight.shape[1], -1)
        objective.scatter_add_(2, places, weight * layer.real.unsqueeze(1))
        constant = weight.new_zeros(weight.shape[:2])
        placed, output_shape = _place(prefix.steps, self.shape, weight)
        return self._replace(
            steps=prefix.steps,
            placed=placed,
            output_shape=output_shape,
            layers=self.layers[:number],
            relus=prefix.relus,
            objective=objective,
            constant=constant,
        )

    def offsets(self) -> list[Tensor]:
        """As `sabr.bounds.dual.Problem.offsets`, where active ReLUs' outputs are 0 as well: each neuron's own bias."""
        found: dict[int, Tensor] = {}
        like = self.objective.new_zeros(1, *self.shape)
        self._biases(self.steps, like, iter(self.relus), found)
        return [flat(found[n])[0][layer.places] * layer.real for n, layer in enumerate(self.layers)]

    def part(self, places: Tensor, dim: int) -> "Unrolled":
        """As `sabr.bounds.dual.Problem.part`."""
        own = self._replace(
            objective=self.objective.index_select(dim, places), constant=self.constant.index_select(dim, places)
        )
        if dim:
            return own
        layers = [Neurons(*(field.index_select(0, places) for field in layer)) for layer in self.layers]
        return own._replace(box=Box(*(end.index_select(0, places) for end in self.box)), layers=layers)

    def _back(
        self,
        placed: Sequence[Placed],
        rows: Tensor,
        constant: Tensor,
        numbers: list[int],
        at_relu: AtReLUBackward,
    ) -> tuple[Tensor, Tensor]:
        """Rows (N * Q, ...) of some steps' output as rows of their input; takes from the end of `numbers`."""
        # What was made on the way may be overwritten; what came in belongs to others.
        made = False
        for step, shape, bias, paths in reversed(placed):
            if isinstance(step, ReLUStep):
                number = numbers.pop()
                layer = self.layers[number]
                values = flat(rows).view(*constant.shape, layer.active.shape[2])
                places = layer.places.unsqueeze(1).expand(-1, values.shape[1], -1)
                down, more = at_relu(number, values.gather(2, places).mul_(layer.real.unsqueeze(1)))
                constant = constant + more
                kept = values.mul_(layer.active) if made else values * layer.active
                rows = unflat(kept.scatter_add_(2, places, down).flatten(0, 1), shape)
            elif isinstance(step, SumStep):
                each = [self._back(p, rows, torch.zeros_like(constant), numbers, at_relu) for p in reversed(paths)]
                rows = torch.stack([values for values, _ in each]).sum(0)
                constant = constant + torch.stack([more for _, more in each]).sum(0)
            else:
                if bias is not None:
                    constant = constant + torch.mv(flat(rows), bias).view_as(constant)
                rows = step.pull(rows, shape)
            made = made or not isinstance(step, FlattenStep)
        return rows, constant

    def _biases(
        self, steps: Sequence[Step], values: Tensor, numbers: Iterator[int], found: dict[int, Tensor]
    ) -> Tensor:
        """Inputs of ReLUs (1, ...) where all their outputs are 0."""
        for step in steps:
            if isinstance(step, ReLUStep):
                found[next(numbers)] = values
                values = torch.zeros_like(values)
            elif isinstance(step, SumStep):
                values = torch.stack([self._biases(path, values, numbers, found) for path in step.paths]).sum(0)
            else:
                values = step.apply(values)
        return values

    def _forward(
        self, placed: Sequence[Placed], values: Tensor, numbers: Iterator[int], at_relu: AtReLUForward
    ) -> Tensor:
        """Values (N * Q, ...) at some steps' output, of those at their input."""
        made = False
        for step, _, _, paths in placed:
            if isinstance(step, ReLUStep):
                number = next(numbers)
                layer, shape = self.layers[number], values.shape[1:]
                inputs = flat(values).view(*self.constant.shape, layer.active.shape[2])
                places = layer.places.unsqueeze(1).expand(-1, inputs.shape[1], -1)
                outputs = at_relu(number, inputs.gather(2, places)) * layer.real.unsqueeze(1)
                kept = inputs.mul_(layer.active) if made else inputs * layer.active
                values = unflat(kept.scatter_add_(2, places, outputs).flatten(0, 1), shape)
            elif isinstance(step, SumStep):
                values = torch.stack([self._forward(path, values, numbers, at_relu) for path in paths]).sum(0)
            elif isinstance(step, ConvolutionStep):
                values = step.apply_by_pixel(values)
            else:
                values = step.apply(values)
            made = made or not isinstance(step, FlattenStep)
        return values


def _kept(placed: Sequence[Placed]) -> Iterator[Tensor]:
    """The biases of steps, and of the paths of sums."""
    for step in placed:
        if step.bias is not None:
            yield step.bias
        for path in step.paths:
            yield from _kept(path)


def _place(steps: Sequence[Step], shape: tuple[int, ...], like: Tensor) -> tuple[list[Placed], tuple[int, ...]]:
    """Steps where they stand behind a shape, and the shape behind them."""
    placed = []
    for step in steps:
        bias = None
        paths = [_place(path, shape, like) for path in step.paths] if isinstance(step, SumStep) else []
        if paths:
            after = paths[0][1]
        else:
            zero = step.apply(like.new_zeros(1, *shape))
            after = tuple(zero.shape[1:])
            bias = flat(zero)[0] if zero.any() else None
        placed.append(Placed(step, shape, bias, tuple(path for path, _ in paths)))
        shape = after
    return placed, shape


def unroll(
    steps: Sequence[Step], box: Box, weight: Tensor, constant: Tensor, relu_inputs: Sequence[Box | Centred]
) -> Unrolled:
    """The same functions as `sabr.bounds.condensed.condense`, with its parameters, in the other form."""
    layers = []
    for bounds in relu_inputs:
        lower, upper = flat(bounds.lower), flat(bounds.upper)
        unstable = (lower < 0) & (upper > 0)
        image, place = torch.nonzero(unstable, as_tuple=True)
        counts = torch.bincount(image, minlength=len(unstable))
        # Each image's by place, from the first column on.
        real = torch.arange(int(counts.max()) if len(counts) else 0, device=counts.device) < counts.unsqueeze(1)
        places = torch.zeros(real.shape, dtype=torch.long, device=real.device).masked_scatter_(real, place)
        layers.append(
            Neurons(
                torch.where(real, lower.gather(1, places), -1.0),
                torch.where(real, upper.gather(1, places), 1.0),
                real,
                places,
                (lower >= 0).to(lower.dtype).unsqueeze(1),
            )
        )
    ends = Box(flat(box.lower), flat(box.upper))
    shape = tuple(box.lower.shape[1:])
    placed, output_shape = _place(steps, shape, weight)
    return Unrolled(steps, placed, shape, output_shape, ends, layers, list(range(len(layers))), weight, constant)


def unroll_each(
    steps: Sequence[Step],
    box: Box,
    weight: Tensor,
    constant: Tensor,
    relu_inputs: Sequence[Box | Centred],
    image: Tensor,
    query: Tensor,
) -> Unrolled:
    """Some of the functions, `query` (P,) of `image` (P,), each as the only one (Q = 1) of P images.

    Others of the same image then need not wait for it. The other parameters are those of `unroll`.
    """
    used, place = torch.unique(image, return_inverse=True)
    whole = unroll(
        steps,
        Box(box.lower[used], box.upper[used]),
        weight[used],
        constant[used],
        [Box(b.lower[used], b.upper[used]) for b in relu_inputs],
    )
    rows, offsets = weight[image, query].unsqueeze(1), constant[image, query].unsqueeze(1)
    return whole.part(place, 0)._replace(objective=rows, constant=offsets)


def bytes_of_a_query(steps: Sequence[Step], shape: Sequence[int], unstable: Sequence[int], like: Tensor) -> int:
    """Memory that optimising one query of an unrolled network takes, roughly.

    Parameters
    ----------
    steps, shape
        As in `Unrolled`.
    unstable
        Of each layer, how many ReLUs.
    like
        Of the precision.
    """
    sizes = [torch.Size(own).numel() for own in input_shapes(steps, shape)]
    return like.element_size() * (40 * sum(unstable) + sum(sizes) + 8 * max(sizes))


def work_of_a_pass(steps: Sequence[Step], shape: Sequence[int]) -> int:
    """Multiplications of a pass of one query; where a condensed network has more entries, it is the slower of the two.

    (Measured on a CPU; the two meet somewhere between 0.6 and 1.5 times as many.)
    """
    total = 0
    for step, own, after in zip(steps, input_shapes(steps, shape), input_shapes(steps, shape)[1:], strict=False):
        match step:
            case ConvolutionStep():
                total += step.weight.numel() * after[1] * after[2]
            case LinearStep():
                total += step.weight.numel()
            case SumStep():
                total += sum(work_of_a_pass(path, own) for path in step.paths)
    return total
