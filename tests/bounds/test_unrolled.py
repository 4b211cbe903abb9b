"""Networks as they are, relaxed: bounds, coefficients and gradients are those of the condensed ones."""

from functools import partial

import pytest
import torch
from bounds.nets import KINDS, random_case

from sabr.bounds.boxes import Box
from sabr.bounds.condensed import condense
from sabr.bounds.crown import backward_bound
from sabr.bounds.dual import Multipliers, backward, bound, gradient, lines_of, projected, start_of
from sabr.bounds.interval import margin_rows, propagate
from sabr.bounds.rows import flat, unflat
from sabr.bounds.stacking import stack
from sabr.bounds.unrolled import bytes_of_a_query, unroll, work_of_a_pass
from sabr.networks.steps import ConvolutionStep, FlattenStep, LinearStep, ReLUStep, SumStep, cast, forward

MEMORY = 2**26


def posed(seed, kind):
    """Two boxes with different unstable ReLUs."""
    case = random_case(seed, kind)
    small = 0.3 * case.box.radius
    box = Box(
        torch.cat([case.box.lower, case.box.centre - small]), torch.cat([case.box.upper, case.box.centre + small])
    )
    inner = propagate(case.steps[:-1], box).relu_inputs
    rows = margin_rows(case.steps[-1], torch.tensor([0, 1]))
    return case.steps, box, rows, [Box(b.lower, b.upper) for b in inner]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_condensed_one(kind):
    assert sum(compared(seed, kind) for seed in range(10)) > 50


def compared(seed, kind):
    """How many slopes have a gradient."""
    steps, box, rows, inner = posed(seed, kind)
    whole = unroll(steps[:-1], box, *rows, inner)
    condensed = condense(steps[:-1], box, *rows, inner, memory=MEMORY)
    for own, other in zip(whole.layers, condensed.layers, strict=True):
        assert torch.equal(own.real, other.real) and torch.equal(own.places[own.real], other.places[own.real])
        assert torch.equal(own.lower, other.lower) and torch.equal(own.upper, other.upper)
    torch.testing.assert_close(bound(whole), backward_bound(steps[:-1], box, inner, *rows), rtol=1e-10, atol=1e-10)
    lines, generator = lines_of(whole), torch.Generator().manual_seed(seed)
    start = start_of(whole, lines)
    drawn = [torch.rand(a.shape, dtype=a.dtype, generator=generator) for a in start.alpha]
    at = projected(Multipliers(drawn), lines)
    passed, expected = backward(whole, lines, at), backward(condensed, lines_of(condensed), at)
    torch.testing.assert_close(passed.lower, expected.lower, rtol=1e-10, atol=1e-10)
    slopes, others = gradient(whole, lines, at, passed), gradient(condensed, lines, at, expected)
    moved = 0
    for number, layer in enumerate(whole.layers):
        real = layer.real.unsqueeze(1).expand_as(passed.coefficients[number])
        for own, other in (
            (passed.coefficients[number], expected.coefficients[number]),
            (slopes.alpha[number], others.alpha[number]),
        ):
            assert not own[~real].any()
            torch.testing.assert_close(own[real], other[real], rtol=1e-8, atol=1e-8)
        moved += int((slopes.alpha[number] != 0).sum())
    return moved


@pytest.mark.parametrize("kind", KINDS)
def test_points_never_fall_below_bounds_whatever_the_slopes_are(kind):
    steps, box, (weight, constant), inner = posed(3, kind)
    whole = unroll(steps[:-1], box, weight, constant, inner)
    lines, generator = lines_of(whole), torch.Generator().manual_seed(0)
    unit = torch.rand(4000, *box.lower.shape, dtype=torch.float64, generator=generator)
    unit[::2] = unit[::2].round()
    samples = box.lower + unit * (box.upper - box.lower)
    hidden = forward(steps[:-1], samples.flatten(0, 1)).view(4000, 2, -1)
    reached = (torch.einsum("pnh,nqh->pnq", hidden, weight) + constant).amin(0)
    for _ in range(10):
        drawn = [torch.rand(a.shape, dtype=a.dtype, generator=generator) for a in start_of(whole, lines).alpha]
        passed = backward(whole, lines, projected(Multipliers(drawn), lines))
        assert (passed.lower <= reached + 1e-12).all()
        ends = (flat(box.lower).unsqueeze(1), flat(box.upper).unsqueeze(1))
        assert ((passed.point == ends[0]) | (passed.point == ends[1])).all()


def test_parts_are_themselves():
    steps, box, rows, inner = posed(1, "convolutional")
    whole = unroll(steps[:-1], box, *rows, inner)
    every = bound(whole)
    queries = every.shape[1]
    torch.testing.assert_close(bound(whole.part(torch.tensor([1]), 0)), every[1:])
    torch.testing.assert_close(bound(whole.part(torch.tensor([queries - 1, 0]), 1)), every[:, [queries - 1, 0]])
    torch.testing.assert_close(bound(whole.part(torch.tensor([1, 0, 1]), 0)), every[[1, 0, 1]])


@pytest.mark.parametrize("kind", KINDS)
def test_inner_values_are_those_of_the_condensed_one(kind):
    generator, compared = torch.Generator().manual_seed(0), 0
    for seed in range(6):
        steps, box, rows, inner = posed(seed, kind)
        whole = unroll(steps[:-1], box, *rows, inner)
        condensed = condense(steps[:-1], box, *rows, inner, memory=MEMORY)
        for number, layer in enumerate(whole.layers):
            shape = (2, 5, layer.lower.shape[1])
            weight = torch.randn(shape, dtype=torch.float64, generator=generator) * layer.real.unsqueeze(1)
            lines = lines_of(condensed)[:number]
            own, other = whole.inner(number, weight), condensed.inner(number, weight)
            torch.testing.assert_close(bound(own, lines), bound(other, lines), rtol=1e-9, atol=1e-9)
            compared += int(layer.real.any())
    assert compared > 6


@pytest.mark.parametrize("kind", KINDS)
def test_points_have_the_networks_values(kind):
    steps, box, (weight, constant), inner = posed(2, kind)
    whole = unroll(steps[:-1], box, weight, constant, inner)
    unit = torch.rand(2, constant.shape[1], whole.box.lower.shape[1], dtype=torch.float64)
    points = whole.box.lower.unsqueeze(1) + unit * (whole.box.upper - whole.box.lower).unsqueeze(1)
    found = whole.push(points, lambda number, y: y.clamp(min=0))
    hidden = forward(steps[:-1], unflat(points.flatten(0, 1), box.lower.shape[1:])).view(*constant.shape, -1)
    torch.testing.assert_close(found, (hidden * weight).sum(2) + constant)


@pytest.mark.parametrize("kind", KINDS)
def test_passes_change_nothing_that_they_were_given(kind):
    steps, box, rows, inner = posed(4, kind)
    whole = unroll(steps[:-1], box, *rows, inner)
    lines = lines_of(whole)
    at = start_of(whole, lines)
    given = [whole.objective, whole.constant, *at.alpha]
    before = [values.clone() for values in given]
    passed = backward(whole, lines, at)
    given += [passed.lower, passed.point, *passed.coefficients]
    before += [values.clone() for values in given[len(before) :]]
    gradient(whole, lines, at, passed)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


def test_a_network_may_begin_with_a_relu_or_a_flattening():
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, dtype=torch.float64, generator=generator)
    linear = LinearStep(draw(6, 8), draw(6))
    convolution = ConvolutionStep(draw(3, 2, 2, 2), draw(3), (1, 1), (0, 0))
    centre = draw(2, 2, 2, 2)
    box = Box(centre - 0.7, centre + 0.7)
    for begin in ([ReLUStep(), FlattenStep(), linear], [FlattenStep(), ReLUStep(), linear], [ReLUStep(), convolution]):
        hidden = [*begin, ReLUStep(), FlattenStep()]
        size = forward(hidden, centre).shape[1]
        weight, constant = draw(2, 5, size), draw(2, 5)
        inner = propagate(hidden, box).relu_inputs
        whole = unroll(hidden, box, weight, constant, inner)
        condensed = condense(hidden, box, weight, constant, inner, memory=MEMORY)
        assert len(whole.layers) == 2 and whole.layers[0].real.any()
        lines = lines_of(whole)
        at = start_of(whole, lines)
        passed, expected = backward(whole, lines, at), backward(condensed, lines, at)
        torch.testing.assert_close(passed.lower, expected.lower)
        slopes, others = gradient(whole, lines, at, passed), gradient(condensed, lines, at, expected)
        for own, other in zip(slopes.alpha, others.alpha, strict=True):
            torch.testing.assert_close(own, other)


def test_offsets_are_the_neurons_own_biases():
    steps, box, rows, inner = posed(0, "fully connected")
    whole = unroll(steps[:-1], box, *rows, inner)
    biases = [step.bias for step in steps[:-1] if isinstance(step, LinearStep)]
    assert len(biases) == len(whole.layers) and any(layer.real.any() for layer in whole.layers)
    for offset, bias, layer in zip(whole.offsets(), biases, whole.layers, strict=True):
        torch.testing.assert_close(offset[layer.real], bias[layer.places][layer.real])


def test_stacked_ones_are_themselves():
    steps, box, rows, inner = posed(1, "residual")
    each = [
        unroll(steps[:-1], *(Box(b.lower[n:][:1], b.upper[n:][:1]) for b in (box,)), *(r[n:][:1] for r in rows), own)
        for n in (0, 1)
        for own in [[Box(b.lower[n:][:1], b.upper[n:][:1]) for b in inner]]
    ]
    fewer = each[1].part(torch.tensor([0]), 1)
    assert len({tuple(layer.lower.shape[1] for layer in one.layers) for one in each}) == 2
    together = bound(stack([each[0], fewer]))
    torch.testing.assert_close(together[:1], bound(each[0]))
    torch.testing.assert_close(together[1:, :1], bound(fewer))


def test_a_pass_costs_its_weights_at_every_place():
    convolution = ConvolutionStep(torch.ones(2, 1, 3, 3), torch.zeros(2), (1, 2), (1, 0))
    assert work_of_a_pass([convolution], (1, 5, 5)) == 18 * 5 * 2
    both = SumStep(((convolution,), (convolution,)))
    linear = LinearStep(torch.ones(3, 20), torch.zeros(3))
    assert work_of_a_pass([both, FlattenStep(), linear], (1, 5, 5)) == 2 * 18 * 5 * 2 + 60


def test_maps_of_one_channel_do_not_look_channels_last():
    step = ConvolutionStep(torch.ones(2, 1, 3, 3), torch.zeros(2), (1, 2), (1, 0))
    whole = unflat(torch.ones(3, 20), (1, 5, 4))
    assert whole.stride() == (20, 20, 4, 1)
    junk = [torch.full((n,), torch.nan) for n in (10, 20, 40, 60, 80)]
    del junk
    torch.testing.assert_close(step.apply(whole).double(), cast([step], torch.float64)[0].apply(whole.double()))


def test_memory_of_a_query_grows_with_what_is_unstable_and_with_the_precision():
    steps, box, rows, _ = posed(1, "convolutional")
    shape = box.lower.shape[1:]
    few, many = (bytes_of_a_query(steps[:-1], shape, [n, n], rows[1]) for n in (10, 20))
    assert many - few >= 8 * 10 * 2 * 8 and bytes_of_a_query(steps[:-1], shape, [10, 10], rows[1].float()) * 2 == few
