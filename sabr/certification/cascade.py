"""A shard of images through the stages: prediction, attack, then bounds from cheap to tight."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sabr.attacks.pgd import strong_attack
from sabr.bounds.auto_lirpa import BoundedNetwork
from sabr.bounds.boxes import ball
from sabr.networks.affine import folded_steps
from sabr.networks.architectures import Network
from sabr.networks.steps import Step
from sabr.provenance import child_seed
from sabr.specs import AttackSpec, CertificationSpec

# Stages cheap enough to put refuted images through as well: a proof among them would show an unsound bound.
_CONTROLLED = ("interval", "crown-ibp")


def attack(
    network: Network, images: Tensor, labels: Tensor, spec: AttackSpec, report: Callable[[str], None]
) -> tuple[pd.DataFrame, Tensor]:
    """Predict and attack images.

    Parameters
    ----------
    network
        In evaluation mode.
    images, labels
        (N, channels, height, width) in [0, 1], and (N,): the first images of the test set.
    spec
        Radius, attack, batch size and seed.
    report
        Called with a line of text after each batch.

    Returns
    -------
    table, points
        `sabr.certification.verdicts.ATTACK_COLUMNS`, one line per image; and the (N, ...) points that the attack ended
        at. A refutation is checked by a plain forward pass of the network; that none is found proves nothing.
    """
    generator = torch.Generator(images.device).manual_seed(child_seed(spec.seed, "strong attack"))
    with torch.no_grad():
        steps = folded_steps(network)
    parts, points = [], []
    for first, batch in _batches(images, spec.batch_size):
        truth = labels[first : first + len(batch)]
        region = ball(batch, spec.eps)
        found = strong_attack(
            steps,
            region,
            truth,
            step_sizes=spec.attack.step_sizes,
            restarts=spec.attack.restarts,
            loss=spec.attack.loss,
            generator=generator,
        )
        with torch.no_grad():
            prediction = network(batch).argmax(1)
            refuted = network(region.clamp(found.points)).argmax(1) != truth
        natural = prediction == truth
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
        points.append(found.points.cpu())
        report(f"attacked {first + len(batch)} of {len(images)} images")
    return pd.concat(parts, ignore_index=True), torch.cat(points)


def certify(
    network: Network, images: Tensor, attacked: pd.DataFrame, spec: CertificationSpec, report: Callable[[str], None]
) -> pd.DataFrame:
    """Take images through the bounds, each stage only what is still open; what bounds prove for a margin stays proved.

    Parameters
    ----------
    network
        In evaluation mode.
    images
        (N, channels, height, width) in [0, 1], one for each line of `attacked`.
    attacked
        What `attack` said of them. Misclassified images meet no bound; refuted ones meet the cheap bounds only, as a
        check of those.
    spec
        Radius, stages and batch size.
    report
        Called with a line of text after each stage.

    Returns
    -------
    pandas.DataFrame
        `sabr.certification.verdicts.COLUMNS`. `certified` is a proof up to float32 rounding; `margin_lower_bound` the
        smallest of the bounds of the K-1 margins; `seconds` an image's share of its batches' time.
    """
    with torch.no_grad():
        steps = folded_steps(network)
    engine = BoundedNetwork(steps, images.shape[1:], alpha_iterations=spec.alpha_iterations)
    labels = torch.tensor(attacked["label"].to_numpy(), device=images.device)
    natural = attacked["natural_correct"].to_numpy()
    resists = attacked["adversarial_correct"].to_numpy()
    classes = _classes(steps)
    best = torch.full((len(images), classes - 1), -torch.inf, device=images.device)
    certified_by = np.full(len(images), "", dtype=object)
    seconds = np.zeros(len(images))
    for stage in spec.stages:
        candidates = natural & (certified_by == "") & (resists | (stage in _CONTROLLED))
        for chosen in np.array_split(np.flatnonzero(candidates), max(1, -(-candidates.sum() // spec.batch_size))):
            if len(chosen) == 0:
                continue
            started = time.perf_counter()
            picked = torch.as_tensor(chosen, device=images.device)
            region = ball(images[picked], spec.eps)
            bounds = engine.margin_lower_bounds(region, labels[picked], method=stage)
            best[picked] = torch.maximum(best[picked], bounds)
            proved = (best[picked] > 0).all(1).cpu().numpy()
            certified_by[chosen[proved]] = stage
            seconds[chosen] += (time.perf_counter() - started) / len(chosen)
        report(f"{stage}: {int((certified_by == stage).sum())} proved of {int(candidates.sum())} open")
    margin = best.amin(1).cpu().numpy()
    return attacked.assign(
        certified=certified_by != "",
        certified_by=certified_by,
        margin_lower_bound=np.where(np.isfinite(margin), margin, np.nan),
        seconds=seconds,
    )


def _classes(steps: list[Step]) -> int:
    return len(steps[-1].bias)  # type: ignore[union-attr]


def _batches(images: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for first in range(0, len(images), size):
        yield first, images[first : first + size]
