"""The state of a training that is not finished: written, read, refused where it belongs to another configuration."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sabr.errors import SabrError, first_line
from sabr.files import atomic
from sabr.specs import TrainingSpec, differing_keys
from sabr.tensors import save_tensors


@dataclass(frozen=True)
class State:
    """All that a training needs to go on as if it had never stopped.

    Attributes
    ----------
    epoch, step
        Epoch that was running, from 1, and how many of its steps are done.
    network, optimiser
        Their state dictionaries.
    order
        State of the generator of the data order and augmentation at the start of the epoch: an epoch's choices are all
        made before its first batch, so the running epoch's are drawn again.
    attack
        State of the generator of the attack's starts.
    parts
        (steps, parts) of the running epoch's losses; what is not done yet is zero.
    history
        The finished epochs' metrics.
    seconds
        Spent so far in the running epoch.
    """

    epoch: int
    step: int
    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    order: Tensor
    attack: Tensor
    parts: Tensor
    history: list[dict[str, float]]
    seconds: float


@dataclass(frozen=True)
class Resumed:
    """A state that was read, and who made it: one entry per run so far, {"epoch", "step", "provenance"}."""

    state: State
    runs: list[dict[str, Any]]


def write(state: State, path: Path, spec: TrainingSpec, data_sha256: str, runs: list[dict[str, Any]]) -> None:
    """Write a state whole or not at all; until then the one before it stays.

    Parameters
    ----------
    state
        What to write.
    path
        File to write.
    spec, data_sha256
        What the state belongs to.
    runs
        Who made it, for `Resumed`.
    """
    about = {"spec": spec.model_dump(mode="json"), "data_sha256": data_sha256}
    # Not `asdict`, which would copy every tensor.
    with atomic(path) as temporary:
        save_tensors({"about": about, "runs": runs, "state": dict(vars(state))}, temporary)


def read(path: Path, spec: TrainingSpec, data_sha256: str) -> Resumed | None:
    """Read the state of a training, on the CPU; None where there is none.

    Raises
    ------
    SabrError
        When the file is damaged, or belongs to another configuration or other data (says which keys differ).
    """
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        about, state, runs = content["about"], State(**content["state"]), content["runs"]
    except (RuntimeError, pickle.UnpicklingError, OSError, LookupError, TypeError, EOFError) as error:
        reason = first_line(error)
        raise SabrError(f"{path} is damaged ({reason}); delete it to train from the start") from error
    asked = {"spec": spec.model_dump(mode="json"), "data_sha256": data_sha256}
    different = differing_keys(asked, about)
    if different:
        raise SabrError(
            f"{path} belongs to another configuration: {', '.join(different)}; "
            "delete it to train from the start, or restore that configuration"
        )
    return Resumed(state, runs)
