import json

import pytest
import torch

from sabr.errors import SabrError
from sabr.files import checksum
from sabr.networks import checkpoints


@pytest.fixture
def saved(tmp_path, small_network):
    network, _ = small_network()
    path = tmp_path / "model.pt"
    checkpoints.save(network, path, architecture="cnn-tiny", dataset="mnist", about={"history": [1, 2]})
    return network, path


def test_round_trip(saved):
    network, path = saved
    loaded, sidecar = checkpoints.load(path)
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(loaded(images), network(images))
    assert not loaded.training
    assert sidecar["history"] == [1, 2]
    assert [p.name for p in sorted(path.parent.iterdir())] == ["model.json", "model.pt"]


def test_only_tensors_are_stored(saved):
    _, path = saved
    state = torch.load(path, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_half_written_checkpoint_is_refused(saved):
    _, path = saved
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SabrError, match="damaged"):
        checkpoints.load(path)


def test_other_weights_are_refused(saved):
    _, path = saved
    about = json.loads(path.with_suffix(".json").read_text())
    about["architecture"] = "cnn-small"
    path.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(SabrError, match="does not hold the weights of a cnn-small"):
        checkpoints.load(path)


def test_what_holds_no_weights_is_refused(saved):
    _, path = saved
    about = json.loads(path.with_suffix(".json").read_text())
    for content in (b"", b"PK"):
        path.write_bytes(content)
        path.with_suffix(".json").write_text(json.dumps(about | {"sha256": checksum(path)}))
        with pytest.raises(SabrError, match="does not hold the weights of a cnn-tiny"):
            checkpoints.load(path)
    torch.save([1, 2], path)
    path.with_suffix(".json").write_text(json.dumps(about | {"sha256": checksum(path)}))
    with pytest.raises(SabrError, match="does not hold the weights of a cnn-tiny"):
        checkpoints.load(path)
    path.with_suffix(".json").write_text(json.dumps(about | {"sha256": checksum(path), "architecture": ["x"]}))
    with pytest.raises(SabrError, match=r"architecture \['x'\] for mnist is not known"):
        checkpoints.load(path)


@pytest.mark.parametrize("missing", ["model.pt", "model.json"])
def test_missing_half_is_named(saved, missing):
    _, path = saved
    (path.parent / missing).unlink()
    with pytest.raises(SabrError, match=missing):
        checkpoints.load(path)


def test_pickles_are_never_run(saved, tmp_path):
    _, path = saved

    class Evil:
        def __reduce__(self):
            return (print, ("evil",))

    torch.save({"0.weight": Evil()}, path)
    about = json.loads(path.with_suffix(".json").read_text())
    from sabr.files import checksum

    about["sha256"] = checksum(path)
    path.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(SabrError, match="does not hold the weights"):
        checkpoints.load(path)


def test_a_failed_save_leaves_the_old_one(saved, monkeypatch):
    network, path = saved
    before = path.read_bytes()

    def full(*_):  # as torch reports it
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        SabrError, match="cannot write .*model.pt: not all of it could be written; the disk may be full"
    ):
        checkpoints.save(network, path, architecture="cnn-tiny", dataset="mnist", about={})
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 2


def test_equal_weights_give_equal_files(saved, tmp_path):
    network, path = saved
    other = tmp_path / "other.pt"
    checkpoints.save(network, other, architecture="cnn-tiny", dataset="mnist", about={})
    assert other.read_bytes() == path.read_bytes()
