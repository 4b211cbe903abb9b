"""Commands that show: recorded results as tidy tables, the paper's tables and figures."""

import functools
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sabr.cli.app import app
from sabr.cli.options import (
    CAPTIONS,
    CLAIMS,
    FIGURES,
    PUBLISHED,
    DataFolder,
    OutlineFile,
    Output,
    PublishedFile,
    StyleFile,
    Title,
)
from sabr.errors import SabrError
from sabr.files import allow_suffixes

if TYPE_CHECKING:
    import pandas as pd

    from sabr.report.tables.layout import Context, Table

    TableMaker = tuple[Callable[[Path], pd.DataFrame], Callable[[pd.DataFrame, Context], Table]]

FigureName = StrEnum(
    "FigureName",
    [
        "accuracies",
        "pareto",
        "examples",
        "training-curves",
        "lambda-sweep",
        "cascade",
        "time-limit",
        "box-growth",
        "small-box",
        "box-vs-relaxation",
        "loss-lambda",
        "relu-inputs",
        "box-sizes",
        "eps-curve",
    ],
)

TableName = StrEnum(
    "TableName",
    ["table1", "table2", "table3", "table4", "shrinking", "widths", "long", "times", "seeds", "protocol"],
)


@app.command()
def outline(
    json: Annotated[str, typer.Argument(metavar="JSON", help="The scale's title, and all networks with their parts.")],
    output: Output,
) -> None:
    """Check and write down what was planned: it tells tables and claims what belongs to them, and what is missing."""
    from sabr.files import write_json
    from sabr.report import outline as outlines

    write_json(output, outlines.parse(json).model_dump(mode="json"))


@app.command()
def collect(
    rows: Annotated[list[Path], typer.Argument(help="Row folders, one for each network.")],
    output: Output,
    histories: Annotated[Path, typer.Option(help="CSV to write: every network's metrics per epoch.")],
    stages: Annotated[Path, typer.Option(help="CSV to write: what each stage of certification did, and its time.")],
    limits: Annotated[Path, typer.Option(help="CSV to write: what is certified within shorter time limits.")],
    pairs: Annotated[Path, typer.Option(help="CSV to write: every two networks of a setting on the same images.")],
    protocol: Annotated[Path, typer.Option(help="CSV to write: every network's hyper-parameters.")],
    provenance: Annotated[Path, typer.Option(help="JSON to write: versions, commits and machines.")],
) -> None:
    """Check all recorded results and put them into tidy tables; unfinished networks are said and left out."""
    from sabr.files import write_json, write_text
    from sabr.report import pairs as beside
    from sabr.report import protocol as training
    from sabr.report import records
    from sabr.report import stages as effort
    from sabr.report.rows import unfinished

    for folder in rows:
        if missing := unfinished(folder):
            print(f"left out: {folder} has no {missing[0]}", file=sys.stderr)
    rows = [folder for folder in rows if not unfinished(folder)]
    records.write(records.collect(rows), output)
    for path, found in (
        (histories, records.histories(rows)),
        (stages, effort.stages(rows)),
        (limits, effort.limits(rows)),
        (pairs, beside.pairs(rows)),
        (protocol, training.hyper_parameters(rows)),
    ):
        write_text(path, found.to_csv(index=False))
    write_json(provenance, training.provenance(rows))


@app.command()
def table(
    name: Annotated[TableName, typer.Argument(help="Which table.")],
    source: Annotated[Path, typer.Argument(metavar="CSV", help="Its data: what `sabr collect` or `gather` wrote.")],
    outputs: Annotated[list[Path], typer.Option("--output", "-o", help="Table to write: .csv, .md, .tex or .html.")],
    outline_file: OutlineFile,
    published_file: PublishedFile = PUBLISHED,
    style_file: StyleFile = FIGURES,
) -> None:
    """Write one table, with the published numbers beside ours."""
    from sabr.files import write_text
    from sabr.report import gathering, outline, pairs, protocol, published, records, style
    from sabr.report.tables import accuracies, layout, seeds, studies, times
    from sabr.report.tables import protocol as settings

    def comparison(part: outline.Part, title: str) -> "TableMaker":
        return records.read, functools.partial(accuracies.comparison, part, title)

    def of_study(study: str) -> "Callable[[Path], pd.DataFrame]":
        return functools.partial(gathering.read, study)

    kinds: dict[str, TableMaker] = {
        "table1": (records.read, accuracies.table1),
        "table2": (records.read, accuracies.table2),
        "table3": (of_study("gradient-alignment"), studies.table3),
        "table4": (of_study("relu-states"), studies.table4),
        "shrinking": comparison("shrinking", "ReLU shrinking"),
        "widths": comparison("widths", "Widths"),
        "long": comparison("long", "Long training"),
        "times": (records.read, times.times),
        "seeds": (pairs.read, seeds.seeds),
        "protocol": (protocol.read, settings.hyper_parameters),
    }
    render = {".csv": layout.to_csv, ".md": layout.to_markdown, ".tex": layout.to_latex, ".html": layout.to_html}
    allow_suffixes(outputs, "a table", render)
    read, make = kinds[name]
    context = layout.Context(outline.read(outline_file), published.read(published_file), style.read(style_file))
    made = make(read(source), context)
    for path in outputs:
        write_text(path, render[path.suffix](made))


@app.command()
def claims(
    records_file: Annotated[Path, typer.Option("--records", help="What `sabr collect` wrote.")],
    pairs_file: Annotated[Path, typer.Option("--pairs", help="What `sabr collect --pairs` wrote.")],
    outputs: Annotated[list[Path], typer.Option("--output", "-o", help="Verdicts to write: .json or .md.")],
    outline_file: OutlineFile,
    study_files: Annotated[
        list[Path] | None, typer.Option("--study", help="What `sabr gather` wrote, as STUDY.csv; once for each.")
    ] = None,
    claims_file: Annotated[Path, typer.Option("--claims", help="The claims and their checks.")] = CLAIMS,
    published_file: PublishedFile = PUBLISHED,
    style_file: StyleFile = FIGURES,
) -> None:
    """Check the paper's claims on recorded results."""
    from sabr.files import write_json, write_text
    from sabr.report import gathering, outline, pairs, published, records, style
    from sabr.report.claims import evaluate, model, quantities

    allow_suffixes(outputs, "claims", (".json", ".md"))
    asked = model.read(claims_file)
    results = quantities.Results(
        outline=outline.read(outline_file),
        records=records.read(records_file),
        pairs=pairs.read(pairs_file),
        studies={path.stem: gathering.read(path.stem, path) for path in study_files or ()},
        published=published.read(published_file),
        full_scale=asked.full_scale,
        style=style.read(style_file),
    )
    judged = evaluate.evaluate(asked.claims, results)
    for path in outputs:
        if path.suffix == ".json":
            write_json(path, evaluate.to_json(judged, results))
        else:
            write_text(path, evaluate.to_markdown(judged, results))


@app.command()
def examples(
    rows: Annotated[list[Path], typer.Argument(help="Row folders, one for each network.")],
    output: Output,
    each: Annotated[int, typer.Option(min=1, help="Counterexamples of each network, at most.")] = 8,
    folder: DataFolder = Path("data"),
) -> None:
    """Gather a few counterexamples with their images, as an archive of arrays for the figure `examples`."""
    from sabr.report import counterexamples

    counterexamples.write(counterexamples.collect(rows, folder, each=each), output)


@app.command()
def figure(
    name: Annotated[FigureName, typer.Argument(help="Which figure.")],
    source: Annotated[Path, typer.Argument(metavar="CSV", help="Its data: what `sabr collect` or `sabr study` wrote.")],
    title: Title,
    outputs: Annotated[list[Path], typer.Option("--output", "-o", help="Figure to write: .pdf or .png.")],
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Show only this method of ours; once for each. Default: all.")
    ] = None,
    published_file: PublishedFile = PUBLISHED,
    style_file: StyleFile = FIGURES,
) -> None:
    """Draw one figure."""
    import pandas as pd
    from matplotlib.figure import Figure

    from sabr.report import (
        effort,
        examples,
        figures,
        gathering,
        illustrations,
        pareto,
        records,
        stages,
        study_figures,
        style,
    )

    kinds: dict[str, tuple[Callable[[Path], pd.DataFrame], Callable[[pd.DataFrame, str, style.Style], Figure]]] = {
        "accuracies": (records.read, figures.accuracies),
        "pareto": (functools.partial(pareto.read, published_file=published_file), pareto.pareto),
        "examples": (examples.read, examples.examples),
        "training-curves": (records.read_histories, figures.training_curves),
        "lambda-sweep": (records.read, figures.lambda_sweep),
        "cascade": (stages.read_stages, effort.cascade),
        "time-limit": (stages.read_limits, effort.time_limit),
        "box-growth": (functools.partial(gathering.read, "box-growth"), illustrations.box_growth),
        "small-box": (illustrations.read_small_box, illustrations.small_box),
        "box-vs-relaxation": (illustrations.read_box_vs_relaxation, illustrations.box_vs_relaxation),
        "loss-lambda": (functools.partial(gathering.read, "loss-lambda"), study_figures.loss_lambda),
        "relu-inputs": (functools.partial(gathering.read, "relu-inputs"), study_figures.relu_inputs),
        "box-sizes": (functools.partial(gathering.read, "box-sizes"), study_figures.box_sizes),
        "eps-curve": (functools.partial(gathering.read, "eps-curve"), study_figures.eps_curve),
    }
    allow_suffixes(outputs, "a figure", style.FORMATS)
    read, draw = kinds[name]
    data = read(source)
    if methods:
        if "method" not in data:
            raise SabrError(f"the figure {name} is of no method: leave out --method {methods[0]}")
        theirs = data["origin"] == "published" if "origin" in data else False
        data = data[data["method"].isin(methods) | theirs]
    drawn = draw(data, title, style.read(style_file))
    for path in outputs:
        style.save(drawn, path)


@app.command()
def page(
    records_file: Annotated[Path, typer.Option("--records", help="What `sabr collect` wrote.")],
    limits_file: Annotated[Path, typer.Option("--limits", help="What `sabr collect --limits` wrote.")],
    provenance_file: Annotated[Path, typer.Option("--provenance", help="What `sabr collect --provenance` wrote.")],
    verdicts_file: Annotated[Path, typer.Option("--verdicts", help="What `sabr claims` wrote as JSON.")],
    output: Output,
    outline_file: OutlineFile,
    tables: Annotated[list[Path] | None, typer.Option("--table", help="A table as HTML; once for each.")] = None,
    figures: Annotated[list[Path] | None, typer.Option("--figure", help="A figure as PNG; once for each.")] = None,
    captions_file: Annotated[Path, typer.Option("--captions", help="Sections and captions.")] = CAPTIONS,
    style_file: StyleFile = FIGURES,
) -> None:
    """Write the report: claims, tables, figures, cost and provenance in one HTML file that loads nothing."""
    from sabr.files import write_text
    from sabr.report import outline, records, stages, style
    from sabr.report.page import build, captions

    sources = build.Sources(
        outline=outline.read(outline_file),
        captions=captions.read(captions_file),
        claims=build.read_claims(verdicts_file),
        records=records.read(records_file),
        limits=stages.read_limits(limits_file),
        provenance=build.read_provenance(provenance_file),
        tables={path.stem: path for path in tables or ()},
        figures={path.stem: path for path in figures or ()},
        style=style.read(style_file),
    )
    write_text(output, build.build(sources))
