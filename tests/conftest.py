import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from sabr.data.datasets import load
from sabr.data.preparing import prepare
from sabr.networks.affine import clean_pass, folded_steps
from sabr.networks.architectures import build
from sabr.settings import ARCHITECTURES, DATASETS

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure():
    # How long an example takes is the machine's affair.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
    # Two workers on two cores must not run four threads.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


# The files that take minutes, longest first: whoever gets one of them last lets the other worker wait.
LONG = [
    "workflow/test_workflow.py",
    "bounds/test_oracle.py",
    "workflow/test_crashes.py",
    "workflow/test_reference.py",
    "workflow/test_slurm.py",
    "training/test_resume.py",
    "workflow/test_together.py",
    "workflow/test_many_jobs.py",
]


def pytest_collection_modifyitems(items):
    def rank(item):
        name = item.path.relative_to(ROOT / "tests").as_posix()
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def mnist_folder():
    """The data folder with real MNIST: the repository's own, filled if need be (it is what `make reproduce` uses)."""
    folder = ROOT / "data"
    mirror = os.environ.get("SABR_MIRROR")
    prepare(DATASETS["mnist"], folder, mirror=Path(mirror) if mirror else None)
    return folder


@pytest.fixture(scope="session")
def mnist_train(mnist_folder):
    return load(DATASETS["mnist"], mnist_folder, "train")


@pytest.fixture
def small_network():
    """A function that makes a small network with lively batch norms, in evaluation mode, and its folded steps."""

    def make(dataset="mnist", architecture="cnn-tiny", seed=0):
        network = build(ARCHITECTURES[architecture], DATASETS[dataset], seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(5):
            clean_pass(network, torch.rand(32, *DATASETS[dataset].shape, generator=generator))
        with torch.no_grad():
            for _, parameter in network.named_parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        network.eval()
        with torch.no_grad():
            return network, folded_steps(network)

    return make


@pytest.fixture
def sabr_command():
    """Run the command line in a process of its own; gives the finished process with its output as text."""

    def run(*arguments, **kwargs):
        command = [sys.executable, "-c", "from sabr.cli import main; main()", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=kwargs.pop("cwd", ROOT), **kwargs)

    return run
