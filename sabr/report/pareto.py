"""Natural against certified accuracy: which methods, ours and published, are not beaten in both."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from sabr.report import published, records
from sabr.report.drawing import finish, some
from sabr.report.style import Look, Style, styled

_MEASURES = ["natural", "certified"]
_ENDS = ["value", "low", "high"]
_KEYS = ["dataset", "eps", "method"]
# Published variants that are drawn as the method that they are of.
_RETUNED = "ctbench-"
# Methods that certify less than this part of the median, of ours or of the published, are drawn at the edge.
_FAR = 0.6


def read(path: Path, published_file: Path) -> pd.DataFrame:
    """Our accuracies and the published ones of the same settings.

    Parameters
    ----------
    path
        What `records.write` wrote.
    published_file
        As `published.read` takes it.

    Returns
    -------
    pandas.DataFrame
        One line per setting, method and origin: dataset, eps, method; origin, "ours" or "published"; natural and
        certified in %; natural_low and so on, ends of the bars (the value itself where published). Published results
        without one of the two numbers are left out.

    Raises
    ------
    SabrError
        When a file cannot be read.
    """
    ours = records.summary(records.read(path)).assign(origin="ours")
    theirs = published.read(published_file).merge(ours[["dataset", "eps"]].drop_duplicates(), on=["dataset", "eps"])
    theirs = theirs.assign(origin="published", low=theirs["value"], high=theirs["value"])
    table = pd.concat([ours, theirs], ignore_index=True)
    table = table[table["measure"].isin(_MEASURES)]
    wide = table.pivot(index=["origin", *_KEYS], columns="measure", values=_ENDS)
    wide = wide[[(end, measure) for end in _ENDS for measure in _MEASURES]]
    wide.columns = pd.Index([m if end == "value" else f"{m}_{end}" for end in _ENDS for m in _MEASURES])
    return wide.dropna().reset_index()


@styled
def pareto(numbers: pd.DataFrame, title: str, style: Style) -> Figure:
    """Certified against natural accuracy, one panel for each setting; up and to the right is better.

    Parameters
    ----------
    numbers
        What `read` returns, for the methods of ours to show.
    title
        Says the scale.
    style
        Labels, order, colours.

    Returns
    -------
    Figure
        A page wide, up to three panels in a row. Filled marks, with bars as in `figures.accuracies`: ours; open ones:
        published, small if they are CTBench's. Methods that certify far less than the others of their kind stand at
        the lower edge, with their numbers.
    """
    settings = list(some(numbers).groupby(["dataset", "eps"], sort=False))
    settings.sort(key=lambda entry: list(style.datasets).index(entry[0][0]) if entry[0][0] in style.datasets else 99)
    columns = min(3, len(settings))
    rows = -(-len(settings) // columns)
    shown = style.order(method.removeprefix(_RETUNED) for method in numbers["method"])
    figure = Figure(figsize=(style.widths.page, 0.75 + 2.35 * rows + 0.16 * (len(shown) // 5 + 1)))
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, ((dataset, eps), part) in zip(panels.flat, settings, strict=False):
        axes.set_title(style.setting(str(dataset), str(eps)))
        _panel(axes, part, style)
        axes.set_xlabel("natural accuracy, %")
    for axes in panels.flat[len(settings) :]:
        axes.set_visible(False)
    for row in panels:
        row[0].set_ylabel("certified accuracy, %")
    handles = [_mark(style.method(method), filled=method in _ours(numbers)) for method in shown]
    handles += [
        Line2D([], [], linestyle="", marker="o", color="#555555", label="filled: ours"),
        Line2D([], [], linestyle="", marker="o", color="#555555", mfc="white", label="open: published"),
        Line2D([], [], linestyle="", marker="o", color="#555555", mfc="white", markersize=2.5, label="small: CTBench"),
    ]
    return finish(figure, title, handles, columns=6)


def _panel(axes: Axes, part: pd.DataFrame, style: Style) -> None:
    far = part["certified"] < _FAR * part.groupby("origin")["certified"].transform("median")
    near = part[~far]
    for line in near.to_dict("records"):
        name = str(line["method"])
        look = style.method(name.removeprefix(_RETUNED))
        if line["origin"] == "ours":
            bars: Any = {
                f"{axis}err": [[line[m] - line[f"{m}_low"]], [line[f"{m}_high"] - line[m]]]
                for axis, m in (("x", "natural"), ("y", "certified"))
            }
            axes.errorbar(line["natural"], line["certified"], **bars, elinewidth=0.6, **_look(look, filled=True))
        else:
            size: dict[str, Any] = {"markersize": 2.5} if name.startswith(_RETUNED) else {}
            axes.plot(line["natural"], line["certified"], **_look(look, filled=False), **size)
    axes.margins(0.12)
    axes.autoscale_view()
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if far.any():
        bottom, top = axes.get_ylim()
        axes.set_ylim(bottom - 0.09 * (top - bottom) * (far.sum() + 0.5), top)
    for place, line in enumerate(part[far].sort_values("natural").to_dict("records")):
        look = style.method(str(line["method"]).removeprefix(_RETUNED))
        whose = "" if line["origin"] == "ours" else ", published"
        words = f"{look.label}{whose}: {line['natural']:.1f}, {line['certified']:.1f} ↓"
        axes.text(0.03, 0.03 + 0.075 * place, words, transform=axes.transAxes, fontsize=6, color=look.colour)


def _ours(numbers: pd.DataFrame) -> set[str]:
    return set(numbers[numbers["origin"] == "ours"]["method"])


def _look(look: Look, *, filled: bool) -> dict[str, Any]:
    face = {} if filled else {"mfc": "white"}
    return {"color": look.colour, "marker": look.marker, "linestyle": "", **face}


def _mark(look: Look, *, filled: bool) -> Line2D:
    return Line2D([], [], label=look.label, **_look(look, filled=filled))
