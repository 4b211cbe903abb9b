"""Prediction and quick attack of all images, before anything is certified."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sabr.attacks.search import Round, confirm, rows_within, search
from sabr.bounds.boxes import Box, ball
from sabr.networks.steps import Step, cast, forward
from sabr.provenance import child_seed
from sabr.specs import AttackRound, AttackSpec

# Images that are attacked together: results are reported after each batch.
_BATCH = 500


def as_rounds(asked: Sequence[AttackRound]) -> list[Round]:
    """A specification's attack as the search takes it."""
    return [
        Round(
            loss=one.loss,
            targets=one.targets,
            starts=one.starts,
            diversify=tuple(one.diversify_sizes),
            step_sizes=tuple(one.step_sizes),
        )
        for one in asked
    ]


def attack(
    steps: Sequence[Step], images: Tensor, labels: Tensor, spec: AttackSpec, report: Callable[[str], None]
) -> tuple[pd.DataFrame, dict[int, Tensor]]:
    """Predict images, and attack those that are predicted correctly.

    Parameters
    ----------
    steps
        A folded network without gradients.
    images, labels
        (N, channels, height, width) in [0, 1], and (N,): the first images of the test set.
    spec
        Radius, attack, memory and seed.
    report
        Called with a line of text after each batch.

    Returns
    -------
    table, counterexamples
        `sabr.certification.verdicts.ATTACK_COLUMNS`, one line per image; and for each refuted image its counterexample
        in float64. A refutation is a plain forward pass in float64; that none is found proves nothing.
    """
    generator = torch.Generator(images.device).manual_seed(child_seed(spec.seed, "quick attack"))
    doubled = cast(steps, torch.float64)
    parts, counterexamples = [], {}
    for first in range(0, len(images), _BATCH):
        batch, truth = images[first : first + _BATCH], labels[first : first + _BATCH]
        region, exact = ball(batch, spec.eps), ball(batch.double(), spec.eps)
        with torch.no_grad():
            prediction = forward(steps, batch).argmax(1)
        natural = prediction == truth
        right = torch.nonzero(natural).flatten()
        refuted = torch.zeros_like(natural)
        if len(right):
            found = search(
                steps,
                Box(region.lower[right], region.upper[right]),
                truth[right],
                rounds=as_rounds(spec.attack),
                generator=generator,
                rows=rows_within(steps, region, spec.memory_mb),
            )
            ends = Box(exact.lower[right], exact.upper[right])
            refuted[right] = confirm(lambda x: forward(doubled, x), ends, found.points, truth[right])
            points = ends.clamp(found.points.double()).cpu()
            for place, point in zip(right.tolist(), points, strict=True):
                if refuted[place]:
                    counterexamples[first + place] = point
        parts.append(
            pd.DataFrame(
                {
                    "index": np.arange(first, first + len(batch)),
                    "label": truth.cpu().numpy(),
                    "prediction": prediction.cpu().numpy(),
                    "natural_correct": natural.cpu().numpy(),
                    "adversarial_correct": (natural & ~refuted).cpu().numpy(),
                }
            )
        )
        report(f"attacked {first + len(batch)} of {len(images)} images")
    return pd.concat(parts, ignore_index=True), counterexamples
