import os
import subprocess

import pytest

from sabr.errors import SabrError
from sabr.files import atomic, read_json, write_json, write_text


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
