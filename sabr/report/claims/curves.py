"""Checks on the shape of a curve: growth faster than linear, and where one curve crosses another."""

import numpy as np
import pandas as pd

from sabr.problems import written
from sabr.report.claims.checks import Case, Verdict, in_each, names, spread
from sabr.report.claims.model import Crosses, Growth
from sabr.report.claims.quantities import NotTestable, Results, numbers, of_method, select, study


def growth(check: Growth, results: Results) -> list[Case]:
    """Whether boxes grow faster than linearly, in a simulation or in each layer of trained networks.

    Raises
    ------
    NotTestable
        When the study was not made.
    """
    table = study(check.study, results)
    if table.empty:
        raise NotTestable(f"the table of the study {check.study} is empty")
    if check.method is None:
        end = table.iloc[int(table["input_size"].argmax())]
        factor = float(end["output_size"] / end["linear"])
        shown = f"at input size {end['input_size']:g}: {factor:.3g} times the linear extrapolation"
        shown += f"; claimed at least {check.factor:g}"
        verdict: Verdict = "holds" if factor >= check.factor else "does not hold"
        return [Case("", verdict, shown, "simulated", {"factor": factor})]
    methods = check.method

    def at(setting: str) -> Case:
        label, found = of_method(check.study, methods, setting, results)
        found = select(found, check.where, check.study)
        if found.empty:
            raise NotTestable(f"the study {check.study} has nothing for {written(check.where)}")
        largest = found[found["lambda_ratio"] == found["lambda_ratio"].max()]
        factors = (largest["mean_radius"] / largest["linear"]).groupby([largest["layer"], largest["seed"]]).mean()
        by_layer = [f"{spread(own.droplevel(0), '')} in layer {layer}" for layer, own in factors.groupby(level=0)]
        shown = f"{label}, times the linear extrapolation: {', '.join(by_layer)}; claimed at least {check.factor:g}"
        above = factors >= check.factor
        about = {"factors": {str(layer): own.tolist() for layer, own in factors.groupby(level=0)}}
        reason = "one seed" if largest["seed"].nunique() == 1 else ""
        if above.all() or not above.any():
            return Case(setting, "holds" if above.all() else "does not hold", shown, reason, about)
        return Case(setting, "does not hold", shown, "not in every layer and for every seed", about)

    return in_each(names(table), at)


def crosses(check: Crosses, results: Results) -> list[Case]:
    """Whether one loss rises through another between two values of lambda, in each setting that was studied.

    Raises
    ------
    NotTestable
        When the study was not made.
    """

    def at(setting: str) -> Case:
        label, found = of_method("loss-lambda", check.method, setting, results)
        for key in ("rising", "through"):
            numbers(found, getattr(check, key), key, "loss-lambda")
        places = pd.Series(
            {seed: _crossing(own, check.rising, check.through) for seed, own in found.groupby("seed")}, dtype="float64"
        )
        shown = f"{label}: {check.rising.replace('_', ' ')} loss "
        about = {"crossings": [None if np.isnan(x) else float(x) for x in places], "seeds": places.index.tolist()}
        if places.isna().all():
            first = found.sort_values("lambda_ratio").iloc[0]
            side = "above" if first[check.rising] > first[check.through] else "below"
            return Case(setting, "does not hold", f"{shown}is {side} the {check.through} loss throughout", "", about)
        shown += f"reaches the {check.through} loss at λ = {spread(places.dropna(), '')}"
        shown += f"; claimed between {check.low:g} and {check.high:g}"
        inside = (places > check.low) & (places < check.high)
        if inside.all() or not inside.any():
            reason = "one seed" if len(places) == 1 else ""
            return Case(setting, "holds" if inside.all() else "does not hold", shown, reason, about)
        return Case(setting, "not testable", shown, "seeds disagree", about)

    return in_each(names(study("loss-lambda", results)), at)


def _crossing(lines: pd.DataFrame, rising: str, through: str) -> float:
    """Lambda at which the difference of two columns turns positive, by linear interpolation; NaN: nowhere."""
    ordered = lines.sort_values("lambda_ratio")
    ratios, gaps = ordered["lambda_ratio"].to_numpy(), (ordered[rising] - ordered[through]).to_numpy()
    turns = np.flatnonzero((gaps[:-1] <= 0) & (gaps[1:] > 0))
    if len(turns) == 0:
        return float("nan")
    i = int(turns[0])
    return float(ratios[i] + (ratios[i + 1] - ratios[i]) * -gaps[i] / (gaps[i + 1] - gaps[i]))
