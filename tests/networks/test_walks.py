import torch
from hypothesis import given
from hypothesis import strategies as st

from sabr.networks.steps import FlattenStep, LinearStep, ReLUStep, SumStep, forward
from sabr.networks.walks import Prefix, relu_prefixes


def linear():
    return LinearStep(torch.randn(4, 4), torch.randn(4))


def relu_inputs(steps, points):
    """The input of each ReLU at `points`, in the order in which they are met."""
    found = []
    for step in steps:
        if isinstance(step, ReLUStep):
            found.append(points)
        elif isinstance(step, SumStep):
            for path in step.paths:
                found += relu_inputs(path, points)
        points = step.apply(points)
    return found


def test_a_chain():
    first, second = linear(), linear()
    relu, flatten = ReLUStep(), FlattenStep()
    assert relu_prefixes([first, relu, flatten, second, relu, first]) == [
        Prefix([first], []),
        Prefix([first, relu, flatten, second], [0]),
    ]
    assert relu_prefixes([first]) == []


def test_a_residual_block_with_relus_in_both_paths():
    a, b, c, d = (linear() for _ in range(4))
    relu = ReLUStep()
    block = SumStep(((b, relu, c), (d, relu)))
    assert relu_prefixes([a, relu, block, relu]) == [
        Prefix([a], []),
        Prefix([a, relu, b], [0]),
        Prefix([a, relu, d], [0]),  # not the ReLU of the other path
        Prefix([a, relu, block], [0, 1, 2]),
    ]


nested = st.recursive(
    st.builds(linear) | st.just(ReLUStep()),
    lambda steps: st.lists(st.lists(steps, max_size=3).map(tuple), min_size=1, max_size=3).map(
        lambda paths: SumStep(tuple(paths))
    ),
    max_leaves=8,
)


@given(st.lists(nested, max_size=4))
def test_prefixes_compute_the_inputs_and_name_the_relus(steps):
    points = torch.randn(3, 4)
    inputs = relu_inputs(steps, points)
    prefixes = relu_prefixes(steps)
    assert len(prefixes) == len(inputs)
    for prefix, expected in zip(prefixes, inputs, strict=True):
        assert torch.equal(forward(prefix.steps, points), expected)
        met = relu_inputs(prefix.steps, points)
        assert len(met) == len(prefix.relus)
        for number, value in zip(prefix.relus, met, strict=True):
            assert torch.equal(value, inputs[number])
