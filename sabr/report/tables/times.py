"""What training, attack and certification cost, beside the published training times."""

import pandas as pd

from sabr.errors import SabrError
from sabr.report.outline import missing, present
from sabr.report.records import described
from sabr.report.style import Style
from sabr.report.tables.layout import MISSING, NOTHING, Column, Context, Table

_STEPS = {"training": "train_seconds", "attack": "attack_seconds", "certification": "certify_seconds"}


def times(records: pd.DataFrame, context: Context) -> Table:
    """Seconds per network of every planned method, whatever part of the plan it is for.

    Parameters
    ----------
    records
        What `records.collect` returns.
    context
        Plan, published numbers (of which training_minutes are shown), labels.

    Raises
    ------
    SabrError
        When none of the planned networks is in `records`.
    """
    outline, published, style = context.outline, context.published, context.style
    planned = outline.of("all")
    found = present(records, planned)
    if found.empty:
        raise SabrError("there are no results to show the times of; train and certify a network first")
    numbers = _numbers(found, outline.title)
    theirs = published[published["measure"] == "training_minutes"]
    columns = (
        *(
            Column("method", words=True),
            Column("network", words=True),
            Column("epochs"),
            Column("an epoch", over="training"),
        ),
        *(
            Column("a network", over="training"),
            Column("attack", detail=True),
            Column("a network", over="certification"),
        ),
        *(Column("an image", over="certification"), Column("training", over="published")),
    )
    groups = []
    for (dataset, eps), own in planned.groupby(["dataset", "eps"], sort=False):
        here = found[(found["dataset"] == dataset) & (found["eps"] == eps)]
        beside = theirs[(theirs["dataset"] == dataset) & (theirs["eps"] == eps)]
        rows = []
        for method in style.order(own["method"]):
            line = here[here["method"] == method]
            cells = _cells(line) if len(line) else 7 * (MISSING,)
            rows.append((style.method(method).label, *cells, _quoted(beside[beside["method"] == method])))
        groups.append((style.setting(str(dataset), str(eps)), tuple(rows)))
    caption = "Time that training, the quick attack and certification took, mean over seeds "
    caption += f"({described(found, outline.title)})."
    return Table("Times", caption, columns, tuple(groups), tuple(_notes(found, theirs, planned, style)), numbers)


def duration(seconds: float) -> str:
    """A time as people say it: 0.31 s, 42 s, 7 min 05 s, 3 h 20 min."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def _cells(line: pd.DataFrame) -> tuple[str, ...]:
    first = line.iloc[0]
    means = {step: float(line[column].mean()) for step, column in _STEPS.items()}
    return (
        *(str(first["architecture"]), f"{first['epochs']}", duration(means["training"] / first["epochs"])),
        *(duration(means["training"]), duration(means["attack"]), duration(means["certification"])),
        duration(means["certification"] / first["images"]),
    )


def _quoted(published: pd.DataFrame) -> str:
    if published.empty:
        return NOTHING
    number = published.iloc[0]
    return f"{'~' if number['quoted'] else ''}{duration(60 * float(number['value']))}"


def _numbers(found: pd.DataFrame, scale: str) -> pd.DataFrame:
    lines = []
    for names, group in found.groupby(["dataset", "eps", "method", "architecture", "epochs"], sort=False):
        for step, column in _STEPS.items():
            lines.append((scale, *names, step, group[column].mean(), group[column].std(), len(group)))
    return pd.DataFrame(
        lines,
        columns=[
            *("scale", "dataset", "eps", "method", "architecture", "epochs", "step", "seconds", "deviation", "seeds")
        ],
    )


def _notes(found: pd.DataFrame, published: pd.DataFrame, planned: pd.DataFrame, style: Style) -> list[str]:
    notes = missing(found, planned, style)
    machines = found[["processor", "device", "threads"]].astype("object").fillna("unknown").drop_duplicates()
    notes.append(
        "Measured on "
        + "; ".join(f"{m.processor}, {m.device}, {m.threads} thread(s)" for m in machines.itertuples())
        + ", with other jobs beside it unless said otherwise."
    )
    if set(zip(published["dataset"], published["eps"], strict=True)) & set(
        zip(planned["dataset"], planned["eps"], strict=True)
    ):
        notes.append(f"Published training times are not ours: {'; '.join(published['source'].unique())}.")
        if published["quoted"].any():
            notes.append("~: quoted, not checked against its source.")
    return notes
