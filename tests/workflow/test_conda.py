"""`--use-conda`: the same commands, in the environments that the rules name."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conda_stand_in import ACTIVATE, CACHE, CHANNEL, HOME, MAKE_CHANNEL

pytestmark = pytest.mark.workflow

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).with_name("conda_stand_in.py")
JOB = {"threads": 1, "gpus": 0, "memory_mb": 2000, "minutes": 10, "save_minutes": 1}
FIGURE = "results/tiny/figures/box-growth.pdf"
needs_rattler = pytest.mark.skipif(
    importlib.util.find_spec("rattler") is None, reason="py-rattler, which stands in for conda, is not installed"
)


@pytest.fixture
def conda(tmp_path, monkeypatch):
    """A command `conda` on the path; gives a function that makes its channel from the packages it is to have."""
    (tmp_path / "conda" / "bin").mkdir(parents=True)
    (tmp_path / "conda" / "bin" / "activate").write_text(ACTIVATE)
    command = tmp_path / "conda" / "bin" / "conda"
    command.write_text(f'#!/bin/bash\nexec "{sys.executable}" "{STAND_IN}" "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.setenv(HOME, str(tmp_path / "conda"))
    monkeypatch.setenv(CHANNEL, str(tmp_path / "channel"))
    monkeypatch.setenv(CACHE, str(tmp_path / "packages"))
    monkeypatch.setenv("SABR_TEST_PYTHON", sys.executable)

    def channel(packages):
        shutil.rmtree(tmp_path / "channel", ignore_errors=True)
        subprocess.run([sys.executable, STAND_IN, MAKE_CHANNEL, tmp_path / "channel", json.dumps(packages)], check=True)

    return channel


def asked(environment):
    """The conda packages of an environment file, by name."""
    dependencies = yaml.safe_load((ROOT / "envs" / f"{environment}.yaml").read_text())["dependencies"]
    named = [one.partition("=") for one in dependencies if isinstance(one, str)]
    return {name: version or "1.0" for name, _, version in named}


def commands(done):
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    return sorted(line.partition(": ")[2] for line in lines if line.startswith("Shell command: "))


def test_with_conda_and_without_it_the_commands_are_the_same(make_workflow, conda):
    plain, new, old = (
        commands(make_workflow(name).run("--dry-run", "--printshellcmds", *options))
        for name, options in (
            ("without", []),
            ("with", ["--software-deployment-method", "conda"]),
            ("with it as it was called", ["--use-conda"]),
        )
    )
    assert len(plain) > 50
    assert plain == new == old


@pytest.mark.parametrize("gpus, computing", [(0, "run.yaml"), (1, "gpu.yaml")])
def test_jobs_that_ask_for_a_gpu_get_the_environment_for_it(make_workflow, conda, gpus, computing):
    overrides = {"run": {"job": JOB | {"gpus": gpus}}}
    done = make_workflow(f"{gpus} GPUs").run("--list-conda-envs", "--use-conda", overrides=overrides)
    listed = {line.split("\t")[0].rpartition("/")[2] for line in done.stdout.splitlines() if ".yaml" in line}
    assert listed == {computing, "report.yaml"}, done.stdout + done.stderr


@needs_rattler
@pytest.mark.parametrize("gpus, computing", [(0, "run"), (1, "gpu")])
def test_jobs_run_in_the_environments_that_their_rules_name(make_workflow, conda, gpus, computing):
    conda(asked(computing) | asked("report"))
    workflow = make_workflow(f"conda-{computing}")
    job = {"overrides": {"run": {"job": JOB | {"gpus": gpus}}}}
    done = workflow.run("--cores", "1", "--use-conda", "--", FIGURE, **job)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (workflow.folder / FIGURE).read_bytes().startswith(b"%PDF")

    made = {}
    for file in (workflow.folder / ".snakemake" / "conda").glob("*.yaml"):
        (environment,) = (one.stem for one in (ROOT / "envs").glob("*.yaml") if one.read_text() == file.read_text())
        made[environment] = file.with_suffix("")
    assert made.keys() == {computing, "report"}
    for environment, prefix in made.items():
        installed = {path.name for path in (prefix / "conda-meta").glob("*.json")}
        assert installed == {f"{name}-{version}-0.json" for name, version in asked(environment).items()}
    assert (made[computing] / "sabr.log").read_text().split() == ["study"]
    assert (made["report"] / "sabr.log").read_text().split() == ["figure"]
    library = f"install --no-deps --require-hashes --requirement {ROOT}/requirements-nodeps.lock"
    editable = f"install --no-deps --no-build-isolation --editable {ROOT}"
    assert (made[computing] / "pip.log").read_text().splitlines()[1:] == [library, editable]
    assert (made["report"] / "pip.log").read_text().splitlines()[1:] == [editable]

    for option in (["--software-deployment-method", "conda"], ["--use-conda"], []):
        again = workflow.run("--cores", "1", *option, "--", FIGURE, **job)
        assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr


@needs_rattler
def test_a_version_that_no_channel_has_is_told_by_name(make_workflow, conda):
    conda(asked("run") | asked("report") | {"pandas": "0.1"})
    done = make_workflow("unsolvable").run("--cores", "1", "--use-conda", FIGURE)
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "Could not create conda environment" in told and "pandas" in told
