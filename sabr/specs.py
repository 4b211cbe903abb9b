"""What one job is asked to do: training and certification specifications, typed, validated, stored as JSON."""

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sabr.files import read_json
from sabr.methods import AnyMethod, Attack, Steps, Strict
from sabr.problems import checked, written
from sabr.settings import ARCHITECTURES, DATASETS

# Raise one of these when a change of the code changes its results: everything made by the older code is then redone.
TRAINING_REVISION = 2
CERTIFICATION_REVISION = 4

Stage = Literal["interval", "crown-ibp", "crown", "alpha-crown", "attack", "complete"]
STAGES: tuple[Stage, ...] = get_args(Stage)
# Stages that can prove.
PROOFS: tuple[Stage, ...] = tuple(stage for stage in STAGES if stage != "attack")


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
    except (TypeError, ValueError, ArithmeticError):
        raise ValueError(
            f"{written(value)} is not a radius; write a number such as 0.1, or a fraction such as 8/255"
        ) from None
    if not 0 < eps <= 1:
        raise ValueError(
            f"{written(value)} is not in (0, 1]; pixels run from 0 to 1, so write 8/255 for eight grey levels"
        )
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
ArchitectureName = Annotated[str, AfterValidator(_known_architecture)]


class AttackRound(Attack):
    """Many starts on each image that still resists; steps are in units of each pixel's radius.

    Attributes
    ----------
    loss
        What is ascended.
    targets
        largest: every point goes for the wrong class with the largest logit; each: for one of the open ones, in turn.
    starts
        Points for each image.
    diversify
        Steps up a random function of the logits before the others (Tashiro et al. 2020).
    """

    loss: Literal["cross_entropy", "margin", "gama"]
    targets: Literal["largest", "each"] = "largest"
    starts: PositiveInt
    diversify: tuple[Steps, ...] = ()

    @property
    def diversify_sizes(self) -> list[float]:
        """One size per step."""
        return [steps.size for steps in self.diversify for _ in range(steps.count)]


Rounds = Annotated[tuple[AttackRound, ...], Field(min_length=1)]


class Slopes(Strict):
    """How alpha-CROWN optimises slopes."""

    iterations: PositiveInt
    learning_rate: PositiveFloat


class MultiNeuron(Strict):
    """Joint constraints on groups of unstable ReLUs (PRIMA).

    Attributes
    ----------
    size
        ReLUs in a group.
    partition
        ReLUs of similar triangle area from which groups are drawn.
    groups
        At most so many in each layer.
    constraints
        At most so many for each group.
    """

    size: Literal[2, 3]
    partition: PositiveInt
    groups: PositiveInt
    constraints: PositiveInt


class Complete(Strict):
    """How the complete verifier searches.

    Attributes
    ----------
    seconds
        Time limit for each image.
    inner_iterations
        Of the optimisation of the ReLUs' own bounds, once for each image; 0: they are CROWN's.
    iterations, learning_rate
        Of the optimisation of each subproblem.
    branching
        active-constraints: the ReLU whose constraints weigh most (MN-BaB); filtered: of the `candidates` that weigh
        most the one whose halves have the best bounds; babsr: the best BaBSR score.
    recompute
        Bound the ReLUs behind a split anew in each subproblem.
    multi_neuron
        Joint constraints; None: without.
    subproblems
        How many are bounded at a time.
    """

    seconds: PositiveFloat
    inner_iterations: NonNegativeInt
    iterations: PositiveInt
    learning_rate: PositiveFloat
    branching: Literal["filtered", "babsr", "active-constraints"]
    candidates: PositiveInt
    recompute: bool
    multi_neuron: MultiNeuron | None
    subproblems: Annotated[int, Field(ge=2)]


class Training(Strict):
    """How to train, whatever the method; the published values are in `config/settings`, options are off there.

    Attributes
    ----------
    batch_norm_statistics
        running: the moving averages that training leaves behind; population: the mean of the batches' statistics over
        all images trained on, not augmented, computed after the last epoch.
    validation_images
        So many training images, the same for every method and seed, are held out; None: none are.
    attack_precision
        Of the network's passes in the attack; all else is float32.
    compile
        Compile the element-wise kernels.
    deterministic
        On a GPU: equal seeds give equal weights, at some cost; on a CPU they always do.
    """

    dataset: DatasetName
    eps: Eps
    architecture: ArchitectureName
    train_images: PositiveInt | None
    epochs: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    learning_rate_drops: tuple[PositiveInt, ...]
    learning_rate_factor: float = Field(gt=0, lt=1)
    ramp_start: PositiveInt
    ramp_end: PositiveInt
    batch_norm_statistics: Literal["running", "population"] = "running"
    validation_images: PositiveInt | None = None
    attack_precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    deterministic: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "Training":
        if self.ramp_end <= self.ramp_start:
            raise ValueError(f"ramp_end ({self.ramp_end}) must come after ramp_start ({self.ramp_start})")
        late = [epoch for epoch in (self.ramp_end, *self.learning_rate_drops) if epoch > self.epochs]
        if late:
            raise ValueError(
                f"ramp_end and learning_rate_drops must lie within epochs ({self.epochs}), unlike {late[0]}"
            )
        available = DATASETS[self.dataset].train_images - (self.validation_images or 0)
        if max(self.train_images or 0, 1) > available:
            raise ValueError(
                f"train_images ({self.train_images}) and validation_images ({self.validation_images}) are more than "
                f"the {DATASETS[self.dataset].train_images} training images of {self.dataset}"
            )
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
    """How to attack the first `images` test images, or, with `validation_images`, held-out training images.

    `memory_mb` is what the tensors of an attack, or of a batch of bounds, may take, roughly.
    """

    dataset: DatasetName
    eps: Eps
    images: PositiveInt
    attack: Rounds
    memory_mb: PositiveInt
    seed: NonNegativeInt
    validation_images: PositiveInt | None = None

    @model_validator(mode="after")
    def _there_are_as_many(self) -> "Attacked":
        if self.validation_images is not None and self.images > self.validation_images:
            raise ValueError(f"images is {self.images}, but there are {self.validation_images} validation_images")
        available = DATASETS[self.dataset].test_images
        if self.validation_images is None and self.images > available:
            raise ValueError(f"images is {self.images}, but {self.dataset} has {available} test images")
        return self


class AttackSpec(Attacked):
    """The attack on one network."""

    revision: Annotated[int, _of_this_code(CERTIFICATION_REVISION)] = CERTIFICATION_REVISION


class Cascade(Strict):
    """Stages, from cheap to tight, and how each of them works.

    Attributes
    ----------
    engine
        Of interval, crown-ibp, crown and alpha-crown: our own bounds, or those of the library auto_LiRPA.
    stages
        Each takes what is still open, in this order; attack is the one of `strong_attack`.
    batch_size
        Images that are bounded together, if memory allows.
    strong_attack
        Also goes once more for every image that was certified: none may be refuted.
    shard_minutes
        Time limit of the job that certifies one shard, after which what is open stays unknown; None: there is none.
    memory_mb
        What the tensors of a batch may take, roughly.
    seed
        Of the attacks' random numbers.
    compile
        Compile the element-wise kernels of bounds, not of branch and bound: pays where shards take many minutes;
        without a C++ compiler it is left out.
    """

    engine: Literal["native", "auto_lirpa"]
    stages: tuple[Stage, ...] = Field(min_length=1)
    batch_size: PositiveInt
    alpha: Slopes
    strong_attack: Rounds
    complete: Complete
    shard_minutes: PositiveFloat | None
    memory_mb: PositiveInt
    seed: NonNegativeInt
    compile: bool = False

    @model_validator(mode="after")
    def _stages_once(self) -> "Cascade":
        if len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages must be given once each, from {', '.join(STAGES)}")
        return self


class Certification(Cascade, Attacked):
    """How to attack and certify them."""


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
    return checked(kind, read_json(path), str(path))


def differing_keys(one: Any, other: Any, path: str = "") -> list[str]:
    """Key paths at which two JSON values differ, each with both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            difference
            for key in sorted(one.keys() | other.keys(), key=str)
            for difference in differing_keys(one.get(key), other.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if one == other else [f"{path} ({written(one)} here, {written(other)} there)"]
