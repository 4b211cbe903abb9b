import json
import os
import shutil

import onnx
import pytest
import torch

from sabr import cli, machine
from sabr.certification import verdicts
from sabr.cli.exchange import CASCADE
from sabr.errors import SabrError
from sabr.layers import read_yaml
from sabr.networks import checkpoints
from sabr.networks.affine import folded_steps
from sabr.networks.instances import read_counterexample, read_instances
from sabr.networks.onnx_export import write_onnx
from sabr.networks.steps import LinearStep, ReLUStep, forward
from sabr.plan import resolve


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
    commands = "data spec train attack certify merge collect table study figure export verify import"
    for command in commands.split():
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
    refused(sabr_command(*figure), "words.csv is not the table it should be")
    (tmp_path / "words.csv").write_text("a\n1,2,3\n4\n5,6,7,8\n")
    refused(sabr_command(*figure), "words.csv is not the table it should be")


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


@pytest.fixture
def sabr_here(capsys, monkeypatch, pytestconfig):
    """The same command line in this process: its exit code, output and errors; an error of ours goes through."""
    monkeypatch.chdir(pytestconfig.rootpath)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["sabr", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        told = capsys.readouterr()
        return done.value.code or 0, told.out, told.err

    return run


def told_here(done, *words, code=1):
    found, out, err = done
    assert found == code and not out
    if code == 1:
        assert err.startswith("sabr: ") and err.count("\n") == 1, err
    text = " ".join(err.replace("│", " ").split())  # usage errors come in a frame
    for word in words:
        assert word in text


@pytest.fixture
def instance(tmp_path):
    """The network y = (relu(x), -relu(x)) on [-1, 1] as a file, and two properties: one that holds, one that does not."""
    first, last = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    write_onnx(
        [LinearStep(first, torch.zeros(2)), ReLUStep(), LinearStep(last, torch.zeros(2))], (1,), tmp_path / "n.onnx"
    )
    head = "(declare-const X_0 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)(assert (>= X_0 -1))(assert (<= X_0 1))"
    (tmp_path / "holds.vnnlib").write_text(f"{head}\n(assert (<= Y_0 -0.5))\n")
    (tmp_path / "fails.vnnlib").write_text(f"{head}\n(assert (<= Y_1 -0.5))\n")
    return tmp_path / "n.onnx", tmp_path / "holds.vnnlib", tmp_path / "fails.vnnlib"


def test_a_property_is_answered(sabr_command, instance):
    network, holds, fails = instance
    done = sabr_command("verify", "--onnx", network, "--vnnlib", holds)
    assert (done.returncode, done.stdout, done.stderr) == (0, "unsat\n", "")
    done = sabr_command("verify", "--onnx", network, "--vnnlib", fails, "--timeout", 5)
    assert (done.returncode, done.stderr) == (0, "")
    first, _, rest = done.stdout.partition("\n")
    inputs, outputs = read_counterexample(rest)
    assert first == "sat" and 0.5 <= float(inputs) <= 1
    assert outputs.tolist() == [float(inputs), -float(inputs)]


def test_no_time_is_an_answer_too(sabr_here, small_network, tmp_path):
    _, steps = small_network()
    write_onnx(steps, (1, 28, 28), tmp_path / "n.onnx")
    lines = [f"(declare-const X_{i} Real)(assert (>= X_{i} 0))(assert (<= X_{i} 1))" for i in range(784)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(10)] + ["(assert (<= Y_0 -1000))"]
    (tmp_path / "p.vnnlib").write_text("\n".join(lines))
    asked = ("verify", "--onnx", tmp_path / "n.onnx", "--vnnlib", tmp_path / "p.vnnlib")
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps(read_yaml(CASCADE) | {"stages": ["attack"]}))
    assert sabr_here(*asked, "--cascade", path) == (0, "unknown\n; no stage proved or refuted it\n", "")
    path.write_text(json.dumps(read_yaml(CASCADE) | {"shard_minutes": 1e-9}))
    assert sabr_here(*asked, "--cascade", path) == (0, "unknown\n; out of time\n", "")


def test_files_that_cannot_be_verified_are_told(sabr_here, instance, tmp_path):
    network, holds, _ = instance

    def verify(network=network, wanted=holds, *more):
        return sabr_here("verify", "--onnx", network, "--vnnlib", wanted, *more)

    told_here(verify(tmp_path / "none.onnx"), "cannot read", "none.onnx", "No such file")
    told_here(verify(network, tmp_path / "none.vnnlib"), "cannot read", "none.vnnlib")
    told_here(verify(network, tmp_path), f"cannot read {tmp_path}")
    cut = tmp_path / "cut.onnx"
    for size in (0, 40, len(network.read_bytes()) - 9):
        cut.write_bytes(network.read_bytes()[:size])
        told_here(verify(cut), "cut.onnx")
    cut = tmp_path / "cut.vnnlib"
    for size in (0, 30, len(holds.read_text()) - 3):
        cut.write_text(holds.read_text()[:size])
        told_here(verify(network, cut), "cut.vnnlib is not a VNN-LIB property")
    other = tmp_path / "other.onnx"
    write_onnx([LinearStep(torch.ones(3, 2), torch.zeros(3))], (2,), other)
    told_here(verify(other), "is about 1 inputs and 2 outputs, but", "has 2 and 3")

    model = onnx.load(network)
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Sigmoid"
    onnx.save(model, other)
    told_here(verify(other), "(Sigmoid) is of a kind that is not supported", "supported are: Conv", "Relu")
    model = onnx.load(network)
    broken = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
    broken[0] = float("nan")
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(broken, model.graph.initializer[0].name))
    onnx.save(model, other)
    told_here(verify(other), "weights that are not finite numbers")


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "soon"])
def test_a_time_limit_that_is_none_is_wrong_usage(sabr_here, instance, timeout):
    network, holds, _ = instance
    done = sabr_here("verify", "--onnx", network, "--vnnlib", holds, "--timeout", timeout)
    told_here(done, "--timeout", code=2)


def test_a_cascade_that_is_none_is_told(sabr_here, instance, tmp_path):
    network, holds, _ = instance
    asked = ("verify", "--onnx", network, "--vnnlib", holds, "--cascade", tmp_path / "own.yaml")
    told_here(sabr_here(*asked), "cannot read", "own.yaml")
    (tmp_path / "own.yaml").write_text(json.dumps(read_yaml(CASCADE) | {"seeds": 1}))
    told_here(sabr_here(*asked), "own.yaml: seeds: unknown key; allowed: engine, stages")
    (tmp_path / "own.yaml").write_text("a: [1")
    told_here(sabr_here(*asked), "own.yaml is not valid YAML")
    told_here(sabr_here("verify", "--onnx", network), "--vnnlib", code=2)


def test_images_are_exported(sabr_here, model, mnist_folder, tmp_path):
    path, attack, spec = model
    asked = ("export", path, "--data", mnist_folder, "-o", tmp_path / "out")
    assert sabr_here(*asked, "--spec", spec, "--first", 2, "--last", 4) == (0, "", "")
    instances = read_instances(tmp_path / "out" / "instances.csv")
    assert [i.vnnlib.name for i in instances] == ["image-00002.vnnlib", "image-00003.vnnlib"]
    code, out, err = sabr_here("verify", "--onnx", instances[0].onnx, "--vnnlib", instances[0].vnnlib)
    assert code == 0 and out.partition("\n")[0] in ("sat", "unsat", "unknown") and not err

    shutil.rmtree(tmp_path / "out")
    range_ = ("--first", 5, "--last", 3)
    told_here(sabr_here(*asked, "--spec", spec, *range_), "--first 5 --last 3 is no part of the 24 images")
    told_here(sabr_here(*asked, "--spec", spec, "--first", 0, "--last", 25), "no part of the 24 images")
    told_here(sabr_here(*asked, "--spec", spec, "--first", -1, "--last", 3), "--first", code=2)
    told_here(sabr_here(*asked, "--spec", attack, "--first", 0, "--last", 1), "attack.json: ", "this key is missing")
    range_ = ("--spec", spec, "--first", 0, "--last", 1)
    told_here(sabr_here("export", tmp_path / "none.pt", *asked[2:], *range_), "cannot read", "none.json")
    told_here(sabr_here("export", path, "--data", tmp_path, *asked[4:], *range_), "sabr data mnist")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        done = sabr_here("export", path, "--data", mnist_folder, "-o", place, *range_)
        told_here(done, "cannot write", "choose a folder that can be written to")


@pytest.fixture
def released(small_network, tmp_path):
    """What the authors might release: a network with their names, in a file, and the network as one of ours."""
    network, _ = small_network("mnist", "cnn-small")
    state = {"blocks.0.mean": torch.zeros(1, 1, 1, 1), "blocks.0.std": torch.ones(1, 1, 1, 1)}
    for number, layer in enumerate(network, 1):
        state |= {f"blocks.{number}.{name}": tensor for name, tensor in layer.state_dict().items()}
    torch.save(state, tmp_path / "released.pynet")
    return tmp_path / "released.pynet", network


def test_a_released_network_is_attacked_and_certified(sabr_here, released, row, mnist_folder, tmp_path):
    path, network = released
    assert sabr_here("import", path, "-o", tmp_path / "model.pt") == (0, "", "")
    ours, about = checkpoints.load(tmp_path / "model.pt")
    points = torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(ours(points), network(points))
        torch.testing.assert_close(forward(folded_steps(ours), points), network(points), rtol=1e-4, atol=1e-4)
    assert about["imported"]["file"] == "released.pynet" and (about["architecture"], about["dataset"]) == (
        "cnn-small",
        "mnist",
    )

    spec, attack = tmp_path / "certification.json", tmp_path / "attack.json"
    few = row.certification.model_copy(update={"images": 4, "eps": 1e-4})
    spec.write_text(few.model_dump_json())
    attack.write_text(few.attack_spec.model_dump_json())
    common = (tmp_path / "model.pt", "--data", mnist_folder)
    code, _, err = sabr_here("attack", *common, "--spec", attack, "-o", tmp_path / "a.csv")
    assert code == 0, err
    range_ = ("--first", 0, "--last", 4)
    code, _, err = sabr_here(
        "certify", *common, "--spec", spec, "--attack", tmp_path / "a.csv", "-o", tmp_path / "v.csv", *range_
    )
    assert code == 0, err
    table, _ = verdicts.read(tmp_path / "v.csv", verdicts.COLUMNS)
    assert len(table) == 4
    code, _, err = sabr_here("export", *common, "--spec", spec, "-o", tmp_path / "out", *range_)
    assert code == 0 and len(read_instances(tmp_path / "out" / "instances.csv")) == 4, err


class Exploit:
    """What an attacker would pickle: reading it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_files_that_cannot_be_imported_are_told(sabr_here, released, tmp_path):
    path, _ = released
    bad, output = tmp_path / "bad.pynet", tmp_path / "model.pt"
    told_here(sabr_here("import", tmp_path / "none.pynet", "-o", output), "cannot read", "none.pynet")
    torch.save(Exploit(tmp_path / "hacked"), bad)
    told_here(sabr_here("import", bad, "-o", output), "holds more than tensors", "mkdir")
    assert not (tmp_path / "hacked").exists()
    bad.write_bytes(path.read_bytes()[:5000])
    told_here(sabr_here("import", bad, "-o", output), "is not a whole file of tensors")
    torch.save({"blocks.0.weight": torch.ones(3, 3)}, bad)
    told_here(sabr_here("import", bad, "-o", output), "weights of shapes 3x3 are not those of cnn7, ")
    torch.save([1, 2], bad)
    told_here(sabr_here("import", bad, "-o", output), "does not hold a state dictionary")
    assert not output.exists() and not output.with_suffix(".json").exists()

    (tmp_path / "file").write_text("")
    told_here(sabr_here("import", path, "-o", tmp_path / "file" / "model.pt"), "cannot write")
    # The sidecar would take its place.
    told_here(sabr_here("import", path, "-o", tmp_path / "model.json"), "model.json", "must end in .pt")
    assert not (tmp_path / "model.json").exists()


def test_impossible_values_are_told(sabr_here, tmp_path):
    for folder in (tmp_path, "", "."):
        told_here(sabr_here("merge", folder, "-o", tmp_path / "v.csv"), "is a folder; name a file", code=2)
    growth = tmp_path / "growth.csv"
    growth.write_text("input_size,output_size,standard_error,linear,mean,deviation,centres,seed\n")
    figure = ("figure", "box-growth", growth, "--title", "t", "-o", tmp_path / "a.png")
    told_here(sabr_here(*figure, "--method", "sabr"), "the figure box-growth is of no method: leave out --method sabr")
    with pytest.raises(SabrError, match="--device meta cannot be used here: give cpu, cuda"):
        machine.use(1, "meta")
