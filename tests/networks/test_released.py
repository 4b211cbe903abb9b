import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

from sabr.errors import SabrError
from sabr.networks.affine import folded_steps
from sabr.networks.architectures import Normalise
from sabr.networks.checkpoints import load, save
from sabr.networks.released import read_released
from sabr.networks.steps import LinearStep
from sabr.settings import DATASETS


def authors_state(network, dataset, prefix="blocks.", sigma="std"):
    """The state of a network with the names that the authors' code gives: normalisation first, for MNIST too."""
    state, number = OrderedDict(), 1
    layers = list(network)
    if isinstance(layers[0], Normalise):
        mean, std = layers.pop(0).state_dict().values()
    else:
        mean, std = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    state[f"{prefix}0.mean"], state[f"{prefix}0.{sigma}"] = mean, std
    for number, layer in enumerate(layers, 1):
        for name, tensor in layer.state_dict().items():
            state[f"{prefix}{number}.{name}"] = tensor
    return state


def merged(network):
    """What the authors' conversion for MN-BaB leaves: batch norm merged into linear layers, no normalisation."""
    state, number = {}, 0
    steps = iter([step for step in folded_steps(network) if isinstance(step, LinearStep)])
    layers = [layer for layer in network if not isinstance(layer, Normalise | nn.BatchNorm1d)]
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            step = next(steps)
            state[f"blocks.{number}.weight"], state[f"blocks.{number}.bias"] = step.weight, step.bias
        else:
            for name, tensor in layer.state_dict().items():
                if name != "num_batches_tracked":
                    state[f"blocks.{number}.{name}"] = tensor
    return state


@pytest.fixture
def saved(tmp_path):
    """A function that saves a value as the authors do, and gives the path."""

    def make(value, **options):
        torch.save(value, tmp_path / "released.pynet", **options)
        return tmp_path / "released.pynet"

    return make


CASES = [("mnist", "cnn-tiny"), ("cifar10", "cnn-small"), ("mnist", "cnn7-narrow"), ("cifar10", "cnn7-narrow")]


@pytest.mark.parametrize(("dataset", "architecture"), CASES)
@pytest.mark.parametrize("prefix", ["blocks.", "layers.", "layers.0.layers.", "", "module.blocks."])
def test_a_state_dictionary_is_read(small_network, saved, dataset, architecture, prefix):
    network, _ = small_network(dataset, architecture)
    released = read_released(saved(authors_state(network, dataset, prefix, "sigma" if "layers" in prefix else "std")))
    assert (released.architecture, released.dataset) == (architecture, dataset)
    images = torch.rand(4, *DATASETS[dataset].shape)
    with torch.no_grad():
        assert torch.equal(released.network(images), network(images))


@pytest.mark.parametrize(("dataset", "architecture"), CASES)
def test_batch_norm_merged_into_linear_layers(small_network, saved, dataset, architecture):
    network, _ = small_network(dataset, architecture)
    with torch.no_grad():
        released = read_released(saved(merged(network)))
        images = torch.rand(4, *DATASETS[dataset].shape)
        torch.testing.assert_close(released.network(images), network(images), rtol=1e-4, atol=1e-5)


def test_a_merged_batch_norm_changes_nothing(small_network, saved):
    network, _ = small_network()
    with torch.no_grad():
        state = merged(network)
        steps = folded_steps(read_released(saved(state)).network)
    linears = [value for name, value in state.items() if name.endswith("weight") and value.dim() == 2]
    assert all(
        torch.equal(s.weight, w) for s, w in zip([s for s in steps if isinstance(s, LinearStep)], linears, strict=True)
    )


def test_what_is_read_can_be_kept_as_a_checkpoint(small_network, saved, tmp_path):
    network, _ = small_network("cifar10")
    released = read_released(saved(authors_state(network, "cifar10")))
    save(
        released.network,
        tmp_path / "model.pt",
        architecture=released.architecture,
        dataset=released.dataset,
        about={"source": "released"},
    )
    again, _ = load(tmp_path / "model.pt")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))


def test_other_ways_to_save(small_network, saved):
    network, _ = small_network()
    state = authors_state(network, "mnist", "layers.", "sigma")
    state["layers.3.deepz_lambda"] = -torch.ones(8, 14, 14)  # the slopes of the authors' ReLUs
    state["layers.1.weight"] = nn.Parameter(state["layers.1.weight"])
    images = torch.rand(2, 1, 28, 28)
    for value, options in [
        ({"state_dict": state}, {}),
        (state, {"_use_new_zipfile_serialization": False}),
        (dict(reversed(state.items())), {}),
    ]:
        with torch.no_grad():
            assert torch.equal(read_released(saved(value, **options)).network(images), network(images))


def test_a_normalisation_other_than_the_datasets_is_kept(small_network, saved):
    network, _ = small_network("cifar10")
    network[0].mean.fill_(0.5)
    network[0].std.fill_(0.25)
    state = authors_state(network, "cifar10")
    state["blocks.0.mean"], state["blocks.0.std"] = torch.tensor(0.5), torch.tensor([0.25, 0.25, 0.25])
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(read_released(saved(state)).network(images), network(images))


def test_batch_norm_without_trained_scale(small_network, saved):
    network, _ = small_network()
    network[1].weight.data.fill_(1)
    network[1].bias.data.fill_(0)
    state = authors_state(network, "mnist")
    state["blocks.2.weight"], state["blocks.2.bias"] = torch.ones(1), torch.zeros(1)
    images = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(read_released(saved(state)).network(images), network(images))


class Exploit:
    """What an attacker would pickle: reading it runs a command."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain", "nested"])
def test_code_in_a_pickle_is_not_run(small_network, saved, tmp_path, how):
    target = tmp_path / "hacked"
    if how == "plain":
        path = tmp_path / "released.pynet"
        path.write_bytes(pickle.dumps(Exploit(target), protocol=2))
    elif how == "nested":
        path = saved({**authors_state(small_network()[0], "mnist"), "blocks.9.weight": Exploit(target)})
    else:
        path = saved(Exploit(target), _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(SabrError, match="released.pynet"):
        read_released(path)
    assert not target.exists()
    if how != "plain":
        with pytest.raises(SabrError, match="mkdir.*save network.state_dict"):
            read_released(path)


def test_a_whole_module_is_refused_with_a_way_out(small_network, saved):
    with pytest.raises(SabrError, match=r"sabr\.networks\.architectures\.Network.*convert_to_dict_mnbab"):
        read_released(saved(small_network()[0]))


def changed(state, **changes):
    state = {name: tensor.clone() for name, tensor in state.items()}
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del state[name]
        else:
            state[name] = value
    return state


BAD = {
    "nan": ({"blocks__1__weight": torch.full((8, 1, 4, 4), torch.nan)}, r"blocks\.1\.weight.*finite"),
    "integers": ({"blocks__1__weight": torch.ones(8, 1, 4, 4, dtype=torch.int64)}, r"blocks\.1\.weight"),
    "shape": ({"blocks__1__weight": torch.ones(9, 1, 4, 4)}, "9x1x4x4"),
    "bias": ({"blocks__1__bias": torch.ones(9)}, r"bias of a Conv2d has shape \(9,\)"),
    "norm": ({"blocks__2__running_mean": torch.ones(9)}, "running_mean of a BatchNorm2d"),
    "variance": ({"blocks__2__running_var": -torch.ones(8)}, "negative variance"),
    "half a norm": ({"blocks__2__running_mean": None}, "layer 2 with bias, running_var, weight"),
    "a layer too many": ({"blocks__20__weight": torch.ones(10, 10)}, "10x10"),
    "a norm too many": (
        {"blocks__20__running_mean": torch.ones(10), "blocks__20__running_var": torch.ones(10)},
        "norm",
    ),
    "a layer too few": ({"blocks__1__weight": None, "blocks__1__bias": None}, "weights of shapes"),
    "normalisation": ({"blocks__0__mean": torch.ones(1)}, "normalises its input"),
    "other name": ({"encoder__weight": torch.ones(2)}, "'encoder.weight' is not a name"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_named(small_network, saved, name):
    changes, message = BAD[name]
    path = saved(changed(authors_state(small_network()[0], "mnist"), **changes))
    with pytest.raises(SabrError, match=message) as caught:
        read_released(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("value", [torch.ones(3), [1, 2], {}, {"blocks.1.weight": 3.0}, "text"])
def test_what_is_no_state_dictionary(saved, value):
    with pytest.raises(SabrError, match="does not hold a state dictionary"):
        read_released(saved(value))


def test_files_that_are_missing_or_cut_off_or_something_else(small_network, saved, tmp_path):
    with pytest.raises(SabrError, match="No such file"):
        read_released(tmp_path / "missing.pynet")
    path = saved(authors_state(small_network()[0], "mnist"))
    whole = path.read_bytes()
    for content in (b"", b"text\n", whole[:100], whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(SabrError, match="get it again"):
            read_released(path)
