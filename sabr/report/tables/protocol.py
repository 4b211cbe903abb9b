"""The appendix's table of hyper-parameters: how every method was trained in each setting."""

import math

import pandas as pd

from sabr.errors import SabrError
from sabr.report.outline import missing, present
from sabr.report.tables.layout import MISSING, NOTHING, Column, Context, Table

_COLUMNS = (
    *("network", "images", "epochs", "batch", "learning rate", "drops", "ramp", "ε trained", "λ", "L1", "shrinking"),
)


def hyper_parameters(parameters: pd.DataFrame, context: Context) -> Table:
    """How each planned method was trained; seeds share a line.

    Parameters
    ----------
    parameters
        What `sabr.report.protocol.hyper_parameters` returns.
    context
        Plan and labels.

    Raises
    ------
    SabrError
        When none of the planned networks is in `parameters`.
    """
    outline, style = context.outline, context.style
    planned = outline.of("all")
    found = present(parameters, planned)
    if found.empty:
        raise SabrError("there are no networks to show the hyper-parameters of; train and certify one first")
    groups = []
    for (dataset, eps), own in planned.groupby(["dataset", "eps"], sort=False):
        here = found[(found["dataset"] == dataset) & (found["eps"] == eps)]
        rows = []
        for method in style.order(own["method"]):
            line = here[here["method"] == method]
            cells = _cells(line.iloc[0]) if len(line) else len(_COLUMNS) * (MISSING,)
            rows.append((style.method(method).label, *cells))
        groups.append((style.setting(str(dataset), str(eps)), tuple(rows)))
    notes = [
        *missing(parameters, planned, style),
        "Drops: epochs at which the learning rate falls. Ramp: epochs between which ε grows from 0 to ε trained.",
    ]
    columns = (
        Column("method", words=True),
        *(
            Column(label, words=label in ("network", "drops"), detail=label in ("images", "batch"))
            for label in _COLUMNS
        ),
    )
    caption = f"Hyper-parameters of all networks ({outline.title.partition(':')[0]})."
    numbers = found.assign(scale=outline.title)
    return Table("Hyper-parameters", caption, columns, tuple(groups), tuple(notes), numbers)


def _cells(line: "pd.Series[float]") -> tuple[str, ...]:
    def optional(value: float) -> str:
        return NOTHING if math.isnan(value) else f"{value:g}"

    return (
        *(str(line["architecture"]), f"{line['train_images']:,}", f"{line['epochs']}", f"{line['batch_size']}"),
        *(f"{line['learning_rate']:g}", str(line["drops"]), f"{line['ramp_start']} to {line['ramp_end']}"),
        *(f"{line['eps_trained']:.6g}", optional(line["lambda_ratio"]), f"{line['l1']:g}"),
        optional(line["relu_shrinkage"]),
    )
