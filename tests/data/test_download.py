import threading
import time

import pytest
from data.serving import BODY, DIGEST, left

from sabr.data.download import Unavailable, download
from sabr.errors import SabrError


def test_download_and_not_again(server, tmp_path):
    for _ in range(2):
        assert download(f"{server.url}/good/file", tmp_path / "file", DIGEST).read_bytes() == BODY
    assert server.requests == [("good", None, None)]
    assert left(tmp_path) == ["file"]


def test_broken_connection_is_resumed(server, tmp_path):
    download(f"{server.url}/breaks/file", tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.requests == [
        ("breaks", None, None),
        ("breaks", "bytes=200000-", '"v1"'),
        ("breaks", "bytes=400000-", '"v1"'),
    ]
    assert left(tmp_path) == ["file"]


def test_part_of_an_earlier_run_is_resumed(server, tmp_path):
    (tmp_path / "file.part").write_bytes(BODY[:1000])
    download(f"{server.url}/good/file", tmp_path / "file", DIGEST)
    assert server.requests == [("good", "bytes=1000-", None)]
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize("manner", ["ignores", "unsatisfiable"])
def test_server_without_range_starts_again(server, tmp_path, manner):
    (tmp_path / "file.part").write_bytes(b"old" * len(BODY))
    download(f"{server.url}/{manner}/file", tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.requests[0][1] == f"bytes={3 * len(BODY)}-"


def test_part_of_another_version_starts_again(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"old")
    (tmp_path / "file.part.etag").write_text('"v0"')
    download(f"{server.url}/good/file", tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == BODY
    assert server.requests == [("good", "bytes=3-", '"v0"')]


def test_wrong_part_is_thrown_away_once(server, tmp_path):
    (tmp_path / "file.part").write_bytes(b"old")
    download(f"{server.url}/good/file", tmp_path / "file", DIGEST)
    assert (tmp_path / "file").read_bytes() == BODY
    assert [asked for _, asked, _ in server.requests] == ["bytes=3-", None]


def test_truncating_server_is_given_up_and_its_part_kept(server, tmp_path):
    with pytest.raises(Unavailable, match="truncates/file"):
        download(f"{server.url}/truncates/file", tmp_path / "file", DIGEST)
    assert len(server.requests) == 3
    assert (tmp_path / "file.part").read_bytes() == BODY[:200_000]
    assert not (tmp_path / "file").exists()
    download(f"{server.url}/good/file", tmp_path / "file", DIGEST)
    assert server.requests[-1] == ("good", "bytes=200000-", '"v1"')


@pytest.mark.parametrize("manner", ["corrupt", "short"])
def test_wrong_bytes_are_deleted(server, tmp_path, manner):
    with pytest.raises(Unavailable, match="wrong sha256"):
        download(f"{server.url}/{manner}/file", tmp_path / "file", DIGEST)
    assert left(tmp_path) == []


def test_two_downloads_at_once(server, tmp_path):
    errors = []

    def run():
        try:
            download(f"{server.url}/breaks/file", tmp_path / "file", DIGEST)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert (tmp_path / "file").read_bytes() == BODY


def test_unreachable_server_fails_at_once(server, tmp_path):
    start = time.monotonic()
    with pytest.raises(Unavailable):
        download("http://127.0.0.1:9/file", tmp_path / "file", DIGEST)
    assert time.monotonic() - start < 5


def test_unwritable_folder_is_not_the_source_s_fault(server, tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(SabrError, match="cannot write"):
        download(f"{server.url}/good/file", tmp_path / "folder" / "file", DIGEST)
