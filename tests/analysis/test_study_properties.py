"""What the studies say of any network, on random ones with random images and radii."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nets import ROUNDS, generator, random_steps

from sabr.analysis import box_sizes, loss_lambda, relu_inputs, relu_states
from sabr.networks.steps import cast

RATIOS = (0.0, 0.05, 0.3, 0.5, 0.8, 1.0)
cases = st.tuples(st.integers(0, 10**6), st.floats(0.001, 1), st.integers(1, 5))


def of(case):
    seed, eps, count = case
    images = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)).mul(1.4).sub(0.2).clamp(0, 1)
    return random_steps(seed), images, eps


@settings(max_examples=40)
@given(cases)
def test_losses_grow_with_the_region_and_bounds_lie_above_attacks(case):
    steps, images, eps = of(case)
    labels = torch.arange(len(images)) % 4
    table = loss_lambda.measure(
        steps, images, labels, eps=eps, lambda_ratios=RATIOS, rounds=ROUNDS, generator=generator(), memory_mb=10
    )
    slack = 1e-5 * (1 + table.max(axis=None))
    for name in ("box", "centred_box", "centred_adversarial"):
        assert (table[name].diff()[1:] >= -slack).all(), name
    assert (table["box"] >= table["adversarial"] - slack).all()
    assert (table["centred_box"] >= table["centred_adversarial"] - slack).all()
    assert (table["adversarial"] >= table["centred_adversarial"] - slack).all()
    assert abs(table["box"].iloc[0] - table["adversarial"].iloc[0]) <= slack
    assert abs(table["box"].iloc[-1] - table["centred_box"].iloc[-1]) <= slack


@settings(max_examples=40)
@given(cases)
def test_states_are_whole_and_only_get_less_certain(case):
    steps, images, eps = of(case)
    table = relu_states.measure(steps, images, eps=eps, memory_mb=10).set_index(["where", "layer"])
    assert (table[["active", "inactive", "unstable"]].sum(axis=1) - 100).abs().max() < 1e-9
    assert table[["active", "inactive", "unstable"]].min(axis=None) >= 0
    half = relu_states.measure(steps, images, eps=eps / 2, memory_mb=10).set_index(["where", "layer"])
    for state in ("active", "inactive"):
        assert (table.loc["region", state] <= half.loc["region", state]).all()
        assert (half.loc["region", state] <= table.loc["point", state]).all()


@settings(max_examples=40)
@given(cases)
@example((8887, 0.0625, 1))
def test_radii_grow_with_the_region_and_relus_do_not_add_to_them(case):
    steps, images, eps = of(case)
    # In float32 the radius of a box far from 0 is off by more than this.
    steps, images = cast(steps, torch.float64), images.double()
    table = box_sizes.measure(steps, images, eps=eps, lambda_ratios=RATIOS, memory_mb=10)
    for _, line in table.groupby(["layer", "stage"]):
        assert (line["mean_radius"].diff()[1:] >= -1e-6 * line["mean_radius"].max()).all()
    before, after = (table[table["stage"] == stage]["mean_radius"].to_numpy() for stage in ("before", "after"))
    assert (after <= before * (1 + 1e-6)).all() and (after >= 0).all()


@settings(max_examples=40)
@given(cases)
def test_histograms_are_whole(case):
    steps, images, _ = of(case)
    table = relu_inputs.measure(steps, images, memory_mb=10)
    assert abs(table["share"].sum() - 1) < 1e-9
    assert (table["lower_edge"].to_numpy()[1:] == table["upper_edge"].to_numpy()[:-1]).all()
    below = table["share"][table["upper_edge"] <= 0].sum()
    assert abs(below - table["negative_share"].iloc[0]) < 1e-9
