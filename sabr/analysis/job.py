"""One job that studies a trained network: files in, a tidy table and its sidecar out."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from sabr.analysis import box_sizes, eps_curve, gradient_alignment, loss_lambda, relu_inputs, relu_states
from sabr.errors import SabrError
from sabr.files import checksum, probe, write_json, write_text
from sabr.networks.affine import folded_steps
from sabr.networks.architectures import Network
from sabr.networks.steps import Step
from sabr.provenance import child_seed, provenance
from sabr.specs import AttackSpec, CertificationSpec
from sabr.studies import COLUMNS, StudySpec
from sabr.trained import read_images, read_network


class _Subject(NamedTuple):
    """A network and the images that it is studied on."""

    network: Network
    steps: list[Step]
    images: Tensor
    labels: Tensor


def run(
    model: Path,
    asked: StudySpec,
    spec: AttackSpec | CertificationSpec,
    output: Path,
    folder: Path,
    *,
    threads: int,
    device: torch.device,
    report: Callable[[str], None],
) -> None:
    """Study a network, and write the table and, last, its sidecar with suffix .json beside it.

    The same network, specification and memory give the same table, byte for byte, on one machine; the sidecar holds
    the time.

    Parameters
    ----------
    model
        Checkpoint.
    asked
        What to study.
    spec
        Dataset, radius, attack and seed; for the study eps-curve also the stages.
    output
        CSV to write; its columns are those of `sabr.studies.COLUMNS`.
    folder
        Of the prepared datasets.
    threads, device
        What the process computes with, for the record.
    report
        Called with a line of text now and then.

    Raises
    ------
    SabrError
        When a file cannot be read or written, does not fit the others, or there are not so many images.
    """
    if output.suffix == ".json":
        raise SabrError(f"{output}: a table needs another name, such as {output.with_suffix('.csv').name}")
    trained = read_network(model, spec, folder, device)
    images, labels = read_images(spec, folder, 0, asked.images, device)
    probe(output)
    started = time.perf_counter()
    with torch.no_grad():
        steps = folded_steps(trained.network)
    subject = _Subject(trained.network, steps, images, labels)
    table = _measure(asked, spec, subject, report)
    columns = COLUMNS[asked.study]
    write_text(output, table[list(columns)].astype(columns).to_csv(index=False))
    about: dict[str, Any] = {
        "study": asked.model_dump(mode="json"),
        **trained.about,
        "spec": spec.model_dump(mode="json"),
        "seconds": time.perf_counter() - started,
        "provenance": provenance(threads=threads, device=str(device)),
        "sha256": checksum(output),
    }
    write_json(output.with_suffix(".json"), about)


def _measure(
    asked: StudySpec, spec: AttackSpec | CertificationSpec, subject: _Subject, report: Callable[[str], None]
) -> pd.DataFrame:
    network, steps, images, labels = subject
    generator = torch.Generator(images.device).manual_seed(child_seed(spec.seed, asked.study))
    common: dict[str, Any] = {"eps": spec.eps, "memory_mb": asked.memory_mb}
    attacked: dict[str, Any] = {**common, "rounds": spec.attack, "generator": generator}
    match asked.study:
        case "loss-lambda" if asked.lambda_ratios:
            return loss_lambda.measure(steps, images, labels, lambda_ratios=asked.lambda_ratios, **attacked)
        case "relu-inputs":
            return relu_inputs.measure(steps, images, memory_mb=asked.memory_mb)
        case "relu-states":
            return relu_states.measure(steps, images, **common)
        case "box-sizes" if asked.lambda_ratios:
            return box_sizes.measure(steps, images, lambda_ratios=asked.lambda_ratios, **common)
        case "gradient-alignment":
            return gradient_alignment.measure(network, images, labels, **attacked)
        case "eps-curve" if asked.eps_factors and isinstance(spec, CertificationSpec):
            own = spec.model_copy(update={"memory_mb": asked.memory_mb})
            return eps_curve.measure(steps, images, labels, eps_factors=asked.eps_factors, spec=own, report=report)
        case _:
            raise TypeError(f"there is no study {asked.study} by a specification of type {type(spec).__name__}")
