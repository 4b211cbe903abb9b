"""Networks by name: convolutions, then linear layers, batch norm after each hidden one, normalisation inside."""

import torch
from torch import Tensor, nn

from sabr.settings import Architecture, Dataset


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
        One of `sabr.settings.ARCHITECTURES`, or any other of that form.
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
