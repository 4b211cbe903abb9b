"""The file of claims, `config/claims.yaml`: typed and validated."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    Tag,
    model_validator,
)

from sabr.layers import read_yaml
from sabr.methods import Strict
from sabr.problems import checked
from sabr.specs import parse_eps

Study = Literal["gradient-alignment", "relu-states", "relu-inputs", "box-sizes", "loss-lambda", "eps-curve"]
# Columns of records.csv that count images.
Counted = Literal["natural", "adversarial", "certified", "certified_interval", "certified_crown"]
# A network of the sweep over lambda: the smallest lambda, the largest, the one that certifies most.
Swept = Literal["smallest", "largest", "best"]


def _setting(value: str) -> str:
    dataset, found, eps = value.partition("-eps-")
    if not found:
        raise ValueError(f"{value!r} is not a setting; write one such as mnist-eps-0.1 or cifar10-eps-2_255")
    parse_eps(eps.replace("_", "/"))
    return value


Setting = Annotated[str, AfterValidator(_setting)]


class Accuracy(Strict):
    """An accuracy of ours in %: of a `method`, or of one network of the sweep over lambda (`swept`)."""

    measure: Counted
    method: str | None = None
    swept: Swept | None = None

    @model_validator(mode="after")
    def _one_network(self) -> "Accuracy":
        if (self.method is None) == (self.swept is None):
            raise ValueError("either method or swept is needed")
        return self


# Whose networks: a method, or several, of which the first that there are results of is taken.
Methods = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]


class Studied(Strict):
    """A number that a study measured: the `column` of the one line of each network that `where` leaves over."""

    study: Study
    method: Methods = Field(min_length=1)
    column: str
    where: dict[str, str | float] = {}


class PublishedNumber(Strict):
    """A published accuracy in %."""

    published: str
    measure: Literal["natural", "certified"]


def _quantity(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", {})
    return next((kind for key, kind in _KINDS.items() if key in keys), "accuracy")


# Which key tells them; unlike keys, names of kinds are left out of messages.
_KINDS = {"study": "studied", "published": "literature"}


Quantity = Annotated[
    Annotated[Accuracy, Tag("accuracy")]
    | Annotated[Studied, Tag("studied")]
    | Annotated[PublishedNumber, Tag("literature")],
    Discriminator(_quantity),
]


class Above(Strict):
    """One quantity is above another, in each of the settings.

    Attributes
    ----------
    settings
        None: wherever both are known.
    tolerance
        In the quantity's unit. With one seed a smaller difference is put down to the seed.
    """

    kind: Literal["above"]
    left: Quantity
    right: Quantity
    settings: tuple[Setting, ...] | None = Field(None, min_length=1)
    tolerance: NonNegativeFloat = 0

    @model_validator(mode="after")
    def _of_one_kind(self) -> "Above":
        if isinstance(self.left, Studied) != isinstance(self.right, Studied):
            raise ValueError("left and right cannot be compared: both must be of a study, or neither")
        return self


class Bound(Strict):
    """A quantity is at most, or at least, so much."""

    kind: Literal["bound"]
    of: Quantity
    at_most: float | None = None
    at_least: float | None = None
    settings: tuple[Setting, ...] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_limit(self) -> "Bound":
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("either at_most or at_least is needed")
        return self


class Near(Strict):
    """An accuracy of ours is within `tolerance` points of a published one; `reduced`: a reduced scale must be, too."""

    kind: Literal["near"]
    of: Accuracy
    to: PublishedNumber
    settings: tuple[Setting, ...] = Field(min_length=1)
    tolerance: float = Field(gt=0)
    reduced: bool = False


class Peak(Strict):
    """Over the sweep an accuracy is highest at a lambda below `below`, and higher there than at the largest one."""

    kind: Literal["peak"]
    measure: Counted
    below: float = Field(gt=0, le=1)
    tolerance: NonNegativeFloat = 0


class Growth(Strict):
    """A curve is above its linear extrapolation by at least a factor at the end: of a simulation, or of trained nets.

    Attributes
    ----------
    study
        Which curve.
    method
        Whose network; None for the simulation.
    where
        Of all lines, those of the curve: column and value; a curve for each layer is left over.
    """

    kind: Literal["growth"]
    study: Literal["box-growth", "box-sizes"]
    method: Methods | None = Field(None, min_length=1)
    where: dict[str, str | float] = {}
    factor: float = Field(gt=1)

    @model_validator(mode="after")
    def _whose(self) -> "Growth":
        if (self.method is None) != (self.study == "box-growth"):
            raise ValueError("a method is needed for box-sizes, and none for box-growth")
        return self


class Crosses(Strict):
    """Along lambda, one column of loss-lambda rises through another, somewhere between `low` and `high`."""

    kind: Literal["crosses"]
    method: Methods = Field(min_length=1)
    rising: str
    through: str
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Crosses":
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


Check = Annotated[Above | Bound | Near | Peak | Growth | Crosses, Field(discriminator="kind")]


class Claim(Strict):
    """One claim of the paper.

    Attributes
    ----------
    id
        A short name.
    text
        The claim in one sentence.
    source
        Where it is made.
    setting
        The setting that it is made for, where checks do not name their own; elsewhere a check says so.
    checks
        All of them must hold.
    """

    id: str = Field(pattern=r"^[a-z0-9.-]+$")
    text: str = Field(min_length=1)
    source: str = Field(min_length=1)
    setting: Setting | None = None
    checks: tuple[Check, ...] = Field(min_length=1)


class FullScale(Strict):
    """When a network of ours may be compared with published numbers: trained and judged as the paper's."""

    architecture: str
    epochs: dict[Setting, int]


class Claims(Strict):
    """The whole of `config/claims.yaml`; `ablation` is there for checks to refer to."""

    full_scale: FullScale
    ablation: Methods
    claims: tuple[Claim, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> "Claims":
        names = [claim.id for claim in self.claims]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"claims: the id {twice!r} is given twice")
        return self


def place(setting: str) -> tuple[str, str]:
    """Dataset and eps, as it is written, of a setting: "cifar10-eps-2_255" is cifar10 and "2/255"."""
    dataset, _, eps = setting.partition("-eps-")
    return dataset, eps.replace("_", "/")


def read(path: Path) -> Claims:
    """Read and check a file like `config/claims.yaml`.

    Raises
    ------
    SabrError
        One sentence: file, key path, value, and what is allowed.
    """
    return checked(Claims, read_yaml(path), str(path))
