"""One file over HTTP: resumed where it broke off, checked, and there whole or not at all."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import httpx

from sabr.errors import SabrError
from sabr.files import checksum

TIMEOUT = httpx.Timeout(15, connect=5)


class Unavailable(Exception):
    """One source does not give what is asked of it, and says why; another one may."""


class Digest(NamedTuple):
    """The checksum that a file must have: the algorithm's name in `hashlib`, and the hexadecimal value."""

    algorithm: str
    value: str

    def fits(self, data: bytes | Path) -> bool:
        """Whether these bytes, or the bytes of this file, are the right ones; a missing file is not right."""
        if isinstance(data, bytes):
            return hashlib.new(self.algorithm, data).hexdigest() == self.value
        return data.is_file() and checksum(data, self.algorithm) == self.value


def download(url: str, target: Path, digest: Digest) -> Path:
    """Fetch `url` into `target`, unless the right file is there already.

    What has arrived is kept in ``<target>.part`` when the connection breaks, and the next attempt asks for the rest
    only. Two processes may fetch the same file at once: both write the same bytes to the same places of the part.

    Parameters
    ----------
    url
        An http or https address; redirections are followed, but not from https to http.
    target
        Where the file is to be; its folder is made.
    digest
        What it must be; anything else is deleted.

    Returns
    -------
    `target`.

    Raises
    ------
    Unavailable
        When the server cannot be reached, refuses, or sends other bytes.
    SabrError
        When the file cannot be written.
    """
    if digest.fits(target):
        return target
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        resumed = _receive_all(url, part)
        if digest.fits(part):
            with contextlib.suppress(FileNotFoundError):  # another process has just renamed it
                part.replace(target)
            return target
        part.unlink(missing_ok=True)
        if digest.fits(target):
            return target
    except Unavailable:
        if digest.fits(target):  # another process has fetched it meanwhile
            return target
        raise
    except OSError as error:
        raise SabrError(
            f"cannot write {part}: {error.strerror or error}; free some space or choose a folder that can be written to"
        ) from error
    if resumed:  # the part that was continued may have been the wrong half
        return download(url, target, digest)
    raise Unavailable(f"{url} gave a truncated, corrupted or different file (wrong {digest.algorithm}), now deleted")


def _receive_all(url: str, part: Path) -> bool:
    """Fetch and, while attempts bring something, continue; True if the file has been put together from pieces."""
    resumed, in_vain = False, 0
    with httpx.Client(timeout=TIMEOUT, follow_redirects=True) as client:
        while True:
            reached = _size(part)
            try:
                return _receive(client, url, part) or resumed
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                resumed = True
                in_vain = 0 if _size(part) > reached else in_vain + 1
                # Once may be another process's doing, which writes to the same part, or has just renamed it.
                if in_vain == 2:
                    raise Unavailable(f"{url}: {error or type(error).__name__}") from error


def _receive(client: httpx.Client, url: str, part: Path) -> bool:
    """One request for what `part` lacks; True if the server continued it, False if it sent the whole file."""
    offset = _size(part)
    tag = part.with_name(f"{part.name}.etag")
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
        with contextlib.suppress(FileNotFoundError):
            headers["If-Range"] = tag.read_text(encoding="ascii")
    with client.stream("GET", url, headers=headers) as response:
        if url.startswith("https:") and response.url.scheme != "https":
            raise Unavailable(f"{url} leads to {response.url}, which is not encrypted")
        if response.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
            if response.is_error:
                raise Unavailable(f"{url} answers {response.status_code} {response.reason_phrase}")
            resumed = offset > 0 and response.status_code == httpx.codes.PARTIAL_CONTENT
            if not resumed:
                _remember(tag, response.headers.get("ETag", ""))
            with open(part, "rb+", opener=lambda path, flags: os.open(path, flags | os.O_CREAT, 0o666)) as file:
                file.seek(offset if resumed else 0)
                for chunk in response.iter_raw():
                    file.write(chunk)
                file.truncate()
            tag.unlink(missing_ok=True)
            return resumed
    part.unlink(missing_ok=True)
    return _receive(client, url, part)


def _remember(tag: Path, etag: str) -> None:
    """Keep a strong entity tag for the next If-Range; a weak one does not serve there."""
    if etag.startswith('"'):
        tag.write_text(etag, encoding="ascii")
    else:
        tag.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
