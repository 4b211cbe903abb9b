import copy
import math

import pytest
import torch
import torch.nn.functional as F
from nets import ROUNDS, generator
from torch import nn

from sabr.analysis import gradient_alignment
from sabr.bounds.boxes import Box
from sabr.studies import COLUMNS


def measured(network, images, labels, eps):
    return gradient_alignment.measure(
        network, images, labels, eps=eps, rounds=ROUNDS, generator=generator(), memory_mb=100
    )


def test_by_hand():
    """A linear network: the bound is the loss at the worst corner, so its gradient is that of an adversarial point."""
    network = nn.Sequential(nn.Linear(1, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[2.0], [1.0]]))
        network[0].bias.copy_(torch.tensor([0.0, 0.3]))
    table = measured(network, torch.tensor([[0.5]]), torch.tensor([0]), 0.2)
    assert list(table.columns) == list(COLUMNS["gradient-alignment"])
    cosines = table.set_index(["loss", "at"])["cosine"]
    # Gradients are multiples of (x, -x, 1, -1) for weights and biases; the worst x is 0.3, SABR's box reaches no further.
    expected = (0.5 * 0.3 + 1) / math.sqrt((0.5**2 + 1) * (0.3**2 + 1))
    for loss in ("ibp", "sabr"):
        assert cosines[loss, "clean"] == pytest.approx(expected, abs=1e-6)
        assert cosines[loss, "adversarial"] == pytest.approx(1, abs=1e-6)
    assert table["lambda_ratio"].tolist() == [1.0, 1.0, 0.05, 0.05]
    assert table["images"].tolist() == [1, 1, 1, 1] and table["deviation"].isna().all()


@pytest.fixture
def case(small_network):
    network, _ = small_network()
    return network, torch.rand(5, 1, 28, 28, generator=generator()), torch.arange(5)


def test_tiny_regions_are_aligned(case):
    table = measured(*case, 1e-7)
    assert table["cosine"].to_numpy() == pytest.approx(1, abs=1e-3)


def test_the_small_box_is_better_aligned_than_the_ball(case):
    table = measured(*case, 0.1).set_index(["loss", "at"])
    assert (table["cosine"].abs() <= 1).all()
    for at in ("clean", "adversarial"):
        assert table.loc[("sabr", at), "cosine"] > table.loc[("ibp", at), "cosine"]
    assert (table["deviation"] > 0).all()


@pytest.mark.parametrize("confidence", [1, 150])
def test_gradients_are_those_of_the_network(case, confidence):
    """By way of the steps and in float32; by torch's own layers, in float64."""
    network, images, labels = case
    with torch.no_grad():
        network[-1].weight.mul_(confidence)
    labels = network(images).argmax(1)
    before = copy.deepcopy(network.state_dict())
    exact = copy.deepcopy(network).double()
    least = math.inf
    for image, label in zip(images, labels, strict=True):
        ours = gradient_alignment.direction(network, Box(image.unsqueeze(0), image.unsqueeze(0)), label.unsqueeze(0))
        loss = F.cross_entropy(exact(image.unsqueeze(0).double()), label.unsqueeze(0))
        theirs = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(exact.parameters()))])
        least = min(least, float(theirs.norm()))
        assert float(ours.double() @ theirs / theirs.norm()) == pytest.approx(1, abs=1e-4)
        assert float(ours.norm()) == pytest.approx(1, abs=1e-5)
    assert (least < 1e-7) == (confidence > 1)
    measured(network, images, labels, 0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_images_whose_gradient_vanishes_do_not_count():
    network = nn.Sequential(nn.Linear(1, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1e5], [-1e5]]))
        network[0].bias.zero_()
    table = measured(network, torch.tensor([[0.5], [0.5]]), torch.tensor([0, 1]), 0.01)
    assert table["images"].tolist() == [1, 1, 1, 1]  # the first is right beyond all doubt, the second is wrong
    assert table["cosine"].notna().all()
