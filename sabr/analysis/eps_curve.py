"""Natural, adversarial and certified accuracy at several radii around the one that a network was trained for."""

from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor

from sabr.bounds.boxes import ball
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
    equal inputs give equal counts. What is known at one radius is used at others: a counterexample counts at every
    larger radius, a proof at every smaller one, so no curve ever rises.

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
    resists = [torch.zeros(len(images), dtype=torch.bool) for _ in radii]
    natural = torch.zeros(len(images), dtype=torch.bool)
    left = torch.arange(len(images))
    for place, radius in enumerate(radii):
        asked = spec.attack_spec.model_copy(update={"eps": radius})
        found, _ = attack(steps, images[left], labels[left], asked, _nothing)
        if place == 0:
            natural[left] = torch.tensor(found["natural_correct"].to_numpy())
        left = left[torch.tensor(found["adversarial_correct"].to_numpy())]
        resists[place][left] = True
        report(f"radius {radius:.6g}: {len(left)} of {len(images)} resist the quick attack")
    certified = torch.zeros(len(images), dtype=torch.bool)
    counts = []
    for radius, unrefuted in zip(reversed(radii), reversed(resists), strict=True):
        chosen = torch.nonzero(unrefuted & ~certified).flatten()
        verdicts: dict[int, Verdict] = {}
        if len(chosen):
            own = spec.model_copy(update={"eps": radius, "stages": stages, "shard_minutes": None})
            region = ball(images[chosen].double(), radius)
            cascade.certify(
                steps, region, labels[chosen], chosen.tolist(), own, record=verdicts.__setitem__, report=_nothing
            )
        certified[[number for number, verdict in verdicts.items() if verdict.certified_by]] = True
        counts.append((radius, len(images), int(natural.sum()), int(unrefuted.sum()), int(certified.sum())))
        report(f"radius {radius:.6g}: {int(certified.sum())} certified")
    return pd.DataFrame(reversed(counts), columns=["tested_eps", "images", "natural", "adversarial", "certified"])


def _nothing(line: str) -> None:
    """Attacks and stages report too much here."""
