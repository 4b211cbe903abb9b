"""Files that are there whole or not at all, with one writer at a time, and their checksums."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sabr.errors import SabrError

# For what a program wrote.
_REMEDY = "delete it and run again"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it is synced to disk and renamed, on failure it is removed.

    What writers of `path` that were killed left behind is removed too.

    Raises
    ------
    SabrError
        When the folder cannot be written to, `path` is one, or the disk is full; `path` is then as it was before.
    """
    _refuse_folder(path)
    temporary: Path | None = None
    handle: int | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(path)
        handle, temporary = _locked_temporary(path)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise SabrError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose a folder that can be written to"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def sole_writer(*paths: Path) -> Iterator[None]:
    """Refuse to work on `paths`, of which some may be the same, while another process does.

    Each is held by a lock on the file ``.<name>.lock`` beside it, which the system frees when its process dies, however
    it dies; the file is removed in the end. Where a file system has no locks nothing is refused: files are still whole
    or not there, but the same work may be done twice.

    Raises
    ------
    SabrError
        When another process works on one of them (says which process), one is a folder, or its folder cannot be written
        to.
    """
    with contextlib.ExitStack() as held:
        for path in {os.path.abspath(path): path for path in paths}.values():
            held.enter_context(_sole_writer(path))
        yield


def allow_suffixes(paths: Iterable[Path], what: str, suffixes: Iterable[str]) -> None:
    """Refuse names whose suffixes say other formats than those in which `what` can be written.

    Raises
    ------
    SabrError
        Then; it names the suffixes that are allowed.
    """
    for path in paths:
        if path.suffix not in suffixes:
            raise SabrError(f"{path}: {what} cannot be written as {path.suffix!r}; allowed: {', '.join(suffixes)}")


def probe(path: Path) -> None:
    """Make sure, before long work, that `path` could be written.

    Raises
    ------
    SabrError
        When its folder cannot be written to.
    """
    with contextlib.suppress(_ProbedError), atomic(path):
        raise _ProbedError


class _ProbedError(Exception):
    pass


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises
    ------
    SabrError
        When the file is missing or is not JSON (half-written by another program, for instance).
    """
    text = read_text(path, _REMEDY)
    try:
        return parse_json(text, str(path))
    except SabrError as error:
        raise SabrError(f"{error}; {_REMEDY}") from error


def parse_json(text: str, what: str) -> Any:
    """Read JSON from a text, which is called `what` in messages; NaN and infinity are refused.

    Raises
    ------
    SabrError
        When it is not JSON.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}, column {error.colno}: {error.msg}" if text.strip() else "it is empty"
    except ValueError:
        reason = "a number in it is not finite, or has too many digits"
    raise SabrError(f"{what} is not valid JSON ({reason})")


def read_text(path: Path, remedy: str) -> str:
    """Read a text file; `remedy` says what to do when it holds something else.

    Raises
    ------
    SabrError
        When it cannot be read, or is not text in UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SabrError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SabrError(f"{path} is not text in UTF-8; {remedy}") from error


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextlib.contextmanager
def _sole_writer(path: Path) -> Iterator[None]:
    _refuse_folder(path)
    lock = path.with_name(f".{path.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        while (free := _try_lock(handle)) and not _is_at(handle, lock):  # its last holder has just removed it
            os.close(handle)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise SabrError(
            f"cannot write {lock}: {error.strerror or error}; free some space or choose a folder that can be written to"
        ) from error
    try:
        if free is False:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "a process that has just started"
            raise SabrError(
                f"{path} is being written by {holder}; wait until it ends and run again, or, "
                f"if it has ended with its computer, delete {lock}"
            )
        with contextlib.suppress(OSError):  # on a full disk it stays unsaid
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _refuse_folder(path: Path) -> None:
    """Tell a folder before there is something to write."""
    if path.is_dir():
        raise SabrError(f"cannot write {path}: it is a folder; name a file")


def _try_lock(handle: int) -> bool | None:
    """Lock an open file until it is closed; False if another process has it, None if there are no locks here."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(handle: int, path: Path) -> bool:
    """Whether the file that is open is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """Make a temporary file beside `path` that is locked while it is open, unlike what was left behind."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        if _try_lock(handle) is not False and _is_at(handle, Path(name)):
            return handle, Path(name)
        os.close(handle)  # taken for a file left behind, between its making and its locking


def _remove_left_behind(path: Path) -> None:
    """Remove temporary files of `path` that no living process has open."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            handle = os.open(left, os.O_RDWR)
            try:
                if _try_lock(handle):
                    left.unlink(missing_ok=True)
            finally:
                os.close(handle)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure, where folders can be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
