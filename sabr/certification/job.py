"""One job that attacks or certifies: files in, verdicts and counterexamples out."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sabr.bounds.boxes import ball
from sabr.certification import cascade, verdicts
from sabr.certification.attacking import attack
from sabr.certification.journal import Journal
from sabr.certification.verdicts import Verdict
from sabr.errors import SabrError
from sabr.files import atomic, probe
from sabr.kernels import compile_if
from sabr.networks.affine import folded_steps
from sabr.networks.steps import Step
from sabr.provenance import provenance
from sabr.specs import Attacked, AttackSpec, CertificationSpec, differing_keys
from sabr.tensors import save_tensors
from sabr.trained import read_images, read_network


def run_attack(
    model: Path, spec: AttackSpec, output: Path, folder: Path, *, threads: int, device: torch.device
) -> None:
    """Predict and attack images, and write the table, its sidecar, and counterexamples with suffix .pt beside it.

    Parameters
    ----------
    model
        Checkpoint.
    spec
        What to do.
    output
        CSV to write.
    folder
        Of the prepared datasets.
    threads, device
        What the process computes with, for the record.

    Raises
    ------
    SabrError
        When a file cannot be read or written, or does not fit the others.
    """
    steps, about = _network(model, spec, folder, device)
    _probe(output, model)
    started = time.perf_counter()
    images, labels = read_images(spec, folder, 0, spec.images, device)
    table, counterexamples = attack(steps, images, labels, spec, _say)
    _write_counterexamples(counterexamples, output)
    seconds = time.perf_counter() - started
    made = provenance(threads=threads, device=str(device))
    verdicts.write(
        table, output, {**about, "attack": spec.model_dump(mode="json"), "seconds": seconds, "provenance": made}
    )


def run_certification(
    model: Path,
    spec: CertificationSpec,
    attacked: Path,
    output: Path,
    folder: Path,
    first: int,
    last: int,
    *,
    threads: int,
    device: torch.device,
) -> None:
    """Certify images first to last - 1, and write the table, its sidecar, and counterexamples beside it.

    Parameters
    ----------
    model, spec, output, folder, threads, device
        As in `run_attack`.
    attacked
        What that wrote for this network.
    first, last
        The shard.

    Raises
    ------
    SabrError
        As `run_attack`; and when a certified image is refuted, which means that a bound is unsound.
    """
    steps, about = _network(model, spec, folder, device)
    _probe(output, model, attacked)
    known, attack_about = verdicts.read(attacked, verdicts.ATTACK_COLUMNS)
    _refuse_other(attacked, attack_about, about | {"attack": spec.attack_spec.model_dump(mode="json")})
    about["certification"] = spec.model_dump(mode="json")
    images, labels = read_images(spec, folder, first, last, device)
    part = known.iloc[first:last].reset_index(drop=True)
    if part["index"].tolist() != list(range(first, last)) or part["label"].tolist() != labels.tolist():
        raise SabrError(f"{attacked} is not about test images {first} to {last - 1} of {spec.dataset}; run again")
    compiled = compile_if(spec.compile)
    started = time.perf_counter()
    journal = Journal(output.with_suffix(".journal"), {**about, "first": first, "last": last})
    try:
        open_ = part.index[part["natural_correct"] & part["adversarial_correct"]]
        left = [place for place in open_ if first + place not in journal.known]
        if len(left) < len(open_):
            _say(f"going on with {len(open_) - len(left)} verdicts of an earlier run")
        cascade.certify(
            steps,
            ball(images[left].double(), spec.eps),
            labels[left],
            [first + place for place in left],
            spec,
            record=journal.add,
            spend=journal.spend,
            report=_say,
        )
        stages = cascade.account(spec.stages, journal.known.values(), journal.seconds)
        certified = {number: verdict for number, verdict in sorted(journal.known.items()) if verdict.certified_by}
        places = [number - first for number in certified]
        stages["control"] = cascade.control(
            steps, ball(images[places].double(), spec.eps), labels[places], certified, spec
        )
    finally:
        journal.close()
    table = verdicts.table(part, journal.known)
    verdicts.refuse_contradictions(table, str(model))
    _write_counterexamples(_points(journal.known), output)
    about |= {
        "seconds": time.perf_counter() - started,
        "stages": {stage: asdict(record) for stage, record in stages.items()},
        "provenance": provenance(threads=threads, device=str(device)) | {"compiled": compiled},
    }
    verdicts.write(table, output, about)
    journal.remove()


def _probe(output: Path, *read: Path) -> None:
    """Before long work: the table can be written, and neither it nor its companions are what was read."""
    for path in read:
        if output.with_suffix("").resolve() == path.with_suffix("").resolve():
            raise SabrError(f"{output} and its companions would overwrite {path}; give it another name")
    probe(output)


def _points(known: Mapping[int, Verdict]) -> dict[int, Tensor]:
    return {number: verdict.point for number, verdict in sorted(known.items()) if verdict.point is not None}


def _write_counterexamples(points: Mapping[int, Tensor], output: Path) -> None:
    """Images' places and their counterexamples, float64, as `torch.load(..., weights_only=True)` reads them."""
    stacked = torch.stack(list(points.values())) if points else torch.empty(0, dtype=torch.float64)
    with atomic(output.with_suffix(".pt")) as temporary:
        save_tensors({"index": torch.tensor(list(points), dtype=torch.int64), "points": stacked}, temporary)


def _network(model: Path, asked: Attacked, folder: Path, device: torch.device) -> tuple[Sequence[Step], dict[str, Any]]:
    """Read a network as folded steps, and what results on it must say of where they come from."""
    network, about = read_network(model, asked, folder, device)
    with torch.no_grad():
        return folded_steps(network), about


def _refuse_other(path: Path, made_of: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a file made of another network, or under another specification."""
    different = differing_keys(wanted, {key: made_of.get(key) for key in wanted})
    if different:
        raise SabrError(f"{path} belongs to another run: {different[0]}; delete it and run again")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
