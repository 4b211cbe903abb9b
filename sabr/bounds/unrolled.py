"""A network over boxes as it is, layer by layer, with its unstable ReLUs relaxed: where condensing it would not pay."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.dual import AtReLUBackward, AtReLUForward
from sabr.bounds.interval import Centred
from sabr.bounds.rows import flat, input_shapes, unflat
from sabr.networks.steps import ReLUStep, Step, SumStep


class Neurons(NamedTuple):
    """The unstable ReLUs of one layer, as in `sabr.bounds.dual.Layer`, and which others are the identity, (N, 1, F)."""

    lower: Tensor
    upper: Tensor
    real: Tensor
    places: Tensor
    active: Tensor


class Unrolled(NamedTuple):
    """Minimise functions of a network's output over each of N boxes, by passes through its own steps.

    It answers what `sabr.bounds.dual.Problem` answers, and takes no memory but for the values of a pass.

    Attributes
    ----------
    steps
        A folded network up to a vector, without gradients.
    shape
        Of one input.
    box
        (N, D) ends of the boxes, in the order of `flat`.
    layers
        The unstable ReLUs.
    objective, constant
        (N, Q, H) and (N, Q): Q functions of each output.
    """

    steps: Sequence[Step]
    shape: tuple[int, ...]
    box: Box
    layers: list[Neurons]
    objective: Tensor
    constant: Tensor

    def pull(self, at_relu: AtReLUBackward) -> tuple[Tensor, Tensor]:
        """As `sabr.bounds.dual.Problem.pull`."""
        count, queries, _ = self.objective.shape
        numbers = list(range(len(self.layers)))
        rows, constant = self._back(
            self.steps, self.shape, self.objective.flatten(0, 1), self.constant, numbers, at_relu
        )
        return flat(rows).reshape(count, queries, -1), constant

    def push(self, points: Tensor, at_relu: AtReLUForward) -> None:
        """As `sabr.bounds.dual.Problem.push`."""
        self._forward(self.steps, unflat(points.flatten(0, 1), self.shape), itertools.count(), at_relu)

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
        steps: Sequence[Step],
        shape: Sequence[int],
        rows: Tensor,
        constant: Tensor,
        numbers: list[int],
        at_relu: AtReLUBackward,
    ) -> tuple[Tensor, Tensor]:
        """Rows (N * Q, ...) of some steps' output as rows of their input; takes from the end of `numbers`."""
        for step, own in zip(reversed(steps), reversed(input_shapes(steps, shape)[:-1]), strict=True):
            if isinstance(step, ReLUStep):
                number = numbers.pop()
                layer = self.layers[number]
                values = flat(rows).view(*constant.shape, -1)
                places = layer.places.unsqueeze(1).expand(-1, values.shape[1], -1)
                down, more = at_relu(number, values.gather(2, places) * layer.real.unsqueeze(1))
                constant = constant + more
                rows = unflat((values * layer.active).scatter_add_(2, places, down).flatten(0, 1), own)
            elif isinstance(step, SumStep):
                paths = [
                    self._back(path, own, rows, torch.zeros_like(constant), numbers, at_relu)
                    for path in reversed(step.paths)
                ]
                rows = torch.stack([values for values, _ in paths]).sum(0)
                constant = constant + torch.stack([more for _, more in paths]).sum(0)
            else:
                offset = flat(step.apply(rows.new_zeros(1, *own)))
                constant = constant + torch.mv(flat(rows), offset[0]).view_as(constant)
                rows = step.pull(rows, own)
        return rows, constant

    def _forward(self, steps: Sequence[Step], values: Tensor, numbers: Iterator[int], at_relu: AtReLUForward) -> Tensor:
        for step in steps:
            if isinstance(step, ReLUStep):
                number = next(numbers)
                layer, shape = self.layers[number], values.shape[1:]
                inputs = flat(values).view(*self.constant.shape, -1)
                places = layer.places.unsqueeze(1).expand(-1, inputs.shape[1], -1)
                outputs = at_relu(number, inputs.gather(2, places)) * layer.real.unsqueeze(1)
                values = unflat((inputs * layer.active).scatter_add_(2, places, outputs).flatten(0, 1), shape)
            elif isinstance(step, SumStep):
                values = torch.stack([self._forward(path, values, numbers, at_relu) for path in step.paths]).sum(0)
            else:
                values = step.apply(values)
        return values


def unroll(
    steps: Sequence[Step], box: Box, weight: Tensor, constant: Tensor, relu_inputs: Sequence[Box | Centred]
) -> Unrolled:
    """The same functions as `sabr.bounds.condensed.condense`, with its parameters, in the other form."""
    layers = []
    for bounds in relu_inputs:
        lower, upper = flat(bounds.lower), flat(bounds.upper)
        unstable = (lower < 0) & (upper > 0)
        counts = unstable.sum(1)
        size = int(counts.max()) if len(counts) else 0
        # The unstable ones come first, each image's by place.
        places = torch.sort(unstable.to(torch.uint8), dim=1, descending=True, stable=True).indices[:, :size]
        real = torch.arange(size, device=places.device) < counts.unsqueeze(1)
        places = torch.where(real, places, 0)
        layers.append(
            Neurons(
                torch.where(real, lower.gather(1, places), -1.0),
                torch.where(real, upper.gather(1, places), 1.0),
                real,
                places,
                (lower >= 0).to(lower.dtype).unsqueeze(1),
            )
        )
    return Unrolled(steps, tuple(box.lower.shape[1:]), Box(flat(box.lower), flat(box.upper)), layers, weight, constant)


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
