"""What jobs on a trained network read: the network, checked against what is asked, and its test images."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sabr.data.batches import evaluation_images, held_out
from sabr.data.datasets import fingerprint, load
from sabr.errors import SabrError
from sabr.networks import checkpoints
from sabr.networks.architectures import Network
from sabr.settings import DATASETS
from sabr.specs import Attacked


class Trained(NamedTuple):
    """A network in evaluation mode, and what results on it must say of where they come from, ready for JSON."""

    network: Network
    about: dict[str, Any]


def read_network(model: Path, asked: Attacked, folder: Path, device: torch.device) -> Trained:
    """Read a checkpoint that was trained on the dataset that is asked about.

    Parameters
    ----------
    model
        Checkpoint.
    asked
        About which images.
    folder
        Of the prepared datasets.
    device
        Where to put the network.

    Raises
    ------
    SabrError
        When it cannot be read, was trained on another dataset, or the dataset is not prepared.
    """
    network, sidecar = checkpoints.load(model)
    if sidecar["dataset"] != asked.dataset:
        raise SabrError(f"{model} was trained on {sidecar['dataset']}, but the specification is about {asked.dataset}")
    data_sha256 = fingerprint(DATASETS[asked.dataset], folder, "test" if asked.validation_images is None else "train")
    return Trained(network.to(device), {"model_sha256": sidecar["sha256"], "data_sha256": data_sha256})


def read_images(asked: Attacked, folder: Path, first: int, last: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Test images first to last - 1 with their labels, or as many of the images that were held out of training.

    Raises
    ------
    SabrError
        When the dataset is not prepared, holds fewer images, or labels that are none of its classes.
    """
    dataset = DATASETS[asked.dataset]
    if asked.validation_images is None:
        split = load(dataset, folder, "test")
    else:
        split = held_out(load(dataset, folder, "train"), asked.validation_images).validation
    if last > len(split.labels):
        kind = "test" if asked.validation_images is None else "validation"
        raise SabrError(f"{last} images are asked for, but {asked.dataset} has {len(split.labels)} {kind} images")
    images, labels = evaluation_images(split, dataset, slice(first, last), device)
    wrong = labels[(labels < 0) | (labels >= dataset.classes)]
    if len(wrong):
        raise SabrError(
            f"{asked.dataset} in {folder} holds the label {int(wrong[0])}, but its classes are 0 to "
            f"{dataset.classes - 1}; delete the folder and prepare the data again"
        )
    return images, labels
