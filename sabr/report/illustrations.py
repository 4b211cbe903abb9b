"""Figures of ideas, which need no trained network: tidy tables in, matplotlib figures out; nothing is computed here."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle

from sabr import tables
from sabr.errors import SabrError
from sabr.report.drawing import finish, some
from sabr.report.style import Style, styled

# Face of the exact image, edge and line style of the interval bounds.
_REGIONS: dict[str, tuple[str, str, Literal["-", "--"]]] = {
    "ball": ("#BFE1F5", "#0072B2", "--"),
    "small": ("#E69F00", "#7A3B00", "-"),
}
# Face and edge of what linear bounds leave possible.
_RELAXED, _RELAXED_EDGE = "#CFE8DF", "#009E73"
_POINTS = {"clean": "o", "adversarial": "X"}
# Columns of the studies of ideas; what each layer of theirs must have: a grid of some regions, and single points.
_SMALL_BOX = {**dict.fromkeys(("layer", "region", "kind"), "str"), **dict.fromkeys(("row", "column"), "int64")} | {
    **dict.fromkeys(("x", "y"), "float64")
}
_RELAXATION = {column: dtype for column, dtype in _SMALL_BOX.items() if column != "region"}


def read_small_box(path: Path) -> pd.DataFrame:
    """Read what `sabr study small-box` wrote.

    Raises
    ------
    SabrError
        When it cannot be read, or lacks points.
    """
    table = tables.read(path, _SMALL_BOX)
    for _, part in table.groupby("layer"):
        for region in _REGIONS:
            _check(part[part["region"] == region], path, ("lower", "upper"))
        _check(part, path, _POINTS, grid=False)
    return table


def read_box_vs_relaxation(path: Path) -> pd.DataFrame:
    """Read what `sabr study box-vs-relaxation` wrote.

    Raises
    ------
    SabrError
        When it cannot be read, or lacks points.
    """
    table = tables.read(path, _RELAXATION)
    for _, part in table.groupby("layer"):
        _check(part, path, ("lower", "upper", "relaxation", "clean"))
    return table


def _check(points: pd.DataFrame, path: Path, kinds: Iterable[str], *, grid: bool = True) -> None:
    """Make sure that points of each kind are there, and each of a grid once."""
    missing = [kind for kind in kinds if kind not in set(points["kind"])]
    if missing:
        raise SabrError(tables.not_the_table(path, f"a point of the kind {missing[0]} is missing"))
    places = points[points["kind"] == "grid"][["row", "column"]]
    if grid and (places.empty or len(places) != (places["row"].max() + 1) * (places["column"].max() + 1)):
        raise SabrError(tables.not_the_table(path, "points of a grid are missing"))


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
    first = some(table).iloc[0]
    figure = Figure(figsize=(style.widths.column, 2.4))
    axes = figure.subplots()
    axes.plot(table["input_size"], table["output_size"], color="#0072B2", label="ReLU layer, mean over boxes")
    axes.plot(table["input_size"], table["linear"], color="#D55E00", linestyle="--", label="linear growth")
    axes.set(xlabel="input box size", ylabel="mean output box size", ylim=(0, None))
    axes.set_xlim(table["input_size"].min(), table["input_size"].max())
    centres = f"box centres ~ N({first['mean']:g}, {first['deviation']:g}²)".replace("-", "−")
    axes.legend(title=centres, loc="upper left", alignment="left")
    return finish(figure, title, [])


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
    layers = list(some(data)["layer"].unique())
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
    return finish(figure, title, handles)


@styled
def box_vs_relaxation(data: pd.DataFrame, title: str, style: Style) -> Figure:
    """A ball through a small network: its exact image, what linear bounds leave possible, and its interval bounds.

    Parameters
    ----------
    data
        What `sabr.analysis.box_vs_relaxation.study` returns, or the same read from CSV.
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
    layers = list(some(data)["layer"].unique())
    figure = Figure(figsize=(style.widths.column, 2.4))
    for axes, layer in zip(figure.subplots(1, len(layers)), layers, strict=True):
        part = data[data["layer"] == layer]
        corners = part[part["kind"] == "relaxation"].sort_values("row")[["x", "y"]].to_numpy()
        axes.add_patch(Polygon(corners, facecolor=_RELAXED, edgecolor=_RELAXED_EDGE, linewidth=1, zorder=1.5))
        _region(axes, part, *_REGIONS["ball"])
        clean = part[part["kind"] == "clean"].iloc[0]
        axes.plot(clean["x"], clean["y"], "o", color="black", mec="white", mew=0.5, markersize=5, zorder=5)
        axes.set(title=layer, xlabel="first neuron", xticks=[], yticks=[])
        axes.margins(0.08)
        if layer == layers[-1]:
            _decision_boundary(axes, part)
    figure.axes[0].set_ylabel("second neuron")
    face, edge, line = _REGIONS["ball"]
    handles = [
        Patch(facecolor=face, label="ball, exact"),
        Patch(facecolor=_RELAXED, edgecolor=_RELAXED_EDGE, label="ball, linear bounds"),
        Line2D([], [], color=edge, linestyle=line, label="ball, intervals"),
        Line2D([], [], color="black", marker="o", linestyle="", label="clean point"),
        Patch(facecolor="none", edgecolor="#8C8C8C", hatch="//////", linewidth=0, label="another class"),
    ]
    return finish(figure, title, handles)


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
