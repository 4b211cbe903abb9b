"""Natural, adversarial and certified accuracy at several radii around the one that a network was trained for."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from sabr.bounds.boxes import Box
from sabr.certification import cascade
from sabr.certification.attacking import attack
from sabr.certification.verdicts import Verdict
from sabr.errors import SabrError
from sabr.networks.steps import Step
from sabr.specs import PROOFS, CertificationSpec


def measure(
    steps: Sequence[Step],
    images: Tensor,
    labels: Tensor,
    *,
    eps_factors: Sequence[float],
    spec: CertificationSpec,
    report: Callable[[str], None],
) -> pd.DataFrame:
    """Count images that are classified right, resist the quick attack, and are certified, at each radius.

    Certified are images by the stages that bound, without the complete verifier, the strong attack and any time limit:
    equal inputs give equal counts. What is known at one radius is used at others, so that no curve ever rises: a
    counterexample counts at every larger radius, and a proof at every smaller one. Among the radii at which an image
    resists, the largest one with a proof is looked for by bisection.

    Parameters
    ----------
    steps
        A folded network that ends in a linear layer, without gradients.
    images, labels
        (N, channels, height, width) in [0, 1], and (N,).
    eps_factors
        Radii in units of the specification's; those above 1 in pixel units are refused; rows are in increasing order.
    spec
        Quick attack, stages, memory and seed.
    report
        Called with a line of text after each step.

    Returns
    -------
    pandas.DataFrame
        tested_eps, in pixel units; images; natural, the same in every row, adversarial and certified: counts.

    Raises
    ------
    SabrError
        When a radius is above 1, or no stage but the complete verifier proves anything.
    """
    radii = [factor * spec.eps for factor in sorted(eps_factors)]
    if radii[-1] > 1:
        raise SabrError(f"eps_factors: {max(eps_factors):g} times {spec.eps:g} is above 1, the range of a pixel")
    stages = tuple(stage for stage in spec.stages if stage in PROOFS and stage != "complete")
    if not stages:
        raise SabrError("the specification has no stage that proves anything but the complete verifier; add one")
    bounds = spec.model_copy(update={"stages": stages, "shard_minutes": None})
    natural, resisted = _attacked(steps, images, labels, radii, spec, report)
    proved = _proved(steps, images, labels, radii, resisted, bounds, report)
    lines = [
        (radius, len(images), natural, int((resisted > place).sum()), int((proved > place).sum()))
        for place, radius in enumerate(radii)
    ]
    return pd.DataFrame(lines, columns=["tested_eps", "images", "natural", "adversarial", "certified"])


def _attacked(
    steps: Sequence[Step],
    images: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    spec: CertificationSpec,
    report: Callable[[str], None],
) -> tuple[int, Tensor]:
    """How many images are classified right, and at how many radii, from the smallest on, each of them resists, (N,)."""
    resisted = torch.zeros(len(images), dtype=torch.int64)
    left, natural = torch.arange(len(images)), 0
    for place, radius in enumerate(radii):
        asked = spec.attack_spec.model_copy(update={"eps": radius})
        found, _ = attack(steps, images[left], labels[left], asked, _nothing)
        if place == 0:
            natural = int(found["natural_correct"].sum())
        left = left[torch.tensor(found["adversarial_correct"].to_numpy())]
        resisted[left] += 1
        report(f"radius {radius:.6g}: {len(left)} of {len(images)} resist the quick attack")
        if not len(left):
            break
    return natural, resisted


def _proved(
    steps: Sequence[Step],
    images: Tensor,
    labels: Tensor,
    radii: Sequence[float],
    resisted: Tensor,
    spec: CertificationSpec,
    report: Callable[[str], None],
) -> Tensor:
    """At how many of the radii, from the smallest on, each image is proved to be classified right, (N,)."""
    proved, possible = torch.zeros_like(resisted), resisted.clone()
    while len(open_ := torch.nonzero(proved < possible).flatten()):
        middle = (proved + possible + 1) // 2
        radius = torch.tensor(radii, dtype=torch.float64)[middle[open_] - 1].to(images.device)
        points, around = images[open_].double(), radius.view(-1, *[1] * (images.dim() - 1))
        region = Box((points - around).clamp(0, 1), (points + around).clamp(0, 1))
        verdicts: dict[int, Verdict] = {}
        cascade.certify(
            steps, region, labels[open_], open_.tolist(), spec, record=verdicts.__setitem__, report=_nothing
        )
        for number, verdict in verdicts.items():
            if verdict.certified_by:
                proved[number] = middle[number]
            else:
                possible[number] = middle[number] - 1
        certified = sum(bool(verdict.certified_by) for verdict in verdicts.values())
        report(f"{certified} of {len(open_)} are certified, each at the radius in the middle of what is open")
    return proved


def _nothing(line: str) -> None:
    """Attacks and stages report too much here."""
