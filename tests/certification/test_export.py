"""A network and images as files for other programs, and what we say of these files ourselves."""

import json

import onnxruntime
import pytest
import torch

from sabr.bounds.boxes import ball
from sabr.certification import verdicts
from sabr.certification.exchange import run_export, run_verification
from sabr.certification.job import run_attack, run_certification
from sabr.config import read_cascade
from sabr.data.batches import evaluation_images
from sabr.data.datasets import load
from sabr.errors import SabrError
from sabr.networks import checkpoints
from sabr.networks.instances import read_instance, read_instances
from sabr.settings import DATASETS
from sabr.specs import TrainingSpec
from sabr.training.trainer import train

IMAGES = 40
FIRST, LAST = 3, 33
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def exported(tiny_row, changed_spec, mnist_train, mnist_folder, tmp_path_factory):
    """A trained network, how it is certified, and a folder of instances of it."""
    folder = tmp_path_factory.mktemp("exported")
    changes = {"train_images": 1024, "eps": 0.04}
    spec = TrainingSpec.model_validate(tiny_row.training.model_dump() | changes)
    network, _ = train(spec, mnist_train, device=CPU, report=lambda _: None)
    checkpoints.save(network, folder / "model.pt", architecture="cnn-tiny", dataset="mnist", about={})
    asked = changed_spec(images=IMAGES, eps=0.04)
    run_export(folder / "model.pt", asked, folder / "instances", mnist_folder, FIRST, LAST)
    return network, asked, folder


def test_what_is_exported_is_the_network_and_the_images(exported, mnist_folder):
    network, asked, folder = exported
    instances = read_instances(folder / "instances" / "instances.csv")
    assert [i.vnnlib.stem for i in instances] == [f"image-{number:05d}" for number in range(FIRST, LAST)]
    assert {i.timeout for i in instances} == {asked.complete.seconds}
    split = load(DATASETS["mnist"], mnist_folder, "test")
    images, labels = evaluation_images(split, DATASETS["mnist"], slice(FIRST, LAST))
    regions = ball(images.double(), asked.eps)
    for place, instance in enumerate(instances):
        _, (found,) = read_instance(instance.onnx, instance.vnnlib)
        assert torch.equal(found.lower, regions.lower[place].flatten())
        assert torch.equal(found.upper, regions.upper[place].flatten())
        # A counterexample is a point at which some other class is not below the label.
        scores = torch.zeros(10)
        assert found.violated_by(images[place], scores)
        scores[labels[place]] = 1
        assert not found.violated_by(images[place], scores)
    (onnx,) = {i.onnx for i in instances}
    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    ours = network(images)
    for place in (0, 1):
        (theirs,) = session.run(None, {"input": images[place : place + 1].numpy()})
        torch.testing.assert_close(torch.from_numpy(theirs)[0], ours[place], rtol=1e-4, atol=1e-4)


def test_answers_about_exported_images_are_the_verdicts_about_them(exported, mnist_folder, pytestconfig):
    _, asked, folder = exported
    model, attacked, output = folder / "model.pt", folder / "attack.csv", folder / "verdicts.csv"
    run_attack(model, asked.attack_spec, attacked, mnist_folder, threads=1, device=CPU)
    run_certification(model, asked, attacked, output, mnist_folder, 0, IMAGES, threads=1, device=CPU)
    table, _ = verdicts.read(output, verdicts.COLUMNS)
    cascade = read_cascade(pytestconfig.rootpath / "config" / "verify.yaml", seconds=asked.complete.seconds)
    seen = []
    for instance in read_instances(folder / "instances" / "instances.csv"):
        line = table.iloc[int(instance.vnnlib.stem.removeprefix("image-"))]
        expected = "unsat" if line["certified"] else "unknown" if line["adversarial_correct"] else "sat"
        said = run_verification(instance.onnx, instance.vnnlib, cascade).partition("\n")[0]
        seen.append((expected, said))
    assert not {("unsat", "sat"), ("sat", "unsat")} & set(seen)
    # Who runs out of time depends on the machine, but most images need none.
    agreed = [one for one, other in seen if one == other]
    assert len(agreed) > 0.8 * len(seen) and agreed.count("sat") > 3 and agreed.count("unsat") > 5, seen


def test_equal_exports_are_equal_bytes(exported, mnist_folder, tmp_path):
    _, asked, folder = exported
    run_export(folder / "model.pt", asked, tmp_path, mnist_folder, FIRST, FIRST + 2)
    for name in ("network.onnx", f"vnnlib/image-{FIRST:05d}.vnnlib", f"vnnlib/image-{FIRST + 1:05d}.vnnlib"):
        assert (tmp_path / name).read_bytes() == (folder / "instances" / name).read_bytes()
    assert len(list(tmp_path.rglob("*.vnnlib"))) == 2


@pytest.mark.parametrize(("first", "last"), [(5, 3), (5, 5), (0, IMAGES + 1)])
def test_images_that_are_none_are_told(exported, mnist_folder, tmp_path, first, last):
    _, asked, folder = exported
    with pytest.raises(SabrError, match=f"--first {first} --last {last} is no part of the {IMAGES} images"):
        run_export(folder / "model.pt", asked, tmp_path / "out", mnist_folder, first, last)
    assert not (tmp_path / "out").exists()


def test_validation_images_are_exported_where_they_are_certified(exported, mnist_folder, mnist_train, tmp_path):
    _, asked, folder = exported
    held = asked.model_copy(update={"validation_images": 100})
    run_export(folder / "model.pt", held, tmp_path, mnist_folder, 0, 2)
    names = [f"vnnlib/image-{number:05d}.vnnlib" for number in (0, 1)]
    run_export(folder / "model.pt", asked, tmp_path / "test", mnist_folder, 0, 2)
    assert all((tmp_path / name).read_bytes() != (tmp_path / "test" / name).read_bytes() for name in names)


def test_another_dataset_is_told(exported, mnist_folder, tmp_path):
    _, asked, folder = exported
    other = type(asked).model_validate(json.loads(asked.model_dump_json()) | {"dataset": "cifar10"})
    with pytest.raises(SabrError, match="was trained on mnist, but the specification is about cifar10"):
        run_export(folder / "model.pt", other, tmp_path, mnist_folder, 0, 2)
