"""What one job is asked to do: training and certification specifications, typed, validated, stored as JSON."""

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from sabr.errors import SabrError
from sabr.files import read_json
from sabr.settings import ARCHITECTURES, DATASETS

# Raise one of these when a change of the code changes its results: everything made by the older code is then redone.
TRAINING_REVISION = 1
CERTIFICATION_REVISION = 1

STAGES = ("interval", "crown-ibp", "crown", "alpha-crown")


def parse_eps(value: object) -> float:
    """Read a radius in pixel units, where a pixel runs from 0 to 1: 0.1 or "8/255".

    Raises
    ------
    ValueError
        When it is no number, or not in (0, 1].
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        eps = float(Fraction(value)) if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        raise ValueError(
            f"{value!r} is not a radius; write a number such as 0.1, or a fraction such as 8/255"
        ) from None
    if not 0 < eps <= 1:
        raise ValueError(f"{value!r} is not in (0, 1]; pixels run from 0 to 1, so write 8/255 for eight grey levels")
    return eps


def _known_dataset(name: str) -> str:
    if name not in DATASETS:
        raise ValueError(f"{name!r} is not a dataset; allowed: {', '.join(DATASETS)}")
    return name


def _known_architecture(name: str) -> str:
    if name not in ARCHITECTURES:
        raise ValueError(f"{name!r} is not an architecture; allowed: {', '.join(ARCHITECTURES)}")
    return name


def _of_this_code(current: int) -> AfterValidator:
    def check(revision: int) -> int:
        if revision != current:
            raise ValueError(
                f"{revision} was written for other code, whose results differ ({current} here); write it anew"
            )
        return revision

    return AfterValidator(check)


Eps = Annotated[float, BeforeValidator(parse_eps)]
DatasetName = Annotated[str, AfterValidator(_known_dataset)]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Steps(Strict):
    """`count` attack steps of one size, in units of the region's largest radius."""

    count: PositiveInt
    size: PositiveFloat


class Attack(Strict):
    """Steps of projected gradient descent."""

    steps: tuple[Steps, ...] = Field(min_length=1)

    @property
    def step_sizes(self) -> list[float]:
        """One size per step."""
        return [steps.size for steps in self.steps for _ in range(steps.count)]


class StrongAttack(Attack):
    """An attack at test time: several random starts, and the loss to ascend."""

    restarts: PositiveInt
    loss: Literal["cross_entropy", "margin"]


class Method(Strict):
    """What all training methods share."""

    initialisation: Literal["intervals", "pytorch"]
    l1: NonNegativeFloat


class Standard(Method):
    """Cross-entropy on clean images."""

    objective: Literal["standard"]


class PGD(Method):
    """Cross-entropy at adversarial points."""

    objective: Literal["pgd"]
    attack: Attack


class Bounded(Method):
    """What methods that propagate boxes share.

    Attributes
    ----------
    warmup_weight
        Weight of the warm-up regulariser (Shi et al. 2021) at eps = 0.
    eps_ratio
        Radius that the method trains with, in units of `training.eps` (and of its ramp).
    """

    warmup_weight: NonNegativeFloat
    eps_ratio: PositiveFloat


class IBP(Bounded):
    """Worst-case cross-entropy over the whole ball by interval bounds."""

    objective: Literal["ibp"]


class SmallBox(Bounded):
    """What methods share that propagate a small box around an adversarial point.

    Attributes
    ----------
    lambda_ratio
        Radius of the small box in units of the ball's.
    lambda_end
        What lambda_ratio becomes, linearly in eps, when eps reaches its largest value; None: it stays.
    tau
        scalar: every pixel has the radius lambda * eps; per-dimension: lambda times that of the ball cut to [0, 1].
    relu_shrinkage
        c_s: upper bounds behind unstable ReLUs are multiplied by it; None: off.
    attack
        The search for the adversarial point, steps in units of the largest radius in the batch.
    """

    lambda_ratio: float = Field(gt=0, le=1)
    lambda_end: float | None = Field(gt=0, le=1)
    tau: Literal["scalar", "per-dimension"]
    relu_shrinkage: float | None = Field(gt=0, lt=1)
    attack: Attack


class SABR(SmallBox):
    """Worst-case cross-entropy over a small box around an adversarial point, by interval bounds."""

    objective: Literal["sabr"]


class CrownIBP(Bounded):
    """Worst-case cross-entropy by linear bounds on top of interval bounds, mixed with both (Zhang et al. 2020).

    Attributes
    ----------
    kappa_start, kappa_end
        Weight of the clean cross-entropy at the start and the end of the ramp, linear in eps.
    beta_start, beta_end
        Weight of the linear bounds against the interval bounds, likewise.
    loss_fusion
        Bound the cross-entropy itself, one linear function an image, instead of each margin (Xu et al. 2020).
    """

    objective: Literal["crown-ibp"]
    kappa_start: float = Field(ge=0, le=1)
    kappa_end: float = Field(ge=0, le=1)
    beta_start: float = Field(ge=0, le=1)
    beta_end: float = Field(ge=0, le=1)
    loss_fusion: bool


class Expressive(Bounded):
    """Between the loss at an adversarial point and the interval bound (De Palma et al. 2024): CC-, MTL-, Exp-IBP.

    Attributes
    ----------
    alpha
        Weight of the interval bound against the adversarial point.
    attack_eps_ratio
        Radius that is attacked, in units of the radius that is bounded.
    attack
        The search for the adversarial point, steps in units of each pixel's radius.
    """

    objective: Literal["cc-ibp", "mtl-ibp", "exp-ibp"]
    alpha: float = Field(ge=0, le=1)
    attack_eps_ratio: PositiveFloat
    attack: Attack


class Classifier(Strict):
    """The last part of a network, which TAPS attacks instead of bounding it.

    Attributes
    ----------
    relus
        How many ReLU layers belong to it; it begins behind the ReLU before them.
    gradient_weight
        Weight of the attacked part's gradient against that of the interval bound in the product of their losses.
    connector
        c in (0, 1]: share of an entry's width from its bound within which that bound gets gradient.
    attack
        The search in the box at its input, steps in units of each entry's radius.
    """

    relus: PositiveInt
    gradient_weight: PositiveFloat
    connector: float = Field(gt=0, le=1)
    attack: Attack


class TAPS(Bounded):
    """Interval bounds for the first part of the network, an attack in their box for the rest (Mao et al. 2023)."""

    objective: Literal["taps"]
    classifier: Classifier


class STAPS(SmallBox):
    """TAPS from the small box of SABR (Mao et al. 2023)."""

    objective: Literal["staps"]
    classifier: Classifier


AnyMethod = Annotated[
    Standard | PGD | IBP | SABR | CrownIBP | Expressive | TAPS | STAPS, Field(discriminator="objective")
]
# Every objective with the model of its parameters.
METHODS: dict[str, type[Method]] = {
    objective: kind
    for kind in get_args(get_args(AnyMethod)[0])
    for objective in get_args(kind.model_fields["objective"].annotation)
}


class Training(Strict):
    """How to train, whatever the method; the published values are in `config/settings`."""

    dataset: DatasetName
    eps: Eps
    architecture: Annotated[str, AfterValidator(_known_architecture)]
    train_images: PositiveInt | None
    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    learning_rate_drops: tuple[PositiveInt, ...]
    learning_rate_factor: float = Field(gt=0, lt=1)
    ramp_start: PositiveInt
    ramp_end: PositiveInt

    @model_validator(mode="after")
    def _fits(self) -> "Training":
        if self.ramp_end <= self.ramp_start:
            raise ValueError(f"ramp_end ({self.ramp_end}) must come after ramp_start ({self.ramp_start})")
        late = [epoch for epoch in (self.ramp_end, *self.learning_rate_drops) if epoch > self.epochs]
        if late:
            raise ValueError(
                f"ramp_end and learning_rate_drops must lie within epochs ({self.epochs}), unlike {late[0]}"
            )
        available = DATASETS[self.dataset].train_images
        if self.train_images is not None and self.train_images > available:
            raise ValueError(f"train_images is {self.train_images}, but {self.dataset} has {available}")
        if (self.train_images or available) < self.batch_size:
            raise ValueError(f"batch_size ({self.batch_size}) is larger than train_images ({self.train_images})")
        steps = (self.train_images or available) // self.batch_size
        if steps * (self.ramp_end - self.ramp_start) < 4:
            raise ValueError(f"the ramp from epoch {self.ramp_start} to {self.ramp_end} has fewer than 4 steps")
        return self


class TrainingSpec(Training):
    """One network to train."""

    method: AnyMethod
    seed: NonNegativeInt
    revision: Annotated[int, _of_this_code(TRAINING_REVISION)] = TRAINING_REVISION


class Attacked(Strict):
    """How to attack the first `images` test images."""

    dataset: DatasetName
    eps: Eps
    images: PositiveInt
    attack: StrongAttack
    batch_size: PositiveInt
    seed: NonNegativeInt

    @model_validator(mode="after")
    def _there_are_as_many(self) -> "Attacked":
        available = DATASETS[self.dataset].test_images
        if self.images > available:
            raise ValueError(f"images is {self.images}, but {self.dataset} has {available} test images")
        return self


class AttackSpec(Attacked):
    """The attack on one network."""

    revision: Annotated[int, _of_this_code(CERTIFICATION_REVISION)] = CERTIFICATION_REVISION


class Certification(Attacked):
    """How to attack and certify them."""

    stages: tuple[Literal["interval", "crown-ibp", "crown", "alpha-crown"], ...] = Field(min_length=1)
    alpha_iterations: PositiveInt

    @model_validator(mode="after")
    def _stages_in_order(self) -> "Certification":
        if list(self.stages) != sorted(set(self.stages), key=STAGES.index):
            raise ValueError(f"stages must be given once each, in this order: {', '.join(STAGES)}")
        return self


class CertificationSpec(Certification):
    """The verdicts to reach for one network."""

    revision: Annotated[int, _of_this_code(CERTIFICATION_REVISION)] = CERTIFICATION_REVISION

    @property
    def attack_spec(self) -> AttackSpec:
        """The part of it that the attack depends on."""
        return AttackSpec.model_validate(self.model_dump(include=set(AttackSpec.model_fields)))


SpecT = TypeVar("SpecT", TrainingSpec, AttackSpec, CertificationSpec)


def read_spec(kind: type[SpecT], path: Path) -> SpecT:
    """Read a specification that `sabr spec` wrote.

    Raises
    ------
    SabrError
        When the file is missing, is not JSON, or is not a specification of that kind.
    """
    value = read_json(path)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise SabrError(f"{path}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Say the first problem of a validation error in one sentence: key path, what is wrong, what is allowed."""
    problem = error.errors()[0]
    path = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown key"
    elif problem["type"] == "missing":
        message = "this key is missing"
    elif problem["type"] != "value_error":
        message = f"{problem['input']!r} is not allowed: {message[0].lower()}{message[1:]}"
    return f"{path}: {message}" if path else message


def differing_keys(one: Any, other: Any, path: str = "") -> list[str]:
    """Key paths at which two JSON values differ, each with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            difference
            for key in sorted(one.keys() | other.keys())
            for difference in differing_keys(one.get(key), other.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if one == other else [f"{path} ({one!r} here, {other!r} there)"]
