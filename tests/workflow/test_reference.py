"""A finished run is kept; tables and figures are made of it again, without training, without data."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sabr import reference
from sabr.errors import SabrError
from sabr.files import checksum

pytestmark = pytest.mark.workflow

METHODS = ("ibp", "sabr")
ROWS = [f"mnist/eps-0.1/{method}/seed-1" for method in METHODS]
TARGETS = (
    "tables/table1.csv",
    "studies/relu-states.csv",
    "figures/accuracies.png",
    "figures/training-curves.pdf",
    "figures/examples.png",
)
SMALL = {"run": {"methods": list(METHODS), "lambda_sweep": None, "comparisons": {}}, "certification": {"images": 12}}
HEAVY = {"data", "train", "attack", "certify", "study_network", "examples"}


@pytest.fixture(scope="module")
def finished(make_workflow):
    workflow = make_workflow("a finished run")
    done = workflow.run("--cores", "2", "--", *(f"results/tiny/{name}" for name in TARGETS), overrides=SMALL)
    assert done.returncode == 0, done.stderr[-5000:]
    return workflow


@pytest.fixture
def again(make_workflow, finished, request):
    """A folder with nothing but the kept run, and no data."""
    workflow = make_workflow(request.node.name.replace("/", "-"))
    workflow.data = workflow.folder / "no data"
    workflow.kept = workflow.folder / "results" / "reference"
    reference.keep(finished.results, workflow.kept, 40)
    workflow.results = workflow.folder / "results" / "from-reference"
    return workflow


def taken(workflow, *arguments, **changes):
    return workflow.run("--cores", "2", *arguments, checkpoints="reference", scale="quick", **changes)


def planned(workflow, *arguments, **changes):
    return workflow.planned(*arguments, checkpoints="reference", scale="quick", **changes)


def told(done):
    text = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in text, text
    return text


def test_everything_is_made_again_without_training_and_without_data(again, finished):
    # What was studied is taken, with the figures of it; nothing else of a network is made.
    made = [f"results/from-reference/{name}" for name in (*TARGETS, "pairs.csv")]
    assert not HEAVY & planned(again, "--", *made).keys()
    done = taken(again, "--", *made)
    assert done.returncode == 0, done.stderr[-5000:]
    for name in ("records.csv", "histories.csv", "limits.csv", "pairs.csv", "studies/examples.npz", *TARGETS):
        assert (again.results / name).read_bytes() == (finished.results / name).read_bytes(), name
    for row in ROWS:
        assert not (again.results / row / "model.pt").exists()
        verdicts = again.results / row / "verdicts.csv"
        assert checksum(verdicts) == json.loads(verdicts.with_suffix(".json").read_text())["sha256"]
    assert planned(again, "--", *made) == {}


@pytest.mark.parametrize("partial", [False, True])
def test_lint_is_clean(again, partial):
    done = taken(again, "--lint", partial=partial)
    assert done.returncode == 0 and "Congratulations" in done.stdout + done.stderr, done.stderr[-3000:]


def test_a_single_figure(again):
    jobs = planned(again, "results/from-reference/figures/accuracies.pdf")
    assert jobs.keys() == {"training_spec", "take_results", "records", "figure"}


def test_weights_are_taken_where_they_are_asked_for(again):
    done = taken(again, "models")
    assert done.returncode == 0, done.stderr[-3000:]
    for row in ROWS:
        assert (again.results / row / "model.pt").read_bytes() == (again.kept / row / "model.pt").read_bytes()
    (again.kept / ROWS[0] / "model.pt").write_bytes(b"other")
    (again.results / ROWS[0] / "model.pt").unlink()
    assert "model.pt is damaged or does not belong to model.json" in told(taken(again, "models"))
    (again.kept / ROWS[0] / "model.pt").unlink()
    text = told(taken(again, "--", f"results/from-reference/{ROWS[0]}/model.pt"))
    assert "Missing input files for rule take_weights" in text
    assert f"results/reference/{ROWS[0]}/model.pt" in text
    # All models are those whose weights are there.
    (again.results / ROWS[1] / "model.pt").unlink()
    assert planned(again, "models")["take_weights"] == [f"results/from-reference/{ROWS[1]}/model.pt"]


def test_a_missing_network_is_named_and_never_trained(again):
    shutil.rmtree(again.kept / ROWS[0])
    text = told(taken(again, "tables"))
    assert f"results/reference/{ROWS[0]}/model.pt is not there, and with `checkpoints` nothing is trained" in text
    assert not (again.results / ROWS[0] / "model.pt").exists()


def test_what_there_is_makes_tables_and_figures_that_name_what_is_missing(again):
    shutil.rmtree(again.kept / ROWS[0])
    targets = [f"results/from-reference/{name}" for name in (*TARGETS, "tables/table1.md")]
    jobs = planned(again, "--", *targets, partial=True)
    assert not HEAVY & jobs.keys() and not any(ROWS[0] in output for outputs in jobs.values() for output in outputs)
    done = taken(again, "--", *targets, partial=True)
    assert done.returncode == 0, done.stderr[-5000:]
    assert pd.read_csv(again.results / "records.csv")["method"].tolist() == ["sabr"]
    table = (again.results / "tables" / "table1.md").read_text()
    assert "IBP" in table and "missing" in table.lower(), table
    for path in again.kept.glob("mnist/*/*/*/verdicts.json"):
        path.unlink()
    text = told(taken(again, "tables", partial=True))
    assert "nothing to show in part: results/reference has no network of this configuration with verdicts yet" in text


def test_a_network_without_weights_is_left_out_of_studies_that_it_has_not(again):
    (again.kept / ROWS[0] / "model.pt").unlink()
    shutil.rmtree(again.kept / ROWS[0] / "studies")
    study = "results/from-reference/studies/relu-states.csv"
    assert f"results/reference/{ROWS[0]}/model.pt" in told(taken(again, study))
    jobs = planned(again, study, partial=True)
    assert jobs["gather"] == [study] and [ROWS[1] in output for output in jobs["take_study"]] == [True]
    assert not {"study_network", "take_weights"} & jobs.keys()


def test_what_a_run_has_so_far_makes_tables_and_figures_and_trains_nothing(make_workflow, finished):
    workflow = make_workflow("so far")
    shutil.copytree(finished.folder, workflow.folder, dirs_exist_ok=True)
    (workflow.results / ROWS[0] / "verdicts.json").unlink()
    tables = [f"tables/{name}.md" for name in ("table1", "table4", "times", "protocol")]
    targets = [f"results/tiny/{name}" for name in (*tables, "figures/accuracies.png")]
    arguments = ("--config", "partial=true", "--", *targets)
    assert not HEAVY & workflow.planned(*arguments, overrides=SMALL).keys()
    done = workflow.run("--cores", "2", *arguments, overrides=SMALL)
    assert done.returncode == 0, done.stderr[-5000:]
    assert pd.read_csv(workflow.results / "records.csv")["method"].tolist() == ["sabr"]
    for name in tables:
        assert re.search(r"Missing in MNIST.*: IBP \(seed 1\)", (workflow.results / name).read_text()), name
    # Without the key, the rest is made, and tables and figures again.
    jobs = workflow.planned("--", *targets, overrides=SMALL)
    assert jobs["merge"] == [f"results/tiny/{ROWS[0]}/verdicts.csv"] and "records" in jobs
    assert not {"train", "attack", "certify"} & jobs.keys()


@pytest.mark.parametrize(
    ("run", "absent", "there"),
    [
        ({}, {"table2", "seeds"}, {"table1", "times", "protocol", "accuracies", "pareto"}),
        (
            {
                "methods": ["pgd"],
                "comparisons": {"shrinking": {"setting": "mnist-eps-0.1", "methods": ["ibp", "sabr"]}},
                "lambda_sweep": {"setting": "mnist-eps-0.1", "method": "sabr", "values": [0.1, 0.2]},
            },
            {"table1", "table2", "table3", "seeds", "accuracies", "training-curves", "lambda-sweep", "examples"},
            {"shrinking", "times", "protocol", "box-growth"},
        ),
    ],
)
def test_what_would_be_empty_is_not_asked_for(make_workflow, finished, request, run, absent, there):
    workflow = make_workflow(request.node.name)
    shutil.copytree(finished.results, workflow.results, ignore=shutil.ignore_patterns("tables", "figures"))
    (workflow.results / ROWS[1] / "verdicts.json").unlink()
    overrides = SMALL | {"run": SMALL["run"] | run}
    jobs = workflow.planned("tables", "figures", partial=True, overrides=overrides)
    names = {Path(output).stem for rule in ("table", "figure") for output in jobs[rule]}
    assert there <= names and not absent & names


@pytest.mark.parametrize("changed", [{"training": {"epochs": 4, "ramp_end": 3}}, {"certification": {"images": 10}}])
def test_results_of_another_configuration_do_not_count(finished, changed):
    text = told(finished.run("--dry-run", "tables", partial=True, overrides=SMALL | changed))
    assert "nothing to show in part: results/tiny has no network of this configuration with verdicts yet" in text


def test_an_unfinished_run_is_kept_in_part(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished.results, run)
    shutil.rmtree(run / ROWS[0])
    with pytest.raises(SabrError, match="finish this run before you keep it, or keep what there is with --partial"):
        reference.keep(run, tmp_path / "kept", 40)
    assert reference.keep(run, tmp_path / "kept", 40, partial=True).rows == 1
    assert "1 of 2 planned networks" in (tmp_path / "kept" / "README.md").read_text()
    assert {row["method"] for row in json.loads((tmp_path / "kept" / "outline.json").read_text())["rows"]} == {
        "ibp",
        "sabr",
    }
    assert not (tmp_path / "kept" / ROWS[0]).exists() and (tmp_path / "kept" / ROWS[1] / "verdicts.json").is_file()


def test_a_checkpoint_of_others_is_attacked_and_certified(again, finished):
    again.data = finished.data
    folder = again.kept / ROWS[0]
    kept = json.loads((folder / "model.json").read_text())
    for path in [*folder.glob("attack.*"), *folder.glob("verdicts.*"), folder / "history.csv", folder / "run.json"]:
        path.unlink()
    shutil.rmtree(folder / "studies")
    # What `sabr import` writes.
    imported = {key: kept[key] for key in ("architecture", "dataset", "sha256")} | {"imported": {"file": "theirs.pth"}}
    (folder / "model.json").write_text(json.dumps(imported))
    jobs = planned(again, "results/from-reference/tables/table1.csv")
    assert "train" not in jobs and "study_network" not in jobs
    assert all(ROWS[0] in output for rule in ("attack", "certify", "merge") for output in jobs[rule])
    done = taken(again, "results/from-reference/tables/table1.csv")
    assert done.returncode == 0, done.stderr[-5000:]
    records = pd.read_csv(again.results / "records.csv").set_index("method")
    before = pd.read_csv(finished.results / "records.csv").set_index("method")
    assert records.loc["ibp", "natural"] == before.loc["ibp", "natural"]
    assert pd.isna(records.loc["ibp", "train_seconds"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "cnn7"}, "this checkpoint is a cnn7 for mnist, but"),
        ({"dataset": "cifar10"}, "this checkpoint is a cnn-tiny for cifar10, but"),
    ],
)
def test_another_dataset_or_architecture_is_refused_with_both_named(again, changes, said, tmp_path):
    path = again.kept / ROWS[1] / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(SabrError) as error:
        reference.take(path.parent, path.with_name("run.json"), [tmp_path / "model.json"])
    assert said in str(error.value) and "asks for a cnn-tiny for mnist" in str(error.value)


def test_another_training_is_refused(again, tmp_path):
    path = again.kept / ROWS[1] / "model.json"
    content = json.loads(path.read_text())
    content["spec"]["epochs"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(SabrError, match=r"trained otherwise than .*run.json asks for: epochs \(3 here, 7 there\)"):
        reference.take(path.parent, path.with_name("run.json"), [tmp_path / "model.json"])


def test_other_overrides_and_folders_are_refused(again):
    assert "was made with other overrides: " in told(taken(again, overrides={"training": {"epochs": 5}}))
    done = again.run("--dry-run", checkpoints="nothing")
    assert "checkpoints: 'nothing' is no folder in" in told(done)


def test_weights_that_do_not_fit_stay_behind(finished, tmp_path):
    everything = reference.keep(finished.results, tmp_path / "all", 40)
    weights = (finished.results / ROWS[0] / "model.pt").stat().st_size
    assert (everything.rows, everything.without_weights) == (2, [])
    limit = (everything.size - weights) / 1e6
    fewer = reference.keep(finished.results, tmp_path / "fewer", limit)
    assert len(fewer.without_weights) == 1 and fewer.size <= limit * 1e6
    assert not (tmp_path / "fewer" / fewer.without_weights[0] / "model.pt").exists()
    assert (tmp_path / "fewer" / fewer.without_weights[0] / "verdicts.json").exists()
    with pytest.raises(SabrError, match="even without weights there are .* MB, but only 0.1 are allowed"):
        reference.keep(finished.results, tmp_path / "none", 0.1)
    assert not (tmp_path / "none").exists()
    # A kept run is replaced, anything else is not.
    reference.keep(finished.results, tmp_path / "fewer", 40)
    (tmp_path / "other").mkdir()
    with pytest.raises(SabrError, match="other is there, but no kept run"):
        reference.keep(finished.results, tmp_path / "other", 40)
    # Nor another run, nor itself.
    shutil.copyfile(finished.results / "outline.json", tmp_path / "other" / "outline.json")
    with pytest.raises(SabrError, match="other is there, but no kept run"):
        reference.keep(finished.results, tmp_path / "other", 40)
    for place in (finished.results, finished.results / "kept", finished.results.parent):
        with pytest.raises(SabrError, match="lie in one another"):
            reference.keep(finished.results, place, 40)
    (tmp_path / "other" / "outline.json").write_text("{}")
    with pytest.raises(SabrError, match="outline.json is no outline of a run"):
        reference.keep(tmp_path / "other", tmp_path / "none", 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "fewer", "other"]


def test_kept_twice_gives_the_same_bytes(finished, tmp_path):
    for name in ("one", "two"):
        reference.keep(finished.results, tmp_path / name, 40)
    one, two = (
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*") if p.is_file()}
        for name in ("one", "two")
    )
    assert one == two


def test_an_unfinished_run_is_not_kept(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished.results, copy)
    (copy / ROWS[0] / "verdicts.json").unlink()
    with pytest.raises(SabrError, match="ibp/seed-1/verdicts.json is not there: finish this run before you keep it"):
        reference.keep(copy, tmp_path / "kept", 40)
    assert not (tmp_path / "kept").exists()


def test_a_run_drawn_from_a_kept_one_is_kept_without_the_weights_that_it_lacks(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished.results, run)
    (run / ROWS[0] / "model.pt").unlink()
    assert reference.keep(run, tmp_path / "kept", 40).without_weights == [ROWS[0]]
    assert not (tmp_path / "kept" / ROWS[0] / "model.pt").exists()
    assert (tmp_path / "kept" / ROWS[0] / "verdicts.json").is_file()
    assert (tmp_path / "kept" / ROWS[1] / "model.pt").is_file()


def test_the_configuration_is_that_of_the_kept_run(finished, tmp_path):
    config = {"scale": "quick", "results": str(tmp_path), "checkpoints": "kept", "data": {}, "overrides": {}}
    reference.keep(finished.results, tmp_path / "kept", 40)
    found = reference.configuration(config)
    assert (found["scale"], found["overrides"]) == ("tiny", yaml.safe_load(json.dumps(SMALL)))
    assert reference.configuration(config | {"checkpoints": None}) == config | {"checkpoints": None}
