"""Commands for networks and properties of others, and ours for them."""

from pathlib import Path
from typing import Annotated

import typer

from sabr.cli.app import app
from sabr.cli.options import Checkpoint, DataFolder, SpecFile, Threads

CASCADE = Path("config/verify.yaml")


@app.command()
def export(
    model: Checkpoint,
    specification: SpecFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    first: Annotated[int, typer.Option(min=0, help="First test image.")],
    last: Annotated[int, typer.Option(min=1, help="One past the last test image.")],
    folder: DataFolder = Path("data"),
) -> None:
    """Write a network as ONNX and images' properties as VNN-LIB, with an instances.csv as in VNN-COMP."""
    from sabr.certification.exchange import run_export
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
    from sabr.certification.exchange import run_verification
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
