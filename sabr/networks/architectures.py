"""Networks by name: convolutions, then linear layers, batch norm after each hidden one, normalisation inside."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sabr.settings import Dataset


@dataclass(frozen=True)
class Convolution:
    """One convolution of an architecture: output channels and square kernel, stride and zero padding in pixels."""

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class Architecture:
    """Convolutions, then hidden linear layers by width, all with batch norm and ReLU; a linear layer ends it."""

    convolutions: tuple[Convolution, ...]
    hidden: tuple[int, ...]


def _cnn7(channels: tuple[int, int, int, int, int], hidden: int) -> Architecture:
    """CNN7 of the paper (appendix C): the third of five 3x3 convolutions has stride 2."""
    strides = (1, 1, 2, 1, 1)
    return Architecture(tuple(Convolution(c, stride=s) for c, s in zip(channels, strides, strict=True)), (hidden,))


ARCHITECTURES = {
    "cnn7": _cnn7((64, 64, 128, 128, 128), 512),
    "cnn7-narrow": _cnn7((32, 32, 64, 64, 64), 216),
    "cnn7-wide": _cnn7((96, 96, 192, 192, 192), 512),
    "cnn-small": Architecture((Convolution(16, 4, 2), Convolution(32, 4, 2)), (100,)),
    "cnn-tiny": Architecture((Convolution(8, 4, 2), Convolution(8, 4, 2)), (32,)),
}


class Normalise(nn.Module):
    """Images in [0, 1] to (image - mean) / std, per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Normalise images (N, channels, height, width)."""
        return (images - self.mean) / self.std


class Network(nn.Sequential):
    """A feed-forward network from images in [0, 1], (N, channels, height, width), to logits, (N, classes)."""


def build(architecture: Architecture, dataset: Dataset, *, seed: int) -> Network:
    """Build a network with PyTorch's own initial weights, drawn from `seed` alone.

    Parameters
    ----------
    architecture
        One of `ARCHITECTURES`, or any other of that form.
    dataset
        Gives the input shape, the number of classes and the normalisation.
    seed
        Seed of the initial weights; the global generators are left as they were.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        if dataset.mean is not None and dataset.std is not None:
            layers.append(Normalise(dataset.mean, dataset.std))
        channels, size = dataset.channels, dataset.size
        for conv in architecture.convolutions:
            layers += [
                nn.Conv2d(channels, conv.channels, conv.kernel, conv.stride, conv.padding),
                nn.BatchNorm2d(conv.channels),
                nn.ReLU(),
            ]
            channels, size = conv.channels, (size + 2 * conv.padding - conv.kernel) // conv.stride + 1
        layers.append(nn.Flatten())
        features = channels * size * size
        for width in architecture.hidden:
            layers += [nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU()]
            features = width
        layers.append(nn.Linear(features, dataset.classes))
        return Network(*layers)
