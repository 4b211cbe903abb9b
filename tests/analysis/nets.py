"""A network that can be computed by hand, and what it is attacked with."""

import math

import torch

from sabr.networks.steps import LinearStep, ReLUStep, Step
from sabr.specs import AttackRound

ROUNDS = (
    AttackRound.model_validate(
        {"loss": "margin", "starts": 4, "steps": [{"count": 8, "size": 0.5}, {"count": 8, "size": 0.1}]}
    ),
)


def distance() -> list[Step]:
    """On x in [0, 1], the logits |x - 0.5| and 0.2: class 1 within 0.2 of the middle, by the margin 0.2 - |x - 0.5|."""
    first = LinearStep(torch.tensor([[1.0], [-1.0]]), torch.tensor([-0.5, 0.5]))
    return [first, ReLUStep(), LinearStep(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([0.0, 0.2]))]


def loss(margin: float) -> float:
    """Cross-entropy of two classes by the margin of the right one."""
    return math.log1p(math.exp(-margin))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random_steps(seed: int, widths: tuple[int, ...] = (3, 6, 5, 4)) -> list[Step]:
    """A network with normally distributed weights and biases, ReLUs between its linear layers."""
    own = torch.Generator().manual_seed(seed)
    steps: list[Step] = []
    for narrow, wide in zip(widths, widths[1:], strict=False):
        steps += [ReLUStep()] if steps else []
        steps.append(LinearStep(torch.randn(wide, narrow, generator=own), torch.randn(wide, generator=own)))
    return steps
