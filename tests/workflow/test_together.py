"""Two at once in one place: refused with one sentence, or harmless; and files that are seen late."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sabr.files import sole_writer
from sabr.layers import read_yaml
from sabr.networks import checkpoints
from sabr.plan import resolve

pytestmark = pytest.mark.workflow

ROOT = Path(__file__).resolve().parents[2]
ROW = "results/tiny/mnist/eps-0.1/pgd/seed-1"


@pytest.fixture(scope="module")
def row():
    """One of the tiny scale's networks."""
    plan = resolve(read_yaml(ROOT / "config" / "config.yaml") | {"scale": "tiny"}, ROOT / "config")
    return next(row for row in plan.main if row.method == "pgd")


@pytest.fixture
def training(tmp_path, row, mnist_folder):
    """The command that trains it into this test's folder."""
    (tmp_path / "run.json").write_text(row.training.model_dump_json())
    start = [sys.executable, "-c", "from sabr.cli import main; main()", "train", tmp_path / "run.json"]
    return [*start, "--data", mnist_folder, "--output", tmp_path / "model.pt", "--history", tmp_path / "history.csv"]


def run(command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def is_refused(done, name):
    lines = done.stderr.strip().splitlines()
    told = rf"sabr: .*{name} is being written by process \d+ on \S+; wait until it ends and run again, or, .* delete .*"
    return done.returncode == 1 and len(lines) == 1 and re.fullmatch(told, lines[0]) is not None


@pytest.mark.parametrize("name", ["model.pt", "history.csv"])
def test_training_refuses_a_place_that_another_one_writes_to(training, tmp_path, name):
    with sole_writer(tmp_path / name):
        done = run(training)
    assert is_refused(done, name), done.stderr
    assert os.listdir(tmp_path) == ["run.json"]


def test_of_two_trainings_at_once_one_is_refused_and_the_other_not_disturbed(training, tmp_path):
    processes = [
        subprocess.Popen([str(word) for word in training], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes.count(0) >= 1 and set(codes) <= {0, 1}, said
    for code, text in zip(codes, said, strict=True):
        assert code == 0 or "is being written by process" in text
    weights = (tmp_path / "model.pt").read_bytes()
    checkpoints.load(tmp_path / "model.pt")
    assert sorted(os.listdir(tmp_path)) == ["history.csv", "model.json", "model.pt", "run.json"]
    assert run(training).returncode == 0
    assert (tmp_path / "model.pt").read_bytes() == weights


def test_attacks_and_certification_refuse_it_too(training, tmp_path, row, mnist_folder):
    assert run(training).returncode == 0
    (tmp_path / "attack.json").write_text(row.certification.attack_spec.model_dump_json())
    (tmp_path / "certification.json").write_text(row.certification.model_dump_json())

    def command(name, spec, output, *more):
        places = ["--data", mnist_folder, "--spec", tmp_path / spec, "--output", tmp_path / output]
        return [*training[:3], name, tmp_path / "model.pt", *places, *more]

    shard = ["--attack", tmp_path / "table.csv", "--first", 0, "--last", 12]
    attack = command("attack", "attack.json", "table.csv")
    certify = command("certify", "certification.json", "0-12.csv", *shard)
    overwriting = run(command("attack", "attack.json", "model.csv"))
    assert overwriting.returncode == 1
    assert "model.csv and its companions would overwrite" in overwriting.stderr
    checkpoints.load(tmp_path / "model.pt")
    for one, name in ((attack, "table.csv"), (certify, "0-12.csv")):
        with sole_writer(tmp_path / name):
            done = run(one)
        assert is_refused(done, name), done.stderr
        assert not (tmp_path / name).exists()
        assert run(one).returncode == 0
        assert (tmp_path / name).exists()


@contextmanager
def held(workflow):
    """A workflow whose training is suspended, and that job: what comes next is sure to meet it."""
    command = [str(part) for part in workflow.command("--cores", "1", f"{ROW}/model.pt")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    lock = workflow.folder / ROW / ".model.pt.lock"
    with subprocess.Popen(command, cwd=workflow.folder, env=workflow.environment(), **quiet) as process:
        while not (lock.is_file() and lock.read_text()):
            assert process.poll() is None
            time.sleep(0.01)
        job = psutil.Process(int(lock.read_text().split()[1]))
        job.suspend()
        try:
            yield process, job
        finally:
            job.resume()


def test_two_workflows_in_one_folder_the_second_is_told_to_wait_or_to_unlock(make_workflow):
    workflow = make_workflow("shared")
    with held(workflow) as (first, _):
        second = workflow.run("--cores", "1", f"{ROW}/model.pt")
        assert second.returncode == 1
        told = second.stdout + second.stderr
        assert "Directory cannot be locked" in told and "no other Snakemake process" in told and "--unlock" in told
        assert "Traceback" not in told
    assert first.returncode == 0
    again = workflow.run("--cores", "1", f"{ROW}/model.pt")
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr


def test_a_job_that_outlives_its_snakemake_keeps_its_place(make_workflow):
    workflow = make_workflow("outlived")
    lock = workflow.folder / ROW / ".model.pt.lock"
    with held(workflow) as (process, job):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert workflow.run("--unlock").returncode == 0
        refused = workflow.run("--cores", "1", f"{ROW}/model.pt")
        assert refused.returncode == 1
        assert f"model.pt is being written by process {job.pid} on" in refused.stdout + refused.stderr
        assert job.is_running() and lock.is_file()
    psutil.wait_procs([job])
    checkpoints.load(workflow.folder / ROW / "model.pt")
    assert not lock.exists()
    assert workflow.run("--cores", "1", f"{ROW}/model.pt").returncode == 0
    checkpoints.load(workflow.folder / ROW / "model.pt")


# A `sabr` whose output is seen two seconds late, as on a shared file system.
LATE = """#!/bin/bash
"{python}" -c 'from sabr.cli import main; main()' "$@" || exit
output="${{!#}}"
mv "$output" "$output.unseen"
(sleep 2; mv "$output.unseen" "$output") &> /dev/null &
"""


def test_files_that_are_seen_late_are_waited_for(make_workflow, tmp_path):
    (tmp_path / "sabr").write_text(LATE.format(python=sys.executable))
    (tmp_path / "sabr").chmod(0o755)
    asked = "results/tiny/mnist/eps-0.1/attack.json"

    def late(workflow, *options):
        environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{workflow.environment()['PATH']}"}
        command = [str(part) for part in workflow.command("--cores", "1", *options, "--", asked)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=workflow.folder)

    patient, hasty = make_workflow("patient"), make_workflow("hasty")
    assert late(patient, "--latency-wait", "60").returncode == 0
    done = late(hasty, "--latency-wait", "0")
    assert done.returncode == 1
    assert "--latency-wait" in done.stdout + done.stderr and "Traceback" not in done.stdout + done.stderr
    time.sleep(2.5)
    assert late(hasty, "--latency-wait", "60").returncode == 0
    assert (hasty.folder / asked).read_bytes() == (patient.folder / asked).read_bytes()
