"""Table 1: our accuracies beside the published ones, as CSV, Markdown, LaTeX and HTML."""

import html
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from sabr.errors import SabrError
from sabr.report.records import MEASURES, STAGE_COLUMNS, summary
from sabr.report.style import Style

_COLUMNS = [
    *("scale", "dataset", "eps", "method", "origin", "measure", "value", "low", "high", "deviation"),
    *("seeds", "images", "quoted", "source"),
]
_PUBLISHED = ("natural", "certified")
# Measures whose interval over test images is shown.
_WITH_INTERVAL = ("natural", "adversarial", "certified")


def accuracies(records: pd.DataFrame, published: pd.DataFrame, *, methods: Sequence[str], scale: str) -> pd.DataFrame:
    """Our accuracies and the published ones of the same settings, one line per number.

    Parameters
    ----------
    records
        What `records.collect` returns.
    published
        What `published.read` returns, or a part of it: the group "table-1" for the paper's Table 1.
    methods
        The methods of ours to show.
    scale
        The scale in words; it says whether the run is a reduced one.

    Returns
    -------
    pandas.DataFrame
        scale, dataset, eps, method; origin, "ours" or "published"; measure; value, low, high, deviation in % as in
        `records.summary` (low, high and deviation are NaN where published); seeds and images (missing where
        published); quoted, True for a published number that was not checked; source. Settings are those of `records`.

    Raises
    ------
    SabrError
        When none of `methods` is in `records`.
    """
    ours = summary(records[records["method"].isin(methods)])
    if ours.empty:
        raise SabrError(f"there are no results of {', '.join(methods)} to show; train and certify one of them first")
    ours = ours.assign(origin="ours", quoted=False, source="this run")
    settings = ours[["dataset", "eps"]].drop_duplicates()
    theirs = published.merge(settings, on=["dataset", "eps"]).assign(origin="published")
    table = pd.concat([ours, theirs], ignore_index=True).assign(scale=scale).reindex(columns=_COLUMNS)
    return table.astype({"seeds": "Int64", "images": "Int64", "quoted": "bool"})


def to_csv(table: pd.DataFrame) -> str:
    """Render what `accuracies` returns as CSV, one line per number; published ones have origin "published"."""
    return table.to_csv(index=False)


def to_markdown(table: pd.DataFrame, style: Style) -> str:
    """Render what `accuracies` returns as Markdown: caption, table, notes."""
    layout = _layout(table, style)
    lines = [layout.caption, "", _row(["setting", *layout.header]), _row(["---"] * (len(layout.header) + 1))]
    lines += [_row([setting, *cells]) for setting, rows in layout.groups for cells in rows]
    return "\n".join([*lines, "", *layout.notes]) + "\n"


def to_latex(table: pd.DataFrame, style: Style) -> str:
    r"""Render what `accuracies` returns as a LaTeX table; it needs \usepackage{booktabs}.

    Without the columns of each certification stage, which would not fit a page.
    """
    layout = _layout(table[~table["measure"].isin(STAGE_COLUMNS.values())], style)
    columns = len(layout.header)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(' '.join([layout.caption, *layout.notes]))}}}",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\begin{{tabular}}{{@{{}}l{'r' * (columns - 1)}@{{}}}}",
        r"\toprule",
        rf"{'& ' * (columns - 2)}\multicolumn{{2}}{{c}}{{published}} \\",
        rf"\cmidrule(l){{{columns - 1}-{columns}}}",
        _latex_row([name.removeprefix("published ") for name in layout.header]),
    ]
    for setting, rows in layout.groups:
        lines += [r"\midrule", rf"\multicolumn{{{columns}}}{{l}}{{{_escape(setting)}}} \\"]
        lines += [_latex_row(cells) for cells in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def to_html(table: pd.DataFrame, style: Style) -> str:
    """Render what `accuracies` returns as a page of its own, for the report; nothing is loaded from elsewhere."""
    layout = _layout(table, style)
    width = len(layout.header)
    lines = ["<thead>", _html_row("th", layout.header), "</thead>"]
    for setting, rows in layout.groups:
        lines += ["<tbody>", f'<tr><th colspan="{width}" class="setting">{html.escape(setting)}</th></tr>']
        lines += [_html_row("td", cells) for cells in rows] + ["</tbody>"]
    caption = html.escape(layout.caption)
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in layout.notes)
    return _PAGE.format(caption=caption, table="\n".join(lines), notes=notes)


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Table 1</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 1rem; color: #222; background: #fff; }}
div {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }}
thead {{ border-top: 2px solid; border-bottom: 1px solid; }}
tbody {{ border-bottom: 1px solid #999; }}
table {{ border-bottom: 2px solid; }}
th, td {{ padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child, .setting {{ text-align: left; }}
p {{ max-width: 50rem; line-height: 1.4; }}
</style>
</head>
<body>
<p>{caption}</p>
<div><table>
{table}
</table></div>
{notes}
</body>
</html>
"""


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"


class _Layout(NamedTuple):
    caption: str
    header: list[str]
    groups: list[tuple[str, list[list[str]]]]
    notes: list[str]


def _layout(table: pd.DataFrame, style: Style) -> _Layout:
    ours = table[table["origin"] == "ours"]
    taken = set(ours["measure"])
    measures = [measure for measure in MEASURES if measure in taken]
    header = ["method"]
    for measure in measures:
        label = style.measure(measure).label
        header.append(f"by {label}" if measure == next(iter(STAGE_COLUMNS.values())) else label)
    header += [f"published {measure}" for measure in _PUBLISHED]

    groups = []
    for (dataset, eps), part in table.groupby(["dataset", "eps"], sort=False):
        own = part[part["origin"] == "ours"]
        run, rows = set(own["method"]), []
        for method in style.order(part["method"]):
            label = style.method(method).label + ("" if method in run else " (published)")
            found = part[part["method"] == method]
            cells = [_cell(found[found["origin"] == "ours"], measure) for measure in measures]
            cells += [_cell(found[found["origin"] == "published"], measure) for measure in _PUBLISHED]
            rows.append([label, *cells])
        groups.append((style.setting(str(dataset), str(eps)), rows))
    return _Layout(_caption(ours, style), header, groups, _notes(table))


def _cell(numbers: pd.DataFrame, measure: str) -> str:
    found = numbers[numbers["measure"] == measure]
    if found.empty:
        return "–"
    number = found.iloc[0]
    if number["origin"] == "published":
        return f"{'~' if number['quoted'] else ''}{number['value']:g}"
    digits = 2 if number["images"] >= 10_000 else 1
    value = f"{number['value']:.{digits}f}"
    if number["seeds"] > 1:
        return f"{value} ± {number['deviation']:.{digits}f}"
    if measure not in _WITH_INTERVAL:
        return value
    return f"{value} [{number['low']:.{digits}f}, {number['high']:.{digits}f}]"


def _caption(ours: pd.DataFrame, style: Style) -> str:
    counts = ours.drop_duplicates(["dataset", "eps"])
    if counts["images"].nunique() == 1:
        judged = f"first {counts['images'].iloc[0]:,} test images"
    else:
        judged = "; ".join(
            f"{style.setting(str(c.dataset), str(c.eps))}: first {c.images:,} test images" for c in counts.itertuples()
        )
    return f"Natural, adversarial and certified accuracy in %, {judged}. {ours['scale'].iloc[0]}."


def _notes(table: pd.DataFrame) -> list[str]:
    ours, theirs = table[table["origin"] == "ours"], table[table["origin"] == "published"]
    notes = []
    if (ours["seeds"] == 1).any():
        notes.append("In brackets: 95 % confidence interval over test images (Wilson), one seed.")
    if (ours["seeds"] > 1).any():
        notes.append(f"±: standard deviation over seeds ({ours['seeds'].max()} at most).")
    notes.append("Unknown: neither certified nor refuted by an attack; adversarial is certified and unknown together.")
    if ours["measure"].isin(STAGE_COLUMNS.values()).any():
        notes.append("Columns after unknown: certified by that stage or an earlier one.")
    if len(theirs):
        sources = "; ".join(theirs["source"].unique())
        notes.append(f"Published numbers are not ours, and were measured on full test sets: {sources}.")
    if theirs["quoted"].any():
        notes.append("~: quoted, not checked against its source.")
    return notes


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(_escape(cell) for cell in cells) + r" \\"


_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"$\sim$",
        "±": r"$\pm$",
        "α": r"$\alpha$",
        "ε": r"$\epsilon$",
        "λ": r"$\lambda$",
        "ℓ": r"$\ell$",
        "∞": r"$_\infty$",
        "–": "--",
    }
)


def _escape(text: str) -> str:
    return text.translate(_LATEX)
