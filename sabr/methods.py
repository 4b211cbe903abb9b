"""What each training method is: its parameters, typed and validated."""

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt


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


class Method(Strict):
    """What all training methods share.

    Attributes
    ----------
    initialisation
        Of the weights: for tame interval bounds (Shi et al. 2021), or PyTorch's own.
    l1
        Weight of the sum of all absolute parameters.
    gradient_clip
        Largest norm of the gradient; None: not clipped.
    """

    initialisation: Literal["intervals", "pytorch"]
    l1: NonNegativeFloat
    gradient_clip: PositiveFloat | None = None


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
