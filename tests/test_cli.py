import json
import os

import pytest

from sabr.certification import verdicts
from sabr.config import read_yaml, resolve
from sabr.networks import checkpoints


@pytest.fixture(scope="module")
def row(request):
    root = request.config.rootpath
    plan = resolve(read_yaml(root / "config" / "config.yaml") | {"scale": "tiny"}, root / "config")
    return next(row for row in plan.main if row.method == "sabr")


@pytest.fixture
def model(tmp_path, small_network, row):
    """An untrained checkpoint, and its certification specification."""
    network, _ = small_network()
    path = tmp_path / "model.pt"
    checkpoints.save(network, path, architecture="cnn-tiny", dataset="mnist", about={})
    (tmp_path / "attack.json").write_text(row.certification.attack_spec.model_dump_json())
    (tmp_path / "certification.json").write_text(row.certification.model_dump_json())
    return path, tmp_path / "attack.json", tmp_path / "certification.json"


def refused(done, *words):
    assert done.returncode == 1, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert any(line.startswith("sabr: ") for line in done.stderr.splitlines())
    return done.stderr


def test_help_explains_every_command(sabr_command):
    done = sabr_command("--help")
    assert done.returncode == 0
    for command in ("data", "spec", "train", "attack", "certify", "merge", "collect", "table", "study", "figure"):
        assert command in done.stdout
        assert sabr_command(command, "--help").returncode == 0


def test_wrong_usage_is_exit_code_2(sabr_command):
    assert sabr_command("train").returncode == 2
    assert sabr_command("data", "svhn").returncode == 2


def test_a_specification_is_validated(sabr_command, tmp_path, row):
    out = tmp_path / "run.json"
    assert sabr_command("spec", "training", row.training.model_dump_json(), "-o", out).returncode == 0
    assert json.loads(out.read_text()) == row.training.model_dump(mode="json")
    wrong = row.training.model_dump(mode="json") | {"eps": 8}
    refused(sabr_command("spec", "training", json.dumps(wrong), "-o", out), "training specification: eps: 8 is not in")
    wrong = row.training.model_dump(mode="json") | {"epoch": 8}
    refused(sabr_command("spec", "training", json.dumps(wrong), "-o", out), "epoch: unknown key")


def test_no_network_and_no_mirror_says_what_to_do(sabr_command, tmp_path):
    dead = "http://127.0.0.1:9"
    environment = os.environ | {"PIP_INDEX_URL": dead, "PIP_NO_INDEX": "", "HTTPS_PROXY": dead, "HTTP_PROXY": dead}
    environment |= {"https_proxy": dead, "http_proxy": dead, "NO_PROXY": "", "no_proxy": ""}
    environment.pop("SABR_MIRROR", None)
    done = sabr_command("data", "mnist", "--data", tmp_path, env=environment)
    told = refused(done, "SABR_MIRROR", "train-images")
    assert told.count("127.0.0.1") + told.count("official") + told.count("index") > 1
    assert not list(tmp_path.rglob("*.pt"))


def test_training_needs_data(sabr_command, tmp_path, row):
    run = tmp_path / "run.json"
    run.write_text(row.training.model_dump_json())
    arguments = ("train", run, "-o", tmp_path / "m.pt", "--history", tmp_path / "h.csv", "--data", tmp_path / "none")
    refused(sabr_command(*arguments), "none", "sabr data mnist")


def test_other_datasets_and_runs_are_refused(sabr_command, tmp_path, model, mnist_folder, row):
    path, attack, spec = model
    other = row.certification.attack_spec.model_dump(mode="json") | {"dataset": "cifar10"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    done = sabr_command("attack", path, "--spec", tmp_path / "other.json", "-o", tmp_path / "a.csv")
    refused(done, "was trained on mnist, but the specification is about cifar10")

    attacked = tmp_path / "attacked.csv"
    done = sabr_command("attack", path, "--spec", attack, "-o", attacked, "--data", mnist_folder)
    assert done.returncode == 0, done.stderr
    certify = ("certify", path, "--attack", attacked, "-o", tmp_path / "s.csv", "--data", mnist_folder)
    stronger = row.certification.model_dump(mode="json") | {"eps": 0.2}
    (tmp_path / "stronger.json").write_text(json.dumps(stronger))
    done = sabr_command(*certify, "--spec", tmp_path / "stronger.json", "--first", 0, "--last", 4)
    refused(done, "attacked.csv belongs to another run: attack.eps (0.2 here, 0.1 there)")
    refused(sabr_command(*certify, "--spec", spec, "--first", 20, "--last", 30), "is no part of the 24 images")

    assert sabr_command(*certify, "--spec", spec, "--first", 0, "--last", 4).returncode == 0
    table, about = verdicts.read(tmp_path / "s.csv", verdicts.COLUMNS)
    assert len(table) == 4
    assert about["provenance"]["machine"]["threads"] == 1
    assert not list(tmp_path.glob("*.journal")) and (tmp_path / "s.pt").exists() and (tmp_path / "attacked.pt").exists()
    assert (
        about["data_sha256"] == json.loads((mnist_folder / "mnist" / "source.json").read_text())["prepared"]["test.pt"]
    )

    lines = attacked.read_text().splitlines()
    attacked.write_text("\n".join([lines[0], *lines[2:], lines[1]]) + "\n")
    refused(sabr_command(*certify, "--spec", spec, "--first", 0, "--last", 4), "does not belong to attacked.json")


def test_unknown_devices_are_told(sabr_command, model, tmp_path):
    path, attack, _ = model
    done = sabr_command("attack", path, "--spec", attack, "-o", tmp_path / "a.csv", "--device", "abacus")
    refused(done, "--device abacus cannot be used here")


def test_tables_of_other_kinds_are_told(sabr_command, tmp_path):
    done = sabr_command("figure", "accuracies", tmp_path / "none.csv", "--title", "t", "-o", tmp_path / "a.png")
    refused(done, "none.csv")


def test_a_table_that_is_none_is_told(sabr_command, tmp_path):
    (tmp_path / "words.csv").write_text("a,b\n1,2\n")
    figure = ("figure", "box-growth", tmp_path / "words.csv", "--title", "t", "-o", tmp_path / "a.png")
    refused(sabr_command(*figure), "words.csv is no table for the figure box-growth")
    (tmp_path / "words.csv").write_text("a\n1,2,3\n4\n5,6,7,8\n")
    refused(sabr_command(*figure), "cannot read")


def test_a_folder_that_cannot_be_written_is_told_before_training(sabr_command, tmp_path, row, mnist_folder):
    (tmp_path / "run.json").write_text(row.training.model_dump_json())
    (tmp_path / "file").write_text("")
    output = ("-o", tmp_path / "file" / "m.pt", "--history", tmp_path / "h.csv", "--data", mnist_folder)
    told = refused(sabr_command("train", tmp_path / "run.json", *output), "choose a folder that can be written to")
    assert "epoch" not in told


def test_specifications_of_older_code_are_refused(sabr_command, tmp_path, row):
    old = row.training.model_dump(mode="json") | {"revision": 0}
    done = sabr_command("spec", "training", json.dumps(old), "-o", tmp_path / "run.json")
    refused(done, "revision: 0 was written for other code")


def test_tensor_cores_do_not_shorten_mantissas():
    import torch

    from sabr.machine import use

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    use(1, "cpu")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_light_commands_do_not_import_torch(sabr_command, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not wanted here')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    out = tmp_path / "growth.csv"
    assert sabr_command("study", "box-growth", "-o", out, env=environment).returncode == 0
    done = sabr_command("figure", "box-growth", out, "--title", "t", "-o", tmp_path / "g.png", env=environment)
    assert done.returncode == 0, done.stderr
    assert sabr_command("study", "small-box", "-o", out, env=environment).returncode != 0
