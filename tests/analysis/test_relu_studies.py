"""States of ReLUs, inputs of the last ReLU layer, sizes of boxes."""

import pytest
import torch
from nets import distance, generator

from sabr.analysis import box_sizes, relu_inputs, relu_states
from sabr.bounds.boxes import ball
from sabr.networks.steps import LinearStep, forward
from sabr.studies import COLUMNS

MEMORY = 100.0


@pytest.fixture(scope="module")
def images():
    return torch.rand(7, 1, 28, 28, generator=generator())


def test_states_by_hand():
    """0.6: both ReLUs are open over [0.4, 0.8]; 0.9: over [0.7, 1] the first is active, the second is not."""
    table = relu_states.measure(distance(), torch.tensor([[0.6], [0.9]]), eps=0.2, memory_mb=MEMORY)
    assert list(table.columns) == list(COLUMNS["relu-states"])
    assert table[["where", "layer"]].to_numpy().tolist() == [
        ["point", "1"],
        ["point", "all"],
        ["region", "1"],
        ["region", "all"],
    ]
    assert table[["active", "inactive", "unstable"]].to_numpy().tolist() == [
        *([50.0, 50.0, 0.0],) * 2,
        *([25.0, 25.0, 50.0],) * 2,
    ]


def test_states_of_any_network(small_network, images):
    _, steps = small_network()
    table = relu_states.measure(steps, images, eps=0.02, memory_mb=MEMORY)
    assert table[["active", "inactive", "unstable"]].sum(axis=1).to_numpy() == pytest.approx(100)
    by_place = table.set_index(["where", "layer"])
    assert (by_place.loc["point", "unstable"] == 0).all()
    assert (by_place.loc["region", "unstable"] > 0).all()
    for state in ("active", "inactive"):  # what is stable over the region is so at the point
        assert (by_place.loc["region", state] <= by_place.loc["point", state]).all()
    wider = relu_states.measure(steps, images, eps=0.04, memory_mb=MEMORY).set_index(["where", "layer"])
    assert (wider.loc["region", "unstable"] > by_place.loc["region", "unstable"]).all()
    # By a plain forward pass, layer by layer, every ReLU of the network counting the same.
    sizes = {"1": 8 * 14 * 14, "2": 8 * 7 * 7, "3": 32}
    for layer, count in zip(("1", "2", "3"), (1, 3, 6), strict=True):
        with torch.no_grad():
            active = (forward(steps[:count], images) > 0).float().mean()
        assert by_place.loc[("point", layer), "active"] == pytest.approx(100 * float(active), abs=1e-4)
    mean = sum(size * by_place.loc[("region", layer), "unstable"] for layer, size in sizes.items())
    assert by_place.loc[("region", "all"), "unstable"] == pytest.approx(mean / sum(sizes.values()))


@pytest.mark.parametrize("memory_mb", [0.001, 0.3])
def test_batches_change_nothing(small_network, images, memory_mb):
    _, steps = small_network()
    for study, options in (
        (relu_states, {"eps": 0.02}),
        (relu_inputs, {}),
        (box_sizes, {"eps": 0.02, "lambda_ratios": (0.5, 1.0)}),
    ):
        whole, cut = (study.measure(steps, images, memory_mb=memory, **options) for memory in (MEMORY, memory_mb))
        assert list(whole.columns) == list(cut.columns) and len(whole) == len(cut)
        numbers = whole.select_dtypes("float").columns
        assert cut[numbers].to_numpy() == pytest.approx(whole[numbers].to_numpy(), rel=1e-5, abs=1e-4)


def test_inputs_by_hand():
    table = relu_inputs.measure(distance(), torch.tensor([[0.6], [0.9], [0.95]]), memory_mb=MEMORY)
    assert list(table.columns) == list(COLUMNS["relu-inputs"])
    assert table["share"].sum() == pytest.approx(1)
    assert (table["layer"] == 1).all() and (table["images"] == 3).all()
    assert table["mean"].to_numpy() == pytest.approx(0, abs=1e-7)
    assert (table["negative_share"] == 0.5).all()
    edges = [*table["lower_edge"], table["upper_edge"].iloc[-1]]
    assert min(abs(edge) for edge in edges) == 0  # so that no bin holds both signs
    filled = table[table["share"] > 0]
    for value in (-0.45, -0.4, -0.1, 0.1, 0.4, 0.45):
        within = (filled["lower_edge"] <= value + 1e-6) & (filled["upper_edge"] >= value - 1e-6)
        assert within.any()
    assert filled["share"].to_numpy() == pytest.approx(1 / 6)


def test_inputs_of_any_network(small_network, images):
    _, steps = small_network()
    table = relu_inputs.measure(steps, images, memory_mb=MEMORY)
    with torch.no_grad():
        values = forward(steps[:6], images)
    assert table["mean"].iloc[0] == pytest.approx(float(values.mean()), rel=1e-4)
    assert table["share"][table["upper_edge"] <= 1e-9].sum() == pytest.approx(table["negative_share"].iloc[0])
    assert table["lower_edge"].iloc[0] <= values.min() and values.max() <= table["upper_edge"].iloc[-1]
    assert 30 < len(table) < 300


def test_inputs_that_are_all_the_same_are_one_bin():
    table = relu_inputs.measure(distance(), torch.tensor([[0.5]]), memory_mb=MEMORY)
    assert table["share"].tolist() == [1.0] and table["negative_share"].tolist() == [0.0]


def test_a_network_without_relus_has_no_inputs_of_them():
    linear = [LinearStep(torch.eye(2), torch.zeros(2))]
    with pytest.raises(ValueError, match="no last ReLU layer"):
        relu_inputs.measure(linear, torch.rand(2, 2), memory_mb=MEMORY)


def test_sizes_by_hand():
    """Around 0.6: [0.5, 0.7] opens one ReLU by 0.2, [0.4, 0.8] both, by 0.3 and by 0.1."""
    table = box_sizes.measure(
        distance(), torch.tensor([[0.6]]), eps=0.2, lambda_ratios=(0.0, 0.5, 1.0), memory_mb=MEMORY
    )
    assert list(table.columns) == list(COLUMNS["box-sizes"])
    assert table[["layer", "stage", "lambda_ratio", "images"]].to_numpy().tolist() == [
        [1, "before", 0.5, 1],
        [1, "before", 1.0, 1],
        [1, "after", 0.5, 1],
        [1, "after", 1.0, 1],
    ]
    assert table["input_radius"].to_numpy() == pytest.approx([0.1, 0.2, 0.1, 0.2])
    assert table["mean_radius"].to_numpy() == pytest.approx([0.1, 0.2, 0.05, 0.1])
    assert table["linear"].to_numpy() == pytest.approx([0.1, 0.2, 0.05, 0.1])


def test_boxes_of_mostly_inactive_relus_grow_faster_than_linearly():
    steps = [LinearStep(torch.ones(50, 1), -torch.linspace(0.3, 1.5, 50)), *distance()[1:2]]
    steps.append(LinearStep(torch.ones(2, 50), torch.zeros(2)))
    table = box_sizes.measure(
        steps, torch.tensor([[0.5]]), eps=0.5, lambda_ratios=(0.25, 0.5, 1.0), memory_mb=MEMORY
    ).set_index(["stage", "lambda_ratio"])
    ratio = table["mean_radius"] / table["linear"]
    assert ratio["before"].to_numpy() == pytest.approx(1)
    assert ratio["after", 0.25] == pytest.approx(1) and 1 < ratio["after", 0.5] < ratio["after", 1.0]


def test_sizes_of_any_network(small_network, images):
    _, steps = small_network()
    ratios = (0.05, 0.2, 0.6, 1.0)
    table = box_sizes.measure(steps, images, eps=0.1, lambda_ratios=ratios, memory_mb=MEMORY)
    assert table.groupby(["layer", "stage"]).size().tolist() == 6 * [len(ratios)]
    for _, line in table.groupby(["layer", "stage"]):
        assert (line["mean_radius"].diff()[1:] > 0).all()
        assert line["linear"].iloc[0] == pytest.approx(line["mean_radius"].iloc[0])
    before, after = (table[table["stage"] == stage]["mean_radius"].to_numpy() for stage in ("before", "after"))
    assert (after <= before).all()  # a ReLU never widens a box
    region = ball(images, 0.06)
    third = table[table["lambda_ratio"] == 0.6]
    assert third["input_radius"].to_numpy() == pytest.approx(float(region.radius.mean()), rel=1e-5)
