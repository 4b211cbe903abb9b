"""One small command a rule: arguments in, files out, errors as one sentence."""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sabr.errors import SabrError, ToBeContinued
from sabr.settings import DATASETS

app = typer.Typer(
    help="SABR: certified training with small boxes. Each command is one step of the workflow and can be run by hand.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DatasetName = StrEnum("DatasetName", {name: name for name in DATASETS})  # type: ignore[misc]
SpecKind = StrEnum("SpecKind", {"training": "training", "attack": "attack", "certification": "certification"})

Study = StrEnum("Study", ["box-growth", "small-box"])
FigureName = StrEnum(
    "FigureName",
    ["accuracies", "training-curves", "lambda-sweep", "cascade", "time-limit", "box-growth", "small-box"],
)
PUBLISHED = Path("config/published.yaml")
FIGURES = Path("config/figures.yaml")
CASCADE = Path("config/verify.yaml")

DataFolder = Annotated[Path, typer.Option("--data", help="Folder of the prepared datasets.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="File to write; there whole or not at all.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads to compute with.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: a GPU where there is one.")]
Title = Annotated[str, typer.Option("--scale", "--title", help="The scale in words, for titles and captions.")]
StyleFile = Annotated[Path, typer.Option("--style", help="Labels, colours, widths.")]
SpecFile = Annotated[Path, typer.Option("--spec", help="What `sabr spec` wrote: attack.json, certification.json.")]


@app.command()
def data(
    dataset: Annotated[DatasetName, typer.Argument(help="Which dataset.")],
    folder: DataFolder = Path("data"),
    mirror: Annotated[
        Path | None, typer.Option(envvar="SABR_MIRROR", help="Directory with the official files, tried first.")
    ] = None,
) -> None:
    """Fetch, check and decode a dataset; does nothing when it is there and whole."""
    from sabr.data.datasets import prepare

    prepare(DATASETS[dataset], folder, mirror=mirror)


@app.command()
def spec(
    kind: Annotated[SpecKind, typer.Argument(help="What is specified.")],
    json: Annotated[str, typer.Argument(help="The specification as JSON; the workflow takes it from config/.")],
    output: Output,
) -> None:
    """Validate a specification and write it to a file."""
    from pydantic import BaseModel, ValidationError

    from sabr import specs
    from sabr.files import write_json

    models: dict[str, type[BaseModel]] = {
        "training": specs.TrainingSpec,
        "attack": specs.AttackSpec,
        "certification": specs.CertificationSpec,
    }
    try:
        checked = models[kind].model_validate_json(json)
    except ValidationError as error:
        raise SabrError(f"{kind} specification: {specs.first_problem(error)}") from error
    write_json(output, checked.model_dump(mode="json"))


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
    run(asked, output, history, folder, threads=threads, device=chosen, save_seconds=60 * save_minutes)


@app.command()
def attack(
    model: Annotated[Path, typer.Argument(help="Checkpoint (.pt).")],
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
    run_attack(model, read_spec(AttackSpec, specification), output, folder, threads=threads, device=chosen)


@app.command()
def certify(
    model: Annotated[Path, typer.Argument(help="Checkpoint (.pt).")],
    specification: SpecFile,
    attacked: Annotated[Path, typer.Option("--attack", help="What `sabr attack` wrote for this checkpoint.")],
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
    run_certification(model, asked, attacked, output, folder, first, last, threads=threads, device=chosen)


@app.command()
def merge(
    shards: Annotated[list[Path], typer.Argument(help="Verdicts of the shards of one network.")],
    output: Output,
) -> None:
    """Put the shards of one network together, and check that they agree."""
    from sabr.certification import verdicts

    table, about = verdicts.merge(shards)
    verdicts.write(table, output, about)


@app.command()
def collect(
    rows: Annotated[list[Path], typer.Argument(help="Row folders, one for each network.")],
    output: Output,
    histories: Annotated[Path, typer.Option(help="CSV to write: every network's metrics per epoch.")],
    stages: Annotated[Path, typer.Option(help="CSV to write: what each stage of certification did, and its time.")],
    limits: Annotated[Path, typer.Option(help="CSV to write: what is certified within shorter time limits.")],
) -> None:
    """Check all recorded results and put them into tidy tables."""
    from sabr.files import write_text
    from sabr.report import records
    from sabr.report import stages as effort

    records.write(records.collect(rows), output)
    for path, found in (
        (histories, records.histories(rows)),
        (stages, effort.stages(rows)),
        (limits, effort.limits(rows)),
    ):
        write_text(path, found.to_csv(index=False))


@app.command()
def table(
    records_file: Annotated[Path, typer.Argument(metavar="RECORDS", help="What `sabr collect` wrote.")],
    methods: Annotated[list[str], typer.Option("--method", help="A method to show; once for each.")],
    scale: Title,
    outputs: Annotated[list[Path], typer.Option("--output", "-o", help="Table to write: .csv, .md, .tex or .html.")],
    published_file: Annotated[Path, typer.Option("--published", help="Published numbers.")] = PUBLISHED,
    style_file: StyleFile = FIGURES,
) -> None:
    """Write Table 1: our accuracies beside the published ones."""
    from sabr.files import write_text
    from sabr.report import published, records, style, tables

    theirs = published.read(published_file)
    numbers = tables.accuracies(
        records.read(records_file), theirs[theirs["group"] == "table-1"], methods=methods, scale=scale
    )
    look = style.read(style_file)
    render = {
        ".csv": lambda: tables.to_csv(numbers),
        ".md": lambda: tables.to_markdown(numbers, look),
        ".tex": lambda: tables.to_latex(numbers, look),
        ".html": lambda: tables.to_html(numbers, look),
    }
    for path in outputs:
        if path.suffix not in render:
            raise SabrError(f"{path}: a table cannot be written as {path.suffix!r}; allowed: {', '.join(render)}")
        write_text(path, render[path.suffix]())


@app.command()
def study(
    name: Annotated[Study, typer.Argument(help="Which study of the paper.")],
    output: Output,
) -> None:
    """Compute a study of the paper that needs no trained network, as a tidy CSV."""
    from sabr.files import write_text

    if name == "box-growth":
        import numpy as np

        from sabr.analysis import box_growth

        result = box_growth.simulate(np.linspace(0, 2, 41))
    else:
        from sabr.analysis import small_box

        result = small_box.example()
    write_text(output, result.to_csv(index=False))


@app.command()
def figure(
    name: Annotated[FigureName, typer.Argument(help="Which figure.")],
    source: Annotated[Path, typer.Argument(metavar="CSV", help="Its data: what `sabr collect` or `sabr study` wrote.")],
    title: Title,
    outputs: Annotated[list[Path], typer.Option("--output", "-o", help="Figure to write: .pdf or .png.")],
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Show only this method; once for each. Default: all.")
    ] = None,
    style_file: StyleFile = FIGURES,
) -> None:
    """Draw one figure."""
    import pandas as pd
    from matplotlib.figure import Figure

    from sabr.report import effort, figures, illustrations, records, stages, style

    kinds: dict[str, tuple[Callable[[Path], pd.DataFrame], Callable[[pd.DataFrame, str, style.Style], Figure]]] = {
        "accuracies": (records.read, figures.accuracies),
        "training-curves": (pd.read_csv, figures.training_curves),
        "lambda-sweep": (records.read, figures.lambda_sweep),
        "cascade": (stages.read_stages, effort.cascade),
        "time-limit": (stages.read_limits, effort.time_limit),
        "box-growth": (pd.read_csv, illustrations.box_growth),
        "small-box": (pd.read_csv, illustrations.small_box),
    }
    read, draw = kinds[name]
    try:
        data = read(source)
    except (OSError, ValueError) as error:
        raise SabrError(f"cannot read {source}: {error}") from error
    if methods:
        data = data[data["method"].isin(methods)]
    try:
        drawn = draw(data, title, style.read(style_file))
    except KeyError as error:
        raise SabrError(f"{source} is no table for the figure {name}: it has no column {error}") from error
    for path in outputs:
        style.save(drawn, path)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Checkpoint (.pt).")],
    specification: SpecFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    first: Annotated[int, typer.Option(min=0, help="First test image.")],
    last: Annotated[int, typer.Option(min=1, help="One past the last test image.")],
    folder: DataFolder = Path("data"),
) -> None:
    """Write a network as ONNX and images' properties as VNN-LIB, with an instances.csv as in VNN-COMP."""
    from sabr.certification.job import run_export
    from sabr.specs import CertificationSpec, read_spec

    run_export(model, read_spec(CertificationSpec, specification), output, folder, first, last)


@app.command()
def verify(
    onnx: Annotated[Path, typer.Option(help="Network.")],
    vnnlib: Annotated[Path, typer.Option(help="Property.")],
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds; default: the cascade's.")] = None,
    cascade: Annotated[Path, typer.Option(help="Stages, and how each of them works (YAML).")] = CASCADE,
    threads: Threads = 1,
) -> None:
    """Answer sat, unsat or unknown for a property of any network; after sat a counterexample in VNN-COMP's format."""
    from sabr import machine
    from sabr.certification.job import run_verification
    from sabr.config import read_cascade

    machine.use(threads, "cpu")
    answer = run_verification(onnx, vnnlib, read_cascade(cascade, seconds=timeout))
    typer.echo(answer)


@app.command("import")
def import_(
    released: Annotated[Path, typer.Argument(help="State dictionary of eth-sri/SABR.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint to write (.pt, and .json beside it).")],
) -> None:
    """Make a checkpoint of a network that the paper's authors released."""
    from sabr.files import checksum
    from sabr.networks import checkpoints
    from sabr.networks.released import read_released

    found = read_released(released)
    about = {"imported": {"file": released.name, "sha256": checksum(released)}}
    checkpoints.save(found.network, output, architecture=found.architecture, dataset=found.dataset, about=about)


def main() -> None:
    """Run the command line; a user's error is one sentence and exit code 1, wrong usage 2, to be continued 75."""
    try:
        app()
    except ToBeContinued as stopped:
        print(f"sabr: {stopped}", file=sys.stderr)
        sys.exit(75)
    except SabrError as error:
        print(f"sabr: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("sabr: interrupted", file=sys.stderr)
        sys.exit(130)
