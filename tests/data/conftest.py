import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_mirror(tmp_path_factory):
    """A mirror directory with the real CIFAR-10 and a tenth of the real TinyImageNet, made once."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "unpack.py"
    source = Path(os.environ.get("SABR_TEST_MIRROR_SOURCE", beside))
    if not source.is_file():
        pytest.skip(f"no script that makes a mirror: {source} is not there; set SABR_TEST_MIRROR_SOURCE to one")
    mirror = tmp_path_factory.mktemp("mirror")
    subprocess.run([sys.executable, source, mirror], check=True, capture_output=True)
    return mirror
