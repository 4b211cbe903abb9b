"""The lock file, the conda environments and pyproject.toml agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"pytorch": "torch"}


def locked():
    text = (ROOT / "requirements.lock").read_text() + (ROOT / "requirements-nodeps.lock").read_text()
    pins = {}
    for name, version in re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", text, re.MULTILINE):
        pins.setdefault(name.lower(), set()).add(version)
    return pins


@pytest.mark.parametrize("environment", ["run", "report"])
def test_conda_environments_pin_what_the_lock_file_pins(environment):
    dependencies = yaml.safe_load((ROOT / "envs" / f"{environment}.yaml").read_text())["dependencies"]
    pins = locked()
    for dependency in dependencies:
        for pin in dependency["pip"] if isinstance(dependency, dict) else [dependency]:
            name, _, version = pin.replace("==", "=").partition("=")
            if name not in ("python", "pip"):
                assert version in pins[CONDA_NAMES.get(name, name).lower()], pin


def test_the_pair_of_torch_and_torchvision_is_pinned():
    assert locked()["torch"] == {"2.14.1"}
    assert locked()["torchvision"] == {"0.29.1"}


def test_everything_asked_for_is_locked_with_a_checksum():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    pins = locked()
    for requirement in wanted:
        assert re.split(r"[\[<>=]", requirement)[0].lower() in pins, requirement
    assert "auto-lirpa" in pins
    for file in ("requirements.lock", "requirements-nodeps.lock"):
        for entry in re.split(r"\n(?=\S)", (ROOT / file).read_text().strip()):
            assert "--hash=sha256:" in entry, entry


def test_no_package_index_is_named():
    for path in [*ROOT.glob("*.lock"), ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "constraints.txt"]:
        assert "http" not in re.sub(r"\bhttp(x2?|core2?)\b|https://\w+\.readthedocs", "", path.read_text()), path
