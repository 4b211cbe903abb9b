import io
import json
import multiprocessing
import os
import pickle
import re
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sabr.data import preparing
from sabr.data.datasets import load
from sabr.data.preparing import prepare, unpickle
from sabr.data.sources import Originals
from sabr.errors import SabrError
from sabr.settings import DATASETS

SMALL = replace(DATASETS["mnist"], stored_size=4, size=4)


def idx(images, labels):
    generator = np.random.default_rng(images)
    return bytes(16) + generator.bytes(16 * images), bytes(8) + bytes(labels)


@pytest.fixture
def originals(monkeypatch):
    """Stands in for the sources: a MNIST of 6 + 3 images of 4 x 4; counts how often it is asked."""
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
    files = dict(zip(names, idx(6, [5, 0, 4, 1, 9, 2]) + idx(3, [7, 2, 1]), strict=True))
    asked = []

    def obtain(name, downloads, mirror):
        asked.append((name, downloads, mirror))
        return Originals(files, {"a": "b"}, "some check", "somewhere")

    monkeypatch.setattr(preparing, "obtain", obtain)
    return files, asked


def test_prepare_and_load(originals, tmp_path):
    files, asked = originals
    prepare(SMALL, tmp_path, mirror=tmp_path / "mirror")
    assert asked == [("mnist", tmp_path / "mnist" / "downloads", tmp_path / "mirror")]
    train, test = load(SMALL, tmp_path, "train"), load(SMALL, tmp_path, "test")
    assert train.images.shape == (6, 1, 4, 4) and train.images.dtype == torch.uint8
    assert train.images.numpy().tobytes() == files["train-images-idx3-ubyte"][16:]
    assert train.labels.tolist() == [5, 0, 4, 1, 9, 2] and train.labels.dtype == torch.int64
    assert test.images.numpy().tobytes() == files["t10k-images-idx3-ubyte"][16:]
    record = json.loads((tmp_path / "mnist" / "source.json").read_text())
    assert record["images"] == {"train": 6, "test": 3}
    assert (record["dataset"], record["source"], record["check"]) == ("mnist", "somewhere", "some check")
    assert record["originals"] == {"a": "b"} and record["prepared"].keys() == {"train.pt", "test.pt"}


def test_second_prepare_does_nothing(originals, tmp_path):
    prepare(SMALL, tmp_path, mirror=None)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mnist").iterdir()}
    prepare(SMALL, tmp_path, mirror=None)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "mnist").iterdir()} == before
    assert len(originals[1]) == 1


@pytest.mark.parametrize("name", ["train.pt", "test.pt", "source.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "one bit"])
def test_damage_is_repaired(originals, tmp_path, name, damage):
    prepare(SMALL, tmp_path, mirror=None)
    path = tmp_path / "mnist" / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    else:
        middle = whole.index(b'.pt": "') + 7 if name == "source.json" else len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    prepare(SMALL, tmp_path, mirror=None)
    assert path.read_bytes() == whole
    assert len(originals[1]) == 2


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_truncated_file_is_refused(originals, tmp_path, keep):
    prepare(SMALL, tmp_path, mirror=None)
    path = tmp_path / "mnist" / "train.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(SabrError, match=r"train\.pt is truncated or damaged; run `sabr data mnist`"):
        load(SMALL, tmp_path, "train")
    assert len(load(SMALL, tmp_path, "test").labels) == 3


@pytest.mark.parametrize("name", ["train.pt", "source.json"])
def test_missing_file_is_refused(originals, tmp_path, name):
    prepare(SMALL, tmp_path, mirror=None)
    (tmp_path / "mnist" / name).unlink()
    with pytest.raises(SabrError, match=r"train\.pt is not there or not finished; run `sabr data mnist`"):
        load(SMALL, tmp_path, "train")


@pytest.mark.parametrize(
    "content",
    [
        {"images": torch.zeros(6, 1, 5, 5, dtype=torch.uint8), "labels": torch.zeros(6, dtype=torch.int64)},
        {"images": torch.zeros(5, 1, 4, 4, dtype=torch.uint8), "labels": torch.zeros(5, dtype=torch.int64)},
        {"images": torch.zeros(6, 1, 4, 4), "labels": torch.zeros(6, dtype=torch.int64)},
        {"images": torch.zeros(6, 1, 4, 4, dtype=torch.uint8)},
        [1, 2],
    ],
)
def test_wrong_content_is_refused(originals, tmp_path, content):
    prepare(SMALL, tmp_path, mirror=None)
    torch.save(content, tmp_path / "mnist" / "train.pt")
    with pytest.raises(SabrError, match=r"train\.pt .* run `sabr data mnist`"):
        load(SMALL, tmp_path, "train")


def test_two_processes_prepare_at_once(originals, tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=prepare, args=(SMALL, tmp_path), kwargs={"mirror": None}) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == ["source.json", "test.pt", "train.pt"]
    prepare(SMALL, tmp_path, mirror=None)
    assert originals[1] == []  # all is whole, and asked only in the other processes


def test_full_disk(originals, tmp_path):
    def prepare_without_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        with pytest.raises(SabrError, match=r"cannot write .*train\.pt: .*free some space"):
            prepare(SMALL, tmp_path, mirror=None)

    process = multiprocessing.get_context("fork").Process(target=prepare_without_room)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert list((tmp_path / "mnist").iterdir()) == []


class Malicious:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_refused(tmp_path, protocol):
    target = tmp_path / "evil"
    for call in (Malicious(os.mkdir, str(target)), Malicious(eval, f"open({str(target)!r}, 'w')")):
        with pytest.raises(SabrError, match="a pickle asks for"):
            unpickle(pickle.dumps({"data": [call]}, protocol=protocol))
        assert not target.exists()


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_pickled_array_is_read(module):
    batch = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [3, 4]}
    pickled = re.sub(rb"numpy\._?core", module, pickle.dumps(batch, protocol=3))
    assert module in pickled
    found = unpickle(pickled)
    assert found["data"].tolist() == [[0, 1, 2], [3, 4, 5]] and found["labels"] == [3, 4]


def jpeg(mode, size, colour):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


def tiny_files(**changes):
    files = {
        "wnids.txt": b"n00000002\nn00000001\n",
        "val/val_annotations.txt": b"val_0.JPEG\tn00000001\t0\t0\t1\t1\nval_1.JPEG\tn00000002\t0\t0\t1\t1\n",
        "train/n00000001/images/n00000001_0.JPEG": jpeg("L", (64, 64), 100),
        "train/n00000002/images/n00000002_0.JPEG": jpeg("RGB", (64, 64), (200, 0, 0)),
        "val/images/val_0.JPEG": jpeg("RGB", (64, 64), (0, 0, 200)),
        "val/images/val_1.JPEG": jpeg("L", (64, 64), 50),
    }
    return {**files, **changes}


def test_tinyimagenet_is_decoded():
    splits = preparing._decode_tinyimagenet(tiny_files(), DATASETS["tinyimagenet"])
    assert splits["train"].labels.tolist() == [1, 0]  # the order of wnids.txt
    assert splits["test"].labels.tolist() == [1, 0]
    assert splits["train"].images.shape == (2, 3, 64, 64)
    assert splits["train"].images[0].unique().tolist() == [100]
    red, green, blue = splits["train"].images[1].float().mean((1, 2)).tolist()
    assert red > 190 and green < 10 and blue < 10
    assert splits["test"].images[0, 2].float().mean() > 190


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (jpeg("RGB", (64, 63), 0), "is 64 x 63 pixels"),
        (jpeg("RGB", (64, 64), 0)[:-100], "cannot be decoded"),
        (b"GIF89a", "cannot be decoded"),
    ],
)
def test_bad_image_is_refused(data, problem):
    with pytest.raises(SabrError, match=rf"val/images/val_0\.JPEG {problem}"):
        preparing._decode_tinyimagenet(tiny_files(**{"val/images/val_0.JPEG": data}), DATASETS["tinyimagenet"])


def test_real_cifar10(real_mirror, tmp_path):
    prepare(DATASETS["cifar10"], tmp_path, mirror=real_mirror)
    train, test = load(DATASETS["cifar10"], tmp_path, "train"), load(DATASETS["cifar10"], tmp_path, "test")
    assert train.labels.bincount().tolist() == [5000] * 10 and test.labels.bincount().tolist() == [1000] * 10
    assert train.labels[:5].tolist() == [6, 9, 9, 4, 1] and test.labels[:5].tolist() == [3, 8, 8, 0, 6]
    # the settings' mean is the published one
    mean = train.images.float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor(DATASETS["cifar10"].mean), atol=1e-4)


def test_real_tinyimagenet(real_mirror, tmp_path):
    dataset = DATASETS["tinyimagenet"]
    prepare(dataset, tmp_path, mirror=real_mirror)
    train, test = load(dataset, tmp_path, "train"), load(dataset, tmp_path, "test")
    assert train.labels.bincount().tolist() == [50] * 200 and test.labels.bincount().tolist() == [50] * 200
    wnids = (real_mirror / "tiny-imagenet-200" / "wnids.txt").read_text().split()
    assert wnids[test.labels[0]] == "n03444034"  # the first line of val_annotations.txt
    with Image.open(real_mirror / "tiny-imagenet-200" / "val" / "images" / "val_0.JPEG") as image:
        assert np.array_equal(test.images[0].permute(1, 2, 0), image.convert("RGB"))
    mean = train.images.float().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor(dataset.mean), atol=5e-3)


@pytest.mark.network
def test_real_mnist(tmp_path):
    prepare(DATASETS["mnist"], tmp_path, mirror=None)
    train, test = load(DATASETS["mnist"], tmp_path, "train"), load(DATASETS["mnist"], tmp_path, "test")
    assert train.images.shape == (60_000, 1, 28, 28) and test.images.shape == (10_000, 1, 28, 28)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9] and test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(train.images.float().mean().item() / 255 - 0.1307) < 1e-4
