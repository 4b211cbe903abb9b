"""CROWN bounds at every ReLU's input, each neuron by itself, in the window of each layer that it sees."""

from collections.abc import Iterator, Sequence
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
# So many neurons of one pixel, which see the same window, share a copy of its lines.
_GROUP = 4


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
                for own, together in _turns(open_, image, places, shapes[-1], size):
                    walk = _Relaxing(prefix.relus, lines, together)
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


def _turns(
    open_: Tensor, image: Tensor, places: Tensor, shape: Sequence[int], size: int
) -> Iterator[tuple[Tensor, int]]:
    """Neurons `open_`, whose flat `places` are sorted for each `image`, at most about `size` at a time.

    With each turn comes how many of its neurons always stand in the same pixel: the first of them, the next, and so on.
    """
    parts = [(open_, 1)]
    if len(shape) == 3:
        pixel = places[open_] // shape[0] + image[open_] * (shape[1] * shape[2])
        _, run, counts = torch.unique_consecutive(pixel, return_inverse=True, return_counts=True)
        number = torch.arange(len(open_), device=open_.device) - (counts.cumsum(0) - counts)[run]
        grouped = number < (counts // _GROUP * _GROUP)[run]
        # Of few it is not worth turns of their own.
        if 2 * int(grouped.sum()) > len(open_):
            parts = [(open_[grouped], _GROUP), (open_[~grouped], 1)]
    for part, together in parts:
        for own in torch.split(part, max(size // together, 1) * together):
            if len(own):
                yield own, together


class _Relaxing(Walk):
    """Replaces each ReLU by the line that keeps the rows a lower bound.

    Parameters
    ----------
    relus
        As of `Walk`.
    lines
        Of the ReLUs.
    together
        How many rows always start in the same pixel of the same image, and so see the same windows.
    """

    def __init__(self, relus: Sequence[int], lines: dict[int, _Lines], together: int = 1) -> None:
        super().__init__(relus)
        self.lines, self.together = lines, together

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
        lower, upper = self._seen(ends, rows, shapes[0])
        coefficients = _pixels(rows.values).reshape(*lower.shape[:1], -1, lower.shape[-1])
        least = (coefficients * torch.where(coefficients > 0, lower, upper)).sum(2).flatten()
        return self.constant + least

    def at_relu(self, number: int, rows: Rows, shape: Sequence[int]) -> Rows:
        values = _pixels(rows.values)
        count = len(rows.image)
        if rows.corner is None:
            lines = [part[:-1].view(-1, values.numel() // count) for part in self.lines[number]]
            passed, constant = _replaced_by_image(values.reshape(count, -1), rows.image, *lines)
        else:
            slope, difference, offset = self._in_windows(self.lines[number], rows, shape)
            grouped = values.reshape(len(slope), self.together, -1)
            falling = grouped.clamp(max=0)
            # In place: no one else holds what a step has given.
            passed = grouped.mul_(slope).addcmul_(falling, difference)
            constant = torch.bmm(falling, offset.transpose(1, 2)).flatten()
        self.constant = self.constant + constant
        if rows.values.dim() == 2:
            return rows._replace(values=passed)
        channels, height, width = rows.values.shape[1:]
        return rows._replace(values=passed.view(count, height, width, channels).permute(0, 3, 1, 2))

    def _in_windows(self, parts: Sequence[Tensor], rows: Rows, shape: Sequence[int]) -> list[Tensor]:
        """What the rows that stand together see of each part, which is `_by_pixel`: (R / together, 1, K)."""
        assert rows.corner is not None
        first = Rows(*(field[:: self.together] for field in (rows.values, rows.image, rows.corner)))
        where = windows(first, shape, (len(parts[0]) - 1) // (shape[1] * shape[2]))
        return [part.index_select(0, where).view(len(first.image), 1, -1) for part in parts]

    def _seen(self, ends: tuple[Tensor, Tensor], rows: Rows, shape: Sequence[int]) -> list[Tensor]:
        """What the rows see of the ends of the box, each `_by_pixel`: as `_in_windows`, or (R, 1, K) of whole maps."""
        if rows.corner is not None:
            return self._in_windows(ends, rows, shape)
        each = torch.Size(shape).numel()
        return [end[:-1].view(-1, 1, each).index_select(0, rows.image) for end in ends]


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


def _chunk(steps: Sequence[Step], shapes: Sequence[Sequence[int]], like: Tensor, memory: int) -> int:
    """How many neurons to bound at a time."""
    # A twelfth: convolutions have copies of their own, and the heap keeps what other turns have freed (measured).
    return min(at_a_time(8 * largest_row(steps, shapes) * like.element_size(), min(memory // 12, _ENOUGH)), 8192)
