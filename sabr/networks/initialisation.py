"""Initial weights that keep interval bounds tame."""

import math

import torch
from torch import nn

from sabr.networks.architectures import Network


def initialise_for_intervals(network: Network, *, seed: int) -> None:
    """Redraw, in place, the weights of all affine layers but the last from N(0, 2 pi / fan_in^2).

    With that variance the expected radius of a box neither grows nor shrinks through a ReLU layer (Shi et al. 2021,
    "Fast certified robust training with short warmup", section 3.2). Biases and batch norm stay as they are.

    Parameters
    ----------
    network
        Changed in place.
    seed
        Seed of the weights; the global generators are left as they were.
    """
    generator = torch.Generator().manual_seed(seed)
    affine = [layer for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        for layer in affine[:-1]:
            fan_in = layer.weight[0].numel()
            drawn = torch.randn(layer.weight.shape, generator=generator) * math.sqrt(2 * math.pi) / fan_in
            layer.weight.copy_(drawn)
