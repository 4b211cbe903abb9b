"""One study of one network, from files to files."""

import json

import pandas as pd
import pytest
import torch

from sabr import cli, trained
from sabr.analysis import job
from sabr.data.datasets import Split
from sabr.errors import SabrError
from sabr.files import checksum
from sabr.layers import read_yaml
from sabr.networks import checkpoints
from sabr.plan import resolve
from sabr.specs import CertificationSpec, read_spec
from sabr.studies import COLUMNS, VALUES, StudySpec

LAMBDAS, FACTORS = (0.0, 0.5, 1.0), (0.5, 1.0)
IMAGES = 12


@pytest.fixture(scope="module")
def certification(pytestconfig):
    folder = pytestconfig.rootpath / "config"
    return resolve(read_yaml(folder / "config.yaml") | {"scale": "tiny"}, folder).main[0].certification


@pytest.fixture
def model(tmp_path, small_network, certification):
    """An untrained checkpoint with specifications beside it."""
    network, _ = small_network()
    path = tmp_path / "model.pt"
    checkpoints.save(network, path, architecture="cnn-tiny", dataset="mnist", about={})
    (tmp_path / "attack.json").write_text(certification.attack_spec.model_dump_json())
    (tmp_path / "certification.json").write_text(certification.model_dump_json())
    return path


@pytest.fixture
def sabr_here(capsys, monkeypatch, pytestconfig):
    """The command line in this process: exit code and errors."""
    monkeypatch.chdir(pytestconfig.rootpath)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["sabr", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code or 0, capsys.readouterr().err

    return run


def options(study, model, data):
    spec = "certification.json" if study == "eps-curve" else "attack.json"
    found = [study, model, "--spec", model.with_name(spec), "--data", data, f"--images={IMAGES}"]
    if VALUES.get(study) == "lambda_ratios":
        found += [f"--lambda-ratio={value}" for value in LAMBDAS]
    if VALUES.get(study) == "eps_factors":
        found += [f"--eps-factor={value}" for value in FACTORS]
    return found


@pytest.mark.parametrize("study", COLUMNS)
def test_a_study_is_made_and_again_the_same(sabr_here, model, mnist_folder, tmp_path, study):
    one, other = tmp_path / "one" / f"{study}.csv", tmp_path / "other" / f"{study}.csv"
    for path in (one, other):
        code, told = sabr_here("study", *options(study, model, mnist_folder), "-o", path)
        assert code == 0, told
    assert one.read_bytes() == other.read_bytes()
    table = pd.read_csv(one, dtype=COLUMNS[study])
    assert list(table.columns) == list(COLUMNS[study])
    assert (table["images"] == IMAGES).all() and len(table) >= 2
    assert table.drop(columns="deviation", errors="ignore").notna().all(axis=None)
    about = json.loads(one.with_suffix(".json").read_text())
    assert about["sha256"] == checksum(one)
    assert about["model_sha256"] == json.loads(model.with_suffix(".json").read_text())["sha256"]
    assert (
        about["data_sha256"] == json.loads((mnist_folder / "mnist" / "source.json").read_text())["prepared"]["test.pt"]
    )
    assert about["spec"]["eps"] == 0.1 and about["seconds"] > 0
    assert about["study"] == StudySpec.model_validate(about["study"]).model_dump(mode="json")
    assert about["study"]["study"] == study and about["study"]["images"] == IMAGES
    assert about["provenance"]["machine"]["threads"] == 1
    assert sorted(path.name for path in one.parent.iterdir()) == [f"{study}.csv", f"{study}.json"]


def told(done, *words, code=1):
    found, err = done
    assert found == code, err
    if code == 1:
        assert err.startswith("sabr: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err, err


def test_what_does_not_belong_together_is_refused(sabr_here, model, mnist_folder, tmp_path):
    out = ("-o", tmp_path / "out.csv")
    asked = options("relu-states", model, mnist_folder)
    other = json.loads(model.with_name("attack.json").read_text()) | {"dataset": "cifar10"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    spec = asked.index("--spec") + 1
    told(
        sabr_here("study", *asked[:spec], tmp_path / "other.json", *asked[spec + 1 :], *out),
        "was trained on mnist, but the specification is about cifar10",
    )
    told(
        sabr_here("study", *asked[:spec], model.with_name("certification.json"), *asked[spec + 1 :], *out),
        "certification.json: ",
        "unknown key",
    )
    wrong = options("eps-curve", model, mnist_folder)
    wrong[spec] = model.with_name("attack.json")
    told(sabr_here("study", *wrong, *out), "attack.json: ", "this key is missing")
    told(
        sabr_here("study", *asked[:-1], "--images=10001", *out), "10001 images are asked for, but mnist has 10000 test"
    )
    told(sabr_here("study", *asked[:4], "--data", tmp_path, *out), "sabr data mnist")
    told(sabr_here("study", "relu-states", tmp_path / "none.pt", *asked[2:], *out), "cannot read", "none.json")
    told(sabr_here("study", *asked, "-o", tmp_path / "out.json"), "a table needs another name, such as out.csv")
    (tmp_path / "file").write_text("")
    told(sabr_here("study", *asked, "-o", tmp_path / "file" / "out.csv"), "cannot write")
    assert not list(tmp_path.glob("out.*")) and not list(tmp_path.glob(".*"))


def test_arguments_that_do_not_fit_the_study_are_told(sabr_here, model, mnist_folder, tmp_path):
    out = ("-o", tmp_path / "out.csv")
    asked = options("loss-lambda", model, mnist_folder)
    told(sabr_here("study", "loss-lambda", *out), "the study loss-lambda is of a trained network: give a checkpoint")
    told(sabr_here("study", "small-box", model, *out), "the study small-box is of no network: leave out", "model.pt")
    told(sabr_here("study", *asked[:-3], *out), "lambda_ratios: the study loss-lambda needs some")
    told(sabr_here("study", *asked, "--eps-factor=1", "--eps-factor=2", *out), "the study loss-lambda knows none")
    told(sabr_here("study", *asked[:-2], *out), "study: lambda_ratios: ", "a list of 2 or more is needed here")
    told(sabr_here("study", *asked, "--lambda-ratio=0.7", *out), "0, 0.5, 1, 0.7 do not increase; give each value once")
    told(sabr_here("study", *asked, "--lambda-ratio=1.5", *out), "study: lambda_ratios.3: 1.5 is not allowed")
    told(sabr_here("study", "lost-lambda", *asked[1:], *out), "lost-lambda", code=2)
    told(sabr_here("study", *asked, "--images=0", *out), "--images", code=2)
    assert not list(tmp_path.glob("out.*"))


def test_no_more_images_than_were_held_out(certification, model, mnist_folder, tmp_path):
    own = certification.model_copy(update={"validation_images": 10, "images": 8})
    asked = StudySpec(study="relu-inputs", images=11, memory_mb=10)

    def run(asked):
        job.run(
            *(model, asked, own, tmp_path / "out.csv", mnist_folder),
            **{"threads": 1, "device": torch.device("cpu"), "report": print},
        )

    with pytest.raises(SabrError, match="11 images are asked for, but mnist has 10 validation images"):
        run(asked)
    run(asked.model_copy(update={"images": 10}))
    about = json.loads((tmp_path / "out.json").read_text())
    assert (
        about["data_sha256"] == json.loads((mnist_folder / "mnist" / "source.json").read_text())["prepared"]["train.pt"]
    )


def test_labels_of_no_class_are_told(certification, model, mnist_folder, tmp_path, monkeypatch):
    bad = Split(torch.zeros(3, 1, 28, 28, dtype=torch.uint8), torch.tensor([1, 12, 3]))
    monkeypatch.setattr(trained, "load", lambda *arguments: bad)
    asked = StudySpec(study="relu-inputs", images=3, memory_mb=10)
    with pytest.raises(SabrError, match="holds the label 12, but its classes are 0 to 9"):
        job.run(
            *(model, asked, certification, tmp_path / "out.csv", mnist_folder),
            **{"threads": 1, "device": torch.device("cpu"), "report": print},
        )


def test_configured_studies_are_what_is_asked_for(pytestconfig):
    """What the scales say is allowed on the command line."""
    folder = pytestconfig.rootpath / "config"
    for scale in ("tiny", "quick", "laptop", "paper"):
        studies = resolve(read_yaml(folder / "config.yaml") | {"scale": scale}, folder).studies
        for study in COLUMNS:
            values = {VALUES[study]: getattr(studies, VALUES[study])} if study in VALUES else {}
            StudySpec(study=study, images=studies.images, memory_mb=studies.memory_mb, **values)
    with pytest.raises(ValueError, match="'relu' is not a study of trained networks; allowed: loss-lambda"):
        StudySpec(study="relu", images=1, memory_mb=1)


def test_the_curve_does_not_depend_on_time_limits(certification, model, mnist_folder, tmp_path):
    spec = read_spec(CertificationSpec, model.with_name("certification.json"))
    tables = []
    for minutes in (None, 1e-9):
        asked = StudySpec(study="eps-curve", images=4, memory_mb=100, eps_factors=FACTORS)
        own = spec.model_copy(update={"shard_minutes": minutes, "eps": 0.01})
        job.run(
            *(model, asked, own, tmp_path / "curve.csv", mnist_folder),
            **{"threads": 1, "device": torch.device("cpu"), "report": print},
        )
        tables.append((tmp_path / "curve.csv").read_bytes())
    assert tables[0] == tables[1]
