"""Files and configurations of others run no code: nothing is unpickled, unpacked over other files, or given to a shell."""

import ast
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import torchvision
import yaml
from onnx import TensorProto, helper

from sabr.data import datasets, download, preparing, sources
from sabr.errors import SabrError
from sabr.files import checksum, write_json
from sabr.layers import read_yaml
from sabr.networks import checkpoints, released
from sabr.networks.onnx_import import read_onnx
from sabr.plan import resolve
from sabr.settings import DATASETS
from sabr.training import state

ROOT = Path(__file__).resolve().parents[1]
CODE = [path for folder in ("sabr", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]

# ruff's rules, each with a line that it must find: that the check can fail is checked too.
FORBIDDEN = {
    "S102": "exec(text)",
    "S202": "import tarfile; tarfile.open(path).extractall()",
    "S301": "import pickle; pickle.loads(data)",
    "S302": "import marshal; marshal.loads(data)",
    "S307": "eval(text)",
    "S314": "import xml.etree.ElementTree; xml.etree.ElementTree.parse(path)",
    "S501": "import httpx; httpx.get(url, verify=False)",
    "S506": "import yaml; yaml.load(text, Loader=yaml.Loader)",
    "S602": "import subprocess; subprocess.run(command, shell=True)",
    "S604": "run(command, shell=True)",
    "S605": "import os; os.system(command)",
    "S701": "import jinja2; jinja2.Environment(autoescape=False)",
}


def found_by_ruff(*paths):
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--output-format", "json"]
    done = subprocess.run([*command, "--select", ",".join(FORBIDDEN), *map(str, paths)], capture_output=True, text=True)
    return [(entry["code"], Path(entry["filename"])) for entry in json.loads(done.stdout)]


def test_nothing_runs_unpickles_or_unpacks_what_it_is_given(tmp_path):
    for code, line in FORBIDDEN.items():
        (tmp_path / f"{code}.py").write_text(f"{line}\n")
    assert {(code, tmp_path / f"{code}.py") for code in FORBIDDEN} <= set(found_by_ruff(tmp_path))
    assert found_by_ruff(*CODE) == []
    # One class reads CIFAR-10's pickles, and makes arrays only: see `test_a_pickle_of_a_download_...`.
    named = [path for path in CODE if re.search(r"pickle\.(?!UnpicklingError)|from pickle", path.read_text())]
    assert named == [ROOT / "sabr" / "data" / "preparing.py"]
    assert re.findall(r"pickle\.\w+", named[0].read_text()).count("pickle.Unpickler") == 1


def calls(name):
    """All calls of `module.name` in our code: where, and their keywords."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                yield path, {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_torch_reads_tensors_alone():
    found = list(calls("torch.load"))
    assert len(found) >= 4
    for path, keywords in found:
        assert keywords.get("weights_only") == "True", path
    for path, keywords in calls("np.load"):
        assert keywords.get("allow_pickle") == "False", path
    for name in ("numpy.load", "torch.jit.load", "torch.hub.load", "pd.read_pickle", "joblib.load"):
        assert list(calls(name)) == []
    for path in CODE:
        assert not re.search(r"from torch(\.serialization)? import .*\bload\b|__import__\(", path.read_text()), path


class Evil:
    """A pickle of it makes a folder where it is read."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_a_file_of_tensors_that_holds_code_is_refused_and_the_code_not_run(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "model.pt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "evil": Evil(mark)}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    write_json(path.with_suffix(".json"), {"architecture": "cnn-tiny", "dataset": "mnist", "sha256": checksum(path)})
    with pytest.raises(SabrError, match="model.pt does not hold the weights"):
        checkpoints.load(path)
    plan = resolve(read_yaml(ROOT / "config" / "config.yaml") | {"scale": "tiny"}, ROOT / "config")
    with pytest.raises(SabrError, match="model.pt is damaged"):
        state.read(path, plan.main[0].training, "")
    with pytest.raises(SabrError, match="holds more than tensors"):
        released.read_released(path)
    home = tmp_path / "mnist"
    home.mkdir()
    for split in ("train", "test"):
        shutil.copy(path, home / f"{split}.pt")
    sums = {f"{split}.pt": checksum(path) for split in ("train", "test")}
    write_json(home / "source.json", {"prepared": sums, "images": {"train": 1, "test": 1}})
    with pytest.raises(SabrError, match="train.pt is truncated or damaged"):
        datasets.load(DATASETS["mnist"], tmp_path, "train")
    assert not mark.exists()
    torch.load(path, weights_only=False)  # what the tests above would have done otherwise
    assert mark.exists()


def test_a_pickle_of_a_download_makes_arrays_and_calls_nothing(tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(SabrError, match="a pickle asks for posix.mkdir"):
        preparing.unpickle(pickle.dumps(Evil(mark)))
    for function in (os.system, eval, getattr, np.load, subprocess.Popen, __import__):
        with pytest.raises(SabrError, match="a pickle asks for"):
            preparing.unpickle(pickle.dumps({"data": function}))
    assert not mark.exists()
    assert preparing.unpickle(pickle.dumps({"data": np.arange(3), "labels": [1]}))["data"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("place", ["../secret", "/{}/secret", "link"])
def test_a_network_of_others_reads_no_files_outside_its_folder(tmp_path, place):
    (tmp_path / "secret").write_bytes(np.arange(32, dtype=np.float32).tobytes())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=(16, 2), data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=place.format(tmp_path))
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    outside = [value("x", TensorProto.FLOAT, (1, 1, 4, 4))], [value("y", TensorProto.FLOAT, (1, 2))]
    model = helper.make_model(helper.make_graph(nodes, "g", *outside, [weights]), ir_version=8)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(SabrError, match="net.onnx"):
        read_onnx(folder / "net.onnx")


def test_official_addresses_are_encrypted(monkeypatch, tmp_path):
    asked = []

    def refuse(url, target, digest):
        asked.append((url, digest.algorithm))
        raise download.Unavailable("not today")

    monkeypatch.setattr(sources, "download", refuse)
    monkeypatch.setattr(sources, "locations", lambda: iter(()))
    for name in DATASETS:
        with pytest.raises(SabrError, match="not today"):
            sources.obtain(name, tmp_path, None)
    assert len(asked) == 3
    assert all(url.startswith("https://") and algorithm in ("md5", "sha256") for url, algorithm in asked)
    insecure = [site for site in torchvision.datasets.MNIST.mirrors if not site.startswith("https:")]
    assert not any(url.startswith(site) for url, _ in asked for site in insecure)


def test_a_server_cannot_send_a_download_to_one_that_is_not_encrypted(monkeypatch, tmp_path):
    def answer(request):
        if request.url.scheme == "https":
            return httpx.Response(302, headers={"Location": "http://elsewhere.invalid/file"})
        return httpx.Response(200, stream=httpx.ByteStream(b"file"))

    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: client(transport=httpx.MockTransport(answer), **options))
    digest = download.Digest("md5", "8c7dd922ad47494fc02c388e12c00eac")
    assert download.download("http://plain.invalid/file", tmp_path / "plain", digest).read_bytes() == b"file"
    with pytest.raises(download.Unavailable, match="https://good.invalid/file leads to http://elsewhere.invalid/file"):
        download.download("https://good.invalid/file", tmp_path / "file", digest)
    assert not (tmp_path / "file").exists()


# Each makes the file `pwned`, or ends a word, if a shell or Snakemake reads it as anything but a name.
HOSTILE = 'it\'s "a" $(touch pwned) `touch pwned`; touch pwned & | > pwned #*?[a] ~ \\ ä'


def snakemake(folder, *arguments, **overlay):
    folder.mkdir(exist_ok=True)
    (folder / "overlay.yaml").write_text(yaml.safe_dump({"scale": "tiny"} | overlay))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [*map(str, command), "--configfile", str(folder / "overlay.yaml"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


@pytest.mark.workflow
def test_names_of_folders_are_words_to_the_shell_whatever_they_hold(tmp_path):
    places = {"results": f"{HOSTILE}/results", "data": {"folder": f"{HOSTILE}/data", "mirror": f"{HOSTILE}/mirror"}}
    planned = snakemake(tmp_path, "--dry-run", "--printshellcmds", **places)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    lines = re.findall(r"^Shell command: (?!None$)(.*)", planned.stdout, flags=re.MULTILINE)
    assert len(lines) > 50
    for line in lines:
        split = shlex.split(line.replace(" &> ", " "), comments=True)
        words = [re.sub(r"^--[a-z]+=", "", word) for word in split]
        assert words[0] == "sabr" and words[1].isalpha(), line
        paths = [word for word in words if "touch" in word]
        assert all(word.startswith((f"{HOSTILE}/results/", f"{HOSTILE}/data")) for word in paths), line
        assert all("pwned" not in word for word in words if word not in paths), line

    asked = [f"{HOSTILE}/results/tiny/mnist/eps-0.1/attack.json", f"{HOSTILE}/results/tiny/figures/box-growth.pdf"]
    done = snakemake(tmp_path, "--cores", "1", "--", *asked, **places)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all((tmp_path / path).is_file() for path in asked)
    assert not list(tmp_path.rglob("pwned")) and not (ROOT / "pwned").exists()


@pytest.mark.parametrize(
    "overlay, told",
    [
        ({"overrides": {"run": {"methods": ["x; touch y"]}}}, "run.methods.0: 'x; touch y'"),
        ({"overrides": {"run": {"methods": ["$(touch y)"]}}}, "run.methods.0"),
        ({"overrides": {"run": {"methods": ["sabr\n"]}}}, "run.methods.0"),
        ({"overrides": {"run": {"methods": ["../sabr"]}}}, "run.methods.0"),
        ({"overrides": {"methods": {"x; touch y": {"objective": "ibp"}}, "run": {"methods": ["x; touch y"]}}}, "y"),
        ({"overrides": {"run": {"settings": ["mnist-eps-0.1; touch y"]}}}, "run.settings.0"),
        ({"overrides": {"run": {"settings": ["../settings/mnist-eps-0.1"]}}}, "run.settings.0"),
        ({"overrides": {"run": {"seeds": ["1; touch y"]}}}, "run.seeds.0"),
        ({"overrides": {"run": {"shard_size": "1; touch y"}}}, "run.shard_size"),
        ({"overrides": {"training": {"architecture": "cnn7; touch y"}}}, "training.architecture"),
        ({"scale": "tiny; touch y"}, "scale"),
        ({"scale": "../scales/tiny"}, "scale"),
        ({"results": "a{y}"}, "results"),
        ({"results": "a\nb"}, "results"),
        ({"results": ""}, "results"),
        ({"data": {"folder": "{y}", "mirror": None}}, "data.folder"),
        ({"data": {"folder": "data", "mirror": "{y}"}}, "data.mirror"),
    ],
)
def test_names_that_are_no_names_are_refused_by_the_key_that_holds_them(overlay, told):
    asked = read_yaml(ROOT / "config" / "config.yaml") | {"scale": "tiny"} | overlay
    with pytest.raises(SabrError, match="config") as refused:
        resolve(asked, ROOT / "config")
    assert told in str(refused.value)


@pytest.mark.workflow
@pytest.mark.parametrize(
    "overlay, told",
    [
        ({"overrides": {"run": {"methods": ["x; touch y"]}}}, "run.methods.0: 'x; touch y'"),
        ({"results": "a{y}"}, "results: 'a{y}'"),
    ],
)
def test_a_workflow_that_is_refused_runs_nothing(tmp_path, overlay, told):
    done = snakemake(tmp_path, "--cores", "1", **overlay)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert told in said and "Traceback" not in said and "NameError" not in said
    assert not list(tmp_path.rglob("y"))
