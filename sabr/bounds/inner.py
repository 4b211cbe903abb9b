"""CROWN bounds at every ReLU's input, each neuron by itself, in the window of each layer that it sees."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.crown import relax
from sabr.bounds.interval import Centred, propagate
from sabr.bounds.rows import Rows, Walk, at_a_time, flat, input_shapes, largest_row, unflat, windows
from sabr.networks.steps import Step
from sabr.networks.walks import relu_prefixes

# Windows are pulled back as fast in turns of so many bytes as in larger ones (measured), which only take more memory.
_ENOUGH = 2**27


def crown_inputs(
    steps: Sequence[Step],
    box: Box,
    relu_inputs: Sequence[Box | Centred],
    *,
    allowances: Sequence[Tensor] | None = None,
    memory: int,
) -> list[Box]:
    """Bounds at every ReLU's input by CROWN (Zhang et al. 2018, section 3), where intervals leave it unstable.

    Layer after layer, from the input on, each with the bounds of those before it; what is left to intervals is
    propagated anew from them, and so is the second side of a neuron whose first one shows that its ReLU is stable.
    Sound in exact arithmetic. Convolutions are pulled back in the window that a neuron sees; no matrix of one is ever
    formed.

    Parameters
    ----------
    steps
        A folded network, without gradients.
    box
        (N, ...) boxes.
    relu_inputs
        Sound bounds at every ReLU's input, by intervals for instance.
    allowances
        For each ReLU (N, ...): what rounding may be off by (`sabr.bounds.rounding`); new bounds are moved outwards by
        it, as `relu_inputs` must have been.
    memory
        Bytes that may be used at a time, roughly.
    """
    shape = box.lower.shape[1:]
    bounds: list[Box | Centred] = list(relu_inputs)
    lines: dict[int, _Lines] = {}
    ends = _by_pixel(box.lower), _by_pixel(box.upper)
    for number, prefix in enumerate(relu_prefixes(steps)):
        shapes = input_shapes(prefix.steps, shape)
        allowance = torch.zeros(()) if allowances is None else flat(allowances[number])
        cut = bounds[number]
        if prefix.relus:
            cut = propagate(prefix.steps, box, known=[bounds[before] for before in prefix.relus]).output
        lower, upper = flat(cut.lower) - allowance, flat(cut.upper) + allowance
        lower, upper = (
            torch.maximum(lower, flat(bounds[number].lower)),
            torch.minimum(upper, flat(bounds[number].upper)),
        )
        image, places = torch.nonzero((lower < 0) & (upper > 0), as_tuple=True)
        if prefix.relus and len(image):
            slack = allowance.expand_as(lower)[image, places]
            size = _chunk(prefix.steps, shapes, box.lower, memory)
            # Of y and of -y. Where the side that is nearer to 0 shows a ReLU to be stable, the other one is of no use.
            least = torch.stack([lower[image, places], -upper[image, places]])
            nearer = (least[1] > least[0]).long()
            for side in (nearer, 1 - nearer):
                open_ = torch.nonzero(least.amax(0) < 0).flatten()
                for own in torch.split(open_, size) if len(open_) else ():
                    walk = _Relaxing(prefix.relus, lines)
                    found = walk.least(prefix.steps, places[own], image[own], 1 - 2 * side[own], shapes, ends)
                    least[side[own], own] = torch.fmax(found - slack[own], least[side[own], own])
            low, high = least[0], -least[1]
            lower[image, places], upper[image, places] = torch.minimum(low, high), high
        bounds[number] = Box(unflat(lower, shapes[-1]), unflat(upper, shapes[-1]))
        lines[number] = _lines(bounds[number])
    return [Box(b.lower, b.upper) for b in bounds]


class _Lines(NamedTuple):
    """The lines of one ReLU layer of N images, each `_by_pixel`; `difference` is the upper slope less the lower one."""

    lower_slope: Tensor
    difference: Tensor
    upper_offset: Tensor


def _lines(bounds: Box | Centred) -> _Lines:
    line = relax(bounds)
    difference = line.upper_slope - line.lower_slope
    return _Lines(_by_pixel(line.lower_slope), _by_pixel(difference), _by_pixel(line.upper_offset))


class _Relaxing(Walk):
    """Replaces each ReLU by the line that keeps the rows a lower bound."""

    def __init__(self, relus: Sequence[int], lines: dict[int, _Lines]) -> None:
        super().__init__(relus)
        self.lines = lines

    def least(
        self,
        steps: Sequence[Step],
        places: Tensor,
        image: Tensor,
        sign: Tensor,
        shapes: Sequence[Sequence[int]],
        ends: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Lower bounds (R,) of sign * y, for the steps' output y at flat places (R,)."""
        before, rows = self.start(steps, places, image, shapes, ends[0].dtype)
        self.constant = sign * self.constant
        rows = self.back(
            before, rows._replace(values=rows.values * sign.view(-1, *[1] * (rows.values.dim() - 1))), shapes
        )
        coefficients = _pixels(rows.values).reshape(len(places), -1)
        lower, upper = _seen(ends, rows, shapes[0])
        least = (coefficients * torch.where(coefficients > 0, lower, upper)).sum(1)
        return self.constant + least

    def at_relu(self, number: int, rows: Rows, shape: Sequence[int]) -> Rows:
        values = _pixels(rows.values)
        count = len(rows.image)
        if rows.corner is None:
            lines = [part[:-1].view(-1, values.numel() // count) for part in self.lines[number]]
            passed, constant = _replaced_by_image(values.reshape(count, -1), rows.image, *lines)
        else:
            where = windows(rows, shape, (len(self.lines[number].upper_offset) - 1) // (shape[1] * shape[2]))
            slope, difference, offset = (part.index_select(0, where) for part in self.lines[number])
            falling = values.clamp(max=0)
            passed = slope.mul_(values).addcmul_(falling, difference)
            constant = falling.mul_(offset).reshape(count, -1).sum(1)
        self.constant = self.constant + constant
        if rows.values.dim() == 2:
            return rows._replace(values=passed)
        channels, height, width = rows.values.shape[1:]
        return rows._replace(values=passed.view(count, height, width, channels).permute(0, 3, 1, 2))


def _replaced_by_image(
    values: Tensor, image: Tensor, lower_slope: Tensor, difference: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows (R, K) of whole outputs as rows of inputs, and what that adds to their constants; lines are (N, K).

    The rows of one image, which stand together, share its lines, so that these need not be copied for each row.
    """
    passed, constant = torch.empty_like(values), values.new_empty(len(values))
    images, counts = torch.unique_consecutive(image, return_counts=True)
    parts = (torch.split(t, counts.tolist()) for t in (values, passed, constant))
    for own, rows, result, total in zip(images.tolist(), *parts, strict=True):
        falling = rows.clamp(max=0)
        torch.mv(falling, offset[own], out=total)
        torch.mul(rows, lower_slope[own], out=result).addcmul_(falling, difference[own])
    return passed, constant


def _by_pixel(values: Tensor) -> Tensor:
    """(N, C, H, W) as (N * H * W + 1, C), (N, F) as (N + 1, F); the last row, of what lies outside, is zero."""
    rows = _pixels(values)
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])


def _pixels(values: Tensor) -> Tensor:
    return values.permute(0, 2, 3, 1).reshape(-1, values.shape[1]) if values.dim() == 4 else values


def _seen(ends: tuple[Tensor, Tensor], rows: Rows, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """What each row sees of the two `ends` of its image, each `_by_pixel`: (R, K) in the order of `_pixels`."""
    if rows.corner is None:
        each = torch.Size(shape).numel()
        lower, upper = (end[:-1].view(-1, each).index_select(0, rows.image) for end in ends)
    else:
        where = windows(rows, shape, (len(ends[0]) - 1) // (shape[1] * shape[2]))
        lower, upper = (end.index_select(0, where).view(len(rows.image), -1) for end in ends)
    return lower, upper


def _chunk(steps: Sequence[Step], shapes: Sequence[Sequence[int]], like: Tensor, memory: int) -> int:
    """How many neurons to bound at a time."""
    # A twelfth: convolutions have copies of their own, and the heap keeps what other turns have freed (measured).
    return min(at_a_time(8 * largest_row(steps, shapes) * like.element_size(), min(memory // 12, _ENOUGH)), 8192)
