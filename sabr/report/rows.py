"""One network's recorded results, read and checked; what does not fit together is refused."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from sabr.certification import verdicts
from sabr.errors import SabrError
from sabr.files import read_json
from sabr.report import sidecars
from sabr.specs import PROOFS, CertificationSpec, TrainingSpec, differing_keys, parse_eps, read_spec

# What a finished row folder has.
_FILES = ("run.json", "model.json", "history.csv", "attack.json", "verdicts.csv", "verdicts.json")
# Stages that can refute, the quick attack of all images apart.
_REFUTATIONS = ("attack", "complete")


class Place(NamedTuple):
    """Which network: a row folder's name; `eps` as it is written ("2/255")."""

    dataset: str
    eps: str
    method: str
    seed: int


@dataclass(frozen=True)
class Row:
    """What is recorded of one network.

    Attributes
    ----------
    folder
        Where.
    place
        Which network.
    training, certification
        What was asked for.
    model, attacked, judged
        The sidecars of the checkpoint, the quick attack and the verdicts.
    verdicts
        `sabr.certification.verdicts.COLUMNS`, one line per image.
    """

    folder: Path
    place: Place
    training: TrainingSpec
    certification: CertificationSpec
    model: Mapping[str, Any]
    attacked: Mapping[str, Any]
    judged: Mapping[str, Any]
    verdicts: pd.DataFrame


def place_of(folder: Path) -> Place:
    """The network that a row folder is named after.

    Raises
    ------
    SabrError
        When the folder is named otherwise.
    """
    found = re.fullmatch(r"([^/]+)/eps-([^/]+)/([^/]+)/seed-(\d+)", "/".join(folder.parts[-4:]))
    if found is None:
        raise SabrError(f"{folder} is not a folder of results; expected .../DATASET/eps-EPS/METHOD/seed-SEED")
    dataset, eps, method, seed = found.groups()
    return Place(dataset, eps.replace("_", "/"), method, int(seed))


def unfinished(folder: Path) -> list[str]:
    """Files of a row folder that are not there yet; none: the network was trained, attacked and certified."""
    return [name for name in _FILES if not (folder / name).is_file()]


def read_row(folder: Path) -> Row:
    """Read a row folder.

    Parameters
    ----------
    folder
        Named .../DATASET/eps-EPS/METHOD/seed-SEED, with `run.json`, `model.json`, `attack.json`, `verdicts.json` and
        `verdicts.csv`.

    Raises
    ------
    SabrError
        When its files do not belong together (weights, specification, radius, number of images), or when a verdict
        contradicts itself.
    """
    place = place_of(folder)
    training = read_spec(TrainingSpec, folder / "run.json")
    model = sidecars.read(sidecars.Model, folder / "model.json")
    attacked = sidecars.read(sidecars.Attack, folder / "attack.json")
    judged = sidecars.read(sidecars.Verdicts, folder / "verdicts.json")
    certification = CertificationSpec.model_validate(judged["certification"])
    missing = [stage for stage in certification.stages if stage not in judged["stages"]]
    if missing:
        raise SabrError(f"{folder / 'verdicts.json'}: stages.{missing[0]}: this key is missing; certify again")
    differences = differing_keys(read_json(folder / "run.json"), model["spec"])
    if differences:
        raise SabrError(
            f"{folder / 'run.json'} asks for another network than {folder / 'model.json'} holds: {differences[0]}; "
            "train it again"
        )
    try:
        radius = parse_eps(place.eps)
    except ValueError as error:
        raise SabrError(f"{folder}: {error}") from error
    name = "the folder's name"
    for file, key, here, there, other, remedy in (
        ("verdicts.json", "model_sha256", judged["model_sha256"], model["sha256"], "model.json", "certify again"),
        ("attack.json", "model_sha256", attacked["model_sha256"], model["sha256"], "model.json", "attack again"),
        ("verdicts.json", "certification.eps", certification.eps, radius, name, "certify again"),
        ("verdicts.json", "certification.dataset", certification.dataset, place.dataset, name, "certify again"),
        ("run.json", "dataset", training.dataset, place.dataset, name, "train it again"),
        ("run.json", "seed", training.seed, place.seed, name, "train it again"),
    ):
        if here != there:
            raise SabrError(f"{folder / file}: {key} is {here!r}, but {other} says {there!r}; {remedy}")
    table = _verdicts(folder / "verdicts.csv", certification)
    return Row(folder, place, training, certification, model, attacked, judged, table)


def _verdicts(path: Path, certification: CertificationSpec) -> pd.DataFrame:
    table, _ = verdicts.read(path, verdicts.COLUMNS)
    if len(table) != certification.images:
        raise SabrError(f"{path} holds {len(table)} verdicts, but {certification.images} were asked for; certify again")
    wrong = table["index"].to_numpy() != range(len(table))
    if wrong.any():
        first = int(wrong.argmax())
        raise SabrError(f"{path}: index {table['index'].iloc[first]} stands where {first} is expected; certify again")

    natural, resists = table["natural_correct"], table["adversarial_correct"]
    by, refuted_by, reason = table["certified_by"], table["refuted_by"], table["reason"]
    proofs = [stage for stage in certification.stages if stage in PROOFS]
    refutations = [verdicts.QUICK_ATTACK, *(stage for stage in certification.stages if stage in _REFUTATIONS)]
    contradictions: Mapping[str, pd.Series[bool]] = {
        "natural_correct does not say whether prediction equals label": natural
        != (table["label"] == table["prediction"]),
        "certified, but natural_correct is False": table["certified"] & ~natural,
        "certified, but adversarial_correct is False": table["certified"] & ~resists,
        "adversarial_correct, but natural_correct is False": resists & ~natural,
        "certified and certified_by contradict each other": table["certified"] != (by != ""),
        "adversarial_correct and refuted_by contradict each other": natural & (resists == (refuted_by != "")),
        "it is not exactly one of certified, refuted and unknown": (by != "").astype(int)
        + (refuted_by != "")
        + (reason != "")
        != 1,
        "reason and natural_correct contradict each other": natural == (reason == verdicts.MISCLASSIFIED),
        f"certified_by is none of the stages that prove, {', '.join(proofs)}": (by != "") & ~by.isin(proofs),
        f"refuted_by is none of {', '.join(refutations)}": (refuted_by != "") & ~refuted_by.isin(refutations),
    }
    for problem, where in contradictions.items():
        if where.any():
            index = int(table.loc[where, "index"].iloc[0])
            raise SabrError(f"{path}: image {index}: {problem}; a verifier or an attack is wrong, so report this")
    return table
