import pytest
import torch

from sabr.networks.steps import LinearStep, ReLUStep


@pytest.fixture
def random_steps():
    """A function that makes a random fully connected network in float64, from a seed."""

    def make(seed, widths=(4, 12, 9, 3), scale=1.0):
        generator = torch.Generator().manual_seed(seed)
        steps = []
        for fan_in, fan_out in zip(widths, widths[1:], strict=False):
            weight = scale * torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64)
            bias = scale * torch.randn(fan_out, generator=generator, dtype=torch.float64)
            steps += [LinearStep(weight, bias), ReLUStep()]
        return steps[:-1]

    return make
