"""The networks that the authors of SABR (and of TAPS, in the same format) released: state dictionaries, read safely."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sabr.errors import SabrError
from sabr.networks.architectures import Network, Normalise, build
from sabr.settings import ARCHITECTURES, DATASETS

_WEIGHTS = {"weight", "bias"}
_NORM = {"running_mean", "running_var"}
# Slopes that the authors' ReLUs carry, and the counter of torch's batch norms: they change nothing of the network.
_NEEDLESS = {"deepz_lambda", "num_batches_tracked"}


class Released(NamedTuple):
    """A released network as one of ours, in evaluation mode, and the names of its architecture and dataset."""

    network: Network
    architecture: str
    dataset: str


def read_released(path: Path) -> Released:
    """Read a state dictionary in the authors' format.

    They write three kinds, all told apart by their contents here: of the network as it is built (keys
    ``blocks.1.weight``), of the same with layers for bounds (``layers.1.weight``, ``layers.0.layers.1.weight``; slopes
    ``deepz_lambda`` among them), and converted for MN-BaB (``blocks.0.weight``: no normalisation, each batch norm
    behind a linear layer merged into it). Layers are taken in the order of their numbers; architecture and dataset
    follow from the shapes, strides from the architecture, since no dictionary holds them. Datasets of one shape
    (MNIST and FashionMNIST, CIFAR-10 and SVHN) cannot be told apart. A merged batch norm is replaced by one that
    changes nothing, and a normalisation that is not in the dictionary by the dataset's own.

    Only tensors and plain containers are unpickled. A ``.pynet`` that holds a whole module is refused.

    Raises
    ------
    SabrError
        When the file is missing, damaged, or holds anything else; when it has a layer, shape or normalisation that
        no architecture here has; when a value is not finite.
    """
    layers = _layers(path, _tensors(path))
    normalisation = layers.pop(0) if layers and "mean" in layers[0] else None
    weights = [layer for layer in layers if not _NORM & layer.keys()]
    architecture, dataset = _recognise(path, [tuple(layer["weight"].shape) for layer in weights])
    network = build(ARCHITECTURES[architecture], DATASETS[dataset], seed=0).eval()
    with torch.no_grad():
        _fill(path, network, layers)
        _normalise(path, network, normalisation)
    return Released(network, architecture, dataset)


def _tensors(path: Path) -> Mapping[str, Tensor]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise SabrError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        with file:
            value: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise SabrError(f"{path} is not a whole file of tensors: get it again") from error
        raise SabrError(
            f"{path} holds more than tensors ({refused[1]}), which would run code when it is read: with the program "
            "that wrote it, save network.state_dict() instead (the authors' convert_to_dict_mnbab.py does)"
        ) from error
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    if not isinstance(value, Mapping) or not all(isinstance(v, Tensor) for v in value.values()) or not value:
        raise SabrError(f"{path} does not hold a state dictionary (names and tensors): save network.state_dict()")
    return value


def _layers(path: Path, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of each layer by their last names, in the order of the numbers in the keys."""
    layers: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"(?:module\.)?((?:(?:blocks|layers|\d{1,6})\.)+)(?:conv\.|linear\.)?(\w+)", str(key))
        if match is None:
            raise SabrError(f"{path}: {str(key)[:80]!r} is not a name that the authors' networks have")
        if match[2] not in _NEEDLESS:
            if not tensor.is_floating_point() or not tensor.isfinite().all():
                raise SabrError(f"{path}: {key} holds values that are not finite numbers: get the file again")
            number = tuple(int(part) for part in match[1].split(".") if part.isdigit())
            layers.setdefault(number, {})[match[2]] = tensor.float()
    known = ({"weight"}, _WEIGHTS, _NORM, _NORM | _WEIGHTS, {"mean", "sigma"}, {"mean", "std"})
    for number, layer in layers.items():
        if layer.keys() not in known:
            shown = ".".join(map(str, number))
            raise SabrError(f"{path}: layer {shown} with {', '.join(sorted(layer))} is not one that a network here has")
    return [layers[number] for number in sorted(layers)]


def _recognise(path: Path, shapes: list[tuple[int, ...]]) -> tuple[str, str]:
    for architecture, form in ARCHITECTURES.items():
        for name, dataset in DATASETS.items():
            with torch.device("meta"):  # shapes only
                network = build(form, dataset, seed=0)
            if [tuple(layer.weight.shape) for layer in network if isinstance(layer, nn.Conv2d | nn.Linear)] == shapes:
                return architecture, name
    shown = ", ".join("x".join(map(str, shape)) for shape in shapes) or "none"
    known = f"{', '.join(ARCHITECTURES)} for any of {', '.join(DATASETS)}"
    raise SabrError(f"{path}: weights of shapes {shown} are not those of {known}")


def _fill(path: Path, network: Network, layers: list[dict[str, Tensor]]) -> None:
    """Copy affine layers and batch norms; the weights' shapes are right already."""
    remaining = list(layers)
    for layer in network:
        match layer:
            case nn.Conv2d() | nn.Linear():
                _copy(path, layer, {"bias": torch.zeros(len(layer.weight)), **remaining.pop(0)})
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                channels = layer.num_features
                if remaining and _NORM & remaining[0].keys():
                    found = {"weight": torch.ones(1), "bias": torch.zeros(1), **remaining.pop(0)}
                    for name in _WEIGHTS & found.keys():  # one for all channels, where they were not trained
                        found[name] = found[name].expand(channels) if found[name].numel() == 1 else found[name]
                else:
                    ones, zeros = torch.ones(channels), torch.zeros(channels)
                    # Divided by exactly this root, it changes nothing.
                    root = torch.sqrt(ones + layer.eps)
                    found = {"weight": root, "bias": zeros, "running_mean": zeros, "running_var": ones}
                if (found["running_var"] < 0).any():
                    raise SabrError(f"{path}: a batch norm has a negative variance: get the file again")
                _copy(path, layer, found)
    if remaining:
        raise SabrError(f"{path}: a batch norm stands where the {len(network)} layers of the network have none")


def _copy(path: Path, layer: nn.Module, tensors: dict[str, Tensor]) -> None:
    state = layer.state_dict()
    for name, tensor in tensors.items():
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(state[name].shape)}"
            raise SabrError(f"{path}: a {name} of a {type(layer).__name__} has shape {shapes}: get the file again")
        state[name].copy_(tensor)


def _normalise(path: Path, network: Network, found: dict[str, Tensor] | None) -> None:
    """Give the network the dictionary's normalisation, if it has one."""
    if found is None:
        return
    mean, std = found["mean"].flatten(), found["sigma" if "sigma" in found else "std"].flatten()
    first = network[0]
    if isinstance(first, Normalise):
        if not {mean.numel(), std.numel()} <= {1, first.mean.numel()} or (std <= 0).any():
            raise SabrError(f"{path}: its normalisation does not fit {first.mean.numel()} channels: get the file again")
        first.mean.copy_(mean.view(1, -1, 1, 1).expand_as(first.mean))
        first.std.copy_(std.view(1, -1, 1, 1).expand_as(first.std))
    elif (mean != 0).any() or (std != 1).any():
        raise SabrError(f"{path} normalises its input, which our networks of that shape do not: it cannot be used")
