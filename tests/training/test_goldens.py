"""Every recorded value of the published training step, within the recorded tolerances."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
from check_goldens import check_case, check_schedule  # noqa: E402

OWN = TESTS / "goldens"
SHARED = TESTS.parents[1] / "shared" / "goldens"
CASES = ["mnist_0p1", "mnist_0p3", "cifar_2_255", "cifar_8_255"]


@pytest.mark.parametrize("case", CASES)
def test_case(case):
    folder = OWN if (OWN / f"{case}.npz").is_file() else SHARED
    if not (folder / f"{case}.npz").is_file():
        pytest.skip(f"{case}.npz is not part of the repository, and {folder} is not there")
    settings = json.loads((folder / "goldens.json").read_text())["cases"][case]
    deviations = check_case(settings, dict(np.load(folder / f"{case}.npz")))
    assert len(deviations) > 80
    assert [d for d in deviations if not d.holds] == []


def test_schedules():
    for samples in json.loads((OWN / "goldens.json").read_text())["smoothed_schedule"]:
        assert check_schedule(samples).holds


def check(folder):
    script = TESTS / "check_goldens.py"
    return subprocess.run([sys.executable, script, folder], capture_output=True, text=True, cwd=TESTS.parent)


def test_the_script_accepts_what_is_recorded_and_refuses_anything_else(tmp_path):
    accepted = check(OWN)
    assert accepted.returncode == 0, accepted.stdout
    assert "0 beyond tolerance" in accepted.stdout
    for file in OWN.iterdir():
        shutil.copy(file, tmp_path)
    arrays = dict(np.load(OWN / "mnist_0p3.npz"))
    arrays["step/margin_lower_bounds"] = arrays["step/margin_lower_bounds"] * 1.001
    np.savez(tmp_path / "mnist_0p3.npz", **arrays)
    refused = check(tmp_path)
    assert refused.returncode == 1
    assert "BEYOND" in refused.stdout
    assert check(tmp_path / "nothing").returncode == 2
