"""The keys of the user's configuration, typed and validated."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from sabr.layers import Origins, read_yaml, validate
from sabr.methods import Strict
from sabr.specs import Cascade

NAME = r"^[a-z0-9][a-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME)]
# What messages call the top of the configuration: it may come from any of these.
TOP = "config/config.yaml, or what is laid over it"


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"{twice[0]!r} is given twice")
    return values


# Each once: a network that was given twice would be counted twice.
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_distinct)]
Names = Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(_distinct)]
Ratios = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1), AfterValidator(_distinct)]


class LambdaSweep(Strict):
    """One method, trained at several lambda_ratio; other rows that fit are used again. No `seeds`: all of the run."""

    setting: Name
    method: Name
    values: Ratios
    seeds: Seeds | None = None


class Comparison(Strict):
    """Networks that a study of the paper compares; rows of Table 1 that fit are used again. No `seeds`: all."""

    setting: Name
    methods: Names
    seeds: Seeds | None = None


class Comparisons(Strict):
    """What is compared beside Table 1.

    Attributes
    ----------
    ablation
        Networks whose loss against lambda, ReLU states, inputs and gradients are studied.
    shrinking
        With and without ReLU shrinking.
    widths
        Narrow, standard and wide networks.
    long
        Trained for as long as can be afforded, beside their like in Table 1.
    """

    ablation: Comparison | None = None
    shrinking: Comparison | None = None
    widths: Comparison | None = None
    long: tuple[Comparison, ...] = ()

    @property
    def named(self) -> dict[str, tuple[Comparison, ...]]:
        """Those that there are."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: one if isinstance(one, tuple) else (one,) for name, one in found.items() if one}


class Job(Strict):
    """What one job that trains, attacks or certifies may use, and how much training may be lost when it is killed."""

    threads: PositiveInt
    gpus: NonNegativeInt
    memory_mb: PositiveInt
    minutes: PositiveInt
    save_minutes: PositiveFloat


class Run(Strict):
    """What a scale runs: settings x methods x seeds, a sweep over lambda, comparisons, how many images a job certifies.

    Single settings may have other `methods`.
    """

    settings: Names
    methods: Names
    seeds: Seeds
    lambda_sweep: LambdaSweep | None
    comparisons: Comparisons = Comparisons()
    shard_size: PositiveInt
    job: Job


def _place(path: str) -> str:
    if not path or not path.isprintable() or set(path) & set("{}"):
        raise ValueError(f"{path!r} is not allowed: a path without braces, line breaks and the like is needed here")
    return place(path)


def place(path: str) -> str:
    """A path as Snakemake should see it: a home directory put in for ~, without a dot in front or a slash behind.

    Raises
    ------
    ValueError
        When there is no such home directory.
    """
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise ValueError(f"{path!r} is not allowed: there is no such home directory here") from None


# Braces would be wildcards to Snakemake.
Place = Annotated[str, AfterValidator(_place)]


class Data(Strict):
    """Where datasets are kept, and where they may come from."""

    folder: Place
    mirror: Place | None


class Config(Strict):
    """The keys of `config/config.yaml`.

    `checkpoints` names a folder in `results` whose networks and verdicts are taken instead of being made; with
    `partial` tables and figures are made of the networks that have verdicts already.
    """

    scale: Name
    results: Place
    checkpoints: Name | None = None
    partial: bool = False
    data: Data
    overrides: dict[str, Any]


def read_cascade(path: Path, *, seconds: float | None) -> Cascade:
    """Read how a property is verified.

    Parameters
    ----------
    path
        YAML with the keys of `sabr.specs.Cascade`.
    seconds
        Time limit, for all stages and for the complete verifier, in the place of the file's; None: the file's.

    Raises
    ------
    SabrError
        One sentence: file, key path, value, and what is allowed.
    """
    content = read_yaml(path)
    if seconds is not None and isinstance(content.get("complete"), dict):
        content |= {"complete": {**content["complete"], "seconds": seconds}, "shard_minutes": seconds / 60}
    return validate(Cascade, content, Origins(str(path)))  # type: ignore[no-any-return]
