import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sabr.attacks.search import Round, search
from sabr.bounds.boxes import Box, ball
from sabr.bounds.interval import margin_bounds, margins, propagate
from sabr.networks.steps import LinearStep, ReLUStep, ScaleStep, forward
from sabr.settings import DATASETS


def test_by_hand():
    # y1 = relu(x1 - x2), y2 = relu(x1 + x2 - 1); logits = (y1 + y2, y1 - 2 y2)
    steps = [
        LinearStep(torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([0.0, -1.0])),
        ReLUStep(),
        LinearStep(torch.tensor([[1.0, 1.0], [1.0, -2.0]]), torch.tensor([0.5, 0.0])),
    ]
    box = Box(torch.tensor([[0.0, 0.5]]), torch.tensor([[1.0, 1.0]]))
    result = propagate(steps, box)
    torch.testing.assert_close(result.relu_inputs[0].lower, torch.tensor([[-1.0, -0.5]]))
    torch.testing.assert_close(result.relu_inputs[0].upper, torch.tensor([[0.5, 1.0]]))
    torch.testing.assert_close(result.output.lower, torch.tensor([[0.5, -2.0]]))
    torch.testing.assert_close(result.output.upper, torch.tensor([[2.0, 0.5]]))
    # The margin row is (0, 3), bias 0.5: 3 y2 + 0.5 >= 0.5, though the logit bounds alone give 0.5 - 0.5 = 0.
    folded = margin_bounds(steps, box, torch.tensor([0]))
    torch.testing.assert_close(folded.lower, torch.tensor([[0.5]]))
    shrunk = propagate(steps, box, relu_shrinkage=0.8)
    torch.testing.assert_close(shrunk.output.upper, torch.tensor([[0.5 + 0.4 + 0.8, 0.4]]))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 10_000),
    st.floats(0, 2),
    st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_sampled_points_never_leave_their_bounds(random_steps, seed, radius, scale):
    steps = random_steps(seed, scale=scale)
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(1, 4, generator=generator, dtype=torch.float64)
    box = Box(centre - radius, centre + radius)
    result = propagate(steps, box)
    labels = torch.tensor([seed % 3])
    lower = margin_bounds(steps, box, labels).lower
    corners = torch.where(torch.rand(500, 4, generator=generator) < 0.5, box.lower, box.upper)
    points = torch.cat([box.lower + torch.rand(1500, 4, generator=generator) * 2 * radius, corners])
    activations, relu = points, 0
    for step in steps:
        if isinstance(step, ReLUStep):
            bounds = result.relu_inputs[relu]
            slack = 1e-12 * (1 + bounds.upper.abs().max())
            assert (activations >= bounds.lower - slack).all() and (activations <= bounds.upper + slack).all()
            relu += 1
        activations = step.apply(activations)
    slack = 1e-12 * (1 + activations.abs().max())
    assert (activations >= result.output.lower - slack).all() and (activations <= result.output.upper + slack).all()
    assert (margins(activations, labels.expand(len(points))) >= lower - slack).all()


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_attacked_images_never_leave_their_margin_bounds(small_network, dataset):
    _, steps = small_network(dataset)
    images = torch.rand(16, *DATASETS[dataset].shape)
    images[0], images[1] = 0, 1
    labels = forward(steps, images).argmax(1)
    region = ball(images, 0.02)
    lower = margin_bounds(steps, region, labels).lower
    rounds = [Round("margin", "largest", 3, (), (0.25,) * 10)]
    found = search(steps, region, labels, rounds=rounds, generator=torch.Generator(), rows=100)
    reached = margins(forward(steps, found.points), labels)
    assert (reached >= lower - 1e-4).all()


def test_folded_margins_are_at_least_as_tight(small_network):
    _, steps = small_network()
    images = torch.rand(8, 1, 28, 28)
    labels = torch.arange(8)
    region = ball(images, 0.05)
    logits = propagate(steps, region).output
    plain = margins_of_bounds(logits, labels)
    assert (margin_bounds(steps, region, labels).lower >= plain - 1e-5).all()


def margins_of_bounds(logits, labels):
    rows = []
    for i, label in enumerate(labels.tolist()):
        rows.append(torch.stack([logits.lower[i, label] - logits.upper[i, j] for j in range(10) if j != label]))
    return torch.stack(rows)


def test_a_point_has_its_own_value(small_network):
    _, steps = small_network()
    images = torch.rand(4, 1, 28, 28)
    result = propagate(steps, Box(images, images))
    torch.testing.assert_close(result.output.lower, forward(steps, images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(result.output.upper, forward(steps, images), rtol=1e-4, atol=1e-5)


def test_normalisation_scales_the_box():
    step = ScaleStep(torch.tensor([2.0, -4.0]).view(1, 2, 1, 1), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1))
    result = propagate([step], Box(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)))
    assert result.output.lower.flatten().tolist() == [1.0, -4.0]
    assert result.output.upper.flatten().tolist() == [3.0, 0.0]


def test_margins_are_in_increasing_order_of_the_other_class():
    logits = torch.tensor([[1.0, 2.0, 4.0]])
    assert margins(logits, torch.tensor([1])).tolist() == [[1.0, -2.0]]


def test_networks_without_a_linear_end_are_refused():
    with pytest.raises(TypeError, match="ReLUStep"):
        margin_bounds([ReLUStep()], Box(torch.zeros(1, 2), torch.ones(1, 2)), torch.tensor([0]))
