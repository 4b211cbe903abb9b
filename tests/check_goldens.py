"""Compare one training step with recorded golden values: python tests/check_goldens.py DIR.

Prints the largest deviation for each key of each case, and exits with 1 when one is beyond its tolerance. DIR holds
goldens.json and one .npz a case, as tests/goldens does.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sabr.attacks.pgd import pgd
from sabr.bounds.boxes import Box, ball, small_box
from sabr.bounds.interval import margin_bounds
from sabr.networks.affine import clean_pass, folded_steps
from sabr.networks.architectures import Network, build
from sabr.networks.steps import ScaleStep, forward
from sabr.settings import DATASETS, Architecture, Convolution
from sabr.training.methods.base import worst_case_cross_entropy
from sabr.training.regularisers import l1_norm, warmup_regulariser
from sabr.training.schedules import EpsRamp

RELATIVE = 1e-4  # of an array's largest entry; gradients: of the network's largest gradient entry
SAME_PIXELS = 0.98  # share of the attack's pixels that agree to 1e-6
RAMP = 1e-12  # of eps_end


@dataclass(frozen=True)
class Deviation:
    """How far one key is from its golden value, and how far it may be."""

    key: str
    value: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.value <= self.allowed  # NaN does not hold


def check_case(settings: dict[str, Any], golden: dict[str, np.ndarray]) -> list[Deviation]:
    """Compute a case and compare every recorded key; keys that nothing compares are an error."""
    compared = {}
    for key, deviation, allowed in _deviations(settings, golden):
        compared[key] = Deviation(key, deviation, allowed)
    inputs = {key for key in golden if key.startswith("param/")} | {"x", "y", "attack/noise_unit"}
    forgotten = golden.keys() - compared.keys() - inputs
    if forgotten:
        raise KeyError(f"no comparison is written for {sorted(forgotten)}")
    return list(compared.values())


def check_schedule(samples: dict[str, Any]) -> Deviation:
    """Compare the smoothed eps ramp at every sampled step."""
    ramp = EpsRamp(samples["eps_end"], samples["start_epoch"], samples["end_epoch"], samples["steps_per_epoch"])
    deviations = [
        abs(ramp.at(step) - eps) / samples["eps_end"] for step, eps in zip(samples["step"], samples["eps"], strict=True)
    ]
    name = f"smoothed_schedule {samples['start_epoch']}->{samples['end_epoch']}, {samples['steps_per_epoch']} steps"
    return Deviation(name, max(deviations), RAMP)


def _deviations(settings: dict[str, Any], golden: dict[str, np.ndarray]) -> Iterator[tuple[str, float, float]]:
    network = _network(settings, golden)
    images, labels = torch.tensor(golden["x"]), torch.tensor(golden["y"]).long()

    def tensor(key: str) -> Tensor:
        return torch.tensor(golden[key])

    def compare(key: str, computed: Tensor) -> tuple[str, float, float]:
        recorded = tensor(key)
        if computed.shape != recorded.shape:
            raise ValueError(f"{key} has shape {tuple(computed.shape)}, recorded was {tuple(recorded.shape)}")
        largest = recorded.abs().max().clamp_min(1e-30)
        return key, float((computed.detach() - recorded).abs().max() / largest), RELATIVE

    def compare_boxes(prefix: str, boxes: list[Box]) -> Iterator[tuple[str, float, float]]:
        for i, box in enumerate(boxes):
            kept = len(golden[f"{prefix}/relu{i}.lower"])
            yield compare(f"{prefix}/relu{i}.lower", box.lower[:kept])
            yield compare(f"{prefix}/relu{i}.upper", box.upper[:kept])

    with torch.no_grad():
        steps = folded_steps(network)
        yield compare("eval/logits", forward(steps, images))
        bounds = margin_bounds(steps, ball(images, settings["eps_end"]), labels)
        yield compare("eval/ibp_margin_lower_bounds", bounds.lower)
        yield from compare_boxes("eval", bounds.relu_inputs)

    clean = clean_pass(network, images)
    yield compare("step/clean_logits_train_mode", clean.logits)
    norms = [layer for layer in network if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
    for i, (norm, (mean, variance)) in enumerate(zip(norms, clean.statistics, strict=True)):
        yield compare(f"step/bn{i}.batch_mean", mean)
        yield compare(f"step/bn{i}.batch_var", variance)
        yield compare(f"step/bn{i}.running_mean_after", norm.running_mean)
        yield compare(f"step/bn{i}.running_var_after", norm.running_var)

    region = ball(images, settings["eps_current"])
    start = images + tensor("attack/noise_unit") * (region.upper - region.lower)
    with torch.no_grad():
        steps = folded_steps(network)
    sizes = settings["attack"]["step_sizes_rel"]
    attacked = pgd(steps, region, labels, start=start, step_sizes=sizes, stop_early=False).points
    same = ((attacked - tensor("attack/adversarial")).abs() <= 1e-6).float().mean()
    yield "attack/adversarial", 1 - float(same), 1 - SAME_PIXELS

    box = small_box(tensor("attack/adversarial"), region, settings["tau"])
    yield compare("region/centre", box.centre)
    yield compare("region/radius", box.radius)
    recorded = Box(tensor("region/centre") - tensor("region/radius"), tensor("region/centre") + tensor("region/radius"))
    steps = folded_steps(network, clean.statistics)
    bounds = margin_bounds(steps, recorded, labels, relu_shrinkage=settings["relu_shrink_c"])
    yield compare("step/margin_lower_bounds", bounds.lower)
    yield from compare_boxes("step", bounds.relu_inputs)
    losses = worst_case_cross_entropy(bounds.lower)
    yield compare("step/robust_loss_per_sample", losses)

    radius = steps[0].spread(recorded.radius) if isinstance(steps[0], ScaleStep) else recorded.radius
    weight = settings["reg_lambda"] * (1 - settings["eps_current"] / settings["eps_end"])
    regulariser = weight * warmup_regulariser(bounds.relu_inputs, radius.mean())
    l1 = (settings["l1"] or 0) * l1_norm(network.parameters())
    total = losses.mean() + regulariser + l1
    yield compare("step/warmup_regulariser", regulariser)
    yield compare("step/l1_network_parameters", l1)
    yield compare("step/total_loss", total)

    total.backward()
    gradients = {
        key: torch.zeros_like(value) if value.grad is None else value.grad
        for key, value in _parameters(network)
        if "running" not in key
    }
    largest = max(float(np.abs(golden[f"grad/{key}"]).max()) for key in gradients)
    for key, gradient in gradients.items():
        yield f"grad/{key}", float((gradient - tensor(f"grad/{key}")).abs().max()) / largest, RELATIVE


def _network(settings: dict[str, Any], golden: dict[str, np.ndarray]) -> Network:
    net = settings["net"]
    convolutions = tuple(
        Convolution(channels, net["kernel"], stride, net["padding"])
        for channels, stride in zip(net["conv_channels"], net["strides"], strict=True)
    )
    network = build(Architecture(convolutions, tuple(net["linear"])), DATASETS[settings["dataset"]], seed=0)
    with torch.no_grad():
        for key, value in _parameters(network):
            value.copy_(torch.tensor(golden[f"param/{key}"]))
    return network.eval()


def _parameters(network: Network) -> Iterator[tuple[str, Tensor]]:
    """Parameters and running statistics under the names of the recording: affine layer i, and the norm behind it."""
    i = -1
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            i += 1
            prefix = f"{i}"
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            prefix = f"{i}.bn"
            yield f"{prefix}.running_mean", layer.running_mean
            yield f"{prefix}.running_var", layer.running_var
        else:
            continue
        yield f"{prefix}.weight", layer.weight
        yield f"{prefix}.bias", layer.bias


def main(folder: Path) -> int:
    recorded = json.loads((folder / "goldens.json").read_text())
    everything = [check_schedule(samples) for samples in recorded["smoothed_schedule"]]
    for deviation in everything:
        _print("schedule", deviation)
    for name, settings in recorded["cases"].items():
        for deviation in check_case(settings, dict(np.load(folder / f"{name}.npz"))):
            _print(name, deviation)
            everything.append(deviation)
    beyond = [deviation for deviation in everything if not deviation.holds]
    print(f"{len(everything)} keys compared, {len(beyond)} beyond tolerance")
    return 1 if beyond else 0


def _print(case: str, deviation: Deviation) -> None:
    mark = "" if deviation.holds else "  BEYOND"
    print(f"{case:14} {deviation.key:34} {deviation.value:9.2e}  allowed {deviation.allowed:7.1e}{mark}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "goldens.json").is_file():
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    sys.exit(main(Path(sys.argv[1])))
