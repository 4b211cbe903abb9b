"""All recorded results as one tidy table, with provenance; what does not fit together is refused."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from pydantic import ValidationError
from scipy.stats import binomtest

from sabr.errors import SabrError
from sabr.files import read_json, write_text
from sabr.settings import DATASETS
from sabr.specs import STAGES, CertificationSpec, TrainingSpec, differing_keys, first_problem, parse_eps, read_spec

STAGE_COLUMNS = {stage: f"certified_{stage.replace('-', '_')}" for stage in STAGES}
MEASURES = ("natural", "adversarial", "certified", *STAGE_COLUMNS.values())

_DTYPES = {
    "dataset": "str",
    "eps": "str",
    "method": "str",
    "objective": "str",
    "seed": "int64",
    "lambda_ratio": "float64",
    "architecture": "str",
    "train_images": "int64",
    "epochs": "int64",
    "images": "int64",
    **{measure: "int64" for measure in MEASURES[:3]},
    **{column: "Int64" for column in STAGE_COLUMNS.values()},
    "train_seconds": "float64",
    "certify_seconds": "float64",
    "commit": "str",
    "certify_commit": "str",
    "torch": "str",
}
_VERDICTS = {
    "index": "int64",
    "label": "int64",
    "prediction": "int64",
    "natural_correct": "bool",
    "adversarial_correct": "bool",
    "certified": "bool",
    "certified_by": "str",
}


def collect(folders: Sequence[Path]) -> pd.DataFrame:
    """Bring recorded results together, one line per network, in the order of `folders`.

    Parameters
    ----------
    folders
        Row folders, named .../DATASET/eps-EPS/METHOD/seed-SEED, each with `run.json`, `model.json`, `verdicts.json`
        and `verdicts.csv`.

    Returns
    -------
    pandas.DataFrame
        dataset; eps, the radius as it is written ("0.1", "2/255"); method; objective; seed; lambda_ratio (NaN where
        the method has none); architecture; train_images; epochs; images, how many test images were judged; natural,
        adversarial, certified: how many of them were classified right, withstood the attack, were certified;
        certified_interval and so on: how many were certified by that stage or an earlier one (missing where the stage
        was not run); train_seconds and certify_seconds; commit and torch, of the training, and certify_commit.

    Raises
    ------
    SabrError
        When the files of a folder do not belong together (weights, specification, radius, number of images), when a
        verdict contradicts itself, when a network is given twice, or when two networks of one setting were judged on
        different numbers of images.
    """
    if not folders:
        raise SabrError("there are no results to collect: give at least one folder such as .../sabr/seed-1")
    rows = [_row(folder) for folder in folders]
    records = pd.DataFrame(rows, columns=list(_DTYPES)).astype(_DTYPES)
    seen: dict[tuple[Any, ...], Path] = {}
    images: dict[tuple[Any, ...], tuple[int, Path]] = {}
    for row, folder in zip(rows, folders, strict=True):
        other = seen.setdefault((row["dataset"], row["eps"], row["method"], row["seed"]), folder)
        if other is not folder:
            raise SabrError(f"{folder} and {other} hold the same method, setting and seed; collect one scale at a time")
        count, first = images.setdefault((row["dataset"], row["eps"]), (row["images"], folder))
        if row["images"] != count:
            raise SabrError(
                f"{folder / 'verdicts.json'}: {row['images']} images were judged here, but {count} in {first}; "
                "certify both on the same images before comparing them"
            )
    return records


def write(records: pd.DataFrame, path: Path) -> None:
    """Write what `collect` returns as CSV."""
    write_text(path, records.to_csv(index=False))


def read(path: Path) -> pd.DataFrame:
    """Read what `write` wrote, with the same columns and types.

    Raises
    ------
    SabrError
        When the file is missing or is no such table.
    """
    return _read_csv(path, _DTYPES)


def histories(folders: Sequence[Path]) -> pd.DataFrame:
    """Bring the training histories together: the columns of `history.csv` with method, setting and seed before them.

    Parameters
    ----------
    folders
        Row folders as for `collect`, each with `history.csv`.

    Returns
    -------
    pandas.DataFrame
        One line per network and epoch; setting is a name such as "mnist-eps-0.1". Accuracies are in [0, 1], on
        training batches.

    Raises
    ------
    SabrError
        When a history is missing or cannot be read.
    """
    tables = []
    for folder in folders:
        place = _place(folder)
        path = folder / "history.csv"
        try:
            table = pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise SabrError(f"cannot read {path}: {error}; train this network again") from error
        setting = f"{place.dataset}-eps-{place.eps.replace('/', '_')}"
        tables.append(
            pd.DataFrame({"method": place.method, "setting": setting, "seed": place.seed}, table.index).join(table)
        )
    if not tables:
        raise SabrError("there are no histories to collect: give at least one folder such as .../sabr/seed-1")
    return pd.concat(tables, ignore_index=True)


def interval(successes: int, n: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson's score interval), both ends in [0, 1].

    Parameters
    ----------
    successes, n
        `successes` of `n` independent images; n >= 1.
    """
    found = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(found.low), float(found.high)


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """Accuracies in %, one line per setting, method and measure, over all seeds.

    Parameters
    ----------
    records
        What `collect` returns, or a part of it.

    Returns
    -------
    pandas.DataFrame
        dataset, eps, method, objective, lambda_ratio; measure, one of `MEASURES`; value, the mean over seeds; low and
        high, the 95 % interval of `interval` for one seed, mean -+ standard deviation for several; deviation, the
        standard deviation over seeds (n - 1), NaN for one; seeds and images. Measures that were not taken are absent.
    """
    keys = ["dataset", "eps", "method", "objective", "lambda_ratio"]
    lines = []
    for names, group in records.groupby(keys, sort=False, dropna=False):
        for measure in MEASURES:
            if group[measure].isna().any():
                continue
            percent = 100 * group[measure].astype("float64") / group["images"]
            value, deviation = float(percent.mean()), float(percent.std())
            low, high = value - deviation, value + deviation
            images = int(group["images"].iloc[0])
            if len(group) == 1:
                low, high = (100 * end for end in interval(int(group[measure].iloc[0]), images))
            lines.append((*names, measure, value, low, high, deviation, len(group), images))
    columns = [*keys, "measure", "value", "low", "high", "deviation", "seeds", "images"]
    return pd.DataFrame(lines, columns=columns).astype({"lambda_ratio": "float64", "deviation": "float64"})


class _Place(NamedTuple):
    dataset: str
    eps: str
    method: str
    seed: int


def _place(folder: Path) -> _Place:
    found = re.fullmatch(r"([^/]+)/eps-([^/]+)/([^/]+)/seed-(\d+)", "/".join(folder.parts[-4:]))
    if found is None:
        raise SabrError(f"{folder} is not a folder of results; expected .../DATASET/eps-EPS/METHOD/seed-SEED")
    dataset, eps, method, seed = found.groups()
    return _Place(dataset, eps.replace("_", "/"), method, int(seed))


def _row(folder: Path) -> dict[str, Any]:
    place = _place(folder)
    training = read_spec(TrainingSpec, folder / "run.json")
    model = _read_object(folder / "model.json", ("spec", "provenance", "seconds", "sha256"))
    judged = _read_object(folder / "verdicts.json", ("certification", "model_sha256", "provenance", "seconds"))
    try:
        certification = CertificationSpec.model_validate(judged["certification"])
    except ValidationError as error:
        raise SabrError(f"{folder / 'verdicts.json'}: certification.{first_problem(error)}") from error

    differences = differing_keys(read_json(folder / "run.json"), model["spec"])
    if differences:
        raise SabrError(
            f"{folder / 'run.json'} asks for another network than {folder / 'model.json'} holds: {differences[0]}; "
            "train it again"
        )
    _agree(
        folder / "verdicts.json", "model_sha256", judged["model_sha256"], model["sha256"], "model.json", "certify again"
    )
    try:
        radius = parse_eps(place.eps)
    except ValueError as error:
        raise SabrError(f"{folder}: {error}") from error
    _agree(
        folder / "verdicts.json", "certification.eps", certification.eps, radius, "the folder's name", "certify again"
    )
    _agree(folder / "verdicts.json", "certification.dataset", certification.dataset, place.dataset, "the folder's name")
    _agree(folder / "run.json", "dataset", training.dataset, place.dataset, "the folder's name", "train it again")
    _agree(folder / "run.json", "seed", training.seed, place.seed, "the folder's name", "train it again")

    verdicts = _read_verdicts(folder / "verdicts.csv", certification)
    counts = {measure: int(verdicts[column].sum()) for measure, column in zip(MEASURES, _COUNTED, strict=False)}
    for stage, column in STAGE_COLUMNS.items():
        earlier = STAGES[: STAGES.index(stage) + 1]
        counts[column] = int(verdicts["certified_by"].isin(earlier).sum()) if stage in certification.stages else pd.NA  # type: ignore[assignment]
    return {
        **place._asdict(),
        "objective": training.method.objective,
        "lambda_ratio": getattr(training.method, "lambda_ratio", float("nan")),
        "architecture": training.architecture,
        "train_images": training.train_images or DATASETS[training.dataset].train_images,
        "epochs": training.epochs,
        "images": certification.images,
        **counts,
        "train_seconds": model["seconds"],
        "certify_seconds": judged["seconds"],
        "commit": model["provenance"]["commit"],
        "certify_commit": judged["provenance"]["commit"],
        "torch": model["provenance"]["versions"].get("torch"),
    }


_COUNTED = ("natural_correct", "adversarial_correct", "certified")


def _read_verdicts(path: Path, certification: CertificationSpec) -> pd.DataFrame:
    verdicts = _read_csv(path, _VERDICTS)
    if len(verdicts) != certification.images:
        raise SabrError(
            f"{path} holds {len(verdicts)} verdicts, but {certification.images} were asked for; certify again"
        )
    wrong = verdicts["index"].to_numpy() != range(len(verdicts))
    if wrong.any():
        first = int(wrong.argmax())
        raise SabrError(
            f"{path}: index {verdicts['index'].iloc[first]} stands where {first} is expected; certify again"
        )

    by = verdicts["certified_by"]
    contradictions: Mapping[str, pd.Series[bool]] = {
        "natural_correct does not say whether prediction equals label": verdicts["natural_correct"]
        != (verdicts["label"] == verdicts["prediction"]),
        "certified, but natural_correct is False": verdicts["certified"] & ~verdicts["natural_correct"],
        "certified, but adversarial_correct is False": verdicts["certified"] & ~verdicts["adversarial_correct"],
        "adversarial_correct, but natural_correct is False": verdicts["adversarial_correct"]
        & ~verdicts["natural_correct"],
        "certified and certified_by contradict each other": verdicts["certified"] != by.notna(),
        f"certified_by is none of the stages {', '.join(certification.stages)}": by.notna()
        & ~by.isin(certification.stages),
    }
    for problem, where in contradictions.items():
        if where.any():
            index = int(verdicts.loc[where, "index"].iloc[0])
            raise SabrError(f"{path}: image {index}: {problem}; a verifier or an attack is wrong, so report this")
    return verdicts


def _read_csv(path: Path, dtypes: Mapping[str, str]) -> pd.DataFrame:
    try:
        return pd.read_csv(path, usecols=list(dtypes), dtype=dict(dtypes))[list(dtypes)]
    except OSError as error:
        raise SabrError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SabrError(f"{path} is not the table it should be ({error}); delete it and run again") from error


def _read_object(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    value = read_json(path)
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise SabrError(f"{path}: {key}: this key is missing; delete the file and run again")
    return dict(value)


def _agree(path: Path, key: str, here: object, there: object, other: str, remedy: str = "run again") -> None:
    if here != there:
        raise SabrError(f"{path}: {key} is {here!r}, but {other} says {there!r}; {remedy}")
