"""What certification refuses, each in one sentence."""

import json
import math

import pytest
import torch

from sabr import trained
from sabr.bounds.boxes import Box, ball
from sabr.certification import cascade
from sabr.data.datasets import Split
from sabr.errors import SabrError
from sabr.networks import checkpoints
from sabr.settings import DATASETS
from sabr.specs import CertificationSpec, read_spec


@pytest.fixture
def certify(small_network, changed_spec):
    """A function that certifies nothing real: three images of noise."""
    _, steps = small_network()
    images = torch.rand(3, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(region=None, labels=(1, 2, 3)):
        cascade.certify(
            steps,
            ball(images, 0.01) if region is None else region,
            torch.tensor(labels),
            [0, 1, 2],
            changed_spec(stages=("interval",)),
            record=lambda number, verdict: seen.append(number),
            report=lambda line: None,
        )

    seen = run.seen = []
    return run


def one_sentence(caught):
    assert "\n" not in str(caught.value) and str(caught.value)


def test_good_input_is_taken(certify):
    certify()
    assert sorted(certify.seen) == [0, 1, 2]


@pytest.mark.parametrize("label", [-1, 10, 400])
def test_labels_that_are_none_of_the_classes(certify, label):
    with pytest.raises(SabrError, match=rf"the label {label} is none of the network's classes 0 to 9") as caught:
        certify(labels=(1, label, 3))
    one_sentence(caught)
    assert certify.seen == []


def test_fewer_labels_than_regions(certify):
    with pytest.raises(SabrError, match="there are 3 regions, but 2 labels"):
        certify(labels=(1, 2))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("end", ["lower", "upper"])
def test_regions_that_are_not_finite(certify, value, end):
    region = ball(torch.rand(3, 1, 28, 28, dtype=torch.float64), 0.01)
    getattr(region, end)[1, 0, 3, 3] = value
    with pytest.raises(SabrError, match="regions that are empty or not finite; check the images and eps") as caught:
        certify(region)
    one_sentence(caught)


def test_empty_regions(certify):
    region = ball(torch.rand(3, 1, 28, 28, dtype=torch.float64), 0.01)
    with pytest.raises(SabrError, match="regions that are empty or not finite"):
        certify(Box(region.upper, region.lower))


@pytest.mark.parametrize("shape", [(3, 28, 28), (1, 27, 28), (784,)])
def test_inputs_of_another_shape(certify, shape):
    with pytest.raises(SabrError, match="the network does not take inputs of shape") as caught:
        certify(ball(torch.rand(3, *shape, dtype=torch.float64), 0.01))
    one_sentence(caught)


def test_images_outside_their_range_are_cut_to_it():
    # Stored images are bytes, so that none is; in a library's hands a ball never leaves [0, 1].
    region = ball(torch.tensor([-0.5, 1.5, 0.5]), 0.1)
    assert region.lower.tolist() == pytest.approx([0.0, 1.0, 0.4])
    assert region.upper.tolist() == pytest.approx([0.0, 1.0, 0.6])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "-1.bias"])
def test_weights_that_are_not_finite(small_network, tmp_path, value, name):
    network, _ = small_network()
    names = list(network.state_dict())
    name = names[-1] if name == "-1.bias" else name
    network.state_dict()[name].view(-1)[0] = value
    path = tmp_path / "model.pt"
    checkpoints.save(network, path, architecture="cnn-tiny", dataset="mnist", about={})
    with pytest.raises(SabrError, match=rf"model\.pt: {name} holds values that are not finite numbers") as caught:
        checkpoints.load(path)
    one_sentence(caught)


def test_labels_in_the_data_that_are_none(monkeypatch, changed_spec, tmp_path):
    data = DATASETS["mnist"]
    labels = torch.zeros(200, dtype=torch.int64)
    split = Split(torch.zeros(200, 1, 28, 28, dtype=torch.uint8), labels)
    monkeypatch.setattr(trained, "load", lambda *arguments: split)
    images, own = trained.read_images(changed_spec(), tmp_path, 0, 100, torch.device("cpu"))
    assert images.shape == (100, *data.shape) and len(own) == 100
    labels[7] = 12
    with pytest.raises(SabrError, match="mnist in .* holds the label 12, but its classes are 0 to 9") as caught:
        trained.read_images(changed_spec(), tmp_path, 0, 100, torch.device("cpu"))
    one_sentence(caught)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 0}, r"eps: 0 is not in \(0, 1\]"),
        ({"eps": -0.1}, r"eps: -0.1 is not in \(0, 1\]"),
        ({"eps": 2}, r"eps: 2 is not in \(0, 1\]; pixels run from 0 to 1"),
        ({"eps": "nan"}, "eps: 'nan' is not"),
        ({"eps": "eight"}, "eps: 'eight' is not a radius"),
        ({"complete": {"seconds": 0}}, "complete.seconds: 0 is not allowed: it must be greater than 0"),
        ({"complete": {"seconds": -1}}, "complete.seconds: -1 is not allowed"),
        ({"complete": {"seconds": "nan"}}, "complete.seconds: .*not allowed"),
        ({"complete": {"subproblems": 1}}, "complete.subproblems: 1 is not allowed"),
        ({"complete": {"branching": "random"}}, "complete.branching: 'random' is not allowed"),
        ({"shard_minutes": 0}, "shard_minutes: 0 is not allowed"),
        ({"memory_mb": 0}, "memory_mb: 0 is not allowed"),
        ({"batch_size": 0}, "batch_size: 0 is not allowed"),
        ({"stages": []}, "stages: .* is not allowed"),
        ({"stages": ["interval", "interval"]}, "stages must be given once each, from interval, crown-ibp"),
        ({"stages": ["magic"]}, "stages.0: 'magic' is not allowed"),
        ({"engine": "gurobi"}, "engine: 'gurobi' is not allowed"),
        ({"images": 20_000}, "images is 20000, but mnist has 10000 test images"),
        ({"alpha": {"iterations": 0, "learning_rate": 0.1}}, "alpha.iterations: 0 is not allowed"),
        ({"speed": 9}, "speed: unknown key"),
    ],
)
def test_specifications(changed_spec, tmp_path, change, message):
    asked = changed_spec().model_dump(mode="json")
    asked |= change | {"complete": asked["complete"] | change.get("complete", {})}
    path = tmp_path / "certification.json"
    path.write_text(json.dumps(asked))
    with pytest.raises(SabrError, match=rf"certification\.json: {message}") as caught:
        read_spec(CertificationSpec, path)
    one_sentence(caught)
