"""From a network to affine and ReLU steps, batch norm folded in, and back; the only room that knows torch's layers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sabr.networks.architectures import Network, Normalise
from sabr.networks.batch_norm import normalise
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


class Statistics(NamedTuple):
    """Mean and biased variance of each channel over a batch, at the input of one batch norm."""

    mean: Tensor
    variance: Tensor


class CleanPass(NamedTuple):
    """Logits (N, K) of a batch in training mode, and the batch's statistics for each batch norm, in order."""

    logits: Tensor
    statistics: list[Statistics]


def clean_pass(network: Network, images: Tensor, *, momentum: float | None = None) -> CleanPass:
    """Run a batch through the network in training mode, and update the running statistics as PyTorch does.

    A bias in front of a batch norm has gradient exactly zero, here and in `folded_steps` with statistics: the mean
    takes it away again. It is left out of the graph, where rounding alone would move it.

    Parameters
    ----------
    network
        Its batch norms' running statistics are moved towards the batch's by their momentum.
    images
        (N, channels, height, width) in [0, 1].
    momentum
        Weight of this batch in the running statistics; None: each batch norm's own.

    Returns
    -------
    CleanPass
        Gradients flow through both the logits and the statistics.
    """
    statistics: list[Statistics] = []
    points = images
    rectified = False
    for layer, following in _layers(network):
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            rectified = isinstance(following, nn.ReLU)
            points, mean, variance = normalise(points, layer.weight, layer.bias, layer.eps, relu=rectified)
            statistics.append(Statistics(mean, variance))
            _move_running_statistics(layer, mean, variance, points.numel() // points.shape[1], momentum)
        elif rectified:  # the ReLU came with the batch norm
            rectified = False
        else:
            points = _step(layer, free_bias=not _is_norm(following)).apply(points)
    return CleanPass(points, statistics)


def folded_steps(network: Network, statistics: Sequence[Statistics] | None = None) -> list[Step]:
    """The network as affine and ReLU steps, each batch norm folded into the layer before it.

    Behind a linear layer whose weights are being trained a batch norm stays a step of its own: to scale a few hundred
    outputs is cheaper than to scale, and to differentiate through, millions of weights.

    Parameters
    ----------
    network
        Any network of `sabr.networks.architectures`.
    statistics
        The statistics to normalise with, one per batch norm; None: the running ones (evaluation mode).

    Returns
    -------
    list of Step
        Gradients flow from the steps to the network's parameters and to `statistics`; fold under `torch.no_grad`
        where none are wanted.

    Raises
    ------
    TypeError
        For a layer of a kind that cannot be taken apart.
    """
    remaining = None if statistics is None else list(statistics)
    steps: list[Step] = []
    for layer, following in _layers(network):
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            mean, variance = _running(layer) if remaining is None else remaining.pop(0)
            scale, shift = _scale_and_shift(layer, mean, variance)
            if isinstance(steps[-1], LinearStep) and steps[-1].weight.requires_grad:
                steps.append(ScaleStep(scale, shift))
            else:
                steps[-1] = _fold(steps[-1], scale, shift)
        else:
            steps.append(_step(layer, free_bias=statistics is None or not _is_norm(following)))
    return steps


def as_module(steps: Sequence[Step]) -> nn.Sequential:
    """Plain torch layers that compute what `steps` do, for engines that read modules; the normalisation has none.

    Raises
    ------
    TypeError
        For a `ScaleStep`.
    """
    weight = first_weight(steps)
    module = nn.Sequential(*map(_layer, steps))
    return module if weight is None else module.to(weight)


class Sum(nn.Module):
    """The sum of what each path makes of the same input."""

    def __init__(self, paths: Sequence[Sequence[Step]]) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Sequential(*map(_layer, path)) for path in paths)

    def forward(self, points: Tensor) -> Tensor:
        """Add up the paths at `points`."""
        total: Tensor = self.paths[0](points)
        for path in self.paths[1:]:  # a plain sum: engines that read modules know it
            total = total + path(points)
        return total


def _layer(step: Step) -> nn.Module:
    """The torch layer that computes what one step does."""
    match step:
        case ConvolutionStep(weight, bias, stride, padding):
            layer: nn.Module = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], stride, padding)  # type: ignore[arg-type]
            layer.load_state_dict({"weight": weight, "bias": bias})
            return layer
        case LinearStep(weight, bias):
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": bias})
            return layer
        case FlattenStep():
            return nn.Flatten()
        case ReLUStep():
            return nn.ReLU()
        case SumStep(paths):
            return Sum(paths)
        case _:
            raise TypeError(f"{type(step).__name__} has no layer of its own")


def _layers(network: Network) -> Iterator[tuple[nn.Module, nn.Module | None]]:
    """Each layer with the one behind it."""
    layers = list(network)
    yield from zip(layers, [*layers[1:], None], strict=True)


def _step(layer: nn.Module, *, free_bias: bool) -> Step:
    """A layer other than a batch norm as a step; without `free_bias` no gradient flows to its bias."""
    match layer:
        case Normalise():
            return ScaleStep(1 / layer.std, -layer.mean / layer.std)
        case nn.Conv2d():
            return ConvolutionStep(*_weights(layer, free_bias), _pair(layer.stride), _pair(layer.padding))
        case nn.Linear():
            return LinearStep(*_weights(layer, free_bias))
        case nn.ReLU():
            return ReLUStep()
        case nn.Flatten():
            return FlattenStep()
        case _:
            raise TypeError(f"no affine form is known for a layer of type {type(layer).__name__}")


def _is_norm(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)


def _fold(step: Step, scale: Tensor, shift: Tensor) -> Step:
    match step:
        case ConvolutionStep():
            weight = step.weight * scale.view(-1, 1, 1, 1)
            return ConvolutionStep(weight, step.bias * scale + shift, step.stride, step.padding)
        case LinearStep():
            return LinearStep(step.weight * scale.view(-1, 1), step.bias * scale + shift)
        case _:
            raise TypeError(f"batch norm can be folded into an affine layer only, not into {type(step).__name__}")


def _scale_and_shift(layer: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    scale = layer.weight / torch.sqrt(variance + layer.eps)
    return scale, layer.bias - mean * scale


def _move_running_statistics(
    layer: nn.BatchNorm1d | nn.BatchNorm2d, mean: Tensor, variance: Tensor, n: int, momentum: float | None
) -> None:
    running_mean, running_variance = _running(layer)
    if momentum is None:
        momentum = 0.1 if layer.momentum is None else layer.momentum
    with torch.no_grad():
        running_mean.lerp_(mean.detach(), momentum)
        running_variance.lerp_(variance.detach() * (n / max(n - 1, 1)), momentum)


def _running(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> Statistics:
    if layer.running_mean is None or layer.running_var is None:
        raise TypeError("a batch norm without running statistics cannot be used in evaluation mode")
    return Statistics(layer.running_mean, layer.running_var)


def _weights(layer: nn.Conv2d | nn.Linear, free_bias: bool) -> tuple[Tensor, Tensor]:
    weight = layer.weight
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
    frozen = not torch.is_grad_enabled()
    return weight.detach() if frozen else weight, bias if free_bias and not frozen else bias.detach()


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    if isinstance(value, tuple) and len(value) == 2:
        return value
    raise TypeError(f"a convolution with stride or padding {value!r} has no affine form here")
