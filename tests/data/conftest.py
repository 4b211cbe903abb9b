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
    """A mirror directory with the real CIFAR-10 and a tenth of the real TinyImageNet, made once."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data" / "unpack.py"
    source = Path(os.environ.get("SABR_TEST_MIRROR_SOURCE", beside))
    if not source.is_file():
        pytest.skip(f"no script that makes a mirror: {source} is not there; set SABR_TEST_MIRROR_SOURCE to one")
    mirror = tmp_path_factory.mktemp("mirror")
    subprocess.run([sys.executable, source, mirror], check=True, capture_output=True)
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
