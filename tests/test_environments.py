"""The lock file, the conda environments and pyproject.toml agree."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"pytorch": "torch", "pytorch-gpu": "torch", "matplotlib-base": "matplotlib"}
ENVIRONMENTS = sorted(path.stem for path in (ROOT / "envs").glob("*.yaml"))


def locked():
    text = (ROOT / "requirements.lock").read_text() + (ROOT / "requirements-nodeps.lock").read_text()
    pins = {}
    for name, version in re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", text, re.MULTILINE):
        pins.setdefault(name.lower(), set()).add(version)
    return pins


def pinned(environment):
    """Versions of an environment file by PyPI's names, those that its pip installs among them."""
    dependencies = yaml.safe_load((ROOT / "envs" / f"{environment}.yaml").read_text())["dependencies"]
    found = [pin for one in dependencies for pin in (one["pip"] if isinstance(one, dict) else [one])]
    pairs = [pin.replace("==", "=").partition("=") for pin in found]
    return {CONDA_NAMES.get(name, name).lower(): version for name, _, version in pairs}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_conda_environments_pin_what_the_lock_file_pins(environment):
    for name, version in pinned(environment).items():
        if name not in ("python", "pip"):
            assert version in locked()[name], name


def test_the_environment_for_gpus_differs_in_pytorch_alone():
    texts = [(ROOT / "envs" / f"{name}.yaml").read_text().partition("channels:")[2] for name in ("run", "gpu")]
    assert texts[1].replace("pytorch-gpu=", "pytorch=") == texts[0] != texts[1]
    scripts = [(ROOT / "envs" / f"{name}.post-deploy.sh").read_text() for name in ("run", "gpu")]
    assert scripts[0] == scripts[1]


# Imports modules with nothing at hand but what the pinned distributions bring, and what these ask for.
IMPORT = """
import importlib, json, re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

pins, modules = set(json.loads(sys.argv[1])), sys.argv[2:]
waiting, brought = list(pins), set()
while waiting:
    name = re.sub("[-_.]+", "-", waiting.pop()).lower()
    if name not in brought:
        brought.add(name)
        try:
            asked = [] if name in ("sabr", "auto-lirpa") else requires(name) or []  # installed with --no-deps
        except PackageNotFoundError:
            continue
        waiting += [re.split("[^A-Za-z0-9._-]", one)[0] for one in asked if "extra ==" not in one]

class Refuse:
    owners = packages_distributions()
    def find_spec(self, name, path=None, target=None):
        owners = {re.sub("[-_.]+", "-", owner).lower() for owner in self.owners.get(name, ())}
        if owners and not owners & brought:
            raise ModuleNotFoundError(f"{name} comes with {owners}, which the environment does not have", name=name)

sys.meta_path.insert(0, Refuse())
for module in modules:
    importlib.import_module(module)
"""


def modules(*folders):
    """Names of all modules of some folders of the package."""
    paths = [path for folder in folders for path in sorted((ROOT / "sabr" / folder).rglob("*.py"))]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_each_environment_has_what_its_commands_import(environment):
    if environment == "report":
        needed = [*modules("cli", "report"), "sabr.certification.verdicts", "sabr.specs", "sabr.config", "sabr.plan"]
        needed.remove("sabr.report.counterexamples")  # of the one rule of figures that reads tensors
    else:
        computing = ("data", "networks", "bounds", "attacks", "training", "certification", "analysis")
        needed = [*modules("cli", *computing), "sabr.report.counterexamples"]
    pins = [*pinned(environment), "sabr", *(["auto-lirpa"] if environment != "report" else [])]
    command = [sys.executable, "-c", IMPORT, json.dumps(pins), *needed]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    without = [sys.executable, "-c", IMPORT, json.dumps(["sabr", "python"]), *needed]
    assert "which the environment does not have" in subprocess.run(without, capture_output=True, text=True).stderr


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
