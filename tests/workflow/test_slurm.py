"""The workflow on a real Slurm: one node with 8 processors and 2 GPUs that exist by name only."""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

pytestmark = pytest.mark.workflow

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ROOT / "workflow" / "profiles"
SCRIPT = ROOT.parent / "shared" / "local_slurm.sh"
CONFIGURATION = Path("/etc/slurm/slurm.conf")
# Rules of which each job is one of Slurm's.
NETWORK = ("train", "attack", "certify", "study_network")
# What `whole` makes, and what it needs for that.
TARGETS = ("tables/table1.md", "figures/accuracies.pdf", "figures/box-growth.pdf", "studies/relu-states.csv")
ALONE = {name: None for name in ("ablation", "shrinking", "widths")} | {"long": []}
# What a site's own profile says.
SITE = {
    "default-resources": {"slurm_partition": "debug"},
    "set-resources": {rule: {"slurm_partition": "gpu"} for rule in NETWORK},
}
# Soon, instead of after 40 s.
ASKING = ("--slurm-init-seconds-before-status-checks", "1", "--max-status-checks-per-second", "10")


def profile(name):
    return yaml.safe_load((PROFILES / name / "config.yaml").read_text())


def missing():
    """Why there can be no Slurm here; None: there can."""
    programs = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if shutil.which(name) is None]
    if programs:
        return f"Slurm is not installed (no {', '.join(programs)}): apt-get install slurm-wlm munge"
    if not SCRIPT.is_file():
        return f"{SCRIPT.name}, which starts a Slurm of one node, is not beside the repository, in shared/"
    if os.geteuid() != 0:
        return "only root can start a Slurm of one node"
    if CONFIGURATION.exists() and "ClusterName=local\n" not in CONFIGURATION.read_text():
        return f"{CONFIGURATION} is there already: this machine belongs to another Slurm"
    return None


class Cluster:
    """A Slurm of our own."""

    def __init__(self, folder):
        self.folder = folder

    def call(self, action):
        environment = os.environ | {"LOCAL_SLURM_DIR": str(self.folder), "FAKE_CPUS": "8", "FAKE_GPUS": "2"}
        subprocess.run(["bash", SCRIPT, action], env=environment, check=True, stdout=subprocess.DEVNULL)

    def add_partition(self, name):
        configuration = self.folder / "slurm.conf"
        (default,) = re.findall("^PartitionName.*", configuration.read_text(), re.MULTILINE)
        added = re.sub("PartitionName=.* Default=YES", f"PartitionName={name} Nodes=ALL", default)
        configuration.write_text(f"{configuration.read_text()}{added}\n")
        subprocess.run(["scontrol", "reconfigure"], check=True)

    def daemon(self, name):
        return psutil.Process(int((self.folder / f"{name}.pid").read_text()))

    def stop_controller(self):
        controller = self.daemon("slurmctld")
        controller.terminate()
        psutil.wait_procs([controller], timeout=20)
        assert not controller.is_running()

    def jobs(self, workflow, about=""):
        """Every job of a workflow so far whose comment says so, oldest first, as `scontrol` shows it."""
        shown = subprocess.run(["scontrol", "show", "job", "--oneliner"], capture_output=True, text=True).stdout
        jobs = [dict(re.findall(r"(\w+)=(\S*)", line)) for line in shown.splitlines() if str(workflow.folder) in line]
        return sorted((job for job in jobs if about in job["Comment"]), key=lambda job: int(job["JobId"]))


def rule_of(comment):
    """The rule, or the group of rules, that a job's comment names."""
    name = comment.removeprefix("rule_").partition("_wildcards_")[0]
    return "report" if name.startswith("report_") else name


@pytest.fixture(scope="module")
def cluster():
    reason = missing()
    if reason:
        pytest.skip(reason)
    with (Path(tempfile.gettempdir()) / "local-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time on a machine
        if CONFIGURATION.exists():
            Cluster(CONFIGURATION.resolve().parent).call("stop")  # whoever had the lock before was killed
        with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
            cluster = Cluster(Path(folder))
            cluster.call("start")
            try:
                cluster.add_partition("gpu")
                yield cluster
            finally:
                subprocess.run(["scancel", "--me"])
                daemons = [cluster.daemon(name) for name in ("slurmctld", "slurmd")]
                cluster.call("stop")
                psutil.wait_procs(daemons, timeout=20)


def start(workflow, *arguments, training=None, methods, **job):
    """Start a workflow with the profile for Slurm; what it says goes to `said` in its folder."""
    asked = {"threads": 1, "gpus": 0, "memory_mb": 1500, "minutes": 5, "save_minutes": 1} | job
    run = {"methods": methods, "lambda_sweep": None, "comparisons": ALONE, "job": asked}
    site = workflow.folder / "site" / "config.yaml"
    site.parent.mkdir()
    site.write_text(yaml.safe_dump(SITE))
    command = workflow.command(
        *("--workflow-profile", PROFILES / "slurm", "--profile", site.parent, *ASKING, *arguments),
        overrides={"run": run, "training": training or {}},
    )
    environment = workflow.environment()
    environment["PATH"] = f"{PROFILES / 'slurm' / 'without-accounting'}{os.pathsep}{environment['PATH']}"
    with (workflow.folder / "said").open("w") as said:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=workflow.folder,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )


def training(workflow, method):
    """The processes that train a network of a workflow."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = process.info["cmdline"] or []
        trains = [Path(word).name for word in words[1:2]] == ["sabr"] and words[2:3] == ["train"]
        if trains and process.info["cwd"] == str(workflow.folder) and f"/{method}/" in words[3]:
            found.append(process)
    return found


def row(workflow, method):
    return workflow.results / "mnist" / "eps-0.1" / method / "seed-1"


@pytest.fixture(scope="module")
def workflows(cluster, make_workflow):
    """Three workflows at once, and what happens to them.

    `whole` runs from data to figures; Slurm's controller is away for a while in the middle. `stopped` trains two
    networks: one is cancelled, the other stands still until its time is over. `starved` has too little memory.
    """
    whole, stopped, starved = (make_workflow(f"Slurm: {name}") for name in ("whole", "stopped", "starved"))
    longer = {"epochs": 30, "ramp_end": 3, "learning_rate_drops": [30]}
    running = {
        stopped: start(stopped, "models", methods=["standard", "sabr"], training=longer),
        whole: start(whole, *(f"results/tiny/{name}" for name in TARGETS), methods=["ibp", "sabr"], gpus=1),
        starved: start(starved, "models", methods=["ibp"], memory_mb=800),
    }

    def cancel():
        if (row(stopped, "standard") / "model.resume.pt").is_file():
            subprocess.run(["scancel", cluster.jobs(stopped, "_standard_")[0]["JobId"]], check=True)
            return True

    def pause():
        if (row(stopped, "sabr") / "model.resume.pt").is_file():
            training(stopped, "sabr")[0].suspend()
            job = cluster.jobs(stopped, "_sabr_")[0]["JobId"]
            subprocess.run(["scontrol", "update", f"JobId={job}", "TimeLimit=1"], check=True)  # minutes, the least
            return True

    def restart():
        if happens == [restart] and cluster.jobs(whole, "rule_certify"):
            cluster.stop_controller()
            time.sleep(12)  # asked meanwhile, it does not answer
            subprocess.run(["slurmctld"], check=True)
            return True

    happens = [cancel, pause, restart]
    deadline = time.monotonic() + 900
    while any(process.poll() is None for process in running.values()) and time.monotonic() < deadline:
        happens = [event for event in happens if not event()]
        time.sleep(0.1)
    for process in running.values():
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # it cancels its jobs
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    return (whole, stopped, starved), running, happens


@pytest.fixture
def succeeded(workflows):
    """Say of a workflow that it must have succeeded; gives it."""

    def check(number):
        named, running, not_happened = workflows
        workflow = named[number]
        assert running[workflow].returncode == 0, (workflow.folder / "said").read_text()[-5000:]
        assert not not_happened
        return workflow

    return check


@pytest.fixture
def whole(succeeded):
    return succeeded(0)


@pytest.fixture
def stopped(succeeded):
    return succeeded(1)


@pytest.fixture
def starved(succeeded):
    return succeeded(2)


def test_the_whole_workflow_although_the_controller_is_away_for_a_while(whole):
    table = (whole.results / "tables" / "table1.md").read_text()
    assert "SABR" in table and "IBP" in table
    for method in ("ibp", "sabr"):
        verdicts = pd.read_csv(row(whole, method) / "verdicts.csv")
        assert verdicts["index"].tolist() == list(range(24))
    for target in TARGETS:
        assert (whole.results / target).is_file()


def test_networks_are_jobs_with_a_gpu_and_small_jobs_are_few(cluster, whole):
    jobs = cluster.jobs(whole)
    names = {job["Comment"] for job in jobs}
    numbers = {"train": 2, "attack": 2, "certify": 4, "study_network": 2, "report": 1}
    assert Counter(rule_of(name) for name in names) == numbers
    last = {job["Comment"]: job for job in jobs}  # what was starting just then failed, and was started again
    for job in last.values():
        assert job["JobState"] == "COMPLETED"
        small = rule_of(job["Comment"]) == "report"
        assert job.get("TresPerJob") == (None if small else "gres:gpu:1")
        assert job["Partition"] == ("debug" if small else "gpu")
        assert int(job["NumCPUs"]) <= profile("slurm")["cores"]
        assert job["TimeLimit"] != "UNLIMITED"


def test_a_cancelled_job_is_continued(cluster, stopped):
    first, *_, last = cluster.jobs(stopped, "_standard_")
    assert (first["JobState"], last["JobState"]) == ("CANCELLED", "COMPLETED")
    assert json.loads((row(stopped, "standard") / "model.json").read_text())["resumed"]
    # The log of a job that failed is kept, and names what became of it.
    (log,) = (stopped.folder / ".snakemake" / "slurm_logs" / "rule_train").rglob(f"{first['JobId']}.log")
    assert "CANCELLED" in log.read_text()


def test_a_job_whose_time_is_over_goes_on_from_its_checkpoint(cluster, stopped, sabr_command, mnist_folder, tmp_path):
    first, *_, last = cluster.jobs(stopped, "_sabr_")
    assert (first["JobState"], last["JobState"]) == ("TIMEOUT", "COMPLETED")
    assert (first["TimeLimit"], last["TimeLimit"]) == ("00:01:00", "00:05:00")  # not more than it asked for at first
    folder = row(stopped, "sabr")
    about = json.loads((folder / "model.json").read_text())
    assert 1 < about["resumed"][0]["epoch"] <= 30
    whole = tmp_path / "model.pt"
    arguments = (folder / "run.json", "--data", mnist_folder, "--output", whole, "--history", tmp_path / "history.csv")
    done = sabr_command("train", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(whole.with_suffix(".json").read_text())["sha256"] == about["sha256"]


def test_a_job_that_needs_more_memory_gets_it(cluster, starved):
    first, *_, last = cluster.jobs(starved)
    assert (first["MinMemoryNode"], last["MinMemoryNode"]) == ("800M", "1600M")
    assert first["JobState"] != "COMPLETED" and last["JobState"] == "COMPLETED"
    assert (row(starved, "ibp") / "model.pt").is_file()


def test_the_profile_says_all_that_the_default_says():
    default, ours = profile("default"), profile("slurm")
    assert default.pop("resources") == {"gpu": 1}  # the limit of one machine
    assert {key: ours.get(key) for key in default} == default
    # A site's own profile must get through.
    assert not {"default-resources", "set-resources"} & ours.keys()


def test_every_rule_has_its_place():
    """On the machine that Snakemake runs on, in the group of small jobs, or as jobs of its own."""
    files = [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]
    text = "\n".join(path.read_text() for path in files)
    rules = re.findall(r"^ *rule (\w+):", text, re.MULTILINE)
    local = re.findall(r"\w+", " ".join(re.findall(r"^ *localrules:\n((?: +\w+,\n)+)", text, re.MULTILINE)))
    assert "data" in local
    assert sorted(rules) == sorted([*local, *profile("slurm")["groups"], *NETWORK])
