"""A certification that was killed goes on with the verdicts it has."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from sabr.certification import verdicts
from sabr.layers import read_yaml
from sabr.networks import checkpoints
from sabr.plan import resolve
from sabr.specs import CertificationSpec, TrainingSpec
from sabr.training.trainer import train

IMAGES = 60


@pytest.fixture(scope="module")
def attacked(request, tmp_path_factory, mnist_train, mnist_folder):
    """A network that bounds certify in part, its attack, and how to certify it: the rest takes the verifier seconds."""
    folder, root = tmp_path_factory.mktemp("attacked"), request.config.rootpath
    plan = resolve(read_yaml(root / "config" / "config.yaml") | {"scale": "tiny"}, root / "config")
    row = next(row for row in plan.main if row.method == "ibp")
    training = TrainingSpec.model_validate(row.training.model_dump() | {"train_images": 1024, "eps": 0.05})
    network, _ = train(training, mnist_train, device=torch.device("cpu"), report=lambda _: None)
    checkpoints.save(network, folder / "model.pt", architecture="cnn-tiny", dataset="mnist", about={})
    asked = row.certification.model_dump() | {"images": IMAGES, "eps": 0.03, "batch_size": 4}
    asked["complete"] |= {"seconds": 1.5}
    spec = CertificationSpec.model_validate(asked)
    (folder / "attack.json").write_text(spec.attack_spec.model_dump_json())
    (folder / "certification.json").write_text(spec.model_dump_json())
    done = subprocess.run(command("attack", folder, mnist_folder, "attack.json", "attack.csv"), capture_output=True)
    assert done.returncode == 0, done.stderr
    return folder, mnist_folder


def command(name, folder, data, spec, output, *arguments):
    common = ["--spec", folder / spec, "--output", folder / output, "--data", data]
    start = [sys.executable, "-c", "from sabr.cli import main; main()"]
    return [str(part) for part in (*start, name, folder / "model.pt", *common, *arguments)]


def certification(folder, data, output, spec="certification.json"):
    shard = ("--attack", folder / "attack.csv", "--first", "0", "--last", str(IMAGES))
    return command("certify", folder, data, spec, output, *shard)


def test_killed_by_force_it_goes_on_and_the_verdicts_are_the_same(attacked):
    folder, data = attacked
    done = subprocess.run(certification(folder, data, "whole.csv"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    again = certification(folder, data, "killed.csv")
    journal, output = folder / "killed.journal", folder / "killed.csv"
    process = subprocess.Popen(again, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b'"image"') > 3) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    lines = [json.loads(line) for line in journal.read_bytes().splitlines(keepends=True)[1:] if b"\n" in line]
    known = {line["image"] for line in lines if "image" in line}
    spent = sum(line["seconds"] for line in lines if "stage" in line)
    assert len(known) >= 3 and not output.exists() and not output.with_suffix(".pt").exists()

    done = subprocess.run(again, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"going on with {len(known)} verdicts of an earlier run" in done.stderr
    assert not journal.exists()
    stages = json.loads((folder / "killed.json").read_text())["stages"]
    assert (
        stages["interval"]["entered"]
        == json.loads((folder / "whole.json").read_text())["stages"]["interval"]["entered"]
    )
    assert sum(stage["seconds"] for stage in stages.values()) > spent > 0
    tables = [verdicts.read(folder / f"{name}.csv", verdicts.COLUMNS)[0] for name in ("whole", "killed")]
    bounds = ("interval", "crown-ibp", "crown", "alpha-crown")
    by_bounds = [table["certified_by"].isin(bounds) for table in tables]
    assert by_bounds[0].tolist() == by_bounds[1].tolist() and 20 < by_bounds[0].sum() < IMAGES - 3
    one, two = (table[chosen].drop(columns="seconds") for table, chosen in zip(tables, by_bounds, strict=True))
    # The batches are others, and so is the order of some sums.
    pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=1e-4)
    settled = ["index", "label", "prediction", "natural_correct"]
    pd.testing.assert_frame_equal(tables[0][settled], tables[1][settled])
    # Whatever else was found, every counterexample belongs to an image that is refuted, and the other way round.
    for name, table in zip(("whole", "killed"), tables, strict=True):
        points = torch.load(folder / f"{name}.pt", weights_only=True)
        found = table["index"][table["refuted_by"].isin(("attack", "complete"))]
        assert points["index"].tolist() == found.tolist()
        assert len(points["points"]) == len(found)


@pytest.mark.parametrize("compiler", [True, False])
def test_with_compiled_kernels_bounds_prove_the_same_and_the_record_says_so(attacked, tmp_path, compiler):
    if compiler and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    folder, data = attacked
    by_bounds = []
    for name in ("plain", "compiled"):
        spec = json.loads((folder / "certification.json").read_text())
        spec |= {"compile": name == "compiled", "stages": ["interval", "crown-ibp", "crown", "alpha-crown"]}
        (folder / f"{name}-{compiler}.spec").write_text(json.dumps(spec))
        again = certification(folder, data, f"{name}-{compiler}.csv", f"{name}-{compiler}.spec")
        environment = os.environ if compiler else os.environ | {"PATH": str(tmp_path)}
        done = subprocess.run(again, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        lacking = name == "compiled" and not compiler
        assert (
            "kernels cannot be compiled here (is there a C++ compiler?); going on without" in done.stderr
        ) == lacking
        provenance = json.loads((folder / f"{name}-{compiler}.json").read_text())["provenance"]
        assert provenance["compiled"] == (name == "compiled" and compiler)
        by_bounds.append(verdicts.read(folder / f"{name}-{compiler}.csv", verdicts.COLUMNS)[0]["certified_by"].tolist())
    assert by_bounds[0] == by_bounds[1] and sum(found == "crown" for found in by_bounds[0]) > 0


def test_a_journal_of_another_shard_is_refused(attacked):
    folder, data = attacked
    (folder / "other.journal").write_text(json.dumps({"first": 0}) + "\n")
    done = subprocess.run(certification(folder, data, "other.csv"), capture_output=True, text=True)
    assert done.returncode == 1
    assert "other.journal belongs to another run: " in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "other.csv").exists()
