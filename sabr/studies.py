"""The paper's studies of trained networks: what each measures, and the columns of its table; typed and validated."""

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from sabr.methods import Strict

# Columns of each study's table and their types.
COLUMNS: dict[str, dict[str, str]] = {
    "loss-lambda": {
        "lambda_ratio": "float64",
        "images": "int64",
        **dict.fromkeys(("standard", "adversarial", "box", "centred_adversarial", "centred_box"), "float64"),
    },
    "relu-inputs": {
        "layer": "int64",
        "images": "int64",
        **dict.fromkeys(("lower_edge", "upper_edge", "share", "mean", "negative_share"), "float64"),
    },
    "relu-states": {
        "where": "str",
        "images": "int64",
        "layer": "str",
        **dict.fromkeys(("active", "inactive", "unstable"), "float64"),
    },
    "box-sizes": {
        "layer": "int64",
        "stage": "str",
        "lambda_ratio": "float64",
        "images": "int64",
        **dict.fromkeys(("input_radius", "mean_radius", "linear"), "float64"),
    },
    "gradient-alignment": {
        "loss": "str",
        "lambda_ratio": "float64",
        "at": "str",
        "images": "int64",
        **dict.fromkeys(("cosine", "deviation"), "float64"),
    },
    "eps-curve": {
        "tested_eps": "float64",
        "images": "int64",
        **dict.fromkeys(("natural", "adversarial", "certified"), "int64"),
    },
}
# Columns in front of them once the tables of several networks are gathered; eps as it is written.
NETWORK_COLUMNS = {"dataset": "str", "eps": "str", "method": "str", "seed": "int64"}
# What a study needs beside the number of images and the memory; the others need nothing.
VALUES = {"loss-lambda": "lambda_ratios", "box-sizes": "lambda_ratios", "eps-curve": "eps_factors"}


def _known(study: str) -> str:
    if study not in COLUMNS:
        raise ValueError(f"{study!r} is not a study of trained networks; allowed: {', '.join(COLUMNS)}")
    return study


def _increasing(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(one >= other for one, other in pairwise(values)):
        raise ValueError(
            f"{', '.join(f'{value:g}' for value in values)} do not increase; give each value once, in order"
        )
    return values


_Several = [Field(min_length=2), AfterValidator(_increasing)]
LambdaRatios = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], *_Several]
EpsFactors = Annotated[tuple[PositiveFloat, ...], *_Several]


class Studies(Strict):
    """How much each study of a trained network measures.

    Attributes
    ----------
    images
        The first of the test set.
    lambda_ratios
        Sizes of the propagated box, in units of eps, of the loss against lambda and of the sizes of boxes; 0 is the
        point alone.
    eps_factors
        Radii of the accuracy against eps, in units of the setting's.
    memory_mb
        What the tensors of a batch may take, roughly.
    """

    images: PositiveInt
    lambda_ratios: LambdaRatios
    eps_factors: EpsFactors
    memory_mb: PositiveInt


class StudySpec(Strict):
    """One study to make of one network: the part of `Studies` that it depends on; `study` is a key of `COLUMNS`."""

    study: Annotated[str, AfterValidator(_known)]
    images: PositiveInt
    memory_mb: PositiveInt
    lambda_ratios: LambdaRatios | None = None
    eps_factors: EpsFactors | None = None

    @model_validator(mode="after")
    def _what_it_needs(self) -> "StudySpec":
        needed = VALUES.get(self.study)
        for key in ("lambda_ratios", "eps_factors"):
            if (getattr(self, key) is None) == (key == needed):
                raise ValueError(f"{key}: the study {self.study} {'needs some' if key == needed else 'knows none'}")
        return self
