"""Affine and ReLU steps, and sums of paths of them: what bounds and attacks ask of the layers of a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sabr.networks.products import product

# Up to as many input channels a matrix product beats the library's gradient of a convolution (measured on CPUs).
_FEW_CHANNELS = 4


class AffineStep(Protocol):
    """What bounds and attacks ask of a step x -> W x + b."""

    def apply(self, points: Tensor) -> Tensor:
        """W x + b for each point."""
        ...

    def spread(self, radius: Tensor) -> Tensor:
        """|W| r: how far the image of a box of radius r reaches from the image of its centre."""
        ...

    def pull(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """W^T g for each g; `shape` is that of one input of the step, without the batch."""
        ...


@dataclass(frozen=True)
class ConvolutionStep:
    """A convolution with zero padding."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]

    def apply(self, points: Tensor) -> Tensor:
        """W x + b for each point."""
        return F.conv2d(points, self.weight, self.bias, self.stride, self.padding)

    def apply_by_pixel(self, points: Tensor) -> Tensor:
        """W x + b for each point, channels-last in memory, as what follows then need not copy it."""
        count, channels, *_ = points.shape
        if channels > 1:
            return self.apply(points.contiguous(memory_format=torch.channels_last))
        # One channel cannot look channels-last; as a matrix product it is as fast as what comes out can be written.
        windows = F.unfold(points, self.weight.shape[2:], padding=self.padding, stride=self.stride)
        size = [
            (points.shape[2 + axis] + 2 * self.padding[axis] - self.weight.shape[2 + axis]) // self.stride[axis] + 1
            for axis in (0, 1)
        ]
        found = torch.matmul(windows.transpose(1, 2), self.weight.flatten(1).t()).add_(self.bias)
        return found.view(count, *size, -1).permute(0, 3, 1, 2)

    def spread(self, radius: Tensor) -> Tensor:
        """|W| r."""
        return F.conv2d(radius, self.weight.abs(), None, self.stride, self.padding)

    def pull(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """W^T g."""
        size, kernel = tuple(shape[1:]), self.weight.shape[2:]
        if shape[0] <= _FEW_CHANNELS:
            windows = self.weight.flatten(1).t() @ gradient.flatten(2)
            return F.fold(windows, size, kernel, padding=self.padding, stride=self.stride)
        # Rows and columns of the input that no window reaches, when the stride does not divide its size.
        missed = [
            size[axis] - (gradient.shape[2 + axis] - 1) * self.stride[axis] + 2 * self.padding[axis] - kernel[axis]
            for axis in (0, 1)
        ]
        return F.conv_transpose2d(gradient, self.weight, None, self.stride, self.padding, missed)

    def pull_windows(self, gradient: Tensor) -> Tensor:
        """W^T g for windows (N, C, h, w) somewhere on a map, as the windows that they see, padding included."""
        if self.weight.shape[1] > _FEW_CHANNELS:
            return F.conv_transpose2d(gradient, self.weight, None, self.stride)
        # One product for each entry of the kernel, all at once, and moved to its place: a transposed convolution to so
        # few channels leaves most of a processor's lanes empty (measured: 2 to 5 times as slow).
        (height, width), (down, right) = gradient.shape[2:], self.stride
        channels, *kernel = self.weight.shape[1:]
        parts = F.conv2d(gradient, self.weight.flatten(1).t()[:, :, None, None])
        parts = parts.view(-1, channels, *kernel, height, width)
        reach_down, reach_right = down * (height - 1) + 1, right * (width - 1) + 1
        seen = gradient.new_zeros(len(gradient), channels, reach_down + kernel[0] - 1, reach_right + kernel[1] - 1)
        for y in range(kernel[0]):
            for x in range(kernel[1]):
                seen[:, :, y : y + reach_down : down, x : x + reach_right : right] += parts[:, :, y, x]
        return seen


@dataclass(frozen=True)
class LinearStep:
    """A matrix product."""

    weight: Tensor
    bias: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """W x + b for each point, (N, ...)."""
        return _Linear.apply(points, self.weight, self.bias)  # type: ignore[no-any-return]

    def spread(self, radius: Tensor) -> Tensor:
        """|W| r."""
        return _AbsoluteLinear.apply(radius, self.weight)  # type: ignore[no-any-return]

    def pull(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """W^T g."""
        return product(gradient, self.weight)


class _Linear(torch.autograd.Function):
    """W x + b."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(points, weight)
        return product(points, weight.t(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        points, weight = ctx.saved_tensors
        (gradient,) = gradients
        towards_points = product(gradient, weight) if ctx.needs_input_grad[0] else None
        towards_weight = product(gradient.t(), points) if ctx.needs_input_grad[1] else None
        return towards_points, towards_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None


class _AbsoluteLinear(torch.autograd.Function):
    """|W| r, whose gradient for W is made in place."""

    @staticmethod
    def forward(ctx: Any, radius: Tensor, weight: Tensor) -> Tensor:
        absolute = weight.abs()
        ctx.save_for_backward(radius, weight, absolute)
        return product(radius, absolute.t())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        radius, weight, absolute = ctx.saved_tensors
        (gradient,) = gradients
        towards_radius = product(gradient, absolute) if ctx.needs_input_grad[0] else None
        towards_weight = product(gradient.t(), radius).mul_(weight.sign()) if ctx.needs_input_grad[1] else None
        return towards_radius, towards_weight


@dataclass(frozen=True)
class ScaleStep:
    """A product and a sum per channel: the normalisation of the input, or a batch norm that is not folded."""

    scale: Tensor
    shift: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """W x + b for each point."""
        return torch.addcmul(self.shift, points, self.scale)

    def spread(self, radius: Tensor) -> Tensor:
        """|W| r."""
        return radius * self.scale.abs()

    def pull(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """W^T g."""
        return gradient * self.scale


class FlattenStep:
    """(N, C, H, W) to (N, C*H*W), in that order whatever the memory format."""

    def apply(self, points: Tensor) -> Tensor:
        """W x + b for each point."""
        return points.flatten(1)

    def spread(self, radius: Tensor) -> Tensor:
        """|W| r."""
        return radius.flatten(1)

    def pull(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """W^T g."""
        back = gradient.reshape(-1, *shape)
        return back.contiguous(memory_format=torch.channels_last) if len(shape) == 3 else back


class ReLUStep:
    """max(x, 0), the only step that bends."""

    def apply(self, points: Tensor) -> Tensor:
        """max(x, 0) for each point."""
        return F.relu(points)


@dataclass(frozen=True)
class SumStep:
    """The sum of what each path makes of the same input: a residual block; an empty path is the identity.

    Not affine where a path holds a ReLU.
    """

    paths: tuple[tuple["Step", ...], ...]

    def apply(self, points: Tensor) -> Tensor:
        """path_1(x) + path_2(x) + ... for each point."""
        first, *others = (forward(path, points) for path in self.paths)
        return sum(others, first)


Step = ConvolutionStep | LinearStep | ScaleStep | FlattenStep | ReLUStep | SumStep


def forward(steps: Sequence[Step], points: Tensor) -> Tensor:
    """Logits of the network at `points`."""
    for step in steps:
        points = step.apply(points)
    return points


class Linearised(NamedTuple):
    """Logits (N, K) at some points, and the function that pulls a gradient (N, K) back to the points."""

    logits: Tensor
    pull: Callable[[Tensor], Tensor]


def linearise(steps: Sequence[Step], points: Tensor) -> Linearised:
    """Logits at `points` and the way back, without a graph: for gradients towards the points alone.

    Parameters
    ----------
    steps
        A network; no gradient reaches its weights.
    points
        (N, ...); computed with in the weights' precision.
    """
    weight = first_weight(steps)
    dtype = points.dtype if weight is None else weight.dtype
    with torch.no_grad():
        logits, back = _linearise(steps, points.to(dtype))

    @torch.no_grad()
    def pull(gradient: Tensor) -> Tensor:
        return back(gradient.to(dtype)).to(points.dtype)

    return Linearised(logits.to(points.dtype), pull)


def first_weight(steps: Sequence[Step]) -> Tensor | None:
    """The first weight of the network, which tells precision and device of all; None if there is none."""
    for step in steps:
        match step:
            case ConvolutionStep() | LinearStep():
                return step.weight
            case SumStep(paths):
                found = first_weight([step for path in paths for step in path])
                if found is not None:
                    return found
    return None


def _linearise(steps: Sequence[Step], points: Tensor) -> Linearised:
    """The same in one precision; neither the points nor a gradient is overwritten."""
    backs: list[Callable[[Tensor], Tensor]] = []
    current = points
    for step in steps:
        if isinstance(step, SumStep):
            paths = [_linearise(path, current) for path in step.paths]
            current = sum((path.logits for path in paths[1:]), paths[0].logits)
            backs.append(partial(_pull_paths, [path.pull for path in paths]))
        elif isinstance(step, ReLUStep):
            # What was made here, and by no one else, may be overwritten.
            own = current.untyped_storage().data_ptr() != points.untyped_storage().data_ptr()
            current = current.relu_() if own else current.relu()
            backs.append(partial(_pull_relu, current))
        else:
            backs.append(partial(step.pull, shape=current.shape[1:]))
            current = step.apply(current)

    def pull(gradient: Tensor) -> Tensor:
        back = gradient.clone()
        for earlier in reversed(backs):
            back = earlier(back)
        return back

    return Linearised(current, pull)


def _pull_relu(activation: Tensor, gradient: Tensor) -> Tensor:
    """The gradient where the ReLU lets it through, in place."""
    torch.ops.aten.threshold_backward.grad_input(gradient, activation, 0, grad_input=gradient)
    return gradient


def _pull_paths(pulls: Sequence[Callable[[Tensor], Tensor]], gradient: Tensor) -> Tensor:
    first, *others = (pull(gradient) for pull in pulls)
    return sum(others, first)


def cast(steps: Sequence[Step], dtype: torch.dtype) -> list[Step]:
    """The same steps with weights of another precision."""
    result: list[Step] = []
    for step in steps:
        match step:
            case ConvolutionStep() | LinearStep():
                result.append(replace(step, weight=step.weight.to(dtype), bias=step.bias.to(dtype)))
            case ScaleStep():
                result.append(ScaleStep(step.scale.to(dtype), step.shift.to(dtype)))
            case SumStep(paths):
                result.append(SumStep(tuple(tuple(cast(path, dtype)) for path in paths)))
            case _:
                result.append(step)
    return result
