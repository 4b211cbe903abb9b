"""Trained networks on disk: plain tensors, and a JSON sidecar that says what they are."""

import pickle
from pathlib import Path
from typing import Any

import torch

from sabr.errors import SabrError, first_line
from sabr.files import atomic, checksum, read_json, write_json
from sabr.networks.architectures import Network, build
from sabr.problems import written
from sabr.settings import ARCHITECTURES, DATASETS
from sabr.tensors import save_tensors


def save(network: Network, path: Path, *, architecture: str, dataset: str, about: dict[str, Any]) -> None:
    """Write `path` (a state dictionary) and, last, its sidecar with suffix .json; each is there whole or not at all.

    Parameters
    ----------
    network
        Saved as plain tensors on the CPU.
    path
        A file name that ends in .pt.
    architecture, dataset
        Names that `load` builds the network from.
    about
        What else the sidecar says: specification, provenance, history...

    Raises
    ------
    SabrError
        When it has another name or cannot be written.
    """
    if path.suffix != ".pt":
        raise SabrError(f"{path}: a checkpoint's name must end in .pt; what it is goes into a .json of the same name")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic(path) as temporary:
        save_tensors(state, temporary)
    sidecar = {"architecture": architecture, "dataset": dataset, "sha256": checksum(path), **about}
    write_json(path.with_suffix(".json"), sidecar)


def read_sidecar(path: Path) -> dict[str, Any]:
    """Read what a checkpoint says of itself, after checking that it belongs to the tensors beside it.

    Raises
    ------
    SabrError
        When either file is missing or damaged, or the two do not belong together.
    """
    sidecar = read_json(path.with_suffix(".json"))
    if not path.is_file():
        raise SabrError(f"cannot read {path}: there is no such file; train the network first")
    if not isinstance(sidecar, dict) or sidecar.get("sha256") != checksum(path):
        raise SabrError(f"{path} is damaged or does not belong to {path.with_suffix('.json').name}; train it again")
    return sidecar


def load(path: Path) -> tuple[Network, dict[str, Any]]:
    """Read a network in evaluation mode, and its sidecar; only tensors are ever unpickled.

    Raises
    ------
    SabrError
        As `read_sidecar`, and when the tensors do not fit the architecture, or are not all finite.
    """
    sidecar = read_sidecar(path)
    found = (sidecar.get("architecture"), sidecar.get("dataset"))
    architecture, dataset = (name if isinstance(name, str) else written(name) for name in found)
    if architecture not in ARCHITECTURES or dataset not in DATASETS:
        raise SabrError(
            f"{path.with_suffix('.json')}: architecture {architecture} for {dataset} is not known; train the network "
            "again"
        )
    network = build(ARCHITECTURES[architecture], DATASETS[dataset], seed=0)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, OSError, LookupError, TypeError, EOFError) as error:
        reason = first_line(error)
        raise SabrError(f"{path} does not hold the weights of a {architecture} for {dataset}: {reason}") from error
    for name, tensor in network.state_dict().items():
        if not tensor.isfinite().all():
            raise SabrError(f"{path}: {name} holds values that are not finite numbers; train the network again")
    return network.eval(), sidecar
