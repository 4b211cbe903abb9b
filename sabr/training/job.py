"""One training job: a specification in, a checkpoint out; it goes on where a stopped or killed one left off."""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sabr import machine
from sabr.data.datasets import fingerprint, load
from sabr.errors import SabrError, ToBeContinued
from sabr.files import atomic, probe
from sabr.kernels import compile_if
from sabr.networks import checkpoints
from sabr.provenance import provenance
from sabr.settings import DATASETS
from sabr.specs import TrainingSpec
from sabr.training import state as states
from sabr.training.progress import progress
from sabr.training.trainer import train


def run(
    spec: TrainingSpec,
    output: Path,
    history: Path,
    folder: Path,
    *,
    threads: int,
    device: torch.device,
    save_seconds: float,
) -> None:
    """Train one network and write it, its sidecar and its history; until then its state lies beside it.

    Parameters
    ----------
    spec
        What to train.
    output
        Checkpoint to write, a name that ends in .pt; the state has the suffix .resume.pt and is removed in the end.
    history
        CSV to write: one line of metrics per epoch.
    folder
        Of the prepared datasets.
    threads, device
        What the process computes with, for the record.
    save_seconds
        How long may be lost when the process is killed.

    Raises
    ------
    ToBeContinued
        After SIGTERM or SIGINT; the state is saved.
    SabrError
        When a file cannot be read or written, or would overwrite another one, when the state belongs to another
        configuration, or when the loss is not finite.
    """
    unfinished = output.with_suffix(".resume.pt")
    own = (output, output.with_suffix(".json"), unfinished)
    if history.resolve() in (path.resolve() for path in own):
        raise SabrError(f"{output} and its companions would overwrite {history}; give it another name")
    for path in (output, history, unfinished):
        probe(path)
    machine.prefer_speed(spec.deterministic)
    dataset = DATASETS[spec.dataset]
    data_sha256 = fingerprint(dataset, folder, "train")
    resumed = states.read(unfinished, spec, data_sha256)
    here = provenance(threads=threads, device=str(device)) | {"compiled": compile_if(spec.compile)}
    runs: list[dict[str, Any]] = [] if resumed is None else list(resumed.runs)
    if resumed is not None:
        place = {"epoch": resumed.state.epoch, "step": resumed.state.step}
        runs.append({**place, "provenance": here})
        print(f"sabr: continuing at epoch {place['epoch']}, after step {place['step']}", file=sys.stderr, flush=True)
    split = load(dataset, folder, "train")
    with machine.stop_requests() as stop, progress(f"{spec.method.objective} on {spec.dataset}", spec.epochs) as report:
        try:
            trained = train(
                spec,
                split,
                device=device,
                report=report,
                state=None if resumed is None else resumed.state,
                save=lambda state: states.write(state, unfinished, spec, data_sha256, runs),
                save_seconds=save_seconds,
                stop=stop,
            )
        except ToBeContinued as stopped:
            raise ToBeContinued(f"{stopped}; {unfinished} holds its state: run the same command to go on") from None
        except SabrError as error:
            if unfinished.is_file():
                raise SabrError(f"{error}; {unfinished} still holds the last good state") from error
            raise
    rows = [metrics.as_row() for metrics in trained.history]
    with atomic(history) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    about: dict[str, Any] = {
        "spec": spec.model_dump(mode="json"),
        "data_sha256": data_sha256,
        "seconds": sum(metrics.seconds for metrics in trained.history),
        "provenance": here,
        "resumed": runs,
        "history": rows,
    }
    checkpoints.save(trained.network, output, architecture=spec.architecture, dataset=spec.dataset, about=about)
    unfinished.unlink(missing_ok=True)
