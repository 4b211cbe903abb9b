"""What a configuration would run and cost, before anything runs."""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sabr.cli.app import app
from sabr.cli.options import PUBLISHED
from sabr.errors import SabrError

if TYPE_CHECKING:
    from sabr.costs import Cost, Costs, Model
    from sabr.plan import Plan


@app.command()
def plan(
    scale: Annotated[str | None, typer.Option(help="A file in config/scales; default: the configuration's.")] = None,
    configfile: Annotated[
        list[Path] | None, typer.Option(help="Your changes, as for snakemake; several are added.")
    ] = None,
    folder: Annotated[Path, typer.Option("--config", help="The configuration's folder.")] = Path("config"),
    compare: Annotated[
        Path | None, typer.Option(help="A finished run's folder: predicted beside recorded times.")
    ] = None,
) -> None:
    """Print the networks and jobs of a configuration, and what they are estimated to cost: time, and space on disk.

    Times are extrapolated from steps measured on one machine, those on a GPU from the paper's own training times.
    """
    from sabr import costs
    from sabr.layers import read_yaml
    from sabr.plan import resolve
    from sabr.reference import configuration

    content = read_yaml(folder / "config.yaml")
    for path in configfile or []:
        content = _updated(content, read_yaml(path))
    asked = resolve(configuration(content | ({"scale": scale} if scale else {})), folder)
    known = costs.read(folder / "costs.yaml")
    core = costs.Model(known, known.steps)
    gpu = _gpu(known, folder) if asked.run.job.gpus else None
    rows = list(asked.rows.values())
    typer.echo(asked.title)
    _print_table(asked, {row.path: (gpu or core).row(row, asked.run.shard_size) for row in rows}, gpu is not None)
    typer.echo(
        f"Fitted on {known.machine}: {_range(core.errors())} times what its {len(core.steps)} measured steps took."
    )
    if gpu is not None:
        faster = statistics.median([core.training(row.training) / gpu.training(row.training) for row in rows])
        typer.echo(
            "GPU: a GeForce RTX 2080 Ti, extrapolated from the paper's own training times of SABR (quoted): "
            f"{_range(gpu.errors())} times what its {len(gpu.steps)} settings took; {faster:.0f} times a core's speed."
        )
    typer.echo("Certification is a guess: only a run can tell which images use up their time limit.")
    if compare is not None:
        _print_comparison(asked, core, compare)


def _updated(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay changes over a configuration, key by key, as Snakemake does."""
    both = dict(content)
    for key, value in changes.items():
        below = both.get(key)
        both[key] = _updated(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return both


def _gpu(known: "Costs", folder: Path) -> "Model":
    """The model of the paper's GPU."""
    from sabr import costs
    from sabr.layers import read_yaml
    from sabr.plan import resolve
    from sabr.report import published

    table = published.read(folder / PUBLISHED.name)
    own = table[(table["measure"] == "training_minutes") & (table["method"] == "sabr")]
    minutes = {(line["dataset"], line["eps"].replace("/", "_")): line["value"] for line in own.to_dict("records")}
    paper = resolve(read_yaml(folder / "config.yaml") | {"scale": "paper", "overrides": {}}, folder)
    steps = [
        costs.trained_in(known, row.training, 60 * minutes[key])
        for row in paper.main
        if row.method == "sabr" and (key := (row.training.dataset, row.setting.partition("-eps-")[2])) in minutes
    ]
    if len(steps) < 2:
        raise SabrError(f"{folder / PUBLISHED.name} has no training times to estimate GPU-hours from")
    return costs.Model(known, steps)


def _print_table(asked: "Plan", found: "Mapping[str, Cost]", on_gpu: bool) -> None:
    from sabr.costs import prepared_bytes

    settings: dict[str, list[Cost]] = {}
    for path, row in asked.rows.items():
        settings.setdefault(row.setting, []).append(found[path])
    unit = "GPU-hours" if on_gpu else "core-hours"
    heads = ("setting", "networks", "shards", "training", "attacks", "certification", "(at most)", "disk, GB")
    lines = [(name, *_sums(costs)) for name, costs in settings.items()]
    lines.append(("all", *_sums(found.values())))
    typer.echo(f"\n{len(found)} jobs each that train, attack and merge, {lines[-1][2]} that certify; {unit}:")
    for line in (heads, *lines):
        typer.echo("  ".join(f"{cell:>13}" if place else f"{cell:24}" for place, cell in enumerate(line)))
    data = sum(prepared_bytes(name) for name in {row.training.dataset for row in asked.rows.values()})
    typer.echo(f"and {data / 1e9:.2f} GB of prepared datasets; `snakemake -n` lists all jobs, small ones too.\n")


def _sums(costs: "Iterable[Cost]") -> tuple[str, ...]:
    costs = list(costs)
    hours = [
        sum(getattr(cost, name) for cost in costs) / 3600 for name in ("training", "attack", "certification", "at_most")
    ]
    disk = sum(cost.bytes for cost in costs) / 1e9
    return str(len(costs)), str(sum(cost.shards for cost in costs)), *(f"{h:,.1f}" for h in hours), f"{disk:.2f}"


def _print_comparison(asked: "Plan", model: "Model", results: Path) -> None:
    from sabr.report import records

    ratios: dict[str, list[float]] = {"training": [], "attack": [], "certification": []}
    typer.echo(f"\nPredicted by recorded, of networks in {results} that are part of this plan:")
    for line in records.read(results / "records.csv").to_dict("records"):
        path = f"{line['dataset']}/eps-{line['eps'].replace('/', '_')}/{line['method']}/seed-{line['seed']}"
        if path not in asked.rows:
            continue
        cost = model.row(asked.rows[path], asked.run.shard_size)
        recorded = {"training": "train_seconds", "attack": "attack_seconds", "certification": "certify_seconds"}
        own = {name: getattr(cost, name) / line[column] for name, column in recorded.items() if line[column] > 0}
        for name, ratio in own.items():
            ratios[name].append(ratio)
        typer.echo(f"{path:48}" + "".join(f"  {name} {ratio:.2f}" for name, ratio in own.items()))
    for name, values in ratios.items():
        if values:
            typer.echo(f"{name}: median {statistics.median(values):.2f}, {_range(values)}")


def _range(values: list[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"
