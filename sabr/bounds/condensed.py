"""A network over boxes, condensed to what is not affine there: matrices between its input and its unstable ReLUs.

Over a box most ReLUs of a certifiably trained network are stable, and between the few that are not everything is
affine. What bounds ask of the network is then answered by small dense products instead of convolutions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.collecting import Pulled, ReLUState, pull_back, pull_rows
from sabr.bounds.dual import Layer, Problem
from sabr.bounds.interval import Centred
from sabr.bounds.rows import at_a_time, flat, input_shapes, largest_row
from sabr.networks.steps import Step
from sabr.networks.walks import relu_prefixes


class TooLarge(Exception):  # noqa: N818 - not an error, but a case to be handled
    """A condensed network does not fit into memory; that of fewer images may."""


def condense(
    steps: Sequence[Step],
    box: Box,
    weight: Tensor,
    constant: Tensor,
    relu_inputs: Sequence[Box | Centred],
    *,
    memory: int,
) -> Problem:
    """Condense a network over each of N boxes: unstable ReLUs' inputs, and an objective, as functions of each other.

    Exact, but for rounding: stable ReLUs are the identity or zero.

    Parameters
    ----------
    steps
        A folded network up to a vector, without gradients.
    box
        (N, ...) boxes.
    weight, constant
        (N, Q, H) and (N, Q): the objective, Q functions of the steps' output (N, H).
    relu_inputs
        Sound bounds at every ReLU's input: which ReLUs are stable, and how the others are relaxed.
    memory
        Bytes: one half for what comes out, the other for pulling rows back.

    Raises
    ------
    TooLarge
        When what comes out would not fit.
    """
    shape = box.lower.shape[1:]
    count = len(box.lower)
    ends = Box(flat(box.lower), flat(box.upper))
    states: dict[int, ReLUState] = {}
    layers: list[Layer] = []
    held = 0
    for number, prefix in enumerate(relu_prefixes(steps)):
        shapes = input_shapes(prefix.steps, shape)
        lower, upper = flat(relu_inputs[number].lower), flat(relu_inputs[number].upper)
        image, places = torch.nonzero((lower < 0) & (upper > 0), as_tuple=True)
        slot, size = _slots(image, count)
        width = ends.lower.shape[1] + 1 + sum(layer.lower.shape[1] for layer in layers)
        held += count * size * width * lower.element_size()
        if held > memory // 2:
            raise TooLarge(f"{size} unstable ReLUs in layer {number} of {count} images")
        rows = lower.new_zeros(count, size, width)
        for chosen in (
            torch.split(torch.arange(len(image)), _chunk(prefix.steps, shapes, width, lower, memory))
            if len(image)
            else ()
        ):
            own, at = image[chosen], places[chosen]
            pulled = pull_back(prefix.steps, prefix.relus, states, at, own, shape, lower.dtype)
            rows[own, slot[chosen]] = _joined(pulled, layers)
        real = torch.zeros(count, size, dtype=torch.bool, device=image.device)
        real[image, slot] = True
        filled = torch.zeros(count, size, dtype=places.dtype, device=image.device)
        filled[image, slot] = places
        layers.append(
            Layer(
                rows,
                torch.where(real, lower.gather(1, filled), -1.0),
                torch.where(real, upper.gather(1, filled), 1.0),
                real,
                filled,
            )
        )
        states[number] = _state(lower, shapes[-1], image, places, slot, filled, real)
    return Problem(ends, layers, _objective(steps, states, layers, weight, constant, shape, memory))


def entries(inputs: int, relu_inputs: Sequence[Box | Centred]) -> int:
    """How many coefficients the condensed network of one image has, without its objective.

    Parameters
    ----------
    inputs
        Entries of the network's input.
    relu_inputs
        (1, ...) bounds at every ReLU's input.
    """
    total, width = 0, inputs + 1
    for bounds in relu_inputs:
        unstable = int(((bounds.lower < 0) & (bounds.upper > 0)).sum())
        total, width = total + unstable * width, width + unstable
    return total


def _objective(
    steps: Sequence[Step],
    states: dict[int, ReLUState],
    layers: list[Layer],
    weight: Tensor,
    constant: Tensor,
    shape: Sequence[int],
    memory: int,
) -> Tensor:
    count, queries, _ = weight.shape
    image = torch.arange(count, device=weight.device).repeat_interleave(queries)
    width = sum(layer.lower.shape[1] for layer in layers)
    size = _chunk(steps, input_shapes(steps, shape), width, constant, memory)
    turns = zip(*(torch.split(t, size) for t in (weight.flatten(0, 1), constant.flatten(), image)), strict=True)
    parts = [
        _joined(pull_rows(steps, range(len(layers)), states, rows, offset, own, shape), layers)
        for rows, offset, own in turns
    ]
    return torch.cat(parts).view(count, queries, -1)


def _joined(pulled: Pulled, layers: Sequence[Layer]) -> Tensor:
    """Columns: the input, the constant, each layer's ReLUs."""
    count = len(pulled.constant)
    blocks = [
        pulled.hidden.get(j, pulled.constant.new_zeros(count, layer.lower.shape[1])) for j, layer in enumerate(layers)
    ]
    return torch.cat([pulled.inputs, pulled.constant.unsqueeze(1), *blocks], 1)


def _slots(image: Tensor, count: int) -> tuple[Tensor, int]:
    """Number each image's entries of a sorted list from 0; and the largest number of them."""
    counts = torch.bincount(image, minlength=count)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(image), device=image.device) - starts[image], int(counts.max()) if count else 0


def _state(
    lower: Tensor, shape: Sequence[int], image: Tensor, places: Tensor, slot: Tensor, at: Tensor, real: Tensor
) -> ReLUState:
    active = (lower >= 0).to(lower.dtype)
    slots = torch.full(lower.shape, real.shape[1], device=lower.device)
    slots[image, places] = slot
    if len(shape) == 1:
        return ReLUState(active, slots, at, real)
    by_pixel = active.view(-1, shape[0]), slots.view(-1, shape[0])
    outside = active.new_zeros(1, shape[0]), slots.new_full((1, shape[0]), real.shape[1])
    return ReLUState(torch.cat([by_pixel[0], outside[0]]), torch.cat([by_pixel[1], outside[1]]), at, real)


def _chunk(steps: Sequence[Step], shapes: Sequence[Sequence[int]], width: int, like: Tensor, memory: int) -> int:
    """How many rows to pull back at a time."""
    # At the end a row is as long as the input and all unstable ReLUs, whatever it sees of them.
    largest = max(largest_row(steps, shapes), torch.Size(shapes[0]).numel())
    return min(at_a_time(12 * (largest + width) * like.element_size(), memory // 2), 8192)
