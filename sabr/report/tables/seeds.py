"""Which differences between methods are significant: over the same images, and over seeds."""

import math

import pandas as pd

from sabr.errors import SabrError
from sabr.report.statistics import SIGNIFICANT, compare
from sabr.report.tables.layout import MISSING, Column, Context, Table

_MEASURES = ("natural", "certified")
_EMPTY = (MISSING, MISSING, MISSING, MISSING)


def seeds(pairs: pd.DataFrame, context: Context) -> Table:
    """Every pair of Table 1's methods in each setting: differences, and whether they are more than chance.

    Parameters
    ----------
    pairs
        What `sabr.report.pairs.pairs` returns.
    context
        Plan and labels; pairs without a common seed are shown as missing.

    Raises
    ------
    SabrError
        When no two planned networks of one setting and seed are in `pairs`.
    """
    outline, style = context.outline, context.style
    planned = outline.of("main")
    found = _between(pairs, planned)
    if found.empty:
        raise SabrError("there are no two networks of one setting and seed to compare; certify two methods first")
    numbers = compare(found).assign(scale=outline.title)
    columns = (
        *(Column("first", words=True), Column("second", words=True)),
        *(
            Column(label, over=measure, words=label == "first is", detail=label.startswith("p,"))
            for measure in _MEASURES
            for label in ("first − second", "p, images", "p, seeds", "first is")
        ),
    )
    groups = []
    for (dataset, eps), own in planned.groupby(["dataset", "eps"], sort=False):
        here = numbers[(numbers["dataset"] == dataset) & (numbers["eps"] == eps)]
        methods, rows = style.order(own["method"]), []
        for place, first in enumerate(methods):
            for second in methods[place + 1 :]:
                cells = [cell for measure in _MEASURES for cell in _cells(here, first, second, measure)]
                rows.append((style.method(first).label, style.method(second).label, *cells))
        if rows:
            groups.append((style.setting(str(dataset), str(eps)), tuple(rows)))
    caption = f"Differences between methods, in points of accuracy, and whether they are significant ({outline.title})."
    return Table("Differences", caption, columns, tuple(groups), tuple(_notes(numbers)), numbers)


def _between(pairs: pd.DataFrame, planned: pd.DataFrame) -> pd.DataFrame:
    """Pairs whose networks are both planned."""
    found = pairs[pairs["measure"].isin(_MEASURES)]
    for name in ("first", "second"):
        found = found.merge(planned.rename(columns={"method": name}), on=["dataset", "eps", name, "seed"])
    return found


def _cells(numbers: pd.DataFrame, first: str, second: str, measure: str) -> tuple[str, ...]:
    own = numbers[numbers["measure"] == measure]
    for sign, one, other in ((1, first, second), (-1, second, first)):
        line = own[(own["first"] == one) & (own["second"] == other)]
        if len(line):
            return _line(line.iloc[0], sign)
    return _EMPTY


def _line(line: "pd.Series[float]", sign: int) -> tuple[str, ...]:
    digits = 2 if line["images"] >= 10_000 else 1
    shown = signed(sign * line["difference"], digits)
    if line["seeds"] > 1:
        shown += f" ± {line['deviation']:.{digits}f}"
    word, comma, rest = str(line["verdict"]).partition(",")
    if sign < 0:
        word = {"higher": "lower", "lower": "higher"}.get(word, word)
    return shown, p_value(line["p_images"]), p_value(line["p_seeds"]), f"{word}{comma}{rest}"


def signed(gap: float, digits: int) -> str:
    """A difference with its sign; what is rounded to 0 is +0."""
    return f"{round(gap, digits) + 0.0:+.{digits}f}".replace("-", "−")


def p_value(p: float) -> str:
    """A p-value as tables show it: "0.031", "<0.001", or a dash where there is none."""
    if math.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def _notes(numbers: pd.DataFrame) -> list[str]:
    notes = [
        "p, images: McNemar's exact test on the same images; with several seeds their p-values are combined by Rüger's "
        "rule, which holds however they depend on each other.",
        f"First is higher or lower: the larger p-value is below {SIGNIFICANT:g}, after Holm's correction for all pairs "
        "of one setting and measure. Nothing else is called a difference.",
    ]
    if (numbers["seeds"] > 1).any():
        notes.insert(1, "p, seeds: paired t-test over seeds. ±: standard deviation of the difference over seeds.")
    if (numbers["seeds"] == 1).any():
        notes.append("With one seed nothing is known of other seeds: what is significant is so on these images.")
    return notes
