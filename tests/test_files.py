import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sabr.errors import SabrError
from sabr.files import atomic, read_json, sole_writer, write_json, write_text


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_text(path, "one")
    with pytest.raises(ZeroDivisionError), atomic(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["file.txt"]


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_json_round_trip_and_refusals(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}
    with pytest.raises(ValueError):
        write_json(path, float("nan"))
    assert read_json(path) == {"a": [1, None]}
    path.write_text('{"a": ')
    with pytest.raises(SabrError, match="value.json is not valid JSON .* delete it and run again"):
        read_json(path)
    with pytest.raises(SabrError, match="cannot read .*: No such file"):
        read_json(tmp_path / "none.json")
    for content, told in (
        (b"", r"\(it is empty\)"),
        (b"[NaN]", "a number in it is not finite"),
        (b"[1", "line 1, column 3"),
    ):
        path.write_bytes(content)
        with pytest.raises(SabrError, match=f"value.json is not valid JSON .*{told}.* delete it and run again"):
            read_json(path)
    path.write_bytes(b'"\xff"')
    with pytest.raises(SabrError, match="value.json is not text in UTF-8; delete it and run again"):
        read_json(path)


@pytest.mark.parametrize("name", ["folder", "."])
def test_a_folder_is_no_file_to_write(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for writer in (atomic, sole_writer):
        with pytest.raises(SabrError, match=f"cannot write {name}: it is a folder; name a file"), writer(Path(name)):
            pass
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SabrError, match="cannot write .*choose a folder that can be written to"):
        write_text(tmp_path / "file" / "below", "text")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted without root")
    try:
        write_text(disk / "file", "small")
        with pytest.raises(SabrError, match="No space left on device"):
            write_text(disk / "file", "x" * 200_000)
        assert (disk / "file").read_text() == "small"
        assert os.listdir(disk) == ["file"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    path = tmp_path / "[a] file"
    half = "import sys; from pathlib import Path; from sabr.files import atomic\nwith atomic(Path(sys.argv[1])) as t:\n"
    kill = half + "    t.write_text('half'); import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", kill, path]).returncode == -signal.SIGKILL
        assert len(os.listdir(tmp_path)) == 1  # the second writer removed what the first one left
    with atomic(path) as temporary:
        temporary.write_text("slow")
        write_text(path, "fast")
        assert path.read_text() == "fast"
        assert temporary.read_text() == "slow"
    assert path.read_text() == "slow"
    assert os.listdir(tmp_path) == [path.name]


def test_many_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write_text(path, str(i) * 10_000), [i % 10 for i in range(400)]))
    text = path.read_text()
    assert text == text[0] * 10_000
    assert os.listdir(tmp_path) == ["file"]


HOLD = (
    "import sys; from pathlib import Path; from sabr.files import sole_writer\nwith sole_writer(Path(sys.argv[1])):\n"
)


def test_a_second_writer_is_refused_until_the_first_one_ends_however_it_ends(tmp_path):
    path = tmp_path / "deep" / "model.pt"
    wait = HOLD + "    print('held', flush=True); sys.stdin.read()"
    for end in (lambda process: process.stdin.close(), subprocess.Popen.kill):
        command, pipe = [sys.executable, "-c", wait, path], subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as first:
            assert first.stdout.readline() == "held\n"
            told = f"model.pt is being written by process {first.pid} on .*; wait until it ends"
            with pytest.raises(SabrError, match=told), sole_writer(tmp_path / "other", path):
                pass
            with sole_writer(path.with_suffix(".json")):
                pass
            end(first)
            first.wait()
        with sole_writer(path), pytest.raises(SabrError, match="being written by process"), sole_writer(path):
            pass
        assert os.listdir(path.parent) == []


def test_of_many_at_a_time_one_writes(tmp_path):
    inside = most = entered = 0

    def work(_):
        nonlocal inside, most, entered
        while True:
            try:
                with sole_writer(tmp_path / "file"):
                    inside += 1
                    most = max(most, inside)
                    entered += 1
                    inside -= 1
                    return
            except SabrError:
                time.sleep(0)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(300)))
    assert (entered, most) == (300, 1)
    assert os.listdir(tmp_path) == []


def test_where_there_are_no_locks_nothing_is_refused(tmp_path, monkeypatch):
    def no_locks(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with sole_writer(tmp_path / "file"), sole_writer(tmp_path / "file"), atomic(tmp_path / "file") as temporary:
        write_text(tmp_path / "file", "another")
        assert temporary.exists()
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    told = pytest.raises(SabrError, match="cannot write .*choose a folder that can be written to")
    with told, sole_writer(tmp_path / "file" / "below"):
        pass
