"""Figures of what certification costs and gains: tidy tables in, matplotlib figures out; nothing is computed here."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MultipleLocator

from sabr.report.drawing import finish, handle_of, name_column, plain_ticks, some, width_for
from sabr.report.stages import ROUND_LIMITS
from sabr.report.style import Look, Style, styled

_HATCH = "//////"
_EDGE: dict[str, Any] = {"edgecolor": "#404040", "linewidth": 0.3}
_NETWORK = ["dataset", "eps", "method"]


@styled
def cascade(stages: pd.DataFrame, title: str, style: Style) -> Figure:
    """Where in the cascade images are decided, and where the time goes: two stacked bars for each method.

    Parameters
    ----------
    stages
        What `sabr.report.stages.stages` returns, for the methods to show.
    title
        Says the scale.
    style
        Labels, order, colours.

    Returns
    -------
    Figure
        A page wide; a row of panels for each setting, means over seeds. Images, from the left: certified by each
        stage, unknown, refuted (striped) by each stage, misclassified. Time: share of each stage, with the seconds for
        each test image beside the bar.
    """
    some(stages)
    total = stages.groupby([*_NETWORK, "stage"], sort=False).sum(numeric_only=True).reset_index()
    settings = list(total.groupby(["dataset", "eps"], sort=False))
    counts = [part["method"].nunique() for _, part in settings]
    figure = Figure(figsize=(style.widths.page, 0.95 + 0.19 * sum(counts) + 0.42 * len(settings)))
    panels = figure.subplots(len(settings), 2, sharex="col", sharey="row", squeeze=False, height_ratios=counts)
    for (images, time), ((dataset, eps), part) in zip(panels, settings, strict=True):
        methods = style.order(part["method"])
        for place, method in enumerate(methods):
            own = part[part["method"] == method].set_index("stage")
            _stack(images, place, _fates(own), int(own["images"].iloc[0]), style)
            spent = float(own["seconds"].sum())
            _stack(time, place, [(str(stage), s, False) for stage, s in own["seconds"].items()], spent, style)
            beside = {"transform": time.get_yaxis_transform(), "verticalalignment": "center", "fontsize": 6}
            time.text(1.015, place, f"{spent / own['images'].iloc[0]:.2g} s", **beside)
        images.set_yticks(range(len(methods)), [style.method(method).label for method in methods])
        images.set_ylim(len(methods) - 0.5, -0.5)
        images.set_title(style.setting(str(dataset), str(eps)))
        for axes in (images, time):
            axes.grid(visible=False, axis="y")
            axes.tick_params(left=False)
            axes.set_xlim(0, 100)
            axes.xaxis.set_major_locator(MultipleLocator(20))
    panels[-1, 0].set_xlabel("test images, %")
    panels[-1, 1].set_xlabel("time, %; beside it: seconds for each test image")
    shown = set(stages["stage"]) | {"unknown", "misclassified"}
    looks = [look for name, look in style.stages.items() if name in shown]
    handles = [Patch(facecolor=look.colour, hatch=look.hatch, label=look.label, **_EDGE) for look in looks]
    refuted = Patch(facecolor="none", hatch=_HATCH, label="striped: refuted", **_EDGE)
    return finish(figure, title, [*handles, refuted], columns=4)


@styled
def time_limit(limits: pd.DataFrame, title: str, style: Style) -> Figure:
    """Share of images certified within a time limit, one line for each method, one panel for each setting.

    Parameters
    ----------
    limits
        What `sabr.report.stages.limits` returns, for the methods to show.
    title
        Says the scale.
    style
        Labels, order, colours.

    Returns
    -------
    Figure
        One column wide for one setting, a page wide for several; means over seeds. Filled marks: round limits and the
        configured one; open marks beside it: if every image that is still undecided were certified.
    """
    means = some(limits).groupby([*_NETWORK, "limit"], sort=False).mean(numeric_only=True).reset_index()
    means["percent"] = 100 * means["certified"] / means["images"]
    means["at_most"] = 100 * (means["certified"] + means["undecided"]) / means["images"]
    settings = list(means.groupby(["dataset", "eps"], sort=False))
    columns = 2 if len(settings) == 1 else 4
    figure = Figure(figsize=(width_for(len(settings), style), 2.8 + 0.16 * (means["method"].nunique() // columns + 1)))
    for axes, ((dataset, eps), part) in zip(
        figure.subplots(1, len(settings), sharey=True, squeeze=False)[0], settings, strict=True
    ):
        longest = float(part["limit"].max())
        marked = [*(limit for limit in ROUND_LIMITS if limit < longest), longest]
        for method in style.order(part["method"]):
            _curve(axes, part[part["method"] == method], marked, style.method(method))
        axes.axvline(longest, color="#555555", linewidth=0.6, linestyle=":")
        axes.set_xscale("log")
        axes.set_xlim(part["limit"].min(), 2 * longest)
        tens = [limit for limit in sorted(part["limit"].unique()) if f"{limit:e}".startswith("1.000000e")]
        plain_ticks(axes.xaxis, FixedLocator(sorted({*tens[:: 1 if len(settings) == 1 else 2], *marked})))
        axes.set_xlabel("time limit, seconds")
        axes.set_ylim(-4, 104)
        name_column(axes, str(dataset), str(eps), style, len(settings))
    figure.axes[0].set_ylabel("certified, % of test images")
    looks = [style.method(method) for method in style.order(means["method"])]
    handles = [handle_of(look) for look in looks]
    handles.append(
        Line2D([], [], color="#555555", marker="o", mfc="white", linestyle="", label="certified + undecided")
    )
    return finish(figure, title, handles, columns=columns)


def _fates(own: pd.DataFrame) -> list[tuple[str, float, bool]]:
    """What became of a network's images: stage, how many, whether they were refuted; `own` is indexed by stage."""
    certified = [(str(stage), float(count), False) for stage, count in own["certified"].items()]
    refuted = [(str(stage), float(count), True) for stage, count in own["refuted"][::-1].items()]
    misclassified = float(own["images"].iloc[0] - own["entered"].iloc[0])
    return [
        *certified,
        ("unknown", float(own["unknown"].sum()), False),
        *refuted,
        ("misclassified", misclassified, False),
    ]


def _stack(axes: Axes, place: int, parts: list[tuple[str, float, bool]], whole: float, style: Style) -> None:
    left = 0.0
    for name, size, hatched in parts:
        width = 100 * size / whole if whole else 0.0
        if width:
            look = style.stage(name)
            bar: dict[str, Any] = _EDGE | {"hatch": _HATCH if hatched else look.hatch}
            axes.barh(place, width, left=left, height=0.7, color=look.colour, **bar)
        left += width


def _curve(axes: Axes, line: pd.DataFrame, marked: list[float], look: Look) -> None:
    line = line.sort_values("limit")
    axes.plot(line["limit"], line["percent"], color=look.colour, linestyle=look.line)
    chosen = line[line["limit"].isin(marked)]
    axes.plot(chosen["limit"], chosen["percent"], color=look.colour, marker=look.marker, linestyle="")
    end = line.iloc[-1]
    axes.plot(1.5 * end["limit"], end["at_most"], color=look.colour, marker=look.marker, mfc="white", linestyle="")
