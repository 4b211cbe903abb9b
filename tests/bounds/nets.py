"""Random networks and boxes of all supported kinds, small enough for exact solvers; equal numbers in both precisions."""

from typing import NamedTuple

import torch
from bounds.milp import unrolled

from sabr.bounds.boxes import Box
from sabr.networks.steps import ConvolutionStep, FlattenStep, LinearStep, ReLUStep, ScaleStep, Step, SumStep

KINDS = ("fully connected", "convolutional", "residual")


class Case(NamedTuple):
    """A network in float64 whose values are those of float32 numbers, and a box, likewise (1, ...)."""

    steps: list[Step]
    box: Box
    classes: int


class Draws:
    """Random steps from one seed; every weight is a float32 number."""

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape, scale=1.0):
        return (scale * torch.randn(shape, generator=self.generator)).double()

    def one_of(self, *values):
        return values[int(torch.randint(len(values), (), generator=self.generator))]

    def linear(self, fan_in, fan_out, gain=1.6):
        return LinearStep(self.normal(fan_out, fan_in, scale=gain / fan_in**0.5), self.normal(fan_out, scale=0.3))

    def convolution(self, fan_in, fan_out, kernel, stride, padding, gain=1.6):
        scale = gain / (fan_in * kernel[0] * kernel[1]) ** 0.5
        weight = self.normal(fan_out, fan_in, *kernel, scale=scale)
        return ConvolutionStep(weight, self.normal(fan_out, scale=0.3), stride, padding)

    def scaling(self, channels):
        scale = self.normal(1, channels, 1, 1).abs() + 0.5
        return ScaleStep(scale, self.normal(1, channels, 1, 1, scale=0.5))

    def box(self, steps, shape, unstable):
        """A box in which about so many ReLUs are unstable; every other one is cut at the borders of images."""
        centre, cut = torch.rand(1, *shape, generator=self.generator), self.one_of(True, False)
        for radius in (0.8, 0.4, 0.2, 0.14, 0.1, 0.07, 0.05, 0.035, 0.025, 0.018, 0.012, 0.008, 0.004, 0.002):
            ends = Box(centre - radius, centre + radius)
            box = Box(*(end.clamp(0, 1).double() if cut else end.double() for end in ends))
            if len(unrolled(steps, box).low) <= unstable:
                break
        return box


def random_case(seed, kind=None):
    """A network of up to some 60 ReLUs, of `kind` or of each kind in turn, and a box in which up to 24 are unstable."""
    draw = Draws(seed)
    make = {"fully connected": _connected, "convolutional": _convolutional, "residual": _residual}
    steps, shape, classes = make[kind or KINDS[seed % 3]](draw)
    return Case(steps, draw.box(steps, shape, draw.one_of(4, 8, 12, 16, 20, 24)), classes)


def outputs(steps, shape):
    """The shape of a network's values at one input."""
    points = torch.zeros(1, *shape, dtype=torch.float64)
    for step in steps:
        points = step.apply(points)
    return tuple(points.shape[1:])


def _connected(draw):
    widths = draw.one_of((3, 12, 12), (5, 24), (2, 10, 10, 10), (4, 20, 16), (6, 30, 20, 8))
    classes = draw.one_of(2, 3)
    steps = []
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        steps += [draw.linear(fan_in, fan_out), ReLUStep()]
    return [*steps, draw.linear(widths[-1], classes)], widths[:1], classes


def _convolutional(draw):
    shape = (draw.one_of(1, 2), draw.one_of(4, 5), draw.one_of(4, 5, 6))
    classes = draw.one_of(2, 3)
    steps = [draw.scaling(shape[0])] if draw.one_of(True, False) else []
    channels = shape[0]
    for _ in range(2):
        kernel = draw.one_of((3, 3), (2, 2), (3, 2))
        step = draw.convolution(
            channels, 2, kernel, draw.one_of((2, 2), (2, 1), (1, 2)), draw.one_of((0, 0), (1, 1), (1, 0))
        )
        if min(outputs(steps, shape)[1:]) + 2 * min(step.padding) < 3:
            break
        steps += [step, ReLUStep()]
        channels = 2
    steps.append(FlattenStep())
    if draw.one_of(True, False):
        steps += [draw.linear(outputs(steps, shape)[0], 8), ReLUStep()]
    return [*steps, draw.linear(outputs(steps, shape)[0], classes)], shape, classes


def _residual(draw):
    classes = draw.one_of(2, 3)
    if draw.one_of(True, False):
        block = SumStep((tuple([draw.linear(8, 8), ReLUStep(), draw.linear(8, 8)]), ()))
        steps = [draw.linear(4, 8), ReLUStep(), block, ReLUStep()]
        return [*steps, draw.linear(8, 8), ReLUStep(), draw.linear(8, classes)], (4,), classes
    shape = (1, 4, 5)
    straight = (
        draw.convolution(2, 2, (3, 3), draw.one_of((1, 1), (2, 2)), (1, 1)),
        ReLUStep(),
        draw.convolution(2, 2, (3, 3), (1, 1), (1, 1)),
    )
    stride = straight[0].stride
    short = () if stride == (1, 1) else (draw.convolution(2, 2, (1, 1), stride, (0, 0)),)
    first = draw.convolution(1, 2, (3, 3), (2, 2), (1, 1))
    # A ReLU in a path of its own, and one in front of all.
    steps = [draw.scaling(1), first, ReLUStep(), SumStep((straight, short)), ReLUStep(), FlattenStep()]
    if draw.one_of(True, False):
        steps = [*steps[:4], SumStep(((ReLUStep(),), (draw.scaling(2),))), *steps[4:]]
    return [*steps, draw.linear(outputs(steps, shape)[0], classes)], shape, classes
