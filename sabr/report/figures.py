"""Figures of results and ideas: tidy tables in, matplotlib figures out; nothing is computed here."""

import textwrap
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from sabr.errors import SabrError
from sabr.report.records import STAGE_COLUMNS, summary
from sabr.report.style import Look, Style, styled

_MAIN = ("natural", "adversarial", "certified")
# Face of the exact image, edge and line style of the interval bounds.
_REGIONS: dict[str, tuple[str, str, Literal["-", "--"]]] = {
    "ball": ("#BFE1F5", "#0072B2", "--"),
    "small": ("#E69F00", "#7A3B00", "-"),
}
_POINTS = {"clean": "o", "adversarial": "X"}


@styled
def accuracies(records: pd.DataFrame, title: str, style: Style) -> Figure:
    """Natural, adversarial and certified accuracy of every method, one panel per setting.

    Parameters
    ----------
    records
        What `records.collect` returns, for the methods to show.
    title
        Says the scale.
    style
        Labels, order, colours.

    Returns
    -------
    Figure
        One column wide; bars are 95 % intervals (one seed) or mean -+ standard deviation (several).
    """
    table = summary(_some(records))
    settings = list(table.groupby(["dataset", "eps"], sort=False))
    counts = [part["method"].nunique() for _, part in settings]
    height = 1.0 + 0.37 * sum(counts) + 0.25 * len(settings)
    figure = Figure(figsize=(style.widths.column, height))
    panels = figure.subplots(len(settings), 1, sharex=True, squeeze=False, height_ratios=counts)
    for axes, ((dataset, eps), part) in zip(panels[:, 0], settings, strict=True):
        methods = style.order(part["method"])
        for measure, shift in zip(_MAIN, (-0.27, 0.0, 0.27), strict=True):
            line = part[part["measure"] == measure].set_index("method").loc[methods]
            look, rows = style.measure(measure), np.arange(len(methods)) + shift
            _errorbar(axes, line["value"], rows, line, look, along="x", line="")
            for row, value in zip(rows, line["value"], strict=True):
                place = {"transform": axes.get_yaxis_transform(), "verticalalignment": "center"}
                axes.text(1.02, row, f"{value:.1f}", color=look.colour, fontsize=6, **place)
        axes.set_yticks(range(len(methods)), [style.method(method).label for method in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_title(style.setting(str(dataset), str(eps)))
    shown = table[table["measure"].isin(_MAIN)]
    panels[-1, 0].set_xlim(shown["low"].min() - 2, shown["high"].max() + 1)
    panels[-1, 0].set_xlabel("accuracy on test images, %")
    return _finish(figure, title, [_handle(style.measure(measure), line="") for measure in _MAIN])


@styled
def training_curves(histories: pd.DataFrame, title: str, style: Style) -> Figure:
    """Loss, training accuracies and radius over the epochs, one column of panels per setting, one line per network.

    Parameters
    ----------
    histories
        What `records.histories` returns.
    title
        Says the scale.
    style
        Labels, order, colours.

    Returns
    -------
    Figure
        One column wide for one setting, a page wide for several.
    """
    settings = list(_some(histories).groupby("setting", sort=False))
    width = style.widths.column if len(settings) == 1 else style.widths.page
    figure = Figure(figsize=(width, 5.2))
    panels = figure.subplots(4, len(settings), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 3, 3, 1.6])
    rows = {"loss": 1.0, "natural_accuracy": 100.0, "robust_accuracy": 100.0, "eps": 1.0}
    names = ["training loss", "natural\naccuracy, %", "worst-case\naccuracy, %", "ε"]
    for column, (setting, part) in enumerate(settings):
        dataset, _, eps = str(setting).partition("-eps-")
        panels[0, column].set_title(style.setting(dataset, eps.replace("_", "/")))
        for method in style.order(part["method"]):
            look = style.method(method)
            for _, run in part[part["method"] == method].groupby("seed"):
                for axes, (measure, factor) in zip(panels[:, column], rows.items(), strict=True):
                    every = max(1, len(run) // 6)
                    axes.plot(run["epoch"], factor * run[measure], markevery=every, **_line(look))
        panels[-1, column].set_xlabel("epoch (accuracies on training batches)")
        panels[-1, column].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes, name in zip(panels[:, 0], names, strict=True):
        axes.set_ylabel(name)
    panels[0, 0].set_yscale("log")
    for axes in panels[0]:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    figure.align_ylabels(panels[:, 0])
    looks = [style.method(method) for method in style.order(histories["method"])]
    return _finish(figure, title, [_handle(look) for look in looks])


@styled
def lambda_sweep(records: pd.DataFrame, title: str, style: Style) -> Figure:
    """Accuracies against lambda, and what each certification stage adds.

    Parameters
    ----------
    records
        What `records.collect` returns. Drawn are methods with at least two values of lambda in one setting, where
        "sabr-lambda-0.1" counts as "sabr"; a method of the objective ibp in that setting is drawn as a reference.
    title
        Says the scale.
    style
        Labels, colours.

    Returns
    -------
    Figure
        Upper panels: natural, adversarial and certified accuracy; lower ones: certified by each stage or an earlier
        one. Bars as in `accuracies`; points of one lambda are drawn side by side. One column wide for one sweep, a
        page wide for several.

    Raises
    ------
    SabrError
        When no method has two values of lambda.
    """
    table = summary(_some(records))
    table["family"] = table["method"].str.replace(r"-lambda-.*$", "", regex=True)
    swept = table.dropna(subset="lambda_ratio")
    sweeps = [
        (names, part.sort_values("lambda_ratio"))
        for names, part in swept.groupby(["dataset", "eps", "family"], sort=False)
        if part["lambda_ratio"].nunique() > 1
    ]
    if not sweeps:
        raise SabrError("no method has results at two values of lambda; add some to run.lambda_sweep.values")
    stages = [column for column in STAGE_COLUMNS.values() if column in set(swept["measure"])]
    width = style.widths.column if len(sweeps) == 1 else style.widths.page
    figure = Figure(figsize=(width, 4.9))
    panels = figure.subplots(2, len(sweeps), sharex="col", squeeze=False)
    reference = False
    for column, ((dataset, eps, family), part) in enumerate(sweeps):
        upper, lower = panels[:, column]
        upper.set_title(f"{style.method(str(family)).label}, {style.setting(str(dataset), str(eps))}")
        for axes, measures in ((upper, _MAIN), (lower, stages)):
            for place, measure in enumerate(measures):
                line = part[part["measure"] == measure]
                beside = line["lambda_ratio"] * 1.03 ** (place - len(measures) / 2 + 0.5)
                _errorbar(axes, beside, line["value"], line, style.measure(measure), along="y")
        ibp = table[(table["dataset"] == dataset) & (table["eps"] == eps) & (table["objective"] == "ibp")]
        for measure in _MAIN if len(ibp) else ():
            reference = True
            look = style.measure(measure)
            value = float(ibp[ibp["measure"] == measure]["value"].iloc[0])
            ends = [part["lambda_ratio"].min() / 1.25, part["lambda_ratio"].max() * 1.25]
            upper.plot(ends, [value, value], color=look.colour, marker=look.marker, mfc="white", linewidth=0.6)
        values = sorted(part["lambda_ratio"].unique())
        lower.set_xscale("log")
        lower.xaxis.set_major_locator(FixedLocator(values))
        lower.xaxis.set_minor_locator(NullLocator())
        lower.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        lower.set_xlabel("λ, size of the small box in units of ε")
        lower.set_ylim(-4, 104)
    panels[0, 0].set_ylabel("accuracy, %")
    panels[1, 0].set_ylabel("certified, %")
    handles = [_handle(style.measure(measure)) for measure in _MAIN]
    if reference:
        handles.append(Line2D([], [], color="#555555", marker="o", mfc="white", linewidth=0.6, label="IBP (no λ)"))
    panels[0, 0].legend(handles=handles)
    panels[1, 0].legend(
        handles=[_handle(style.measure(stage)) for stage in stages], title="certified by", alignment="left"
    )
    return _finish(figure, title, [])


@styled
def box_growth(table: pd.DataFrame, title: str, style: Style) -> Figure:
    """Mean output size of one ReLU layer against its input size, with the linear extrapolation.

    Parameters
    ----------
    table
        What `sabr.analysis.box_growth.simulate` returns, or the same read from CSV.
    title
        Says that it is a simulation.
    style
        Widths.

    Returns
    -------
    Figure
        One column wide.
    """
    first = _some(table).iloc[0]
    figure = Figure(figsize=(style.widths.column, 2.4))
    axes = figure.subplots()
    axes.plot(table["input_size"], table["output_size"], color="#0072B2", label="ReLU layer, mean over boxes")
    axes.plot(table["input_size"], table["linear"], color="#D55E00", linestyle="--", label="linear growth")
    axes.set(xlabel="input box size", ylabel="mean output box size", ylim=(0, None))
    axes.set_xlim(table["input_size"].min(), table["input_size"].max())
    centres = f"box centres ~ N({first['mean']:g}, {first['deviation']:g}²)".replace("-", "−")
    axes.legend(title=centres, loc="upper left", alignment="left")
    return _finish(figure, title, [])


@styled
def small_box(data: pd.DataFrame, title: str, style: Style) -> Figure:
    """A whole ball and a small box through a small network: exact images, and interval bounds around them.

    Parameters
    ----------
    data
        What `sabr.analysis.small_box.study` returns, or the same read from CSV.
    title
        Says that it is an illustration.
    style
        Widths.

    Returns
    -------
    Figure
        One column wide, one panel per layer. In the output panel, outputs of another class than the clean point's
        are hatched.
    """
    layers = list(_some(data)["layer"].unique())
    figure = Figure(figsize=(style.widths.column, 2.55))
    for axes, layer in zip(figure.subplots(1, len(layers)), layers, strict=True):
        part = data[data["layer"] == layer]
        for region, (face, edge, line) in _REGIONS.items():
            _region(axes, part[part["region"] == region], face, edge, line)
        for kind, marker in _POINTS.items():
            point = part[part["kind"] == kind].iloc[0]
            axes.plot(point["x"], point["y"], marker, color="black", mec="white", mew=0.5, markersize=5, zorder=5)
        axes.set(title=f"{layer} layer", xlabel="first neuron", xticks=[], yticks=[])
        axes.margins(0.08)
        if layer == layers[-1]:
            _decision_boundary(axes, part)
    figure.axes[0].set_ylabel("second neuron")
    handles: list[Line2D | Patch] = []
    for (face, edge, line), name in zip(_REGIONS.values(), ("ball", "small box"), strict=True):
        handles.append(Patch(facecolor=face, label=f"{name}, exact"))
        handles.append(Line2D([], [], color=edge, linestyle=line, label=f"{name}, intervals"))
    for kind, marker in _POINTS.items():
        handles.append(Line2D([], [], color="black", marker=marker, linestyle="", label=f"{kind} point"))
    handles.append(Patch(facecolor="none", edgecolor="#8C8C8C", hatch="//////", linewidth=0, label="another class"))
    return _finish(figure, title, handles)


def _region(axes: Axes, points: pd.DataFrame, face: str, edge: str, line: str) -> None:
    grid = points[points["kind"] == "grid"]
    shape = (grid["row"].max() + 1, grid["column"].max() + 1)
    xy = grid.sort_values(["row", "column"])[["x", "y"]].to_numpy().reshape(*shape, 2)
    corners = np.stack([xy[:-1, :-1], xy[1:, :-1], xy[1:, 1:], xy[:-1, 1:]], axis=2).reshape(-1, 4, 2)
    axes.add_collection(PolyCollection(list(corners), facecolor=face, edgecolor=face, linewidth=0.8, zorder=2))
    lower, upper = (points[points["kind"] == kind][["x", "y"]].to_numpy()[0] for kind in ("lower", "upper"))
    box = Rectangle((lower[0], lower[1]), *(upper - lower), fill=False, edgecolor=edge, linestyle=line, linewidth=1.3)
    axes.add_patch(box).set_zorder(4)


def _decision_boundary(axes: Axes, points: pd.DataFrame) -> None:
    clean = points[points["kind"] == "clean"].iloc[0]
    axes.autoscale_view()
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    ends = np.array([min(left, bottom), max(right, top)])
    far = ends[0] if clean["x"] < clean["y"] else ends[1]
    axes.fill_between(ends, ends, far, facecolor="none", edgecolor="#8C8C8C", hatch="//////", linewidth=0, zorder=1)
    axes.plot(ends, ends, color="#555555", linewidth=0.8, zorder=3)
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _some(table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        raise SabrError("there is nothing to draw: the table is empty; run and collect some results first")
    return table


def _errorbar(
    axes: Axes, x: Any, y: Any, ends: pd.DataFrame, look: Look, *, along: str, line: str | None = None
) -> None:
    bars: Any = np.abs([ends["value"] - ends["low"], ends["high"] - ends["value"]])
    drawn = _line(look) | ({} if line is None else {"linestyle": line}) | {f"{along}err": bars}
    axes.errorbar(x, y, elinewidth=0.8, **drawn)


def _line(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "marker": look.marker, "linestyle": look.line}


def _handle(look: Look, line: str | None = None) -> Line2D:
    return Line2D([], [], label=look.label, **(_line(look) | ({} if line is None else {"linestyle": line})))


def _finish(figure: Figure, title: str, handles: list[Any]) -> Figure:
    """Set the title, wrapped to the figure's width, and the legend below the panels."""
    characters = int(figure.get_figwidth() * 72 / (8 * 0.56))
    figure.suptitle(textwrap.fill(title, characters), x=0.01, horizontalalignment="left")
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(handles) > 4 else len(handles))
    return figure
