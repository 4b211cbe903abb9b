"""The whole workflow at the tiny scale on real images, in a path with spaces."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from markupsafe import escape

from sabr.data.batches import evaluation_images
from sabr.data.datasets import load
from sabr.methods import METHODS as OBJECTIVES
from sabr.networks import checkpoints
from sabr.settings import DATASETS
from sabr.studies import COLUMNS

pytestmark = pytest.mark.workflow

ROOT = Path(__file__).resolve().parents[2]
MNIST = DATASETS["mnist"]
METHODS = (*OBJECTIVES, "sabr-lambda-0.1", "sabr-shrinking", "sabr-wide")
ROWS = [f"mnist/eps-0.1/{method}/seed-1" for method in METHODS]


@pytest.fixture(scope="module")
def finished(make_workflow):
    workflow = make_workflow("a folder with spaces")
    done = workflow.run("--cores", "2")
    assert done.returncode == 0, done.stderr[-5000:]
    return workflow


def test_everything_asked_for_is_there(finished):
    for row in ROWS:
        names = {path.name for path in (finished.results / row).iterdir()}
        assert {"run.json", "model.pt", "model.json", "history.csv", "attack.csv", "verdicts.csv"} <= names
        assert not list((finished.results / row).rglob("*.journal"))
    for name in (
        *("accuracies", "training-curves", "lambda-sweep", "cascade", "time-limit"),
        *("box-growth", "small-box", "box-vs-relaxation"),
        *("loss-lambda", "relu-inputs", "box-sizes", "eps-curve"),
    ):
        for suffix, start in (("pdf", b"%PDF"), ("png", b"\x89PNG")):
            assert (finished.results / "figures" / f"{name}.{suffix}").read_bytes().startswith(start)
    for suffix in ("csv", "md", "tex", "html"):
        text = (finished.results / "tables" / f"table1.{suffix}").read_text()
        assert "tiny scale" in text and "SABR" in text or suffix == "csv"
        assert "published" in text
    assert not list(finished.folder.rglob("*.tmp"))


def test_an_unfinished_run_has_its_outline_without_which_it_cannot_be_kept(finished):
    outlined = (finished.results / "outline.json").stat().st_mtime
    assert outlined < min(path.stat().st_mtime for path in finished.results.rglob("model.json"))


def test_verdicts_add_up(finished):
    records = pd.read_csv(finished.results / "records.csv").set_index("method")
    stages = pd.read_csv(finished.results / "stages.csv").set_index(["method", "stage"])
    limits = pd.read_csv(finished.results / "limits.csv")
    assert len(records) == len(ROWS)
    for row in ROWS:
        verdicts = pd.read_csv(finished.results / row / "verdicts.csv", keep_default_na=False)
        assert verdicts["index"].tolist() == list(range(24))
        method = row.split("/")[2]
        recorded = records.loc[method]
        assert recorded["natural"] == verdicts["natural_correct"].sum()
        assert recorded["adversarial"] == verdicts["adversarial_correct"].sum()
        assert recorded["certified"] == verdicts["certified"].sum()
        assert recorded["natural"] == recorded[["certified", "refuted", "unknown"]].sum()
        # What the stages said of themselves is what the verdicts say.
        own = stages.loc[method]
        sidecar = json.loads((finished.results / row / "verdicts.json").read_text())
        for stage, counted in sidecar["stages"].items():
            for name in ("entered", "certified", "refuted"):
                assert own.loc[stage, name] == counted[name], (row, stage, name)
        longest = limits[limits["method"] == method].iloc[-1]
        assert longest["limit"] == sidecar["certification"]["complete"]["seconds"]
        assert (longest["certified"], longest["undecided"]) == (recorded["certified"], recorded["unknown"])


def test_studies_are_gathered(finished):
    for study, columns in COLUMNS.items():
        table = pd.read_csv(finished.results / "studies" / f"{study}.csv")
        assert list(table.columns) == ["dataset", "eps", "method", "seed", *columns]
        for method in table["method"].unique():
            own = pd.read_csv(finished.results / f"mnist/eps-0.1/{method}/seed-1/studies/{study}.csv")
            pd.testing.assert_frame_equal(
                table[table["method"] == method][list(columns)].reset_index(drop=True), own, check_dtype=False
            )


def test_every_refutation_has_its_counterexample(finished):
    refuted = 0
    for row in ROWS:
        folder = finished.results / row
        verdicts = pd.read_csv(folder / "verdicts.csv", keep_default_na=False).set_index("index")
        found = {}
        for path in (folder / "attack.pt", *sorted((folder / "shards").glob("*.pt"))):
            stored = torch.load(path, weights_only=True)
            found |= dict(zip(stored["index"].tolist(), stored["points"], strict=True))
        assert found.keys() == set(verdicts.index[verdicts["refuted_by"] != ""])
        if not found:
            continue
        refuted += len(found)
        network, _ = checkpoints.load(folder / "model.pt")
        places = sorted(found)
        points = torch.stack([found[place] for place in places])
        images, labels = evaluation_images(load(MNIST, finished.data, "test"), MNIST, slice(0, 24))
        assert points.dtype == torch.float64 and 0 <= points.min() and points.max() <= 1
        assert (points - images[places].double()).abs().max() <= 0.1 + 1e-7  # eps, and a pixel's own rounding
        with torch.no_grad():
            assert (network.double().eval()(points).argmax(1) != labels[places]).all()
    assert refuted > len(ROWS)


def test_a_second_run_finds_nothing_to_do(finished):
    done = finished.run("--cores", "2")
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_changed_hyper_parameter_reruns_what_depends_on_it_and_nothing_else(finished):
    jobs = finished.planned(overrides={"methods": {"pgd": {"l1": 2e-5}}})
    again = ("outline", "records", "table", "figure", "claims", "page")
    assert all(jobs.pop(rule) for rule in again) and "all" in jobs
    jobs.pop("all")
    assert len(jobs.pop("gather")) == len(COLUMNS)
    assert jobs.keys() == {"training_spec", "train", "attack", "certify", "merge", "study_network"}
    assert all("/pgd/" in output for outputs in jobs.values() for output in outputs)
    assert len(jobs["train"]) == 1


def test_another_attack_certifies_again_but_trains_nothing(finished):
    steps = [{"count": 6, "size": 0.25}]
    rounds = [{"loss": "margin", "starts": 1, "steps": steps}]
    jobs = finished.planned(overrides={"certification": {"attack": rounds}})
    assert "train" not in jobs and "training_spec" not in jobs
    assert len(jobs["attack"]) == len(ROWS) and len(jobs["certify"]) == 2 * len(ROWS)


def test_other_bounds_certify_again_but_attack_nothing(finished):
    jobs = finished.planned(overrides={"certification": {"alpha": {"iterations": 4, "learning_rate": 0.1}}})
    assert not {"train", "attack"} & jobs.keys()
    assert len(jobs["certify"]) == 2 * len(ROWS)


def test_without_a_complete_verifier_there_is_no_figure_of_its_time_limit(finished):
    jobs = finished.planned(overrides={"certification": {"stages": ["interval", "crown", "attack"]}})
    assert any("cascade" in output for output in jobs["figure"])
    assert not any("time-limit" in output for output in jobs["figure"])


def test_results_of_another_configuration_are_refused(make_workflow, finished):
    workflow = make_workflow("copied")
    shutil.copytree(finished.results, workflow.results)
    assert workflow.run("--dry-run").returncode == 0
    done = workflow.run("--cores", "1", overrides={"methods": {"pgd": {"l1": 2e-5}}})
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert "pgd/seed-1/run.json belongs to another configuration: method.l1 (2e-05 here, 1e-05 there)" in told
    assert "Traceback" not in told


def test_a_single_figure_by_its_file_name_trains_nothing_it_does_not_need(make_workflow):
    fresh = make_workflow("fresh")
    jobs = fresh.planned("results/tiny/figures/box-growth.pdf")
    assert jobs.keys() == {"study", "figure"}


@pytest.mark.parametrize("target", ["tables", "figures", "models"])
def test_named_targets(finished, target):
    jobs = finished.planned(target)
    assert jobs == {}


@pytest.mark.parametrize("drawing", ["--dag", "--rulegraph"])
def test_graphs(finished, drawing):
    done = finished.run(drawing)
    assert done.returncode == 0
    assert done.stdout.lstrip().startswith("digraph snakemake_dag")


def test_lint_is_clean(finished):
    done = finished.run("--lint")
    assert done.returncode == 0
    assert "Congratulations" in done.stdout + done.stderr


def test_every_rule_states_what_it_needs():
    heavy = []
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for block in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            rule = block.split(":")[0]
            for needed in ("log:", "benchmark:", "threads:", "mem_mb=", "runtime=", "gpu=", "conda:", "shell:"):
                assert needed in block, (path.name, rule, needed)
            asked = ("threads: JOB.threads", "JOB.memory_mb", "JOB.minutes", "gpu=JOB.gpus")
            if any(need in block for need in asked):
                heavy.append(rule)
                assert all(need in block for need in (*asked, "--threads {threads}")), rule
            else:
                assert "threads: 1\n" in block and "gpu=0," in block, rule
    # Whatever works on a network asks for what `run.job` says, all else for one thread and no GPU.
    assert sorted(heavy) == ["attack", "certify", "study_network", "train"]


def test_the_report_is_one_page_that_loads_nothing(finished):
    # Claims are set with no-break spaces around their equals signs.
    page = (finished.results / "report.html").read_text().replace("\u00a0", " ")
    assert not re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=[\"']https?://", page)
    # Every table and figure that was made is shown.
    for kind, suffix in (("tables", "html"), ("figures", "png")):
        for file in (finished.results / kind).glob(f"*.{suffix}"):
            assert f'<figure id="{file.stem}"' in page
    verdicts = json.loads((finished.results / "claims.json").read_text())
    assert sum(verdicts["counts"].values()) == len(verdicts["claims"]) >= 20
    assert all(str(escape(claim["text"])) in page for claim in verdicts["claims"])


def test_unknown_targets_and_mistakes_are_told(finished):
    unknown = finished.run("--cores", "1", "results/tiny/figures/nothing.pdf")
    assert unknown.returncode == 1
    assert "nothing.pdf" in unknown.stderr and "Traceback" not in unknown.stderr
    wrong = finished.run("--dry-run", overrides={"training": {"eps": 8}})
    assert wrong.returncode == 1
    told = wrong.stdout + wrong.stderr  # a dry run tells on standard output
    assert "config/config.yaml, or what is laid over it: overrides: training.eps: 8 is not in (0, 1]" in told
    assert "Traceback" not in told
    foreign = finished.run("--dry-run", "results/tiny/mnist/eps-0.3/sabr/seed-1/model.pt")
    assert foreign.returncode == 1
    assert "mnist/eps-0.3/sabr/seed-1 is not part of this configuration" in foreign.stderr + foreign.stdout


def test_the_configured_mirror_is_asked_first_whatever_its_name(make_workflow, tmp_path, monkeypatch):
    dead = "http://127.0.0.1:9"
    for name in ("PIP_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, dead)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("SABR_MIRROR", raising=False)
    workflow = make_workflow("mirrored")
    mirror = tmp_path / "it's a mirror; touch x"
    mirror.mkdir()
    (mirror / "train-images-idx3-ubyte").write_bytes(b"not MNIST")
    places = {"folder": str(tmp_path / "data"), "mirror": str(mirror)}
    done = workflow.run("--cores", "1", str(tmp_path / "data" / "mnist" / "source.json"), data=places)
    assert done.returncode == 1
    told = done.stdout + done.stderr
    assert f"mirror {mirror}: train-images-idx3-ubyte is truncated, corrupted or a different file" in told
    assert "SABR_MIRROR" in told
    assert not (workflow.folder / "x").exists()


def test_training_that_is_told_to_stop_is_continued_by_a_retry(make_workflow, finished):
    workflow = make_workflow("stopped")
    row = workflow.results / ROWS[3]
    longer = {"training": {"epochs": 30, "ramp_end": 3, "learning_rate_drops": [30]}}
    arguments = ("--cores", "1", "--retries", "1", f"results/tiny/{ROWS[3]}/model.pt")
    process = subprocess.Popen(
        [str(part) for part in workflow.command(*arguments, overrides=longer)],
        cwd=workflow.folder,
        env=workflow.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (row / "model.resume.pt").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    jobs = psutil.Process(process.pid).children(recursive=True)
    training = [job for job in jobs if "train" in job.cmdline() and Path(job.cmdline()[0]).name.startswith("python")]
    for job in training:
        job.terminate()
    said, _ = process.communicate()
    assert len(training) == 1
    assert process.returncode == 0, said[-3000:]
    assert "non-zero exit status 75" in said
    assert len(json.loads((row / "model.json").read_text())["resumed"]) == 1


def test_a_half_written_checkpoint_stops_with_a_clear_word(make_workflow, finished):
    workflow = make_workflow("damaged")
    shutil.copytree(finished.results, workflow.results)
    model = workflow.results / ROWS[2] / "model.pt"
    model.write_bytes(model.read_bytes()[:1000])
    (model.parent / "attack.csv").unlink()
    done = workflow.run("--cores", "1", f"results/tiny/{ROWS[2]}/attack.csv")
    assert done.returncode == 1
    assert "model.pt is damaged or does not belong to model.json; train it again" in done.stdout + done.stderr
    assert not (model.parent / "attack.csv").exists()
