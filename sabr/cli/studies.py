"""Commands that measure: the paper's studies, each as a tidy CSV, and those of several networks gathered."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sabr.cli.app import app
from sabr.cli.options import DataFolder, Device, Output, Threads, a_file
from sabr.errors import SabrError
from sabr.files import sole_writer
from sabr.studies import COLUMNS, StudySpec

_IDEAS = ("box-growth", "small-box", "box-vs-relaxation")
Study = StrEnum("Study", [*_IDEAS, *COLUMNS])  # type: ignore[misc]
NetworkStudy = StrEnum("NetworkStudy", list(COLUMNS))  # type: ignore[misc]


@app.command()
def study(
    name: Annotated[Study, typer.Argument(help="Which study of the paper.")],
    output: Output,
    model: Annotated[
        Path | None,
        typer.Argument(help=f"Checkpoint (.pt); none for {', '.join(_IDEAS)}.", show_default=False, callback=a_file),
    ] = None,
    specification: Annotated[
        Path | None,
        typer.Option("--spec", help="What `sabr spec` wrote: attack.json; certification.json for eps-curve."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="So many test images, the first.")] = 500,
    lambda_ratios: Annotated[
        list[float] | None,
        typer.Option("--lambda-ratio", help="Size of a box in units of eps; once for each. loss-lambda, box-sizes."),
    ] = None,
    eps_factors: Annotated[
        list[float] | None,
        typer.Option("--eps-factor", help="Radius in units of the specification's; once for each. eps-curve."),
    ] = None,
    memory_mb: Annotated[int, typer.Option(min=1, help="What the tensors of a batch may take, roughly.")] = 1000,
    folder: DataFolder = Path("data"),
    threads: Threads = 1,
    device: Device = "auto",
) -> None:
    """Compute a study of the paper, of an idea or of a trained network, as a tidy CSV.

    A study of a network has a sidecar beside OUTPUT, with suffix .json, that says of which, and how it was made.
    """
    if name in _IDEAS:
        if model is not None:
            raise SabrError(f"the study {name} is of no network: leave out {model}")
        _study_idea(name, output)
        return
    if model is None or specification is None:
        raise SabrError(f"the study {name} is of a trained network: give a checkpoint and --spec")
    asked = _asked(
        study=str(name), images=images, memory_mb=memory_mb, lambda_ratios=lambda_ratios, eps_factors=eps_factors
    )

    from sabr import machine
    from sabr.analysis import job
    from sabr.specs import AttackSpec, CertificationSpec, read_spec

    chosen = machine.use(threads, device)
    spec: AttackSpec | CertificationSpec
    if name == "eps-curve":
        spec = read_spec(CertificationSpec, specification)
    else:
        spec = read_spec(AttackSpec, specification)
    with sole_writer(output):
        job.run(model, asked, spec, output, folder, threads=threads, device=chosen, report=_say)


@app.command()
def gather(
    name: Annotated[NetworkStudy, typer.Argument(help="Which study of trained networks.")],
    rows: Annotated[list[Path], typer.Argument(help="Row folders, one for each network, with studies/NAME.csv.")],
    output: Output,
) -> None:
    """Put one study of several networks together; what is missing is said and left out."""
    from sabr.files import write_text
    from sabr.report import gathering

    write_text(output, gathering.gather(name, rows, _say).to_csv(index=False))


def _study_idea(name: str, output: Path) -> None:
    from sabr.files import write_text

    if name == "box-growth":
        import numpy as np

        from sabr.analysis import box_growth

        result = box_growth.simulate(np.linspace(0, 2, 41))
    elif name == "small-box":
        from sabr.analysis import small_box

        result = small_box.example()
    else:
        from sabr.analysis import box_vs_relaxation

        result = box_vs_relaxation.example()
    write_text(output, result.to_csv(index=False))


def _asked(**asked: object) -> StudySpec:
    from sabr.problems import checked

    return checked(StudySpec, asked, "study")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
