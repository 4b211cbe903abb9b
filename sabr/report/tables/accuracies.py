"""Tables of accuracies: our networks over seeds, beside the published numbers of the same settings."""

from collections.abc import Sequence

import pandas as pd

from sabr.errors import SabrError
from sabr.report.outline import Part, missing, present
from sabr.report.records import MEASURES, STAGE_COLUMNS, described, summary
from sabr.report.style import Style
from sabr.report.tables.layout import MISSING, NOTHING, Column, Context, Table

_NUMBERS = [
    *("scale", "dataset", "eps", "method", "origin", "measure", "value", "low", "high", "deviation"),
    *("seeds", "images", "quoted", "source"),
]
_PUBLISHED = ("natural", "certified")
# Measures whose interval over test images is shown.
_MAIN = ("natural", "adversarial", "certified")


def table1(records: pd.DataFrame, context: Context) -> Table:
    """The paper's Table 1: all methods in all settings, with what each certification stage adds.

    Parameters
    ----------
    records
        What `records.collect` returns.
    context
        Plan, published numbers, labels.

    Raises
    ------
    SabrError
        When none of the planned networks is in `records`.
    """
    theirs = context.published[context.published["group"] == "table-1"]
    return _table("Table 1", "main", MEASURES, records, theirs, context)


def table2(records: pd.DataFrame, context: Context) -> Table:
    """The paper's Table 2: SABR against l_inf-distance nets, of which there are published numbers alone.

    Parameters and errors as of `table1`.
    """
    theirs = pd.concat([_of_sabr(context), context.published[context.published["group"] == "table-2"]])
    return _table("Table 2", "main", _MAIN, records, theirs, context, methods=("sabr",))


def comparison(part: Part, title: str, records: pd.DataFrame, context: Context) -> Table:
    """Networks that are compared beside Table 1: with ReLU shrinking, of other widths, trained for long.

    Parameters and errors as of `table1`; published numbers are those of SABR in Table 1.
    """
    return _table(title, part, MEASURES, records, _of_sabr(context), context)


def _of_sabr(context: Context) -> pd.DataFrame:
    published = context.published
    return published[(published["group"] == "table-1") & (published["method"] == "sabr")]


def _table(
    title: str,
    part: Part,
    measures: Sequence[str],
    records: pd.DataFrame,
    published: pd.DataFrame,
    context: Context,
    methods: Sequence[str] | None = None,
) -> Table:
    outline, style = context.outline, context.style
    planned = outline.of(part)
    if methods is not None:
        planned = planned[planned["method"].isin(methods)]
    numbers = _numbers(records, published, planned, outline.title)
    numbers = numbers[numbers["measure"].isin(measures)]
    ours = numbers[numbers["origin"] == "ours"]
    shown = [measure for measure in measures if measure in set(ours["measure"])]
    first_stage = next(iter(STAGE_COLUMNS.values()))
    main, further = ([m for m in shown if (m in _MAIN) == inside] for inside in (True, False))
    columns = [Column("method", words=True), *(Column(style.measure(measure).label, over="ours") for measure in main)]
    columns += [Column(measure, over="published") for measure in _PUBLISHED]
    for measure in further:
        label = style.measure(measure).label
        columns.append(Column(f"by {label}" if measure == first_stage else label, over="ours, further", detail=True))
    groups = []
    for (dataset, eps), own in planned.groupby(["dataset", "eps"], sort=False):
        found = numbers[(numbers["dataset"] == dataset) & (numbers["eps"] == eps)]
        rows = []
        for method in style.order([*own["method"], *found["method"]]):
            line = found[found["method"] == method]
            is_ours = method in set(own["method"])
            own_line, otherwise = line[line["origin"] == "ours"], MISSING if is_ours else NOTHING
            cells = [_cell(own_line, measure, otherwise) for measure in main]
            cells += [_cell(line[line["origin"] == "published"], measure, NOTHING) for measure in _PUBLISHED]
            cells += [_cell(own_line, measure, otherwise) for measure in further]
            rows.append((style.method(method).label + ("" if is_ours else " (published)"), *cells))
        groups.append((style.setting(str(dataset), str(eps)), tuple(rows)))
    # The title of the run is about Table 1.
    scale = outline.title if part == "main" else described(present(records, planned), outline.title)
    notes = [*missing(records, planned, style), *_notes(numbers)]
    return Table(title, _caption(ours, scale, style), tuple(columns), tuple(groups), tuple(notes), numbers)


def _numbers(records: pd.DataFrame, published: pd.DataFrame, planned: pd.DataFrame, scale: str) -> pd.DataFrame:
    """One line per number: `_NUMBERS`; low, high and deviation as in `records.summary`, NaN where published."""
    ours = summary(present(records, planned))
    if ours.empty:
        raise SabrError(
            f"there are no results of {', '.join(dict.fromkeys(planned['method'])) or 'this part of the plan'} to "
            "show; train and certify one of them first"
        )
    ours = ours.assign(origin="ours", quoted=False, source="this run")
    theirs = published[published["measure"].isin(_PUBLISHED)]
    theirs = theirs.merge(planned[["dataset", "eps"]].drop_duplicates(), on=["dataset", "eps"])
    table = pd.concat([ours, theirs.assign(origin="published")], ignore_index=True).assign(scale=scale)
    return table.reindex(columns=_NUMBERS).astype({"seeds": "Int64", "images": "Int64", "quoted": "bool"})


def _cell(numbers: pd.DataFrame, measure: str, otherwise: str) -> str:
    if numbers.empty:
        return otherwise
    found = numbers[numbers["measure"] == measure]
    if found.empty:
        return NOTHING
    number = found.iloc[0]
    if number["origin"] == "published":
        return f"{'~' if number['quoted'] else ''}{number['value']:.2f}"
    digits = 2 if number["images"] >= 10_000 else 1
    value = f"{number['value']:.{digits}f}"
    if number["seeds"] > 1:
        return f"{value} ± {number['deviation']:.{digits}f}"
    if measure not in _MAIN:
        return value
    return f"{value} [{number['low']:.{digits}f}, {number['high']:.{digits}f}]"


def _caption(ours: pd.DataFrame, scale: str, style: Style) -> str:
    caption = f"Natural, adversarial and certified accuracy in % ({scale})."
    counts = ours.drop_duplicates(["dataset", "eps"])
    if counts["images"].nunique() > 1:
        judged = (f"{c.images:,} for {style.setting(str(c.dataset), str(c.eps))}" for c in counts.itertuples())
        caption += f" Test images: {'; '.join(judged)}."
    return caption


def _notes(numbers: pd.DataFrame) -> list[str]:
    ours, theirs = numbers[numbers["origin"] == "ours"], numbers[numbers["origin"] == "published"]
    notes = []
    if (ours["seeds"] == 1).any():
        notes.append("In brackets: 95 % confidence interval over test images (Wilson), one seed.")
    if (ours["seeds"] > 1).any():
        low, high = ours["seeds"][ours["seeds"] > 1].agg(["min", "max"])
        notes.append(f"±: standard deviation over {low if low == high else f'{low} to {high}'} seeds.")
    if "unknown" in set(ours["measure"]):
        notes.append("Unknown: neither certified nor refuted; adversarial is certified and unknown together.")
    if ours["measure"].isin(STAGE_COLUMNS.values()).any():
        notes.append("Columns after unknown: certified by that stage or an earlier one.")
    if len(theirs):
        sources = "; ".join(theirs["source"].unique())
        notes.append(f"Published numbers are not ours, and were measured on full test sets: {sources}.")
    if theirs["quoted"].any():
        notes.append("~: quoted, not checked against its source.")
    return notes
