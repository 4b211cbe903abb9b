"""CROWN bounds at every ReLU's input, each neuron by itself, in the window of each layer that it sees."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.bounds.crown import relax
from sabr.bounds.interval import Centred, propagate
from sabr.bounds.rows import Rows, Walk, at_a_time, flat, input_shapes, largest_row, unflat, windows
from sabr.kernels import compiles, kernel
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
        values, where, tables = self._windowed(rows, ends, shapes[0])
        return self.constant + _least(values, where, *tables).flatten()

    def at_relu(self, number: int, rows: Rows, shape: Sequence[int]) -> Rows:
        values, where, tables = self._windowed(rows, self.lines[number], shape)
        # Operation by operation, other ones are faster than those that make the best compiled loop.
        if compiles(values):
            passed, constant = _replaced_at_once(values, where, *tables)
        elif rows.corner is None:
            passed, constant = _replaced_by_image(values.flatten(1), rows.image, *tables)
        else:
            passed, constant = _replaced_in_windows(values, where, *tables)
        self.constant = self.constant + constant.flatten()
        if rows.values.dim() == 2:
            return rows._replace(values=passed.reshape(len(rows.image), -1))
        count, channels, height, width = rows.values.shape
        return rows._replace(values=passed.reshape(count, height, width, channels).permute(0, 3, 1, 2))

    def _windowed(
        self, rows: Rows, tables: Sequence[Tensor], shape: Sequence[int]
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The rows' values (G, T, P, C) in G groups of T that see the same, and what that is.

        At each of P places C entries, to which belong the rows `where` (G, P) of the tables; whole maps are one place.
        """
        count, values = len(rows.image), _pixels(rows.values)
        if rows.corner is None:
            size = torch.Size(shape).numel()
            whole = [table[:-1].view(-1, size) for table in tables]
            return values.reshape(count, 1, 1, size), rows.image.unsqueeze(1), whole
        first = Rows(*(field[:: self.together] for field in (rows.values, rows.image, rows.corner)))
        where = windows(first, shape, (len(tables[0]) - 1) // (shape[1] * shape[2])).view(len(first.image), -1)
        return values.reshape(*where.shape[:1], self.together, where.shape[1], -1), where, list(tables)


def _replaced_in_windows(
    values: Tensor, where: Tensor, lower_slope: Tensor, difference: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """As `_replaced_at_once`; overwrites the rows."""
    groups, together = values.shape[:2]
    seen = (t.index_select(0, where.flatten()).view(groups, 1, -1) for t in (lower_slope, difference, offset))
    lower_slope, difference, offset = seen
    rows = values.reshape(groups, together, -1)
    falling = rows.clamp(max=0)
    constant = torch.bmm(falling, offset.transpose(1, 2))
    return rows.mul_(lower_slope).addcmul_(falling, difference), constant


@kernel
def _replaced_at_once(
    values: Tensor, where: Tensor, lower_slope: Tensor, difference: Tensor, offset: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of outputs as rows of inputs, and what that adds to their constants (G, T); parameters of `_windowed`."""
    falling = values.clamp(max=0)
    lower_slope, difference, offset = (t[where].unsqueeze(1) for t in (lower_slope, difference, offset))
    return values * lower_slope + falling * difference, (falling * offset).sum((2, 3))


@kernel
def _least(values: Tensor, where: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The least values (G, T) of rows over boxes."""
    return (values * torch.where(values > 0, lower[where].unsqueeze(1), upper[where].unsqueeze(1))).sum((2, 3))


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
    # A sixteenth: convolutions have copies of their own, and the heap keeps what other turns have freed (measured).
    return min(at_a_time(8 * largest_row(steps, shapes) * like.element_size(), min(memory // 16, _ENOUGH)), 8192)
