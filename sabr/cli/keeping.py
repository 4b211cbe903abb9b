"""Commands around a finished run: it is kept, and its networks and verdicts are taken again."""

from pathlib import Path
from typing import Annotated

import typer

from sabr.cli.app import app


@app.command()
def keep(
    run: Annotated[Path, typer.Argument(help="Folder of a scale's results, finished.")],
    destination: Annotated[Path, typer.Argument(help="Folder to keep it in; a run kept there before is replaced.")],
    megabytes: Annotated[float, typer.Option(min=0, help="What all of it may take.")] = 40,
    partial: Annotated[bool, typer.Option(help="Leave out networks that have no verdicts yet.")] = False,
) -> None:
    """Keep what is worth keeping of a finished run: all but counterexamples, and as many weights as fit."""
    from sabr import reference

    kept = reference.keep(run, destination, megabytes, partial=partial)
    typer.echo(f"kept {kept.rows} networks, {kept.size / 1e6:.1f} MB, in {destination}")
    if kept.without_weights:
        typer.echo(f"without the weights of {len(kept.without_weights)}: {', '.join(kept.without_weights)}")


@app.command()
def take(
    source: Annotated[Path, typer.Argument(help="Folder of one network in another run.")],
    outputs: Annotated[list[Path], typer.Argument(help="Files to write, beside or below RUN.")],
    run: Annotated[Path, typer.Option("--run", help="Training specification (run.json) of the row it is taken for.")],
) -> None:
    """Take files of one network, after checking that it is of the dataset, architecture and training asked for."""
    from sabr import reference

    reference.take(source, run, outputs)
