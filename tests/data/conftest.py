import fcntl
import os
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from data.serving import BODY, Handler


@pytest.fixture(scope="session")
def real_mirror(tmp_path_factory):
    """A mirror directory with the real CIFAR-10 and a tenth of the real TinyImageNet, made once for all workers."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "unpack.py"
    source = Path(os.environ.get("SABR_TEST_MIRROR_SOURCE", beside))
    if not source.is_file():
        pytest.skip(f"no script that makes a mirror: {source} is not there; set SABR_TEST_MIRROR_SOURCE to one")
    folder = tmp_path_factory.getbasetemp()
    # Each worker has a folder of its own in the one that belongs to the whole run.
    mirror = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "mirror"
    with mirror.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mirror.is_dir():
            half = mirror.with_suffix(".half")
            subprocess.run([sys.executable, source, half], check=True, capture_output=True)
            half.rename(mirror)
    return mirror


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        http.files, http.requests = {"file": BODY}, []
        http.url = f"http://127.0.0.1:{http.server_port}"
        yield http
        http.shutdown()
        thread.join()
