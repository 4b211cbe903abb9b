"""Figures of accuracies and of training: tidy tables in, matplotlib figures out; nothing is computed here."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator

from sabr.errors import SabrError
from sabr.report.drawing import errorbar, finish, handle_of, line_of, name_column, plain_ticks, some, width_for
from sabr.report.records import STAGE_COLUMNS, described, summary
from sabr.report.style import Style, styled

_MAIN = ("natural", "adversarial", "certified")


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
    table = summary(some(records))
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
            errorbar(axes, line["value"], rows, line, look, along="x", line="")
            for row, value in zip(rows, line["value"], strict=True):
                place = {"transform": axes.get_yaxis_transform(), "verticalalignment": "center"}
                axes.text(1.02, row, f"{value:.1f}", color=look.colour, fontsize=6, **place)
        axes.set_yticks(range(len(methods)), [style.method(method).label for method in methods])
        axes.set_ylim(len(methods) - 0.5, -0.5)
        axes.set_title(style.setting(str(dataset), str(eps)))
    shown = table[table["measure"].isin(_MAIN)]
    panels[-1, 0].set_xlim(shown["low"].min() - 2, shown["high"].max() + 1)
    panels[-1, 0].set_xlabel("accuracy on test images, %")
    return finish(figure, title, [handle_of(style.measure(measure), line="") for measure in _MAIN])


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
    settings = list(some(histories).groupby("setting", sort=False))
    figure = Figure(figsize=(width_for(len(settings), style), 5.2))
    panels = figure.subplots(4, len(settings), sharex="col", sharey="row", squeeze=False, height_ratios=[3, 3, 3, 1.6])
    names = ["training loss", "natural\naccuracy, %", "worst-case\naccuracy, %", "ε, % of\nthe largest"]
    for column, (setting, part) in enumerate(settings):
        dataset, _, eps = str(setting).partition("-eps-")
        name_column(panels[0, column], dataset, eps.replace("_", "/"), style, len(settings))
        largest = float(part["eps"].max()) or 1.0
        factors = {"loss": 1.0, "natural_accuracy": 100.0, "robust_accuracy": 100.0, "eps": 100.0 / largest}
        for method in style.order(part["method"]):
            look = style.method(method)
            for _, run in part[part["method"] == method].groupby("seed"):
                for axes, (measure, factor) in zip(panels[:, column], factors.items(), strict=True):
                    every = max(1, len(run) // 6)
                    axes.plot(run["epoch"], factor * run[measure], markevery=every, **line_of(look))
        panels[-1, column].set_xlabel("epoch")
        panels[-1, column].xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for axes, name in zip(panels[:, 0], names, strict=True):
        axes.set_ylabel(name)
    panels[0, 0].set_yscale("log")
    for axes in panels[0]:
        plain_ticks(axes.yaxis, LogLocator(subs=(1, 2, 5)))
    figure.align_ylabels(panels[:, 0])
    looks = [style.method(method) for method in style.order(histories["method"])]
    return finish(figure, title, [handle_of(look) for look in looks], columns=3 if len(settings) == 1 else 6)


@styled
def lambda_sweep(records: pd.DataFrame, title: str, style: Style) -> Figure:
    """Accuracies against lambda, and what each certification stage adds.

    Parameters
    ----------
    records
        What `records.collect` returns. Drawn are methods with at least two values of lambda in one setting, where
        "sabr-lambda-0.1" counts as "sabr"; a method of the objective ibp in that setting is drawn as a reference.
    title
        As `records.described` takes it.
    style
        Labels, colours.

    Returns
    -------
    Figure
        Upper panels: natural, adversarial and certified accuracy; lower ones: certified by each stage or an earlier
        one. Bars as in `accuracies`; points of one lambda are drawn side by side. Of a sweep, only the seeds that all
        values of lambda have are drawn, if there are any. One column wide for one sweep, a page wide for several.

    Raises
    ------
    SabrError
        When no method has two values of lambda.
    """
    table = summary(_with_shared_seeds(some(records)))
    table["family"] = _family(table)
    swept = table.dropna(subset="lambda_ratio")
    sweeps = [
        (names, part.sort_values("lambda_ratio"))
        for names, part in swept.groupby(["dataset", "eps", "family"], sort=False)
        if part["lambda_ratio"].nunique() > 1
    ]
    if not sweeps:
        raise SabrError("no method has results at two values of lambda; add some to run.lambda_sweep.values")
    stages = [column for column in STAGE_COLUMNS.values() if column in set(swept["measure"])]
    figure = Figure(figsize=(width_for(len(sweeps), style), 4.9))
    panels = figure.subplots(2, len(sweeps), sharex="col", squeeze=False)
    reference = False
    for column, ((dataset, eps, family), part) in enumerate(sweeps):
        upper, lower = panels[:, column]
        upper.set_title(f"{style.method(str(family)).label}, {style.setting(str(dataset), str(eps))}")
        for axes, measures in ((upper, _MAIN), (lower, stages)):
            for place, measure in enumerate(measures):
                line = part[part["measure"] == measure]
                beside = line["lambda_ratio"] * 1.03 ** (place - len(measures) / 2 + 0.5)
                errorbar(axes, beside, line["value"], line, style.measure(measure), along="y")
        ibp = table[(table["dataset"] == dataset) & (table["eps"] == eps) & (table["objective"] == "ibp")]
        for measure in _MAIN if len(ibp) else ():
            reference = True
            look = style.measure(measure)
            value = float(ibp[ibp["measure"] == measure]["value"].iloc[0])
            ends = [part["lambda_ratio"].min() / 1.25, part["lambda_ratio"].max() * 1.25]
            upper.plot(ends, [value, value], color=look.colour, marker=look.marker, mfc="white", linewidth=0.6)
        values = sorted(part["lambda_ratio"].unique())
        lower.set_xscale("log")
        plain_ticks(lower.xaxis, FixedLocator(values))
        lower.set_xlabel("λ, size of the small box in units of ε")
        lower.set_ylim(-4, 104)
    panels[0, 0].set_ylabel("accuracy, %")
    panels[1, 0].set_ylabel("certified by this stage\nor an earlier one, %")
    figure.align_ylabels(panels[:, 0])
    handles = [handle_of(style.measure(measure)) for measure in _MAIN]
    if reference:
        handles.append(Line2D([], [], color="#555555", marker="o", mfc="white", linewidth=0.6, label="IBP (no λ)"))
    drawn = records.merge(pd.concat([part for _, part in sweeps])[["dataset", "eps", "method"]].drop_duplicates())
    bottom, top = panels[0, 0].get_ylim()
    panels[0, 0].set_ylim(bottom, top + 0.35 * (top - bottom))  # room for the legend above the data
    panels[0, 0].legend(handles=handles, loc="upper center", ncols=2)
    handles = [handle_of(style.measure(stage)) for stage in stages]
    return finish(figure, described(drawn, title), handles, columns=3)


def _family(table: pd.DataFrame) -> "pd.Series[str]":
    """Whose sweep a method belongs to."""
    return table["method"].str.replace(r"-lambda-.*$", "", regex=True)


def _with_shared_seeds(records: pd.DataFrame) -> pd.DataFrame:
    """Without the seeds that only some values of lambda of a sweep have: points and bars would be of two kinds."""
    left_out = []
    swept = records.dropna(subset="lambda_ratio")
    for _, sweep in swept.groupby([swept["dataset"], swept["eps"], _family(swept)]):
        shared = set.intersection(*(set(seeds) for _, seeds in sweep.groupby("lambda_ratio")["seed"]))
        if shared:
            left_out += list(sweep.index[~sweep["seed"].isin(shared)])
    return records.drop(index=left_out)
