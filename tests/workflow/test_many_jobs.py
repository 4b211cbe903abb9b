"""Thousands of jobs: how long it takes to plan them, what each costs beside its work, and what they share of a machine."""

import re
import resource
import subprocess
import time
from contextlib import contextmanager

import psutil
import pytest

from sabr.methods import METHODS

pytestmark = pytest.mark.workflow

SECONDS = {"without torch": 3, "with torch": 8}
# Each with an input that is not there, which is noticed after everything is imported.
COMMANDS = {
    "without torch": [
        ("spec", "training", "{}", "--output", "out.json"),
        ("merge", "missing.csv", "--output", "out.csv"),
    ],
    "with torch": [
        ("train", "missing.json", "--output", "out.pt", "--history", "out.csv"),
        ("attack", "missing.pt", "--spec", "missing.json", "--output", "out.csv"),
        (
            *("certify", "missing.pt", "--spec", "missing.json", "--attack", "missing.csv", "--output", "out.csv"),
            *("--first", "0", "--last", "1"),
        ),
    ],
}

# What compute with threads of their own.
LIBRARIES = ("OMP", "MKL", "OPENBLAS")


@contextmanager
def processor_time():
    """Give a list that afterwards has the seconds of a processor that programs took meanwhile, waiting left out."""
    took = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield took
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def test_a_plan_of_thousands_of_jobs_is_made_in_seconds(make_workflow):
    workflow = make_workflow("paper")
    run = {"methods": list(METHODS), "seeds": [1, 2, 3]}
    with processor_time() as seconds:
        done = workflow.run("--dry-run", scale="paper", overrides={"run": run})
    assert done.returncode == 0, done.stderr
    jobs = int(re.search(r"^total +(\d+)", done.stdout + done.stderr, re.MULTILINE)[1])
    assert jobs > 2000
    assert seconds[0] < 20


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(kind, arguments) for kind, several in COMMANDS.items() for arguments in several],
    ids=lambda value: value[0] if isinstance(value, tuple) else value.replace(" ", "-"),
)
def test_a_job_starts_in_seconds(sabr_command, tmp_path, kind, arguments):
    with processor_time() as seconds:
        done = sabr_command(*arguments, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert seconds[0] < SECONDS[kind]


def trainings(workflow):
    """The processes that train networks of a workflow just now."""
    found = []
    for process in psutil.process_iter(["pid", "ppid", "cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        if words[2:3] == ["train"] and words[1].endswith("/sabr") and process.info["cwd"] == str(workflow.folder):
            found.append(process)
    # A process that one of them starts looks like it for a moment.
    pids = {process.info["pid"] for process in found}
    return [process for process in found if process.info["ppid"] not in pids]


@pytest.mark.parametrize(("limits", "expected"), [((), 1), (("--resources", "gpu=2"), 2)])
def test_on_one_machine_jobs_share_its_gpus_and_have_the_threads_they_asked_for(make_workflow, limits, expected):
    workflow = make_workflow(f"{expected} at a time")
    job = {"threads": 1, "gpus": 1, "memory_mb": 1500, "minutes": 5, "save_minutes": 1}
    alone = {"ablation": None, "shrinking": None, "widths": None, "long": []}
    run = {"methods": ["standard", "ibp"], "lambda_sweep": None, "comparisons": alone, "job": job}
    process = subprocess.Popen(
        [str(part) for part in workflow.command("--cores", "4", *limits, "--", "models", overrides={"run": run})],
        cwd=workflow.folder,
        env=workflow.environment() | {f"{library}_NUM_THREADS": "7" for library in LIBRARIES},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    most, threads = 0, set()
    while process.poll() is None:
        running = trainings(workflow)
        most = max(most, len(running))
        for one in running:
            try:
                environment = one.environ()
            except psutil.Error:
                continue  # it has just ended
            threads |= {environment[f"{library}_NUM_THREADS"] for library in LIBRARIES}
        time.sleep(0.2)
    assert process.returncode == 0
    assert len(list(workflow.results.rglob("model.pt"))) == 2
    assert most == expected
    assert threads == {"1"}
