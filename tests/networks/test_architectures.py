import pytest
import torch

from sabr.networks.architectures import build
from sabr.networks.initialisation import initialise_for_intervals
from sabr.settings import ARCHITECTURES, DATASETS


@pytest.mark.parametrize(
    ("dataset", "parameters"), [("mnist", 13_259_338), ("cifar10", 17_192_650), ("tinyimagenet", 51_893_128)]
)
def test_cnn7_has_the_published_number_of_parameters(dataset, parameters):
    network = build(ARCHITECTURES["cnn7"], DATASETS[dataset], seed=0)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "channels", "hidden"),
    [
        ("cnn7", [64, 64, 128, 128, 128], 512),
        ("cnn7-narrow", [32, 32, 64, 64, 64], 216),
        ("cnn7-wide", [96, 96, 192, 192, 192], 512),
    ],
)
def test_cnn7_variants_are_those_of_the_paper(name, channels, hidden):
    architecture = ARCHITECTURES[name]
    assert [c.channels for c in architecture.convolutions] == channels
    assert [c.stride for c in architecture.convolutions] == [1, 1, 2, 1, 1]
    assert {(c.kernel, c.padding) for c in architecture.convolutions} == {(3, 1)}
    assert architecture.hidden == (hidden,)


def test_normalisation_is_inside():
    dataset = DATASETS["cifar10"]
    network = build(ARCHITECTURES["cnn-tiny"], dataset, seed=0).eval()
    images = torch.rand(4, *dataset.shape)
    normalised = (images - torch.tensor(dataset.mean).view(3, 1, 1)) / torch.tensor(dataset.std).view(3, 1, 1)
    torch.testing.assert_close(network(images), network[1:](normalised))


def test_seeds_alone_decide_the_weights():
    torch.manual_seed(1)
    one = build(ARCHITECTURES["cnn-tiny"], DATASETS["mnist"], seed=3).state_dict()
    before = torch.random.get_rng_state()
    two = build(ARCHITECTURES["cnn-tiny"], DATASETS["mnist"], seed=3).state_dict()
    other = build(ARCHITECTURES["cnn-tiny"], DATASETS["mnist"], seed=4).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])


def test_initialisation_for_intervals():
    network = build(ARCHITECTURES["cnn7-narrow"], DATASETS["mnist"], seed=0)
    last = network[-1].weight.clone()
    bias = network[0].bias.clone()
    initialise_for_intervals(network, seed=0)
    assert torch.equal(network[-1].weight, last)
    assert torch.equal(network[0].bias, bias)
    for layer in (network[3], network[-4]):
        fan_in = layer.weight[0].numel()
        assert float(layer.weight.detach().std() * fan_in) == pytest.approx((2 * torch.pi) ** 0.5, rel=0.02)
        assert abs(float(layer.weight.detach().mean() * fan_in)) < 0.05
