"""One study of several trained networks as one tidy table; what does not belong together is refused; their reader."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sabr import tables
from sabr.errors import SabrError
from sabr.files import checksum
from sabr.report import sidecars
from sabr.report.rows import Place, place_of
from sabr.specs import differing_keys, parse_eps
from sabr.studies import COLUMNS, NETWORK_COLUMNS

# Studies that claims are checked on and that need no network.
_OF_IDEAS = {
    "box-growth": {
        **dict.fromkeys(("input_size", "output_size", "standard_error", "linear", "mean", "deviation"), "float64"),
        **dict.fromkeys(("centres", "seed"), "int64"),
    }
}
# Numbers that there are not where all gradients vanish, or of a single image.
_OPTIONAL = ("cosine", "deviation")
# What a specification says beside what studies look at; methods of one setting may differ in it.
_NO_MATTER = {"images", "batch_size", "strong_attack", "complete", "shard_minutes", "memory_mb"}


def gather(study: str, folders: Sequence[Path], report: Callable[[str], None]) -> pd.DataFrame:
    """Put one study of several networks together, in the order of the folders.

    Parameters
    ----------
    study
        A key of `sabr.studies.COLUMNS`.
    folders
        Row folders, named .../DATASET/eps-EPS/METHOD/seed-SEED, with `studies/STUDY.csv`, `studies/STUDY.json` and
        the checkpoint's `model.json`.
    report
        Called with a line for each folder without that study, which is left out.

    Returns
    -------
    pandas.DataFrame
        `sabr.studies.NETWORK_COLUMNS`, eps as it is written ("2/255"), before the columns of the study.

    Raises
    ------
    SabrError
        When no folder has the study, one is given twice, a table is damaged, or made of another network, dataset or
        radius than its folder's, or in another way than the first of the same setting.
    """
    found: dict[Place, pd.DataFrame] = {}
    made: dict[tuple[str, str], tuple[Path, Any]] = {}
    for folder in folders:
        place, path = place_of(folder), folder / "studies" / f"{study}.csv"
        if place in found:
            raise SabrError(f"{folder} holds a network that was given before; give each once")
        if not path.is_file():
            report(f"{path} is missing: this network is left out")
            continue
        about = _sidecar(path, study, place)
        table = tables.read(path, COLUMNS[study], _OPTIONAL)
        first, other = made.setdefault((place.dataset, place.eps), (path, about))
        different = differing_keys(about, other)
        if different:
            raise SabrError(f"{path} was made in another way than {first}: {different[0]}; make both again")
        network = pd.DataFrame(place._asdict(), index=table.index, columns=list(NETWORK_COLUMNS))
        found[place] = network.astype(NETWORK_COLUMNS).join(table)
    if not found:
        raise SabrError(f"there is no study {study} in the given folders; run `sabr study {study}` first")
    return pd.concat(found.values(), ignore_index=True)


def read(study: str, path: Path) -> pd.DataFrame:
    """Read what `gather` returned, or what `sabr study box-growth` wrote, as CSV.

    Raises
    ------
    SabrError
        When there is no such study, or the file is missing or is no such table.
    """
    known = _OF_IDEAS | {name: NETWORK_COLUMNS | columns for name, columns in COLUMNS.items()}
    if study not in known:
        raise SabrError(f"{path}: {study!r} is not a study that this reads; allowed: {', '.join(known)}")
    return tables.read(path, known[study], _OPTIONAL)


def _sidecar(path: Path, study: str, place: Place) -> dict[str, Any]:
    """What must be the same in all tables that are put together, after checking that the table is the folder's."""
    about = sidecars.read(sidecars.Study, path.with_suffix(".json"))
    model = sidecars.read(sidecars.Checkpoint, path.parents[1] / "model.json")
    spec = about["spec"]
    if about["sha256"] != checksum(path):
        raise SabrError(f"{path} is damaged or does not belong to {path.stem}.json; make it again")
    if about["model_sha256"] != model["sha256"]:
        raise SabrError(
            f"{path} was made of another network than {path.parents[1] / 'model.json'} is about; make it again"
        )
    for key, found, wanted in (("study", about["study"]["study"], study), ("dataset", spec["dataset"], place.dataset)):
        if found != wanted:
            raise SabrError(f"{path} is of the {key} {found}, not of {wanted}; make it again")
    try:
        radius = parse_eps(place.eps)
    except ValueError as error:
        raise SabrError(f"{path.parents[1]}: {error}") from error
    if abs(spec["eps"] - radius) > 1e-9:
        raise SabrError(f"{path} is for eps {spec['eps']:g}, but its folder says {place.eps}; make it again")
    return {
        "study": about["study"],
        "data_sha256": about["data_sha256"],
        "spec": {key: value for key, value in spec.items() if key not in _NO_MATTER},
    }
