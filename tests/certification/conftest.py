import json

import pytest
import torch

from sabr.bounds.boxes import ball
from sabr.data.batches import evaluation_images
from sabr.data.datasets import load
from sabr.layers import read_yaml
from sabr.networks.affine import folded_steps
from sabr.plan import resolve
from sabr.settings import DATASETS
from sabr.specs import CertificationSpec, TrainingSpec
from sabr.training.trainer import train


@pytest.fixture(scope="session")
def tiny_row(request):
    root = request.config.rootpath
    plan = resolve(read_yaml(root / "config" / "config.yaml") | {"scale": "tiny"}, root / "config")
    return next(row for row in plan.main if row.method == "ibp")


@pytest.fixture(scope="session")
def changed_spec(tiny_row):
    """A function that makes the tiny scale's certification with changed keys; of `complete` too."""

    def make(*, complete=None, **changes):
        asked = tiny_row.certification.model_dump(mode="json")
        asked |= {"images": 100, "eps": 0.05, "batch_size": 30, "shard_minutes": None, **changes}
        asked["complete"] |= {"seconds": 2.0, **(complete or {})}
        return CertificationSpec.model_validate(json.loads(json.dumps(asked)))

    return make


@pytest.fixture(scope="session")
def trained(tiny_row, mnist_train, mnist_folder):
    """A small network that certifies many real digits, as steps, the regions of 60 digits that it knows, and labels."""
    changes = {"train_images": 2048, "epochs": 4, "eps": 0.03}
    spec = TrainingSpec.model_validate(tiny_row.training.model_dump() | changes)
    network, _ = train(spec, mnist_train, device=torch.device("cpu"), report=lambda _: None)
    images, labels = evaluation_images(load(DATASETS["mnist"], mnist_folder, "test"), DATASETS["mnist"], slice(0, 100))
    with torch.no_grad():
        right = torch.nonzero(network(images).argmax(1) == labels).flatten()[:60]
        steps = folded_steps(network)
    return steps, ball(images[right].double(), 0.05), labels[right]
