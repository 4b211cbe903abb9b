"""A table that people read, and how it becomes CSV, Markdown, LaTeX or HTML."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from sabr.report.outline import Outline
from sabr.report.style import Style

NOTHING = "–"
MISSING = "missing"


@dataclass(frozen=True)
class Context:
    """What tables put recorded results into.

    Attributes
    ----------
    outline
        Which networks were planned; those of a table that have no results are named below it.
    published
        What `sabr.report.published.read` returns.
    style
        Labels, order.
    """

    outline: Outline
    published: pd.DataFrame
    style: Style


@dataclass(frozen=True)
class Column:
    """A column's heading.

    Attributes
    ----------
    label
        Its own.
    over
        A heading that it shares with its neighbours; empty: none.
    detail
        Left out of LaTeX, where a page is narrow.
    words
        It holds words, not numbers.
    """

    label: str
    over: str = ""
    detail: bool = False
    words: bool = False


@dataclass(frozen=True)
class Table:
    """A table, and the numbers in it.

    Attributes
    ----------
    title
        A few words: "Table 1".
    caption
        One or two sentences.
    columns
        The first is that of the lines' names.
    groups
        A heading, and its lines of cells, one for each column.
    notes
        Sentences below it.
    numbers
        The same as a tidy table: one line per number, or per line of the table.
    """

    title: str
    caption: str
    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    notes: tuple[str, ...]
    numbers: pd.DataFrame


def to_csv(table: Table) -> str:
    """The table's numbers."""
    return table.numbers.to_csv(index=False)


def to_markdown(table: Table) -> str:
    """Caption, table, notes."""
    labels = [" ".join(filter(None, (column.over, column.label))) for column in table.columns]
    lines = [table.caption, "", _row(["setting", *labels]), _row(["---"] * (len(labels) + 1))]
    lines += [_row([heading, *cells]) for heading, rows in table.groups for cells in rows]
    # Two spaces end a line.
    return "\n".join([*lines, "", *(f"{note}  " for note in table.notes)]).rstrip() + "\n"


def to_latex(table: Table) -> str:
    r"""A floating table without the columns of detail; it needs \usepackage{booktabs}."""
    kept = [place for place, column in enumerate(table.columns) if not column.detail]
    columns = [table.columns[place] for place in kept]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(' '.join([table.caption, *table.notes]))}}}",
        r"\scriptsize",
        r"\setlength{\tabcolsep}{2pt}",
        rf"\begin{{tabular}}{{@{{}}{''.join('l' if column.words else 'r' for column in columns)}@{{}}}}",
        r"\toprule",
    ]
    if any(column.over for column in columns):
        lines += _latex_spans(columns)
    lines.append(_latex_row([column.label for column in columns]))
    for heading, rows in table.groups:
        lines += [r"\midrule", rf"\multicolumn{{{len(columns)}}}{{@{{}}l}}{{{_escape(heading)}}} \\"]
        lines += [_latex_row([cells[place] for place in kept]) for cells in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def to_html(table: Table) -> str:
    """A page of its own, which loads nothing from elsewhere; `fragment` finds the table in it again."""
    return _PAGE.format(title=html.escape(table.title), body=_fragment(table))


def fragment(page: str) -> str:
    """The caption, table and notes in what `to_html` returned, to be shown in another page."""
    return page.partition("<body>\n")[2].partition("\n</body>")[0]


def _fragment(table: Table) -> str:
    spanned = any(column.over for column in table.columns)
    lines = ["<thead>", *([_html_spans(table.columns)] if spanned else [])]
    words = [column.words for column in table.columns]
    lines += [_html_row("th", [column.label for column in table.columns], words), "</thead>"]
    for heading, rows in table.groups:
        lines += ["<tbody>", f'<tr><th colspan="{len(table.columns)}" class="heading">{html.escape(heading)}</th></tr>']
        lines += [_html_row("td", cells, words) for cells in rows] + ["</tbody>"]
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
    return (
        f'<p class="caption">{html.escape(table.caption)}</p>\n<div class="scroll"><table>\n'
        + "\n".join(lines)
        + f'\n</table></div>\n<div class="notes">{notes}</div>'
    )


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 1rem; color: #222; background: #fff; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; border-bottom: 2px solid; }}
thead {{ border-top: 2px solid; border-bottom: 1px solid; }}
tbody {{ border-bottom: 1px solid #999; }}
th, td {{ padding: 0.25rem 0.6rem; text-align: right; white-space: nowrap; }}
.words, .heading {{ text-align: left; }}
p {{ max-width: 50rem; line-height: 1.4; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def _html_row(tag: str, cells: Sequence[str], words: Sequence[bool]) -> str:
    opening = [f'<{tag} class="words">' if word else f"<{tag}>" for word in words]
    parts = [f"{start}{html.escape(cell)}</{tag}>" for start, cell in zip(opening, cells, strict=True)]
    return f"<tr>{''.join(parts)}</tr>"


def _html_spans(columns: Sequence[Column]) -> str:
    cells = [f'<th colspan="{width}" class="over">{html.escape(over)}</th>' for over, _, width in _spans(columns)]
    return f"<tr>{''.join(cells)}</tr>"


def _spans(columns: Sequence[Column]) -> list[tuple[str, int, int]]:
    """Headings over neighbouring columns: the heading, its first column, how many."""
    spans, first = [], 0
    for over, group in groupby(columns, key=lambda column: column.over):
        width = len(list(group))
        spans.append((over, first, width))
        first += width
    return spans


def _latex_spans(columns: Sequence[Column]) -> list[str]:
    spans = _spans(columns)
    cells = [
        rf"\multicolumn{{{width}}}{{c}}{{{_escape(over)}}}" if over else " & ".join([""] * width)
        for over, _, width in spans
    ]
    rules = [rf"\cmidrule(lr){{{first + 1}-{first + width}}}" for over, first, width in spans if over]
    return [" & ".join(cells) + r" \\", "".join(rules)]


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
        "<": "$<$",
        ">": "$>$",
        "±": r"$\pm$",
        "−": "$-$",
        "×": r"$\times$",
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
