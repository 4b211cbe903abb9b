"""Tables of the studies of trained networks: gradient alignment (Table 3), states of ReLUs (Table 4)."""

from collections.abc import Sequence

import pandas as pd

from sabr.errors import SabrError
from sabr.report.outline import Outline, missing, present
from sabr.report.tables.layout import MISSING, NOTHING, Column, Context, Table

_KEYS = ["dataset", "eps", "method"]


def table3(alignment: pd.DataFrame, context: Context) -> Table:
    """The paper's Table 3: cosine similarity of the robust loss's gradient with the cross-entropy's.

    Parameters
    ----------
    alignment
        The gathered study gradient-alignment.
    context
        Plan, published numbers, labels.

    Raises
    ------
    SabrError
        When none of the planned networks is in `alignment`.
    """
    outline, published, style = context.outline, context.published, context.style
    planned = outline.of("studied")
    found = _some(present(alignment, planned), "gradient alignment")
    means = _over_seeds(found, [*_KEYS, "loss", "at"], ["cosine"], outline.studied)
    columns = [Column("network", words=True), Column("robust loss", words=True)]
    columns += [Column(at) for at in ("clean", "adversarial")]
    columns += [Column(at, over="published") for at in ("clean", "adversarial")]
    groups = []
    for (dataset, eps), own in planned.groupby(["dataset", "eps"], sort=False):
        here = means[(means["dataset"] == dataset) & (means["eps"] == eps)]
        rows = []
        for method in style.order(own["method"]):
            line = here[here["method"] == method]
            for loss in style.order(line["loss"]) or [""]:
                cells = [_cell(line[(line["loss"] == loss) & (line["at"] == at)], 3) for at in ("clean", "adversarial")]
                # "sabr-ablation" is a variant of the published sabr.
                theirs = published[(published["method"] == loss) & (method.partition("-")[0] == loss)]
                cells += [_quoted(theirs, f"cosine_{at}") for at in ("clean", "adversarial")]
                rows.append((style.method(method).label, style.method(loss).label if loss else MISSING, *cells))
        groups.append((style.setting(str(dataset), str(eps)), tuple(rows)))
    caption = (
        "Gradient alignment: mean cosine similarity between the gradients of the robust loss and of the cross-entropy, "
        f"at clean and at adversarial images ({_scale(outline, found)})."
    )
    notes = [*missing(alignment, planned, style), *_notes(means, context, ("cosine_clean", "cosine_adversarial"))]
    return Table("Table 3", caption, tuple(columns), tuple(groups), tuple(notes), means)


def table4(states: pd.DataFrame, context: Context) -> Table:
    """The paper's Table 4: shares of active, inactive and unstable ReLUs at a point and over the whole region.

    Parameters and errors as of `table3`, with `states` the gathered study relu-states.
    """
    outline, published, style = context.outline, context.published, context.style
    planned = outline.of("studied")
    found = _some(present(states, planned), "ReLU states")
    found = found[found["layer"] == "all"]
    kinds = ("active", "inactive", "unstable")
    means = _over_seeds(found, [*_KEYS, "where"], kinds, outline.studied)
    columns = [Column("network", words=True)]
    columns += [Column(kind, over=over) for over in ("at a point", "over the region") for kind in kinds]
    columns.append(Column("unstable, region", over="published"))
    groups = []
    for (dataset, eps), own in planned.groupby(["dataset", "eps"], sort=False):
        here = means[(means["dataset"] == dataset) & (means["eps"] == eps)]
        rows = []
        for method in style.order(own["method"]):
            line = here[here["method"] == method]
            cells = [
                _cell(line[(line["where"] == where) & (line["measure"] == kind)], 2)
                for where in ("point", "region")
                for kind in kinds
            ]
            theirs = published[published["method"] == method]
            rows.append((style.method(method).label, *cells, _quoted(theirs, "unstable_region")))
        groups.append((style.setting(str(dataset), str(eps)), tuple(rows)))
    caption = (
        "States of ReLUs, mean share in % over all ReLUs of the network, at clean images and over the whole ε-ball "
        f"around them ({_scale(outline, found)})."
    )
    notes = [
        *missing(states, planned, style),
        "Unstable: the bounds of its input leave both signs open.",
        *_notes(means, context, ("unstable_region",)),
    ]
    return Table("Table 4", caption, tuple(columns), tuple(groups), tuple(notes), means)


def _some(found: pd.DataFrame, what: str) -> pd.DataFrame:
    if found.empty:
        raise SabrError(f"there are no results on {what} of the planned networks; run that study on one of them first")
    return found


def _over_seeds(table: pd.DataFrame, keys: Sequence[str], measures: Sequence[str], scale: str) -> pd.DataFrame:
    """One line per number: the keys, measure, value, deviation over seeds (NaN for one), seeds, images."""
    lines = []
    for names, group in table.groupby(list(keys), sort=False):
        for measure in measures:
            numbers = (measure, group[measure].mean(), group[measure].std(), len(group), int(group["images"].iloc[0]))
            lines.append((scale, *names, *numbers))
    return pd.DataFrame(lines, columns=["scale", *keys, "measure", "value", "deviation", "seeds", "images"])


def _cell(numbers: pd.DataFrame, digits: int) -> str:
    if numbers.empty:
        return MISSING
    number = numbers.iloc[0]
    value = f"{number['value']:.{digits}f}".replace("-", "−")
    return f"{value} ± {number['deviation']:.{digits}f}" if number["seeds"] > 1 else value


def _quoted(published: pd.DataFrame, measure: str) -> str:
    found = published[published["measure"] == measure]
    return NOTHING if found.empty else f"{'~' if found.iloc[0]['quoted'] else ''}{found.iloc[0]['value']:g}"


def _scale(outline: Outline, table: pd.DataFrame) -> str:
    """The scale in words, with the number of images that were studied in the place of those that were certified."""
    images = " / ".join(f"{count:,}" for count in sorted(set(table["images"])))
    return f"{outline.studied}, first {images} images"


def _notes(means: pd.DataFrame, context: Context, measures: Sequence[str]) -> list[str]:
    seeds = sorted(set(means["seeds"]))
    notes = ["One seed: no spread is known."] if seeds == [1] else [f"±: standard deviation over {seeds[-1]} seeds."]
    shown = context.published[context.published["measure"].isin(measures)]
    if len(shown):
        places = dict.fromkeys(zip(shown["dataset"], shown["eps"], strict=True))
        where = "; ".join(context.style.setting(str(dataset), str(eps)) for dataset, eps in places)
        sources = "; ".join(shown["source"].unique())
        notes.append(f"Published numbers are not ours, and are for CNN7 on {where}: {sources}.")
    if shown["quoted"].any():
        notes.append("~: quoted, not checked against its source.")
    return notes
