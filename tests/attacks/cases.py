"""Small networks to attack, and random numbers for it."""

from dataclasses import replace

import torch
from bounds.milp import exact_minimum

from sabr.bounds.boxes import Box
from sabr.bounds.interval import margins, other_classes
from sabr.networks.steps import LinearStep, ReLUStep, forward

STEPS = (*[0.5] * 4, *[0.1] * 4, 0.02)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear():
    """Three classes; of two inputs, logit_0 - logit_1 = x_1 - 0.5 and logit_0 - logit_2 = x_2 - 0.5."""
    return [LinearStep(torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]), torch.tensor([-0.5, 0.0, 0.0]))]


def random_net(seed, widths):
    generator = seeded(seed)
    steps = []
    for fan_in, fan_out in zip(widths, widths[1:], strict=False):
        weight = torch.randn(fan_out, fan_in, generator=generator, dtype=torch.float64)
        steps += [LinearStep(weight, torch.randn(fan_out, generator=generator, dtype=torch.float64)), ReLUStep()]
    return steps[:-1]


def hard_instance(seed, widths=(6, 10, 8, 4), slack=0.02):
    """A network that is wrong in a small part of a box only.

    The bias of the label is moved so that the least margin over the box is -slack times the distance from the margin
    at the centre. Gives the network, one that is right in all the box by as much, box, labels, and the worst point.
    """
    steps = random_net(seed, widths)
    centre = torch.rand(1, widths[0], generator=seeded(seed), dtype=torch.float64)
    box = Box(centre - 0.25, centre + 0.25)
    labels = forward(steps, centre).argmax(1)
    solved = []
    for other in other_classes(labels, widths[-1])[0].tolist():
        row = torch.zeros(widths[-1], dtype=torch.float64)
        row[labels], row[other] = 1, -1
        solved.append(exact_minimum(steps, box, row))
    least, worst = min(solved, key=lambda value_and_point: value_and_point[0])
    distance = float(margins(forward(steps, centre), labels).amin()) - least

    def moved(by):
        shift = torch.zeros(widths[-1], dtype=torch.float64)
        shift[labels] = by * distance - least
        return [*steps[:-1], replace(steps[-1], bias=steps[-1].bias + shift)]

    return moved(-slack), moved(slack), box, labels, box.clamp(worst)
