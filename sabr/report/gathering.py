"""One study of several trained networks as one tidy table; what does not belong together is refused; their reader."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sabr.errors import SabrError
from sabr.files import checksum, read_json
from sabr.report.rows import Place, place_of, read_table
from sabr.specs import differing_keys, parse_eps
from sabr.studies import COLUMNS, NETWORK_COLUMNS

# Studies that claims are checked on and that need no network.
_OF_IDEAS = {
    "box-growth": {
        **dict.fromkeys(("input_size", "output_size", "standard_error", "linear", "mean", "deviation"), "float64"),
        **dict.fromkeys(("centres", "seed"), "int64"),
    }
}
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
    tables: dict[Place, pd.DataFrame] = {}
    made: dict[tuple[str, str], tuple[Path, Any]] = {}
    for folder in folders:
        place, path = place_of(folder), folder / "studies" / f"{study}.csv"
        if place in tables:
            raise SabrError(f"{folder} holds a network that was given before; give each once")
        if not path.is_file():
            report(f"{path} is missing: this network is left out")
            continue
        about = _sidecar(path, study, place)
        table = read_table(path, COLUMNS[study])
        first, other = made.setdefault((place.dataset, place.eps), (path, about))
        different = differing_keys(about, other)
        if different:
            raise SabrError(f"{path} was made in another way than {first}: {different[0]}; make both again")
        network = pd.DataFrame(place._asdict(), index=table.index, columns=list(NETWORK_COLUMNS))
        tables[place] = network.astype(NETWORK_COLUMNS).join(table)
    if not tables:
        raise SabrError(f"there is no study {study} in the given folders; run `sabr study {study}` first")
    return pd.concat(tables.values(), ignore_index=True)


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
    return read_table(path, known[study])


def _sidecar(path: Path, study: str, place: Place) -> dict[str, Any]:
    """What must be the same in all tables that are put together, after checking that the table is the folder's."""
    about, model = read_json(path.with_suffix(".json")), read_json(path.parents[1] / "model.json")
    try:
        recorded, spec, own = about["study"]["study"], about["spec"], about["model_sha256"]
        dataset, eps, current = spec["dataset"], spec["eps"], model["sha256"]
        radius = parse_eps(place.eps)
        made = {key: about[key] for key in ("study", "data_sha256")}
        made["spec"] = {key: value for key, value in spec.items() if key not in _NO_MATTER}
        whole = about["sha256"] == checksum(path)
    except (KeyError, TypeError, ValueError) as error:
        raise SabrError(
            f"{path.with_suffix('.json')} is not what `sabr study` writes ({error}); make it again"
        ) from error
    if not whole:
        raise SabrError(f"{path} is damaged or does not belong to {path.stem}.json; make it again")
    if own != current:
        raise SabrError(
            f"{path} was made of another network than {path.parents[1] / 'model.json'} is about; make it again"
        )
    for key, found, wanted in (("study", recorded, study), ("dataset", dataset, place.dataset)):
        if found != wanted:
            raise SabrError(f"{path} is of the {key} {found}, not of {wanted}; make it again")
    if abs(eps - radius) > 1e-9:
        raise SabrError(f"{path} is for eps {eps:g}, but its folder says {place.eps}; make it again")
    return made
