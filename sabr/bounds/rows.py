"""Linear functions of a network's inner values, as patches or whole, pulled back towards the input."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.networks.steps import (
    ConvolutionStep,
    FlattenStep,
    LinearStep,
    ReLUStep,
    ScaleStep,
    Step,
    SumStep,
    first_weight,
)

# A patch that covers more than this share of its map is handled as a whole map.
_MOST_OF_MAP = 0.6
# Work of more bytes at a time is no faster (measured), and leaves a heap that is harder to use again.
_ENOUGH = 2**28


class Rows(NamedTuple):
    """R linear functions, each of one image's values at one place in the network.

    Attributes
    ----------
    values
        (R, C, h, w) coefficients in a window of a map, channels-last in memory, or (R, F) of a vector.
    image
        (R,) which image's.
    corner
        (R, 2) row and column of the window's first entry in the map, which may lie outside; None: the whole map.
    """

    values: Tensor
    image: Tensor
    corner: Tensor | None


def flat(values: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H * W * C), which costs nothing where it is channels-last; (N, F) as it is."""
    return values.permute(0, 2, 3, 1).flatten(1) if values.dim() == 4 else values


def unflat(values: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `flat` for values (N, ...) of one image's `shape`."""
    if len(shape) == 1:
        return values
    channels, height, width = shape
    if channels == 1:
        # Both orders are one; oneDNN's convolutions of one channel read beyond narrow maps that look channels-last.
        return values.reshape(-1, 1, height, width)
    return values.view(-1, height, width, channels).permute(0, 3, 1, 2)


def input_shapes(steps: Sequence[Step], shape: Sequence[int]) -> list[tuple[int, ...]]:
    """The shape of one image's values at the input of each step, and behind the last one."""
    shapes = [tuple(shape)]
    like = first_weight(steps)
    for step in steps:
        zeros = torch.zeros(1, *shapes[-1]) if like is None else like.new_zeros(1, *shapes[-1])
        shapes.append(tuple(step.apply(zeros).shape[1:]))
    return shapes


def at_a_time(each: int, memory: float) -> int:
    """How many rows to handle at a time that take `each` bytes, within `memory`: at least one."""
    return max(1, int(min(memory, _ENOUGH)) // each)


def largest_row(steps: Sequence[Step], shapes: Sequence[Sequence[int]]) -> int:
    """How many coefficients the largest row has on the way back from one place behind some steps; `input_shapes`."""
    side: tuple[int, int] | None = (1, 1) if len(shapes[-1]) == 3 else None
    largest = 1
    for step, shape in zip(reversed(steps), reversed(shapes[:-1]), strict=True):
        match step:
            case ConvolutionStep() if side is not None:
                kernel = step.weight.shape[2:]
                side = tuple((s - 1) * t + k for s, t, k in zip(side, step.stride, kernel, strict=True))  # type: ignore
                side = None if _most_of_map(side, shape) else side
            case SumStep():
                side = None
                inner = [input_shapes(path, shape) for path in step.paths]
                largest = max([largest, *(torch.Size(own).numel() for path in inner for own in path)])
            case LinearStep() | FlattenStep():
                side = None
        whole = side is None or len(shape) == 1
        largest = max(largest, torch.Size(shape).numel() if whole else shape[0] * side[0] * side[1])  # type: ignore
    return largest


def one_hot(places: Tensor, image: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Rows:
    """The values of one place in the network at flat `places` (R,), as functions of themselves; `shape` is theirs."""
    if len(shape) == 1:
        return Rows(F.one_hot(places, shape[0]).to(dtype), image, None)
    channels, _, width = shape
    values = F.one_hot(places % channels, channels).to(dtype).view(-1, channels, 1, 1)
    return Rows(values, image, _corners(places, channels, width))


class Walk:
    """One way back through a network with R rows; what happens at a ReLU is for the kinds of it to say.

    Parameters
    ----------
    relus
        The numbers of the ReLUs on the way, in order.

    Attributes
    ----------
    constant
        (R,) what the rows' constants have come to.
    """

    def __init__(self, relus: Sequence[int]) -> None:
        self.relus = list(relus)
        self.constant: Tensor | float = 0.0

    def at_relu(self, number: int, rows: Rows, shape: Sequence[int]) -> Rows:
        """Rows of a ReLU's outputs as rows of its inputs; their values may be overwritten."""
        raise TypeError(f"{type(self).__name__} does not know ReLUs")

    def start(
        self, steps: Sequence[Step], places: Tensor, image: Tensor, shapes: Sequence[Sequence[int]], dtype: torch.dtype
    ) -> tuple[Sequence[Step], Rows]:
        """The outputs of a part of a network at flat `places` (R,), as rows of what its first steps give, and those.

        No ReLU is passed.

        Parameters
        ----------
        steps
            The part; without steps it is the input itself.
        places, image
            (R,) where, and whose.
        shapes
            `input_shapes`
        dtype
            Of the rows.
        """
        match steps[-1] if steps else None:
            case ConvolutionStep(weight, bias, stride, padding):
                channels, _, width = shapes[-1]
                corner = _corners(places, channels, width) * _pair(stride, places) - _pair(padding, places)
                chosen = places % channels
                self.constant = bias[chosen]
                return steps[:-1], _whole_if_large(Rows(weight[chosen], image, corner), shapes[-2])
            case LinearStep(weight, bias):
                self.constant = bias[places]
                return steps[:-1], Rows(weight[places], image, None)
            case _:
                return steps, one_hot(places, image, shapes[-1], dtype)

    def back(self, steps: Sequence[Step], rows: Rows, shapes: Sequence[Sequence[int]]) -> Rows:
        """Rows of some steps' output as rows of their input; `shapes` as of `input_shapes`."""
        for number in reversed(range(len(steps))):
            # A ReLU's state ends where its map does, and what comes through it; every other step must not see more.
            around = steps[number : number + 2]
            if rows.corner is not None and not any(isinstance(step, ReLUStep) for step in around):
                rows = _clipped(rows, shapes[number + 1])
            rows = self.through(steps[number], rows, shapes[number])
        return rows

    def through(self, step: Step, rows: Rows, shape: Sequence[int]) -> Rows:
        """The same for one step with inputs of `shape`."""
        match step:
            case ReLUStep():
                return self.at_relu(self.relus.pop(), rows, shape)
            case ConvolutionStep():
                self.constant = self.constant + rows.values.sum((2, 3)) @ step.bias
                if rows.corner is None:
                    return Rows(step.pull(rows.values, shape), rows.image, None)
                values = step.pull_windows(rows.values)
                corner = rows.corner * _pair(step.stride, rows.corner) - _pair(step.padding, rows.corner)
                return _whole_if_large(Rows(values, rows.image, corner), shape)
            case LinearStep():
                self.constant = self.constant + rows.values @ step.bias
                return Rows(rows.values @ step.weight, rows.image, None)
            case ScaleStep():
                sums = rows.values.flatten(2).sum(2) if rows.values.dim() == 4 else rows.values
                self.constant = self.constant + sums @ step.shift.flatten().expand(sums.shape[1])
                return rows._replace(values=step.pull(rows.values, shape))
            case FlattenStep():
                return Rows(step.pull(rows.values, shape), rows.image, None)
            case SumStep():
                parts = []
                for path in reversed(step.paths):
                    inner = input_shapes(path, shape)
                    # A path that ends with a ReLU may overwrite what the others start from.
                    own = rows._replace(values=rows.values.clone())
                    parts.append(whole(self.back(path, own, inner), shape).values)
                return Rows(torch.stack(parts).sum(0), rows.image, None)
            case _:
                raise TypeError(f"{type(step).__name__} has no linear form")


def windows(rows: Rows, shape: Sequence[int], images: int) -> Tensor:
    """For each window and pixel of it its place among all images' pixels, (R * h * w,); outside: one past the last."""
    assert rows.corner is not None
    _, _, h, w = rows.values.shape
    _, height, width = shape
    y = rows.corner[:, :1] + torch.arange(h, device=rows.corner.device)
    x = rows.corner[:, 1:] + torch.arange(w, device=rows.corner.device)
    inside = ((y >= 0) & (y < height)).unsqueeze(2) & ((x >= 0) & (x < width)).unsqueeze(1)
    place = (rows.image.view(-1, 1, 1) * height + y.unsqueeze(2)) * width + x.unsqueeze(1)
    return torch.where(inside, place, images * height * width).flatten()


def _clipped(rows: Rows, shape: Sequence[int]) -> Rows:
    """Zero where a window reaches over its map."""
    assert rows.corner is not None
    _, _, h, w = rows.values.shape
    _, height, width = shape
    y = rows.corner[:, :1] + torch.arange(h, device=rows.corner.device)
    x = rows.corner[:, 1:] + torch.arange(w, device=rows.corner.device)
    inside = ((y >= 0) & (y < height)).unsqueeze(2) & ((x >= 0) & (x < width)).unsqueeze(1)
    return rows._replace(values=rows.values * inside.unsqueeze(1))


def _whole_if_large(rows: Rows, shape: Sequence[int]) -> Rows:
    return whole(rows, shape) if _most_of_map(rows.values.shape[2:], shape) else rows


def _most_of_map(side: Sequence[int], shape: Sequence[int]) -> bool:
    return side[0] * side[1] > _MOST_OF_MAP * shape[1] * shape[2]


def whole(rows: Rows, shape: Sequence[int]) -> Rows:
    """The same functions on whole maps."""
    if rows.corner is None:
        return rows
    count, channels, _, _ = rows.values.shape
    _, height, width = shape
    own = rows._replace(image=torch.arange(count, device=rows.image.device))
    target = rows.values.new_zeros(count * height * width + 1, channels)
    target.index_copy_(0, windows(own, shape, count), rows.values.permute(0, 2, 3, 1).reshape(-1, channels))
    values = target[:-1].view(count, height, width, channels).permute(0, 3, 1, 2)
    return Rows(values, rows.image, None)


def _corners(places: Tensor, channels: int, width: int) -> Tensor:
    pixel = places // channels
    return torch.stack([pixel // width, pixel % width], 1)


def _pair(value: tuple[int, int], like: Tensor) -> Tensor:
    return torch.tensor(value, device=like.device)
