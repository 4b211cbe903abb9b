"""Inner values of a network as functions of its input and of its unstable ReLUs' outputs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sabr.bounds.rows import Rows, Walk, flat, input_shapes, unflat, whole, windows
from sabr.networks.steps import Step


class ReLUState(NamedTuple):
    """What is known of one ReLU layer of N images: which neurons are active, and which are variables of their own.

    Attributes
    ----------
    active
        (N * H * W + 1, C), the last row zero, or (N, F): 1 where the ReLU is the identity, else 0.
    slots
        Of the same shape: an unstable neuron's number in its image, U for every other one.
    places
        (N, U) flat places (`flat`) of the unstable neurons; 0 where `real` is false.
    real
        (N, U) false for padding.
    """

    active: Tensor
    slots: Tensor
    places: Tensor
    real: Tensor


class Pulled(NamedTuple):
    """R functions of the input and of unstable ReLUs' outputs: constant + inputs @ x + sum_j hidden[j] @ z_j.

    Attributes
    ----------
    constant, inputs
        (R,) and (R, D), D in the order of `flat`.
    hidden
        For each ReLU layer before them, by its number: (R, U).
    """

    constant: Tensor
    inputs: Tensor
    hidden: dict[int, Tensor]


def pull_back(
    steps: Sequence[Step],
    relus: Sequence[int],
    states: dict[int, ReLUState],
    places: Tensor,
    image: Tensor,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> Pulled:
    """Outputs of a part of a network as functions of its input and of its unstable ReLUs' outputs.

    Exact: stable ReLUs are the identity or zero, unstable ones' outputs are left as variables.

    Parameters
    ----------
    steps
        The first steps of a folded network.
    relus
        The numbers of the ReLUs among them, in order.
    states
        Of these ReLUs.
    places
        (R,) flat places in the last step's output.
    image
        (R,) whose.
    shape, dtype
        Of one input.
    """
    shapes = input_shapes(steps, shape)
    walk = _Collecting(relus, states)
    return walk.finish(*walk.start(steps, places, image, shapes, dtype), shapes)


def pull_rows(
    steps: Sequence[Step],
    relus: Sequence[int],
    states: dict[int, ReLUState],
    weight: Tensor,
    constant: Tensor,
    image: Tensor,
    shape: Sequence[int],
) -> Pulled:
    """The same for any functions weight @ output + constant, (R, H) and (R,), of an output that is a vector."""
    walk = _Collecting(relus, states)
    walk.constant = constant
    return walk.finish(steps, Rows(weight, image, None), input_shapes(steps, shape))


class _Collecting(Walk):
    """Takes down what each ReLU layer's unstable neurons are weighed with, and goes on with the active ones."""

    def __init__(self, relus: Sequence[int], states: dict[int, ReLUState]) -> None:
        super().__init__(relus)
        self.states = states
        self.hidden: dict[int, Tensor] = {}

    def finish(self, steps: Sequence[Step], rows: Rows, shapes: Sequence[Sequence[int]]) -> Pulled:
        values = flat(whole(self.back(steps, rows, shapes), shapes[0]).values)
        constant = self.constant
        if not isinstance(constant, Tensor):
            constant = values.new_full((len(values),), constant)
        return Pulled(constant, values, self.hidden)

    def at_relu(self, number: int, rows: Rows, shape: Sequence[int]) -> Rows:
        state = self.states[number]
        if rows.corner is None:
            values = flat(rows.values)
            hidden = values.gather(1, state.places[rows.image]) * state.real[rows.image]
            active = state.active if len(shape) == 1 else state.active[:-1].view(len(state.places), -1)
            kept = Rows(unflat(values * active[rows.image], shape), rows.image, None)
        else:
            where = windows(rows, shape, len(state.places))
            count, channels, height, width = rows.values.shape
            values = rows.values.permute(0, 2, 3, 1).reshape(count, -1)
            hidden = values.new_zeros(count, state.places.shape[1] + 1)
            hidden.scatter_(1, state.slots.index_select(0, where).view(count, -1), values)
            hidden = hidden[:, :-1]
            passed = values.view(-1, channels) * state.active.index_select(0, where)
            kept = Rows(passed.view(count, height, width, channels).permute(0, 3, 1, 2), rows.image, rows.corner)
        self.hidden[number] = self.hidden[number] + hidden if number in self.hidden else hidden
        return kept
