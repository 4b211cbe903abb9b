"""Training that is stopped or killed ends with the same bits as training that is left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from sabr.errors import SabrError, ToBeContinued
from sabr.specs import TrainingSpec
from sabr.training import state as states
from sabr.training.trainer import train

CPU = torch.device("cpu")
KILLS = 20
SECONDS_OF_A_WARNING = 30  # that Slurm gives by default (KillWait)


@pytest.fixture(scope="module")
def short(plan):
    """Real images, 8 epochs of 8 steps; the ramp ends half-way, the learning rate drops."""
    row = next(row for row in plan.main if row.method == "sabr")
    changes = {"epochs": 8, "ramp_end": 5, "learning_rate_drops": (7,)}
    return TrainingSpec.model_validate(row.training.model_dump() | changes)


def same(one, two):
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items()) and one.keys() == two.keys()


def untimed(history):
    return [{k: v for k, v in m.as_row().items() if k not in ("seconds", "images_per_second")} for m in history]


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 20, 63])
def test_stopped_after_any_step_it_goes_on_as_if_it_had_not_been(short, mnist_train, tmp_path, cut):
    quick = short.model_copy(update={"epochs": 3, "ramp_end": 3, "learning_rate_drops": (3,)}) if cut < 24 else short
    whole = train(quick, mnist_train, device=CPU, report=lambda _: None)
    path = tmp_path / "model.resume.pt"
    steps = 0

    def stop():
        nonlocal steps
        steps += 1
        return steps == cut

    def save(state):
        states.write(state, path, quick, "data", [])

    with pytest.raises(ToBeContinued, match=f"stopped after step {(cut - 1) % 8 + 1} of epoch {(cut - 1) // 8 + 1}"):
        train(quick, mnist_train, device=CPU, report=lambda _: None, save=save, stop=stop)
    state = states.read(path, quick, "data").state
    assert (state.epoch, state.step) == (cut // 8 + 1, cut % 8)
    rest = train(quick, mnist_train, device=CPU, report=lambda _: None, state=state)
    assert same(rest.network.state_dict(), whole.network.state_dict())
    assert untimed(rest.history) == untimed(whole.history)


def test_a_state_of_another_configuration_is_refused_with_the_keys_that_differ(short, mnist_train, tmp_path):
    path = tmp_path / "model.resume.pt"
    assert states.read(path, short, "data") is None
    with pytest.raises(ToBeContinued):
        train(
            short,
            mnist_train,
            device=CPU,
            report=lambda _: None,
            save=lambda state: states.write(state, path, short, "data", []),
            stop=lambda: True,
        )
    other = TrainingSpec.model_validate(short.model_dump() | {"seed": 9, "learning_rate": 0.5})
    with pytest.raises(
        SabrError, match=r"another configuration: spec.learning_rate \(0.5 here, 0.002 there\), spec.seed"
    ):
        states.read(path, other, "data")
    with pytest.raises(SabrError, match="data_sha256"):
        states.read(path, short, "other data")
    for content in (path.read_bytes()[:1000], b""):
        path.write_bytes(content)
        with pytest.raises(SabrError, match="is damaged .* delete it to train from the start"):
            states.read(path, short, "data")


class Job:
    """`sabr train` in a process of its own."""

    def __init__(self, folder, spec, data):
        self.model, self.history = folder / "model.pt", folder / "history.csv"
        self.unfinished = folder / "model.resume.pt"
        folder.mkdir(exist_ok=True, parents=True)
        specification = folder / "run.json"
        specification.write_text(spec.model_dump_json())
        self._command = [
            *(sys.executable, "-c", "from sabr.cli import main; main()", "train", specification, "--data", data),
            *("--output", self.model, "--history", self.history, "--device", "cpu"),
        ]

    def start(self, save_minutes=0.0):
        """Begin; by default the state is saved after every step."""
        self._left_before = self.half_written()
        return subprocess.Popen(
            [str(part) for part in [*self._command, "--save-minutes", save_minutes]],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def finish(self):
        process = self.start()
        _, said = process.communicate()
        assert process.returncode == 0, said
        return said

    def result(self):
        history = pd.read_csv(self.history).drop(columns=["seconds", "images_per_second"])
        return torch.load(self.model, weights_only=True), history

    def writing(self):
        """Whether the process that was started last is in the middle of writing a state, or was killed there."""
        return bool(self.half_written() - self._left_before)

    def half_written(self):
        return set(self.unfinished.parent.glob(".model.resume.pt.*.tmp"))

    def last_saved(self):
        return self.unfinished.stat().st_mtime_ns if self.unfinished.is_file() else None


@pytest.fixture(scope="module")
def undisturbed(short, mnist_folder, tmp_path_factory):
    job = Job(tmp_path_factory.mktemp("undisturbed"), short, mnist_folder)
    job.finish()
    assert json.loads(job.model.with_suffix(".json").read_text())["resumed"] == []
    return job.result()


def agrees(job, undisturbed):
    weights, history = job.result()
    return same(weights, undisturbed[0]) and history.equals(undisturbed[1])


def await_moment(job, process, chance, *, saved, write):
    """Return at a random moment, or when the job has ended.

    saved: not before this process has saved its first state; write: in the middle of writing one.
    """
    before = job.last_saved()
    while saved and process.poll() is None and job.last_saved() == before:
        time.sleep(0.001)
    moment = time.monotonic() + (chance.uniform(0, 0.5) if saved else chance.uniform(0, 5))
    while process.poll() is None and time.monotonic() < moment:
        time.sleep(0.001)
    while write and process.poll() is None and not job.writing():
        time.sleep(0.0002)


def test_killed_at_any_moment_it_ends_with_the_same_bits(short, mnist_folder, tmp_path, undisturbed):
    chance = random.Random(0)
    kills, halves, states_left, networks = 0, 0, 0, 0
    while kills < KILLS:
        job = Job(tmp_path / str(networks), short, mnist_folder)
        while not job.model.with_suffix(".json").is_file() and kills < KILLS:
            process = job.start()
            kind = kills % 3
            await_moment(job, process, chance, saved=kind != 2, write=kind == 0)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            process.communicate()
            halves += job.writing()
            states_left += job.unfinished.is_file()
        job.finish()
        assert agrees(job, undisturbed)
        assert not job.unfinished.exists() and not job.half_written()
        networks += 1
    assert halves >= 3, "no kill hit a write"
    assert states_left >= KILLS / 2, "most kills came before there was anything to lose"


def test_sigterm_saves_and_asks_to_be_continued(short, mnist_folder, tmp_path, undisturbed):
    job = Job(tmp_path, short, mnist_folder)
    process = job.start()
    while not job.unfinished.is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=SECONDS_OF_A_WARNING)
    assert process.returncode == 75, said
    assert "run the same command to go on" in said and "Traceback" not in said
    assert not job.model.exists() and job.unfinished.is_file()
    again = job.finish()
    assert "continuing at epoch" in again
    assert agrees(job, undisturbed)
    runs = json.loads(job.model.with_suffix(".json").read_text())["resumed"]
    assert [set(run) for run in runs] == [{"epoch", "step", "provenance"}]


def test_after_a_loss_that_is_not_finite_the_last_good_state_stays(short, mnist_folder, mnist_train, tmp_path):
    # The first step's loss is finite; the weights that it leaves behind make the second one's NaN.
    spec = short.model_copy(update={"learning_rate": 1e30})
    job = Job(tmp_path, spec, mnist_folder)
    process = job.start(save_minutes=10)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "diverged in epoch 1, step 2, at eps 0" in said and "Traceback" not in said
    assert not job.model.exists() and not job.unfinished.exists()
    good = job.unfinished
    with pytest.raises(ToBeContinued):
        train(
            short,
            mnist_train,
            device=CPU,
            report=lambda _: None,
            save=lambda state: states.write(state, good, short, "data", []),
            stop=lambda: True,
        )
    before = good.read_bytes()
    state = states.read(good, short, "data").state
    state.network["3.weight"][0, 0] = float("nan")
    with pytest.raises(SabrError, match="diverged in epoch 1, step 2"):
        train(
            short,
            mnist_train,
            device=CPU,
            report=lambda _: None,
            state=state,
            save=lambda state: states.write(state, good, short, "data", []),
            save_seconds=0,
        )
    assert good.read_bytes() == before
