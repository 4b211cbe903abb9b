"""Linear functions of a network's inner values, as patches or whole, pulled back towards the input."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.networks.steps import ConvolutionStep, FlattenStep, LinearStep, ReLUStep, ScaleStep, Step, SumStep

# A patch that covers more than this share of its map is handled as a whole map.
_MOST_OF_MAP = 0.6


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


class ReLUState(NamedTuple):
    """What is known of one ReLU layer of N images: which neurons are active, and which are variables of their own.

    Attributes
    ----------
    active
        (N * H * W + 1, C), the last row zero, or (N, F): 1 where the ReLU is the identity, else 0.
    slots
        Of the same shape: an unstable neuron's number in its image, U for every other one.
    places
        (N, U) flat places (`flat`) of the unstable neurons; 0 where `real` is false.
    real
        (N, U) false for padding.
    """

    active: Tensor
    slots: Tensor
    places: Tensor
    real: Tensor


class Pulled(NamedTuple):
    """R functions of the input and of unstable ReLUs' outputs: constant + inputs @ x + sum_j hidden[j] @ z_j.

    Attributes
    ----------
    constant, inputs
        (R,) and (R, D), D in the order of `flat`.
    hidden
        For each ReLU layer before them, by its number: (R, U).
    """

    constant: Tensor
    inputs: Tensor
    hidden: dict[int, Tensor]


def flat(values: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H * W * C), which costs nothing where it is channels-last; (N, F) as it is."""
    return values.permute(0, 2, 3, 1).flatten(1) if values.dim() == 4 else values


def unflat(values: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `flat` for values (N, ...) of one image's `shape`."""
    if len(shape) == 1:
        return values
    channels, height, width = shape
    return values.view(-1, height, width, channels).permute(0, 3, 1, 2)


def input_shapes(steps: Sequence[Step], shape: Sequence[int]) -> list[tuple[int, ...]]:
    """The shape of one image's values at the input of each step, and behind the last one."""
    shapes = [tuple(shape)]
    for step in steps:
        like = next((s.weight for s in steps if isinstance(s, ConvolutionStep | LinearStep)), None)
        zeros = torch.zeros(1, *shapes[-1]) if like is None else like.new_zeros(1, *shapes[-1])
        shapes.append(tuple(step.apply(zeros).shape[1:]))
    return shapes


def one_hot(step: Step | None, places: Tensor, image: Tensor, shape: Sequence[int]) -> Rows:
    """The outputs of a step, or the input, at flat `places` (R,), as functions of themselves; `shape` is theirs."""
    like = getattr(step, "weight", None)
    dtype = torch.float32 if like is None else like.dtype
    if len(shape) == 1:
        return Rows(F.one_hot(places, shape[0]).to(dtype), image, None)
    channels, _, width = shape
    values = F.one_hot(places % channels, channels).to(dtype).view(-1, channels, 1, 1)
    return Rows(values, image, _corners(places, channels, width))


def pull_back(
    steps: Sequence[Step],
    relus: Sequence[int],
    states: dict[int, ReLUState],
    places: Tensor,
    image: Tensor,
    shape: Sequence[int],
) -> Pulled:
    """Outputs of a part of a network as functions of its input and of its unstable ReLUs' outputs.

    Exact: stable ReLUs are the identity or zero, unstable ones' outputs are left as variables.

    Parameters
    ----------
    steps
        The first steps of a folded network.
    relus
        The numbers of the ReLUs among them, in order.
    states
        Of these ReLUs.
    places
        (R,) flat places in the last step's output.
    image
        (R,) whose.
    shape
        Of one input.
    """
    shapes = input_shapes(steps, shape)
    walk = _Walk(states, list(relus), len(places), steps)
    if not steps:
        return walk.finish(steps, one_hot(None, places, image, shape), shapes)
    last, before, behind = steps[-1], shapes[-2], shapes[-1]
    match last:
        case ConvolutionStep():
            channels, _, width = behind
            corner = _corners(places, channels, width) * _pair(last.stride) - _pair(last.padding)
            chosen = places % channels
            walk.constant = last.bias[chosen]
            rows = _whole_if_large(Rows(last.weight[chosen], image, corner.to(image.device)), before)
        case LinearStep():
            walk.constant = last.bias[places]
            rows = Rows(last.weight[places], image, None)
        case _:
            rows = walk.through(last, one_hot(last, places, image, behind), before)
    return walk.finish(steps[:-1], rows, shapes)


def pull_rows(
    steps: Sequence[Step],
    relus: Sequence[int],
    states: dict[int, ReLUState],
    weight: Tensor,
    constant: Tensor,
    image: Tensor,
    shape: Sequence[int],
) -> Pulled:
    """The same for any functions weight @ output + constant, (R, H) and (R,), of an output that is a vector."""
    walk = _Walk(states, list(relus), len(image), steps)
    walk.constant = constant
    return walk.finish(steps, Rows(weight, image, None), input_shapes(steps, shape))


class _Walk:
    """One way back through a network: what has been met of constants and of unstable ReLUs."""

    def __init__(self, states: dict[int, ReLUState], relus: list[int], rows: int, steps: Sequence[Step]) -> None:
        self.states, self.relus = states, relus
        self.constant: Tensor | float = 0.0
        self.hidden: dict[int, Tensor] = {}
        self.rows = rows

    def finish(self, steps: Sequence[Step], rows: Rows, shapes: Sequence[Sequence[int]]) -> Pulled:
        rows = self.back(steps, rows, shapes)
        whole = _whole(rows, shapes[0])
        constant = self.constant
        if not isinstance(constant, Tensor):
            constant = whole.values.new_full((self.rows,), constant)
        return Pulled(constant, flat(whole.values), self.hidden)

    def back(self, steps: Sequence[Step], rows: Rows, shapes: Sequence[Sequence[int]]) -> Rows:
        for number in reversed(range(len(steps))):
            # A ReLU's state ends where its map does; every other step must not see what reaches over it.
            if rows.corner is not None and not isinstance(steps[number], ReLUStep):
                rows = _clipped(rows, shapes[number + 1])
            rows = self.through(steps[number], rows, shapes[number])
        return rows

    def through(self, step: Step, rows: Rows, shape: Sequence[int]) -> Rows:
        match step:
            case ReLUStep():
                return self.at_relu(self.relus.pop(), rows, shape)
            case ConvolutionStep():
                self.constant = self.constant + rows.values.sum((2, 3)) @ step.bias
                if rows.corner is None:
                    return Rows(step.pull(rows.values, shape), rows.image, None)
                values = F.conv_transpose2d(rows.values, step.weight, None, step.stride)
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
                    parts.append(_whole(self.back(path, rows, inner), shape).values)
                return Rows(torch.stack(parts).sum(0), rows.image, None)
            case _:
                raise TypeError(f"{type(step).__name__} has no linear form")

    def at_relu(self, number: int, rows: Rows, shape: Sequence[int]) -> Rows:
        state = self.states[number]
        if rows.corner is None:
            values = flat(rows.values)
            hidden = values.gather(1, state.places[rows.image]) * state.real[rows.image]
            active = state.active if len(shape) == 1 else state.active[:-1].view(len(state.places), -1)
            kept = Rows(unflat(values * active[rows.image], shape), rows.image, None)
        else:
            where = _windows(rows, shape, len(state.places))
            count, channels, height, width = rows.values.shape
            values = rows.values.permute(0, 2, 3, 1).reshape(count, -1)
            hidden = values.new_zeros(count, state.places.shape[1] + 1)
            hidden.scatter_(1, state.slots.index_select(0, where).view(count, -1), values)
            hidden = hidden[:, :-1]
            passed = values.view(-1, channels) * state.active.index_select(0, where)
            kept = Rows(passed.view(count, height, width, channels).permute(0, 3, 1, 2), rows.image, rows.corner)
        self.hidden[number] = self.hidden[number] + hidden if number in self.hidden else hidden
        return kept


def _windows(rows: Rows, shape: Sequence[int], images: int) -> Tensor:
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
    h, w = rows.values.shape[2:]
    _, height, width = shape
    return _whole(rows, shape) if h * w > _MOST_OF_MAP * height * width else rows


def _whole(rows: Rows, shape: Sequence[int]) -> Rows:
    """The same functions on whole maps."""
    if rows.corner is None:
        return rows
    count, channels, _, _ = rows.values.shape
    _, height, width = shape
    own = rows._replace(image=torch.arange(count, device=rows.image.device))
    target = rows.values.new_zeros(count * height * width + 1, channels)
    target.index_copy_(0, _windows(own, shape, count), rows.values.permute(0, 2, 3, 1).reshape(-1, channels))
    values = target[:-1].view(count, height, width, channels).permute(0, 3, 1, 2)
    return Rows(values, rows.image, None)


def _corners(places: Tensor, channels: int, width: int) -> Tensor:
    pixel = places // channels
    return torch.stack([pixel // width, pixel % width], 1)


def _pair(value: tuple[int, int], like: Tensor | None = None) -> Tensor:
    return torch.tensor(value, device=None if like is None else like.device)
