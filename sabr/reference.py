"""A finished run that is kept: what of it, within a size limit, and how its networks and verdicts are taken again."""

import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from sabr.config import TOP, place
from sabr.errors import SabrError
from sabr.files import atomic, checksum, read_json, write_json, write_text
from sabr.problems import checked
from sabr.specs import TrainingSpec, differing_keys, read_spec

if TYPE_CHECKING:
    from sabr.plan import Row

OUTLINE = "outline.json"
# Of each row, in the order of the workflow; counterexamples and shards stay behind. Large tables are kept compressed.
_ROW_FILES = ("run.json", "model.json", "history.csv", "attack.csv", "attack.json", "verdicts.csv", "verdicts.json")
_PACKED = ("attack.csv", "verdicts.csv")
# Of the run as a whole, as far as there.
_RUN_FILES = ("*.csv", "*.json", "*.md", "*.html", "tables/*.*", "figures/*.*", "studies/*.*")
_MEGABYTE = 10**6
# The first line of its README: what has none is no kept run, and is never replaced by one.
_MARK = "# A kept run"
# Columns of a history without epochs.
_NO_HISTORY = (
    "epoch,eps,learning_rate,loss,robust_loss,regulariser,l1,natural_accuracy,robust_accuracy,seconds,images_per_second"
)


class _Network(BaseModel):
    """A network of an outline."""

    dataset: str
    eps: str
    method: str
    seed: int
    parts: list[str]


class _Outline(BaseModel):
    """An outline, as far as it is needed here."""

    scale: str
    title: str
    overrides: dict[str, Any]
    rows: list[_Network]


class Kept(NamedTuple):
    """How many rows were kept, how many bytes all takes, and the rows whose weights were left behind."""

    rows: int
    size: int
    without_weights: list[str]


def configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that a run goes by: with `checkpoints`, the scale and changes of the run that was kept there.

    Parameters
    ----------
    config
        The keys of `config/config.yaml`, not validated yet.

    Raises
    ------
    SabrError
        When the folder is not there, or when it was made with other `overrides` than the configuration's.
    """
    name, results = config.get("checkpoints"), config.get("results")
    if not isinstance(name, str) or not isinstance(results, str):
        return dict(config)
    try:
        folder = Path(place(results)) / name
    except ValueError as error:
        raise SabrError(f"{TOP}: results: {error}") from error
    if not folder.is_dir():
        raise SabrError(f"{TOP}: checkpoints: {name!r} is no folder in {folder.parent}")
    if not (folder / OUTLINE).is_file():
        return dict(config)
    outline = _outline(folder)
    differences = differing_keys(config.get("overrides"), outline["overrides"])
    if config.get("overrides") and differences:
        raise SabrError(
            f"{folder / OUTLINE} was made with other overrides: {differences[0]}; leave yours out, or choose other "
            "checkpoints"
        )
    return {**config, "scale": outline["scale"], "overrides": outline["overrides"]}


def _outline(folder: Path) -> dict[str, Any]:
    """The outline of a run, as far as it is needed here."""
    where = f"{folder / OUTLINE} is no outline of a run"
    return checked(_Outline, read_json(folder / OUTLINE), where, "`sabr outline` writes one").model_dump()


def as_asked(rows: Mapping[str, "Row"], folder: Path) -> list[str]:
    """Those of the rows, by their paths, whose network in `folder` was trained and certified as they ask for.

    Raises
    ------
    SabrError
        When a sidecar cannot be read.
    """

    def sidecar(path: Path) -> dict[str, Any]:
        content = read_json(path) if path.is_file() else None
        return content if isinstance(content, dict) else {}

    chosen = []
    for path, row in rows.items():
        model, judged = (sidecar(folder / path / name) for name in ("model.json", "verdicts.json"))
        found = (model.get("spec"), judged.get("certification"), judged.get("model_sha256"))
        asked = (row.training.model_dump(mode="json"), row.certification.model_dump(mode="json"), model.get("sha256"))
        if found == asked:
            chosen.append(path)
    return chosen


def finished(rows: Iterable[str], folder: Path) -> list[str]:
    """Those of the rows, named by their paths, whose verdicts `folder` has; at least one.

    Raises
    ------
    SabrError
        When it has none.
    """
    found = [path for path in rows if (folder / path / "verdicts.json").is_file()]
    if not found:
        raise SabrError(f"nothing to show in part: {folder} has no network of this configuration with verdicts yet")
    return found


def with_verdicts(rows: Iterable[str], folder: Path) -> list[str]:
    """Those of the rows, named by their paths, whose verdicts `folder` has.

    Raises
    ------
    SabrError
        When it has neither the verdicts nor the network of a row.
    """
    kept = []
    for path in rows:
        if (folder / path / "verdicts.json").is_file():
            kept.append(path)
            continue
        for name in ("model.pt", "model.json"):
            if not (folder / path / name).is_file():
                raise SabrError(
                    f"{folder / path / name} is not there, and with `checkpoints` nothing is trained: put it there, "
                    "leave this network out of `run`, or say partial: true"
                )
    return kept


def keep(run: Path, destination: Path, limit: float, *, partial: bool = False) -> Kept:
    """Copy what is worth keeping of a finished run to `destination`, in whose place it comes whole or not at all.

    All is kept but counterexamples and weights; of the weights, those of long training first, then one seed after the
    other, as many as fit. A run drawn from a kept run may lack weights: what has verdicts was certified.

    Parameters
    ----------
    run
        Folder of a scale's results, finished.
    destination
        Folder; one that an earlier run was kept in is replaced, any other is refused.
    limit
        Megabytes in all.
    partial
        Leave out networks that have no verdicts yet; else all must be there.

    Raises
    ------
    SabrError
        When a result is missing, when what must be kept is larger than the limit, or a folder cannot be written to.
    """
    outline = _outline(run)
    for one, other in ((run, destination), (destination, run)):
        if one.resolve().is_relative_to(other.resolve()):
            raise SabrError(f"{destination} and {run} lie in one another; choose another folder to keep it in")
    rows = {
        f"{r['dataset']}/eps-{r['eps'].replace('/', '_')}/{r['method']}/seed-{r['seed']}": r for r in outline["rows"]
    }
    rows = {path: rows[path] for path in finished(rows, run)} if partial else rows
    for path in rows:
        for name in _ROW_FILES:
            if not (run / path / name).is_file():
                raise SabrError(
                    f"{run / path / name} is not there: finish this run before you keep it, or keep what there is with "
                    "--partial"
                )
    mark = destination / "README.md"
    if destination.exists() and not (mark.is_file() and mark.read_bytes().startswith(_MARK.encode())):
        raise SabrError(f"{destination} is there, but no kept run; delete it or choose another folder")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as scratch:
            copy = Path(scratch) / "kept"
            _copy_results(run, copy, list(rows))
            write_text(copy / "README.md", _mark(outline, len(rows)))
            left = limit * _MEGABYTE - _size(copy)
            if left < 0:
                size = _size(copy) / _MEGABYTE
                raise SabrError(f"{run}: even without weights there are {size:.1f} MB, but only {limit:g} are allowed")
            without = []
            for path in sorted(rows, key=lambda path: ("long" not in rows[path]["parts"], rows[path]["seed"])):
                weights = run / path / "model.pt"
                if not weights.is_file() or weights.stat().st_size > left:
                    without.append(path)
                    continue
                shutil.copyfile(weights, copy / path / "model.pt")
                left -= weights.stat().st_size
            kept = Kept(len(rows), _size(copy), without)
            if destination.exists():
                shutil.rmtree(destination)
            copy.rename(destination)
    except OSError as error:
        raise SabrError(f"cannot write {destination}: {error.strerror or error}") from error
    return kept


def take(source: Path, run: Path, outputs: Sequence[Path]) -> None:
    """Take files of one network from the folder of another run, after checking that it is the network asked for.

    A checkpoint that does not say how it was trained (`sabr import`) is taken for what `run` asks for: its sidecar says
    so, with no time and no history.

    Parameters
    ----------
    source
        A row's folder, with model.json at least.
    run
        Training specification of the row it is taken for.
    outputs
        Files to write; their places below the folder of `run` are those below `source`.

    Raises
    ------
    SabrError
        When the checkpoint is of another dataset, architecture or specification, or damaged, or a file is missing.
    """
    spec = read_spec(TrainingSpec, run)
    sidecar = _checked(source, spec, run)
    if "model.pt" in {path.name for path in outputs}:
        weights = source / "model.pt"
        if not weights.is_file() or checksum(weights) != sidecar["sha256"]:
            raise SabrError(f"{weights} is damaged or does not belong to model.json; put the right one there")
    for path in outputs:
        if not path.is_relative_to(run.parent):
            raise SabrError(f"{path} is not below {run.parent}, the folder of {run.name}: name a file there")
        original = source / path.relative_to(run.parent)
        if path.name == "model.json":
            write_json(path, sidecar)
        elif path.name == "history.csv" and not original.exists() and sidecar.get("history") == []:
            write_text(path, f"{_NO_HISTORY}\n")
        else:
            _unpack(original, path)


def _checked(source: Path, spec: TrainingSpec, run: Path) -> dict[str, Any]:
    """The sidecar of a checkpoint that is what the specification asks for."""
    path = source / "model.json"
    sidecar = read_json(path)
    if not isinstance(sidecar, dict) or "sha256" not in sidecar:
        raise SabrError(f"{path} is no sidecar of a checkpoint; put the one that was written with it there")
    found = tuple(sidecar.get(key) for key in ("architecture", "dataset"))
    if found != (spec.architecture, spec.dataset):
        raise SabrError(
            f"{path}: this checkpoint is a {found[0]} for {found[1]}, but {run} asks for a {spec.architecture} for "
            f"{spec.dataset}"
        )
    asked = spec.model_dump(mode="json")
    if "spec" not in sidecar:
        nobody: dict[str, Any] = {"versions": {}, "commit": None, "machine": {}}
        return {"seconds": None, "history": [], "resumed": [], "provenance": nobody, **sidecar, "spec": asked}
    differences = differing_keys(asked, sidecar["spec"])
    if differences:
        raise SabrError(f"{path}: this checkpoint was trained otherwise than {run} asks for: {differences[0]}")
    return sidecar


def _copy_results(run: Path, copy: Path, rows: Sequence[str]) -> None:
    for path in rows:
        (copy / path).mkdir(parents=True)
        for name in _ROW_FILES:
            if name in _PACKED:
                packed = gzip.compress((run / path / name).read_bytes(), mtime=0)
                (copy / path / f"{name}.gz").write_bytes(packed)
            else:
                shutil.copyfile(run / path / name, copy / path / name)
    patterns = (*_RUN_FILES, *(f"{path}/studies/*.*" for path in rows))
    for file in (file for pattern in patterns for file in sorted(run.glob(pattern)) if file.is_file()):
        (copy / file.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy / file.relative_to(run))


def _mark(outline: Mapping[str, Any], networks: int) -> str:
    """What tells a reader of the folder that it is a kept run, at which scale, and whether all of it is there."""
    return (
        f"{_MARK}\n\n{outline['title']}; {networks} of {len(outline['rows'])} planned networks.\n\n"
        "`sabr keep` copied it from a run's results: verdicts, studies, tables, figures, and weights as far as they\n"
        "fit; nothing here is made by hand. `snakemake --config checkpoints=FOLDER figures`, with this folder's name,\n"
        "draws all figures from it again; `config/README.md`, *Without training*, says more.\n"
    )


def _unpack(source: Path, path: Path) -> None:
    packed = source.with_name(f"{source.name}.gz")
    try:
        content = source.read_bytes() if source.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise SabrError(
            f"cannot read {source} (nor {packed.name}): {getattr(error, 'strerror', None) or error}"
        ) from error
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
