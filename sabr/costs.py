"""What a plan costs, from a model fitted on measured training steps: extrapolated, and told with its error."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from scipy.optimize import nnls

from sabr.layers import Origins, read_yaml, validate
from sabr.methods import METHODS, Strict
from sabr.plan import Row
from sabr.settings import ARCHITECTURES, DATASETS
from sabr.specs import ArchitectureName, AttackRound, DatasetName, TrainingSpec

Share = Annotated[float, Field(ge=0, le=1)]


class Step(Strict):
    """A training step of IBP, and how long it takes; all other costs are told in units of it."""

    dataset: DatasetName
    architecture: ArchitectureName
    batch_size: PositiveInt
    seconds: PositiveFloat


class Units(Strict):
    """Costs of one image in units of its IBP step.

    Attributes
    ----------
    standard, pgd, expressive
        A step without its attack's steps.
    attack_step
        One step of an attack, forward and backward.
    linear_bound
        One linear bound backward through the network, in training.
    """

    standard: NonNegativeFloat
    pgd: NonNegativeFloat
    expressive: NonNegativeFloat
    attack_step: PositiveFloat
    linear_bound: PositiveFloat


class Assumed(Strict):
    """Shares of the images certified, by objective; only runs can tell, so these are coarse.

    Attributes
    ----------
    out_of_time
        On which the complete verifier spends its whole time limit.
    correct
        That are attacked.
    refuted
        For which a counterexample is stored.
    """

    out_of_time: dict[str, Share]
    correct: Share
    refuted: Share

    @field_validator("out_of_time")
    @classmethod
    def _of_every_objective(cls, shares: dict[str, float]) -> dict[str, float]:
        if missing := [objective for objective in METHODS if objective not in shares]:
            raise ValueError(f"a share is needed for each objective; missing: {', '.join(missing)}")
        return shares


class Costs(Strict):
    """The keys of `config/costs.yaml`."""

    machine: str
    steps: tuple[Step, ...] = Field(min_length=2)
    units: Units
    assumed: Assumed


class Size(NamedTuple):
    """Of a network: multiplications for one image, ReLUs, parameters; and the first two of each affine layer."""

    multiplications: float
    neurons: float
    parameters: int
    layers: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Cost:
    """Of one network.

    Attributes
    ----------
    training, attack
        Seconds.
    certification, at_most
        Seconds of the control attack and of the complete verifier; `at_most` if every image took its whole time limit.
    bytes
        On disk, in the end.
    shards
        Jobs that certify.
    """

    training: float
    attack: float
    certification: float
    at_most: float
    bytes: float
    shards: int


def read(path: Path) -> Costs:
    """Read a file like `config/costs.yaml`.

    Raises
    ------
    SabrError
        One sentence: file, key path, value, and what is allowed.
    """
    return validate(Costs, read_yaml(path), Origins(str(path)))  # type: ignore[no-any-return]


def size(architecture: str, dataset: str) -> Size:
    """Count a network's multiplications, ReLUs and parameters, batch norm's included."""
    net, data = ARCHITECTURES[architecture], DATASETS[dataset]
    channels, width = data.channels, data.size
    layers: list[tuple[float, float]] = []
    parameters = 0
    for conv in net.convolutions:
        width = (width + 2 * conv.padding - conv.kernel) // conv.stride + 1
        weights = conv.channels * channels * conv.kernel**2
        layers.append((weights * width**2, conv.channels * width**2))
        parameters += weights + 3 * conv.channels
        channels = conv.channels
    features = channels * width**2
    for hidden in net.hidden:
        layers.append((features * hidden, hidden))
        parameters += features * hidden + 3 * hidden
        features = hidden
    parameters += (features + 1) * data.classes
    layers.append((features * data.classes, 0))
    return Size(sum(m for m, _ in layers), sum(n for _, n in layers), parameters, tuple(layers))


def prepared_bytes(dataset: str) -> int:
    """What a dataset takes on disk, decoded; the archives that it came in take less, and may be deleted."""
    data = DATASETS[dataset]
    return (data.train_images + data.test_images) * (data.channels * data.stored_size**2 + 8)


def trained_in(costs: Costs, spec: TrainingSpec, seconds: float) -> Step:
    """The IBP step that follows from the time that a whole training took."""
    steps = Model(costs, costs.steps).ibp_steps(spec)
    return Step(dataset=spec.dataset, architecture=spec.architecture, batch_size=1, seconds=seconds / steps)


class Model:
    """Seconds of an IBP step on one image: as given for a network, else linear in its multiplications and ReLUs.

    The line is fitted on the given steps of one machine.
    """

    def __init__(self, costs: Costs, steps: Sequence[Step]) -> None:
        self.costs, self.steps = costs, steps
        sizes = [size(step.architecture, step.dataset) for step in steps]
        taken = np.array([step.seconds / step.batch_size for step in steps])
        features = np.array([(s.multiplications, s.neurons) for s in sizes])
        # Relative errors count: every line is divided by what was measured.
        self.per_multiplication, self.per_neuron = nnls(features / taken[:, None], np.ones(len(taken)))[0]
        self.given = {(s.architecture, s.dataset): float(t) for s, t in zip(steps, taken, strict=True)}

    def ibp_step(self, architecture: str, dataset: str) -> float:
        """Seconds for one image."""
        given = self.given.get((architecture, dataset))
        return self.fitted(architecture, dataset) if given is None else given

    def fitted(self, architecture: str, dataset: str) -> float:
        """Seconds for one image, by the fit alone."""
        found = size(architecture, dataset)
        return float(self.per_multiplication * found.multiplications + self.per_neuron * found.neurons)

    def errors(self) -> list[float]:
        """Fitted by given, for each step."""
        return [step.batch_size * self.fitted(step.architecture, step.dataset) / step.seconds for step in self.steps]

    def ibp_steps(self, spec: TrainingSpec) -> float:
        """How many IBP steps on one image the whole of training is worth."""
        images = spec.train_images or DATASETS[spec.dataset].train_images - (spec.validation_images or 0)
        steps = images // spec.batch_size
        ramp = steps * (spec.ramp_end - spec.ramp_start + 1)
        during, after = self._units(spec)
        clean = self.costs.units.standard * (spec.ramp_start - 1) * steps
        return spec.batch_size * (clean + ramp * during + (steps * (spec.epochs - spec.ramp_start + 1) - ramp) * after)

    def training(self, spec: TrainingSpec) -> float:
        """Seconds of the whole of training."""
        return self.ibp_steps(spec) * self.ibp_step(spec.architecture, spec.dataset)

    def attack(self, rounds: Sequence[AttackRound], images: float, architecture: str, dataset: str) -> float:
        """Seconds of an attack of so many images."""
        steps = sum(r.starts * (len(r.step_sizes) + len(r.diversify_sizes)) for r in rounds)
        return images * steps * self.costs.units.attack_step * self.ibp_step(architecture, dataset)

    def row(self, row: Row, shard_size: int) -> Cost:
        """What one network costs."""
        training, certification, assumed = row.training, row.certification, self.costs.assumed
        net, data = size(training.architecture, training.dataset), DATASETS[training.dataset]
        correct = assumed.correct * certification.images
        limit = certification.complete.seconds if "complete" in certification.stages else 0.0
        control = self.attack(certification.strong_attack, correct, training.architecture, training.dataset)
        shards = len(row.shards(shard_size))
        longest = float("inf") if certification.shard_minutes is None else 60 * certification.shard_minutes * shards
        out_of_time = assumed.out_of_time[training.method.objective] * certification.images
        pixels = data.channels * data.size**2
        stored = 4 * net.parameters + certification.images * (_LINE + assumed.refuted * 8 * pixels)
        return Cost(
            self.training(training),
            self.attack(certification.attack, correct, training.architecture, training.dataset),
            control + min(out_of_time * limit, longest),
            control + min(correct * limit, longest),
            stored,
            shards,
        )

    def _units(self, spec: TrainingSpec) -> tuple[float, float]:
        """Cost of a step while eps grows, and afterwards, in IBP steps."""
        units, method, classes = self.costs.units, spec.method, DATASETS[spec.dataset].classes
        attack = units.attack_step
        match method.objective:
            case "standard":
                return units.standard, units.standard
            case "pgd":
                return (units.pgd + attack * len(method.attack.step_sizes),) * 2
            case "ibp":
                return 1.0, 1.0
            case "sabr":
                return (1 + attack * (len(method.attack.step_sizes) + 1),) * 2
            case "crown-ibp":
                linear = 1 + units.linear_bound * (1 if method.loss_fusion else classes - 1)
                return linear, linear if method.beta_end else 1.0
            case "taps" | "staps":
                ramp = 1.0
                if method.objective == "staps":
                    ramp += attack * (len(method.attack.step_sizes) + 1)
                # A latent point for each wrong class, attacked through the last part of the network.
                passes = (classes - 1) * (len(method.classifier.attack.step_sizes) + 1)
                return ramp, ramp + attack * passes * self._share(spec, method.classifier.relus)
            case _:
                return (units.expressive + attack * len(method.attack.step_sizes),) * 2

    def _share(self, spec: TrainingSpec, relus: int) -> float:
        """Share of a pass that the part of the network with its last `relus` ReLU layers takes."""
        found = size(spec.architecture, spec.dataset)
        last = found.layers[-1 - relus :]
        part = sum(self.per_multiplication * m + self.per_neuron * n for m, n in last)
        return float(part / self.fitted(spec.architecture, spec.dataset))


# Bytes of an image's lines in attack.csv and verdicts.csv, which are there twice: merged and in shards.
_LINE = 170
