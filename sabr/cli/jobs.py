"""Commands that make results: data, specifications, training, attacks, certification."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sabr.cli.app import app
from sabr.cli.options import Checkpoint, DataFolder, Device, Output, SpecFile, Threads, a_file
from sabr.errors import SabrError
from sabr.files import sole_writer
from sabr.settings import DATASETS

DatasetName = StrEnum("DatasetName", {name: name for name in DATASETS})  # type: ignore[misc]
SpecKind = StrEnum("SpecKind", {"training": "training", "attack": "attack", "certification": "certification"})


@app.command()
def data(
    dataset: Annotated[DatasetName, typer.Argument(help="Which dataset.")],
    folder: DataFolder = Path("data"),
    mirror: Annotated[
        Path | None, typer.Option(envvar="SABR_MIRROR", help="Directory with the official files, tried first.")
    ] = None,
) -> None:
    """Fetch, check and decode a dataset; does nothing when it is there and whole."""
    from sabr.data.preparing import prepare

    prepare(DATASETS[dataset], folder, mirror=mirror)


@app.command()
def spec(
    kind: Annotated[SpecKind, typer.Argument(help="What is specified.")],
    json: Annotated[str, typer.Argument(help="The specification as JSON; the workflow takes it from config/.")],
    output: Output,
) -> None:
    """Validate a specification and write it to a file."""
    from pydantic import BaseModel

    from sabr import specs
    from sabr.files import parse_json, write_json
    from sabr.problems import checked

    models: dict[str, type[BaseModel]] = {
        "training": specs.TrainingSpec,
        "attack": specs.AttackSpec,
        "certification": specs.CertificationSpec,
    }
    where = f"{kind} specification"
    write_json(output, checked(models[kind], parse_json(json, where), where).model_dump(mode="json"))


@app.command()
def train(
    specification: Annotated[Path, typer.Argument(help="Training specification (run.json).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write (.pt, and .json beside it).")],
    history: Annotated[Path, typer.Option(help="CSV to write: one line of metrics per epoch.")],
    folder: DataFolder = Path("data"),
    threads: Threads = 1,
    device: Device = "auto",
    save_minutes: Annotated[
        float, typer.Option(min=0, envvar="SABR_SAVE_MINUTES", help="Minutes that may be lost when this is killed.")
    ] = 10,
) -> None:
    """Train one network, or go on where a run that was stopped or killed left off.

    Until it is done its state lies beside OUTPUT with suffix .resume.pt, written after each epoch, and in between.
    SIGTERM or ctrl-C: saves the state and exits with code 75 (to be continued).
    """
    from sabr import machine
    from sabr.specs import TrainingSpec, read_spec
    from sabr.training.job import run

    chosen = machine.use(threads, device)
    asked = read_spec(TrainingSpec, specification)
    with sole_writer(output, history):
        run(asked, output, history, folder, threads=threads, device=chosen, save_seconds=60 * save_minutes)


@app.command()
def attack(
    model: Checkpoint,
    specification: SpecFile,
    output: Output,
    folder: DataFolder = Path("data"),
    threads: Threads = 1,
    device: Device = "auto",
) -> None:
    """Predict the first test images, and attack those that are predicted correctly."""
    from sabr import machine
    from sabr.certification.job import run_attack
    from sabr.specs import AttackSpec, read_spec

    chosen = machine.use(threads, device)
    with sole_writer(output):
        run_attack(model, read_spec(AttackSpec, specification), output, folder, threads=threads, device=chosen)


@app.command()
def certify(
    model: Checkpoint,
    specification: SpecFile,
    attacked: Annotated[
        Path, typer.Option("--attack", help="What `sabr attack` wrote for this checkpoint.", callback=a_file)
    ],
    output: Output,
    first: Annotated[int, typer.Option(min=0, help="First test image.")],
    last: Annotated[int, typer.Option(min=1, help="One past the last test image.")],
    folder: DataFolder = Path("data"),
    threads: Threads = 1,
    device: Device = "auto",
) -> None:
    """Certify a shard of test images, or go on where a job that was killed left off.

    Until it is done its verdicts lie beside OUTPUT with suffix .journal, written as they fall.
    """
    from sabr import machine
    from sabr.certification.job import run_certification
    from sabr.specs import CertificationSpec, read_spec

    chosen = machine.use(threads, device)
    asked = read_spec(CertificationSpec, specification)
    if not first < last <= asked.images:
        raise SabrError(f"--first {first} --last {last} is no part of the {asked.images} images of {specification}")
    with sole_writer(output):
        run_certification(model, asked, attacked, output, folder, first, last, threads=threads, device=chosen)


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Verdicts of the shards of one network.", callback=a_file)],
    output: Output,
) -> None:
    """Put the shards of one network together, and check that they agree."""
    from sabr.certification import verdicts

    table, about = verdicts.merge(shards)
    verdicts.write(table, output, about)
