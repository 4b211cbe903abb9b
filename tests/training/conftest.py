from pathlib import Path

import pytest
import torch

from sabr.layers import read_yaml
from sabr.methods import METHODS
from sabr.networks.affine import clean_pass
from sabr.plan import resolve
from sabr.training.methods.base import Batch


@pytest.fixture
def batch_of():
    """A function that makes a batch after its clean pass."""

    def make(network, images, labels, eps, *, ramp=1.0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return Batch(network, images, labels, eps, ramp, clean_pass(network, images), generator)

    return make


@pytest.fixture
def batch(small_network, batch_of):
    """32 random images, some of them black or white, on a small network, at eps 0.05 and the end of the ramp."""
    network, _ = small_network()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(32, 1, 28, 28, generator=generator)
    images[:4], images[4:8] = 0, 1
    labels = torch.randint(10, (32,), generator=generator)
    return batch_of(network, images, labels, 0.05)


@pytest.fixture(scope="session")
def plan():
    """What the tiny scale would run with every method."""
    config = Path(__file__).parents[2] / "config"
    every = {"scale": "tiny", "overrides": {"run": {"methods": list(METHODS)}}}
    return resolve(read_yaml(config / "config.yaml") | every, config)


@pytest.fixture
def method(plan):
    """A function that gives a method of the tiny scale by name."""
    return lambda name: next(row.training.method for row in plan.main if row.method == name)
