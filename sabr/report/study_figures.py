"""Figures of trained networks' insides: tidy tables of studies in, matplotlib figures out; nothing is computed here."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from sabr.report.drawing import finish, handle_of, line_of, name_column, plain_ticks, some, width_for
from sabr.report.style import Style, styled
from sabr.specs import parse_eps

_NETWORK = ["dataset", "eps", "method"]
_GREY = "#555555"
# Ratios that are so many times others are drawn on a logarithmic axis.
_LOG_FROM = 5
# A method whose Box loss is so many times another's leaves the panel, and how far it goes is said.
_CUT_FROM = 100
# Where the region of the loss against lambda lies, and the losses that are drawn there; what they look like.
_PLACES = {
    "region around the adversarial point": ("standard", "adversarial", "box"),
    "region around the image": ("standard", "centred_adversarial", "centred_box"),
}
_LOSSES = {"standard": "standard", "adversarial": "adversarial-loss", "box": "box"}


@styled
def loss_lambda(table: pd.DataFrame, title: str, style: Style) -> Figure:
    """Standard, adversarial and Box loss against the size of the region: colour and marker say the method.

    Parameters
    ----------
    table
        The gathered study loss-lambda, of one setting.
    title
        Says the scale.
    style
        Labels, order, colours.

    Returns
    -------
    Figure
        One column wide; means over seeds, with the range of the seeds shaded; line styles say the loss. Upper panel:
        the region lies around the adversarial point, as in SABR's training; lower panel: around the image.
    """
    means = _over_seeds(table, ["lambda_ratio"])
    figure = Figure(figsize=(style.widths.column, 4.6))
    panels = figure.subplots(2, 1, sharex=True, sharey=True)
    methods = style.order(means["method"])
    highest = means.groupby("method")["box"].max()
    cut = highest[highest > _CUT_FROM * highest.min()]
    said = [f"{style.method(method).label}: Box loss up to {cut[method]:,.0f}" for method in methods if method in cut]
    for axes, (place, losses) in zip(panels, _PLACES.items(), strict=True):
        for method in methods:
            line, own = means[means["method"] == method], style.method(method)
            for loss in losses:
                look = style.measure(_LOSSES[loss.removeprefix("centred_")])
                drawn = line_of(own) | {"linestyle": look.line, "markersize": 3.5, "markevery": 0.2}
                axes.plot(line["lambda_ratio"], line[loss], **drawn)
                if (line[f"{loss}_low"] < line[f"{loss}_high"]).any():
                    ends = line[f"{loss}_low"], line[f"{loss}_high"]
                    axes.fill_between(line["lambda_ratio"], *ends, color=own.colour, alpha=0.2, linewidth=0)
        axes.set_title(place)
        axes.set_yscale("log")
        axes.text(0.99, 0.97, "\n".join(said), transform=axes.transAxes, ha="right", va="top", fontsize=7)
        plain_ticks(axes.yaxis, LogLocator(subs=(1, 2, 5), numticks=8))
        axes.set_ylabel("mean cross-entropy")
    if said:
        shown = means[~means["method"].isin(cut.index)]
        panels[-1].set_ylim(top=2 * max(shown["box"].max(), means["adversarial"].max()))
    panels[-1].set_xlim(0, 1)
    panels[-1].set_xlabel("λ, size of the region in units of ε")
    handles = [handle_of(style.method(method), line="") for method in methods]
    for loss in _LOSSES.values():
        look = style.measure(loss)
        handles.append(Line2D([], [], color=_GREY, linestyle=look.line, label=look.label))
    return finish(figure, _with_setting(title, table, style), handles, columns=3)


@styled
def relu_inputs(table: pd.DataFrame, title: str, style: Style) -> Figure:
    """Histograms of the inputs of the last ReLU layer, one panel for each method, those above 0 lighter.

    Parameters
    ----------
    table
        The gathered study relu-inputs, of one setting; the first seed of each method is drawn.
    title
        Says the scale.
    style
        Labels, order, colours.

    Returns
    -------
    Figure
        One column wide; all panels have the same axes, cut where 99.8 % of the values of every method lie within.
    """
    some(table)
    methods = style.order(table["method"])
    figure = Figure(figsize=(style.widths.column, 0.9 + 0.85 * len(methods)))
    panels = figure.subplots(len(methods), 1, sharex=True, squeeze=False)[:, 0]
    low, high = np.inf, -np.inf
    for axes, method in zip(panels, methods, strict=True):
        own = table[table["method"] == method]
        own = own[own["seed"] == own["seed"].min()]
        look, first = style.method(method), own.iloc[0]
        width = own["upper_edge"] - own["lower_edge"]
        height = own["share"] / width
        for part, opacity in ((own["upper_edge"] <= 1e-12, 1.0), (own["upper_edge"] > 1e-12, 0.35)):
            axes.bar(own["lower_edge"][part], height[part], width[part], align="edge", color=look.colour, alpha=opacity)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.axvline(first["mean"], color=_GREY, linewidth=0.8, linestyle="--")
        within = own["share"].cumsum().between(0.001, 0.999)
        low, high = min(low, own["lower_edge"][within].min()), max(high, own["upper_edge"][within].max())
        axes.set(yticks=[], ylabel="density", title=look.label)
        axes.grid(visible=False, axis="y")
        said = f"{100 * first['negative_share']:.0f} % below 0\nmean {first['mean']:.2g}".replace("-", "−")
        axes.text(0.99, 0.95, said, transform=axes.transAxes, ha="right", va="top", fontsize=7)
    panels[-1].set_xlim(low, high)
    panels[-1].set_xlabel("input of the last ReLU layer")
    mean = Line2D([], [], color=_GREY, linewidth=0.8, linestyle="--", label="mean")
    return finish(figure, _with_setting(title, table, style), [mean])


@styled
def box_sizes(table: pd.DataFrame, title: str, style: Style) -> Figure:
    """How boxes grow in trained networks: radius behind each ReLU layer, and how far that is beyond linear growth.

    Parameters
    ----------
    table
        The gathered study box-sizes, of one setting.
    title
        Says the scale.
    style
        Labels, order, widths.

    Returns
    -------
    Figure
        A column of panels for each method: one column wide for up to three, a page wide for more; means over seeds.
        Upper panels: mean radius behind each ReLU layer against that at the input, with linear growth from the
        smallest box on (dotted). Lower panels: their ratio, behind the ReLUs and in front of them (dashed).
    """
    means = _over_seeds(table, ["layer", "stage", "lambda_ratio"])
    methods = style.order(means["method"])
    width = style.widths.column if len(methods) <= 3 else style.widths.page
    figure = Figure(figsize=(width, 4.3))
    panels = figure.subplots(2, len(methods), sharex="col", sharey="row", squeeze=False)
    layers = sorted(means["layer"].unique())
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(layers)))
    for (upper, lower), method in zip(panels.T, methods, strict=True):
        for layer, colour in zip(layers, colours, strict=True):
            own = means[(means["method"] == method) & (means["layer"] == layer)]
            after, before = own[own["stage"] == "after"], own[own["stage"] == "before"]
            upper.plot(after["lambda_ratio"], after["mean_radius"], color=colour)
            upper.plot(after["lambda_ratio"], after["linear"], color=colour, linestyle=":", linewidth=0.9)
            for line, dashes in ((after, "-"), (before, "--")):
                lower.plot(line["lambda_ratio"], line["mean_radius"] / line["linear"], color=colour, linestyle=dashes)
        upper.set_title(style.method(method).label)
        lower.set_xlabel("input radius / ε")
        for axes in (upper, lower):
            axes.set_xscale("log")
            plain_ticks(axes.xaxis, LogLocator(numticks=5))
        lower.axhline(1, color=_GREY, linewidth=0.9, linestyle=":")
    panels[0, 0].set_yscale("log")
    panels[0, 0].set_ylabel("mean radius behind ReLUs")
    growth = means["mean_radius"] / means["linear"]
    if growth.max() > _LOG_FROM * growth.min():
        panels[1, 0].set_yscale("log")
        plain_ticks(panels[1, 0].yaxis, LogLocator(subs=(1, 2, 5), numticks=8))
    panels[1, 0].set_ylabel("radius / linear growth")
    figure.align_ylabels(panels[:, 0])
    handles = [Line2D([], [], color=c, label=f"layer {layer}") for layer, c in zip(layers, colours, strict=True)]
    handles.append(Line2D([], [], color=_GREY, linestyle=":", linewidth=0.9, label="linear growth"))
    handles.append(Line2D([], [], color=_GREY, linestyle="--", label="in front of ReLUs"))
    return finish(figure, _with_setting(title, table, style), handles, columns=3)


@styled
def eps_curve(table: pd.DataFrame, title: str, style: Style) -> Figure:
    """Adversarial and certified accuracy against the radius that is tested, from natural accuracy at 0 on.

    Parameters
    ----------
    table
        The gathered study eps-curve, for the methods to show.
    title
        Says the scale.
    style
        Labels, order, colours.

    Returns
    -------
    Figure
        A column of panels for each setting: one column wide for one, a page wide for several; means over seeds. The
        setting's own radius is marked. What only the complete verifier would certify is not there.
    """
    measures = ("adversarial", "certified")
    settings = list(some(table).groupby(["dataset", "eps"], sort=False))
    figure = Figure(figsize=(width_for(len(settings), style), 4.6))
    panels = figure.subplots(2, len(settings), sharex="col", sharey=True, squeeze=False)
    for column, ((dataset, eps), part) in enumerate(settings):
        unit = 255 if "/" in str(eps) else 1
        means = _over_seeds(part, ["tested_eps"])
        for axes, measure in zip(panels[:, column], measures, strict=True):
            for method in style.order(means["method"]):
                line = means[means["method"] == method]
                radii = np.array([0.0, *line["tested_eps"]]) * unit
                percent = 100 * np.array([line["natural"].iloc[0], *line[measure]]) / line["images"].iloc[0]
                axes.plot(radii, percent, markersize=3.5, clip_on=False, **line_of(style.method(method)))
            axes.axvline(parse_eps(str(eps)) * unit, color=_GREY, linewidth=0.8, linestyle=":")
            axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        name_column(panels[0, column], str(dataset), str(eps), style, len(settings))
        panels[1, column].set_xlim(0, means["tested_eps"].max() * unit)
        panels[1, column].set_xlabel("tested radius" + (", 1/255" if unit > 1 else ""))
    panels[0, 0].set_ylim(-3, 103)
    panels[0, 0].set_ylabel("adversarial accuracy, %")
    panels[1, 0].set_ylabel("certified by bounds, %")
    figure.align_ylabels(panels[:, 0])
    looks = [style.method(method) for method in style.order(table["method"])]
    handles = [handle_of(look) for look in looks]
    handles.append(Line2D([], [], color=_GREY, linewidth=0.8, linestyle=":", label="the setting's ε"))
    return finish(figure, _with_images(title, table), handles, columns=3 if len(settings) == 1 else 5)


def _over_seeds(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Means over seeds of all numbers, by network and keys in order, with NAME_low and NAME_high, the extremes."""
    numbers = [name for name in some(table).columns if name not in {*_NETWORK, "seed", *keys}]
    groups = table.groupby([*_NETWORK, *keys], sort=True)[numbers]
    ends = groups.min().add_suffix("_low"), groups.max().add_suffix("_high")
    return pd.concat([groups.mean(), *ends], axis=1).reset_index()


def _with_setting(title: str, table: pd.DataFrame, style: Style) -> str:
    first = table.iloc[0]
    return f"{style.setting(str(first['dataset']), str(first['eps']))}; {_with_images(title, table)}"


def _with_images(title: str, table: pd.DataFrame) -> str:
    """The scale, and how many images were studied: other ones than were certified."""
    return f"{title}, first {' / '.join(f'{count:,}' for count in sorted(set(table['images'])))} images"
