"""A network over boxes, condensed to what is not affine there: matrices between its input and its unstable ReLUs.

Over a box most ReLUs of a certifiably trained network are stable, and between the few that are not everything is
affine. What bounds ask of the network is then answered by small dense products instead of convolutions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.dual import Layer, Problem, bound
from sabr.bounds.interval import Centred, propagate
from sabr.bounds.rows import Pulled, ReLUState, flat, input_shapes, pull_back, pull_rows, unflat
from sabr.networks.steps import Step
from sabr.networks.walks import relu_prefixes


class Condensed(NamedTuple):
    """N images' networks over their boxes.

    Attributes
    ----------
    problem
        Unstable ReLUs, and the objective's rows.
    relu_inputs
        (N, ...) bounds at the input of every ReLU.
    """

    problem: Problem
    relu_inputs: list[Box]


class TooLarge(Exception):  # noqa: N818 - not an error, but a case to be handled
    """A condensed network does not fit into memory; what is known of its ReLUs' inputs so far is sound."""

    def __init__(self, relu_inputs: list[Box], unstable: int) -> None:
        super().__init__(f"{unstable} unstable ReLUs in one layer")
        self.relu_inputs = relu_inputs


def condense(
    steps: Sequence[Step],
    box: Box,
    weight: Tensor,
    constant: Tensor,
    relu_inputs: Sequence[Box | Centred],
    *,
    refine: bool,
    allowances: Sequence[Tensor] | None = None,
    memory: int = 2**30,
) -> Condensed:
    """Condense a network over each of N boxes, and bound the inputs of its unstable ReLUs by linear bounds on the way.

    Each layer's unstable ReLUs are pulled back to the input, which gives their rows; with `refine` these rows are
    bounded by CROWN (Zhang et al. 2018, section 3) with the adaptive slopes of `sabr.bounds.crown.relax`, and ReLUs
    that prove to be stable are none of the next layer's variables. Sound as `sabr.bounds.dual.bound` is.

    Parameters
    ----------
    steps
        A folded network up to a vector, without gradients.
    box
        (N, ...) boxes.
    weight, constant
        (N, Q, H) and (N, Q): the objective, Q functions of the steps' output (N, H).
    relu_inputs
        Sound bounds at every ReLU's input, by intervals for instance.
    refine
        Improve these bounds.
    allowances
        For each ReLU (N, ...): what rounding may be off by (`sabr.bounds.rounding`); new bounds are moved outwards by
        it, as `relu_inputs` must have been.
    memory
        Bytes that pulling rows back may use at a time, and once more bytes for what comes out.

    Raises
    ------
    TooLarge
        When what comes out would not fit; fewer images may.
    """
    shape = box.lower.shape[1:]
    count = len(box.lower)
    ends = Box(flat(box.lower), flat(box.upper))
    bounds: list[Box | Centred] = list(relu_inputs)
    states: dict[int, ReLUState] = {}
    layers: list[Layer] = []
    held = 0
    for number, prefix in enumerate(relu_prefixes(steps)):
        shapes = input_shapes(prefix.steps, shape)
        allowance = 0.0 if allowances is None else flat(allowances[number])
        if refine and number:
            bounds = list(propagate(steps, box, known=[*bounds[:number], *relu_inputs[number:]]).relu_inputs)
            lower, upper = flat(bounds[number].lower) - allowance, flat(bounds[number].upper) + allowance
        else:
            lower, upper = flat(bounds[number].lower).clone(), flat(bounds[number].upper).clone()
        image, places = torch.nonzero((lower < 0) & (upper > 0), as_tuple=True)
        known = Problem(ends, layers, lower.new_zeros(count, 0, _width(ends, layers)))
        parts = []
        for chosen in torch.split(torch.arange(len(image)), _chunk(shapes, known, memory)):
            own_image, own_places = image[chosen], places[chosen]
            pulled = pull_back(prefix.steps, prefix.relus, states, own_places, own_image, shape)
            rows = _joined(pulled, layers)
            if refine and number:
                low, high = _both_sides(known, rows, own_image)
                if isinstance(allowance, Tensor):
                    margin = allowance[own_image, own_places]
                    low, high = low - margin, high + margin
                low = torch.maximum(low, lower[own_image, own_places])
                high = torch.minimum(high, upper[own_image, own_places])
                lower[own_image, own_places] = torch.minimum(low, high)
                upper[own_image, own_places] = high
                rows = rows[(low < 0) & (high > 0)]
            parts.append(rows)
        image, places = torch.nonzero((lower < 0) & (upper > 0), as_tuple=True)
        slot, size = _slots(image, count)
        held += count * size * known.objective.shape[2] * known.objective.element_size()
        if held > memory:
            bounds[number] = Box(unflat(lower, shapes[-1]), unflat(upper, shapes[-1]))
            raise TooLarge([Box(b.lower, b.upper) for b in bounds], size)
        rows = torch.cat(parts) if parts else lower.new_zeros(0, _width(ends, layers))
        padded = _padded(rows, image, slot, count, size)
        real = _padded(torch.ones(len(image), dtype=torch.bool, device=image.device), image, slot, count, size)
        at = _padded(places, image, slot, count, size)
        layers.append(
            Layer(
                padded,
                torch.where(real, lower.gather(1, at), -1.0),
                torch.where(real, upper.gather(1, at), 1.0),
                real,
                at,
            )
        )
        bounds[number] = Box(unflat(lower, shapes[-1]), unflat(upper, shapes[-1]))
        states[number] = _state(lower, shapes[-1], image, places, slot, at, real)
    rows = _objective(steps, states, layers, weight, constant, shape)
    return Condensed(Problem(ends, layers, rows), [Box(b.lower, b.upper) for b in bounds])


def _objective(
    steps: Sequence[Step],
    states: dict[int, ReLUState],
    layers: list[Layer],
    weight: Tensor,
    constant: Tensor,
    shape: Sequence[int],
) -> Tensor:
    count, queries, _ = weight.shape
    image = torch.arange(count, device=weight.device).repeat_interleave(queries)
    pulled = pull_rows(steps, range(len(layers)), states, weight.flatten(0, 1), constant.flatten(), image, shape)
    return _joined(pulled, layers).view(count, queries, -1)


def _width(box: Box, layers: Sequence[Layer]) -> int:
    return box.lower.shape[1] + 1 + sum(layer.lower.shape[1] for layer in layers)


def _joined(pulled: Pulled, layers: Sequence[Layer]) -> Tensor:
    """Columns: the input, the constant, each layer's ReLUs."""
    count = len(pulled.constant)
    blocks = [
        pulled.hidden.get(j, pulled.constant.new_zeros(count, layer.lower.shape[1])) for j, layer in enumerate(layers)
    ]
    return torch.cat([pulled.inputs, pulled.constant.unsqueeze(1), *blocks], 1)


def _both_sides(problem: Problem, rows: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds (R,) of rows (R, W) of images `image`, which is sorted."""
    first, last = int(image[0]), int(image[-1]) + 1
    slot, size = _slots(image - first, last - first)
    padded = _padded(rows, image - first, slot, last - first, size)
    part = problem.images(slice(first, last))._replace(objective=torch.cat([padded, -padded], 1))
    lower = bound(part)
    return lower[image - first, slot], -lower[image - first, slot + size]


def _slots(image: Tensor, count: int) -> tuple[Tensor, int]:
    """Number each image's entries of a sorted list from 0; and the largest number of them."""
    counts = torch.bincount(image, minlength=count)
    starts = counts.cumsum(0) - counts
    return torch.arange(len(image), device=image.device) - starts[image], int(counts.max()) if count else 0


def _padded(entries: Tensor, image: Tensor, slot: Tensor, count: int, size: int) -> Tensor:
    result = entries.new_zeros(count, size, *entries.shape[1:])
    result[image, slot] = entries
    return result


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


def _chunk(shapes: Sequence[Sequence[int]], problem: Problem, memory: int) -> int:
    """How many rows to pull back at a time."""
    largest = max(torch.Size(shape).numel() for shape in shapes)
    each = problem.objective.element_size() * (6 * largest + 6 * problem.objective.shape[2])
    return max(1, min(memory // each, 16384))
