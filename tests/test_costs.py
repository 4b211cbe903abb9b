import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sabr import costs
from sabr.errors import SabrError
from sabr.layers import read_yaml
from sabr.networks.architectures import build
from sabr.plan import resolve
from sabr.settings import ARCHITECTURES, DATASETS

CONFIG = Path(__file__).parents[1] / "config"
KNOWN = costs.read(CONFIG / "costs.yaml")
CORE = costs.Model(KNOWN, KNOWN.steps)


def rows(scale, **overrides):
    content = read_yaml(CONFIG / "config.yaml") | {"scale": scale, "overrides": overrides}
    return resolve(content, CONFIG).rows


def said(*arguments):
    command = [sys.executable, "-c", "from sabr.cli import main; main()", "plan", "--config", CONFIG, *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("architecture", ["cnn-tiny", "cnn-small", "cnn-medium", "cnn7-narrow"])
def test_parameters_are_those_of_the_network(architecture, dataset):
    network = build(ARCHITECTURES[architecture], DATASETS[dataset], seed=0)
    # A bias in front of a batch norm is counted with the norm's two vectors.
    assert costs.size(architecture, dataset).parameters == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("dataset", "parameters"), [("mnist", 13_259_338), ("cifar10", 17_192_650), ("tinyimagenet", 51_893_128)]
)
def test_parameters_are_the_published_ones(dataset, parameters):
    assert costs.size("cnn7", dataset).parameters == parameters


def test_multiplications_and_relus_are_counted_by_hand():
    found = costs.size("cnn-tiny", "mnist")
    # 4x4 convolutions of stride 2 to 8 x 14 x 14 and 8 x 7 x 7, then 392 -> 32 -> 10.
    assert found.layers == ((196 * 8 * 16, 1568), (49 * 8 * 8 * 16, 392), (392 * 32, 32), (320, 0))
    assert (found.multiplications, found.neurons) == (25088 + 50176 + 12544 + 320, 1568 + 392 + 32)


def test_a_measured_step_is_taken_as_it_is_and_the_fit_goes_through_the_middle():
    for step in KNOWN.steps:
        assert CORE.ibp_step(step.architecture, step.dataset) == pytest.approx(step.seconds / step.batch_size)
    assert CORE.fitted("cnn7-wide", "cifar10") > CORE.fitted("cnn7", "cifar10") > CORE.fitted("cnn7-narrow", "cifar10")
    assert CORE.ibp_step("cnn7-wide", "cifar10") == CORE.fitted("cnn7-wide", "cifar10")
    assert 0.5 < statistics.geometric_mean(CORE.errors()) < 2


def test_a_fit_on_steps_that_are_linear_is_exact():
    def seconds(architecture, dataset):
        found = costs.size(architecture, dataset)
        return 2e-9 * found.multiplications + 3e-8 * found.neurons

    names = [("cnn-small", "mnist"), ("cnn7", "mnist"), ("cnn-small", "cifar10")]
    steps = [costs.Step(architecture=a, dataset=d, batch_size=10, seconds=10 * seconds(a, d)) for a, d in names]
    model = costs.Model(KNOWN, steps)
    assert model.errors() == pytest.approx([1, 1, 1])
    assert model.fitted("cnn7", "tinyimagenet") == pytest.approx(seconds("cnn7", "tinyimagenet"))


def test_training_is_its_steps():
    row = rows("quick")["mnist/eps-0.1/ibp/seed-1"].training
    # 156 steps an epoch; the first of 12 is clean.
    steps = 156 * (11 + KNOWN.units.standard)
    assert CORE.training(row) == pytest.approx(64 * steps * CORE.ibp_step("cnn-small", "mnist"))
    twice = row.model_copy(update={"train_images": 20_000})
    assert CORE.training(twice) / CORE.training(row) == pytest.approx(312 / 156)


def test_methods_cost_what_they_do():
    names = ["standard", "pgd", "ibp", "sabr", "crown-ibp", "cc-ibp", "taps", "staps"]
    planned = rows("quick", run={"settings": ["mnist-eps-0.1"], "methods": names})
    found = {row.method: CORE.training(row.training) for row in planned.values()}
    assert found["standard"] < found["ibp"] < found["cc-ibp"] < found["sabr"]
    assert found["pgd"] < found["sabr"] < found["staps"] and found["ibp"] < found["taps"]
    assert found["ibp"] < found["crown-ibp"]


def test_the_time_that_a_training_took_gives_the_step_that_takes_it():
    spec = rows("paper")["cifar10/eps-2_255/sabr/seed-12"].training
    step = costs.trained_in(KNOWN, spec, 1234.0)
    other = costs.trained_in(KNOWN, rows("paper")["mnist/eps-0.1/sabr/seed-12"].training, 500.0)
    assert costs.Model(KNOWN, [step, other]).training(spec) == pytest.approx(1234)


def test_certification_is_never_more_than_its_limits():
    for row in rows("laptop").values():
        cost = CORE.row(row, 2500)
        assert 0 < cost.certification <= cost.at_most
        assert cost.shards == -(-row.certification.images // 2500)
        longest = 60 * row.certification.shard_minutes * cost.shards
        control = CORE.attack(row.certification.strong_attack, 0.8 * row.certification.images, *_network(row))
        assert cost.at_most <= longest + control * 1.001


def _network(row):
    return row.training.architecture, row.training.dataset


def test_the_laptop_scale_fits_two_cores_in_about_eight_hours():
    found = [CORE.row(row, 2500) for row in rows("laptop").values()]
    hours = sum(cost.training + cost.attack + cost.certification for cost in found) / 3600
    assert 8 < hours < 17


def test_a_long_training_is_what_the_measured_step_says():
    spec = rows("laptop")["mnist/eps-0.1/sabr-long/seed-1"].training.model_copy(update={"architecture": "cnn-medium"})
    # Measured: 0.577 s a step of SABR on 128 images, 468 steps an epoch.
    assert CORE.training(spec) == pytest.approx(0.577 * 468 * spec.epochs, rel=0.1)


@pytest.mark.parametrize("scale", ["tiny", "quick", "laptop", "paper"])
def test_the_plan_is_told(scale):
    done = said("--scale", scale)
    assert done.returncode == 0, done.stderr
    planned = rows(scale)
    assert re.search(rf"^{len(planned)} jobs each that train, attack and merge, \d+ that certify", done.stdout, re.M)
    assert ("GPU-hours" in done.stdout) == (scale == "paper")
    assert "guess" in done.stdout and "measured steps" in done.stdout
    if scale == "paper":
        assert "RTX 2080 Ti, extrapolated" in done.stdout and "(quoted)" in done.stdout


def test_the_plan_takes_overlays_and_tells_mistakes_in_one_sentence(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"scale": "tiny", "overrides": {"run": {"methods": ["ibp"]}}}))
    done = said("--configfile", own)
    assert done.returncode == 0 and "mnist-eps-0.1" in done.stdout and "tiny scale" in done.stdout
    assert len(rows("tiny", run={"methods": ["ibp"]})) == int(re.search(r"^(\d+) jobs each", done.stdout, re.M)[1])
    own.write_text(yaml.safe_dump({"overrides": {"training": {"epochs": "many"}}}))
    wrong = said("--configfile", own)
    assert wrong.returncode == 1 and "training.epochs: 'many' is not allowed" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": []}, "steps: "),
        ({"unit": {}}, "unit: unknown key"),
        ({"machine": 3}, "machine: 3 is not allowed: text is needed here, in quotes"),
        (
            {"steps": 2 * [{"dataset": "mnist", "architecture": "cnn9", "batch_size": 1, "seconds": 1}]},
            "'cnn9' is not an",
        ),
        (
            {"assumed": {"out_of_time": {"ibp": 0.1}, "correct": 0.8, "refuted": 0.1}},
            "assumed.out_of_time: a share is needed for each objective; missing: standard",
        ),
    ],
)
def test_bad_costs_are_refused(tmp_path, changes, told):
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump(read_yaml(CONFIG / "costs.yaml") | changes))
    with pytest.raises(SabrError) as error:
        costs.read(path)
    assert told in str(error.value) and str(error.value).startswith(str(path))
