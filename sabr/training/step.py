"""One step of training: the untrained network, and the loss of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sabr.networks.affine import clean_pass
from sabr.networks.architectures import Network, build
from sabr.networks.initialisation import initialise_for_intervals
from sabr.provenance import child_seed
from sabr.settings import ARCHITECTURES, DATASETS
from sabr.specs import TrainingSpec
from sabr.training.methods.base import Batch, Objective
from sabr.training.objectives import evaluate
from sabr.training.regularisers import l1_norm, warmup_regulariser

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class StepLoss:
    """The parts of one step's loss, each a scalar tensor; `total` is what is minimised."""

    robust: Tensor
    regulariser: Tensor
    l1: Tensor
    natural_correct: Tensor
    robust_correct: Tensor

    @property
    def total(self) -> Tensor:
        """Robust loss plus regularisers."""
        return self.robust + self.regulariser + self.l1


def step_loss(
    network: Network, images: Tensor, labels: Tensor, eps: float, spec: TrainingSpec, generator: torch.Generator
) -> StepLoss:
    """Compute the loss of one batch: clean pass, method, warm-up regulariser, L1 (paper, appendix C).

    Parameters
    ----------
    network
        Its running statistics move, its gradients do not.
    images, labels
        (N, channels, height, width) in [0, 1], and (N,).
    eps
        Current radius, in pixel units.
    spec
        Method, weights, and the eps at which the warm-up ends.
    generator
        Source of the attack's random starts.
    """
    clean = clean_pass(network, images)
    precision = _PRECISIONS[spec.attack_precision]
    batch = Batch(network, images, labels, eps, eps / spec.eps, clean, generator, precision)
    objective = evaluate(spec.method, batch)
    zero = torch.zeros((), device=images.device)
    return StepLoss(
        robust=objective.losses.mean(),
        regulariser=_warmup(objective, eps, spec) if eps < spec.eps else zero,
        l1=spec.method.l1 * l1_norm(network.parameters()) if spec.method.l1 else zero,
        natural_correct=(clean.logits.detach().argmax(1) == labels).float().mean(),
        robust_correct=objective.correct.float().mean(),
    )


def initial_network(spec: TrainingSpec, device: torch.device) -> Network:
    """Build the untrained network of a specification, its weights drawn from the specification's seed."""
    seed = child_seed(spec.seed, "weights")
    network = build(ARCHITECTURES[spec.architecture], DATASETS[spec.dataset], seed=seed)
    if spec.method.initialisation == "intervals":
        initialise_for_intervals(network, seed=seed)
    return network.to(device).to(memory_format=torch.channels_last)


def _warmup(objective: Objective, eps: float, spec: TrainingSpec) -> Tensor:
    weight = getattr(spec.method, "warmup_weight", 0.0)
    if objective.bounds is None or weight == 0:
        return torch.zeros((), device=objective.losses.device)
    return weight * (1 - eps / spec.eps) * warmup_regulariser(*objective.bounds)
