"""Affine and ReLU steps: what bounds and attacks ask of the layers of a network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

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


@dataclass(frozen=True)
class LinearStep:
    """A matrix product."""

    weight: Tensor
    bias: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """W x + b for each point."""
        return F.linear(points, self.weight, self.bias)

    def spread(self, radius: Tensor) -> Tensor:
        """|W| r."""
        return F.linear(radius, self.weight.abs())

    def pull(self, gradient: Tensor, shape: Sequence[int]) -> Tensor:
        """W^T g."""
        return gradient @ self.weight


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
        return gradient.reshape(-1, *shape).contiguous(memory_format=torch.channels_last)


class ReLUStep:
    """max(x, 0), the only step that is not affine."""

    def apply(self, points: Tensor) -> Tensor:
        """max(x, 0) for each point."""
        return F.relu(points)


Step = ConvolutionStep | LinearStep | ScaleStep | FlattenStep | ReLUStep


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
    shapes: list[Sequence[int]] = []
    activations: list[Tensor | None] = []
    dtype = next((step.weight.dtype for step in steps if isinstance(step, ConvolutionStep | LinearStep)), points.dtype)
    with torch.no_grad():
        current = points.to(dtype)
        for step in steps:
            shapes.append(current.shape[1:])
            if isinstance(step, ReLUStep):
                # Everything but the caller's points was made here, so that it may be overwritten.
                current = current.relu() if len(shapes) == 1 else current.relu_()
                activations.append(current)
            else:
                current = step.apply(current)
                activations.append(None)

    @torch.no_grad()
    def pull(gradient: Tensor) -> Tensor:
        back = gradient.to(dtype, copy=True)
        for step, shape, activation in zip(reversed(steps), reversed(shapes), reversed(activations), strict=True):
            if isinstance(step, ReLUStep):
                assert activation is not None
                torch.ops.aten.threshold_backward.grad_input(back, activation, 0, grad_input=back)
            else:
                back = step.pull(back, shape)
        return back.to(points.dtype)

    return Linearised(current.to(points.dtype), pull)


def cast(steps: Sequence[Step], dtype: torch.dtype) -> list[Step]:
    """The same steps with weights of another precision."""
    result: list[Step] = []
    for step in steps:
        match step:
            case ConvolutionStep() | LinearStep():
                result.append(replace(step, weight=step.weight.to(dtype), bias=step.bias.to(dtype)))
            case ScaleStep():
                result.append(ScaleStep(step.scale.to(dtype), step.shift.to(dtype)))
            case _:
                result.append(step)
    return result
