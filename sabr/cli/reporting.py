"""Commands that show: recorded results as tidy tables, the paper's tables and figures."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sabr.cli.app import app
from sabr.cli.options import FIGURES, PUBLISHED, Output, PublishedFile, StyleFile, Title
from sabr.errors import SabrError

FigureName = StrEnum(
    "FigureName",
    ["accuracies", "training-curves", "lambda-sweep", "cascade", "time-limit", "box-growth", "small-box"],
)


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
    published_file: PublishedFile = PUBLISHED,
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
