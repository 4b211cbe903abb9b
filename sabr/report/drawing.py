"""What all figures share: how a look becomes a line, a legend entry or error bars; title and legend."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Locator, NullLocator

from sabr.errors import SabrError
from sabr.report.style import Look, Style

# So many panels beside each other leave room for the name of a setting in one line.
_SETTINGS_IN_A_LINE = 4


def some(table: pd.DataFrame) -> pd.DataFrame:
    """The table, unless there is nothing in it.

    Raises
    ------
    SabrError
        When it is empty.
    """
    if table.empty:
        raise SabrError("there is nothing to draw: the table is empty; run and collect some results first")
    return table


def errorbar(
    axes: Axes, x: Any, y: Any, ends: pd.DataFrame, look: Look, *, along: str, line: str | None = None
) -> None:
    """Draw points with bars `along` "x" or "y" to their `low` and `high` ends; `line`: another line style."""
    bars: Any = np.abs([ends["value"] - ends["low"], ends["high"] - ends["value"]])
    drawn = line_of(look) | ({} if line is None else {"linestyle": line}) | {f"{along}err": bars}
    axes.errorbar(x, y, elinewidth=0.8, **drawn)


def line_of(look: Look) -> dict[str, Any]:
    """A look as matplotlib's keywords."""
    return {"color": look.colour, "marker": look.marker, "linestyle": look.line}


def handle_of(look: Look, line: str | None = None) -> Line2D:
    """A look in a legend; `line`: another line style."""
    return Line2D([], [], label=look.label, **(line_of(look) | ({} if line is None else {"linestyle": line})))


def name_column(axes: Axes, dataset: str, eps: str, style: Style, columns: int) -> None:
    """Title a panel with its setting, one of so many beside each other: in two lines where one would not fit."""
    name = style.setting(dataset, eps)
    axes.set_title(name.replace(", ", ",\n") if columns > _SETTINGS_IN_A_LINE else name)


def width_for(settings: int, style: Style) -> float:
    """Width in inches of a figure with so many settings beside each other: one column for one, a page for several."""
    return style.widths.column if settings == 1 else style.widths.page


def plain_ticks(axis: Axis, locator: Locator) -> None:
    """Mark a logarithmic axis where the locator says, with numbers as they are spoken: 0.5, not 5 × 10⁻¹."""
    axis.set_major_locator(locator)
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_locator(NullLocator())


def finish(figure: Figure, title: str, handles: list[Any], columns: int | None = None) -> Figure:
    """Set the title, wrapped to the figure's width, and the legend below the panels.

    Without `columns`, up to four entries stand in one row, more in two columns.
    """
    characters = int(figure.get_figwidth() * 72 / (8 * 0.56))
    figure.suptitle(textwrap.fill(title, characters), x=0.01, horizontalalignment="left")
    if handles:
        columns = columns or (len(handles) if len(handles) <= 4 else 2)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure
