"""How each kind of check is made: recorded results in, one outcome for each setting out."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from sabr.report import pairs, statistics
from sabr.report.claims.model import Above, Accuracy, Bound, Near, Peak, PublishedNumber, Studied, place
from sabr.report.claims.quantities import (
    NotTestable,
    Results,
    Values,
    accuracy,
    published,
    reduced,
    study,
    sweep,
    values,
)
from sabr.report.tables.seeds import p_value, signed

Verdict = Literal["holds", "does not hold", "not testable"]


@dataclass(frozen=True)
class Case:
    """A check in one setting.

    Attributes
    ----------
    setting
        Such as "mnist-eps-0.1"; empty where there is no setting, as in a simulation.
    verdict
        Whether it holds.
    numbers
        What was compared, in words.
    reason
        Why it is not testable, or what to bear in mind; empty: nothing.
    values
        The numbers themselves.
    """

    setting: str
    verdict: Verdict
    numbers: str
    reason: str = ""
    values: dict[str, Any] | None = None


def in_each(settings: list[str], check: Callable[[str], Case]) -> list[Case]:
    """Make a check in each setting; what cannot be made is a case that says why."""
    cases = []
    for setting in settings:
        try:
            cases.append(check(setting))
        except NotTestable as reason:
            cases.append(Case(setting, "not testable", "", str(reason)))
    return cases or [Case("", "not testable", "", "this run has no results for it")]


def settings_of(check: Above | Bound, results: Results) -> list[str]:
    """The settings of a check: its own, else those of the sweep, the study or Table 1, whichever it is about.

    Raises
    ------
    NotTestable
        When there is no such study or sweep.
    """
    if check.settings is not None:
        return list(check.settings)
    left = check.left if isinstance(check, Above) else check.of
    if isinstance(left, Studied):
        table = study(left.study, results)
    elif isinstance(left, Accuracy) and left.swept is not None:
        table = sweep(results)
    else:
        table = results.outline.of("main")
    return names(table)


def names(table: pd.DataFrame) -> list[str]:
    """Names of the settings that a table has."""
    places = table[["dataset", "eps"]].drop_duplicates().itertuples(index=False, name=None)
    return [f"{dataset}-eps-{str(eps).replace('/', '_')}" for dataset, eps in places]


def above(check: Above, setting: str, results: Results) -> Case:
    """Whether the left quantity is above the right one; a published number may be one of them.

    Raises
    ------
    NotTestable
        When one of them is not known.
    """
    if isinstance(check.left, PublishedNumber):
        return _beside_published(check.right, check.left, setting, results, sign=-1)
    if isinstance(check.right, PublishedNumber):
        return _beside_published(check.left, check.right, setting, results, sign=1)
    left, right = (values(_ours(quantity), setting, results) for quantity in (check.left, check.right))
    what = _measured(check.left, check.right)
    return difference(left, right, setting, results, tolerance=check.tolerance, what=what)


def difference(
    left: Values, right: Values, setting: str, results: Results, *, tolerance: float, what: str, tries: int = 1
) -> Case:
    """Whether `left` is above `right`, by more than chance.

    Parameters
    ----------
    left, right, setting, results
        Of what, where.
    tolerance
        With one seed a smaller difference is put down to the seed.
    what
        The measure in words.
    tries
        p-values are multiplied by it: of how many pairs the best was taken.

    Raises
    ------
    NotTestable
        When there is no common seed.
    """
    seeds = left.by_seed.index.intersection(right.by_seed.index)
    if seeds.empty:
        raise NotTestable(f"{left.label} and {right.label} have no seed in common")
    gaps = left.by_seed[seeds] - right.by_seed[seeds]
    p_images, images = float("nan"), None
    if left.measure is not None and left.method is not None and right.method is not None:
        p_images, images = _on_images(left, right, setting, results)
    p_seeds = statistics.over_seeds(gaps.tolist())
    known = [min(1.0, tries * p) for p in (p_images, p_seeds) if not math.isnan(p)]
    gap, p = float(gaps.mean()), max(known, default=float("nan"))
    points = " points" if left.unit == "%" else ""
    shown = f"{what}: {left.label} {spread(left.by_seed[seeds], left.unit)}, {right.label} "
    shown += f"{spread(right.by_seed[seeds], right.unit)}; difference {signed(gap, 2 if left.unit else 3)}{points}"
    shown += f" ({_evidence(len(seeds), images, p_images, p_seeds)})"
    verdict, reason = judged(gap, p, len(seeds), tolerance, points)
    if tries > 1:
        reason = "; ".join(filter(None, (reason, f"p-values are multiplied by {tries}, for the choice of the best")))
    numbers = {"left": left.by_seed[seeds].tolist(), "right": right.by_seed[seeds].tolist(), "seeds": seeds.tolist()}
    tests = {"difference": gap, "p_images": number(p_images), "p_seeds": number(p_seeds), "images": images}
    return Case(setting, verdict, shown, reason, numbers | tests)


def judged(gap: float, p: float, seeds: int, tolerance: float, points: str) -> tuple[Verdict, str]:
    """The verdict on a difference that should be positive, and the reason if there is none."""
    if not math.isnan(p) and p >= statistics.SIGNIFICANT:
        return "not testable", f"the difference is not significant (p = {p_value(p)})"
    if seeds == 1 and abs(gap) < tolerance:
        return "not testable", f"there is one seed, which may change {tolerance:g}{points}"
    return ("holds" if gap > 0 else "does not hold"), ("one seed" if seeds == 1 else "")


def bound(check: Bound, setting: str, results: Results) -> Case:
    """Whether a quantity is at most, or at least, so much: for every seed, with its interval over test images.

    Raises
    ------
    NotTestable
        When it is not known.
    """
    found = values(_ours(check.of), setting, results)
    if check.at_most is not None:
        limit, words = check.at_most, "at most"
        inside, outside = (found.high <= limit).all(), (found.low > limit).all()
    else:
        limit, words = float(check.at_least or 0.0), "at least"
        inside, outside = (found.low >= limit).all(), (found.high < limit).all()
    shown = (
        f"{_measured(check.of, check.of)}: {found.label} {spread(found.by_seed, found.unit)}; claimed {words} {limit:g}"
    )
    shown += f"{' ' if found.unit else ''}{found.unit}"
    about = {"values": found.by_seed.tolist(), "seeds": found.by_seed.index.tolist(), "limit": limit}
    if inside or outside:
        return Case(setting, "holds" if inside else "does not hold", shown, _few(found), about)
    return Case(setting, "not testable", shown, "too close to the limit to tell, on so few images or seeds", about)


def near(check: Near, setting: str, results: Results) -> Case:
    """Whether an accuracy is near a published one; if it is not and the run is reduced, that may say nothing.

    Raises
    ------
    NotTestable
        When one of them is not known.
    """
    found, theirs = values(check.of, setting, results), published(check.to, setting, results)
    gap = float(found.by_seed.mean()) - theirs
    shown = f"{check.of.measure}: {found.label} {spread(found.by_seed, '%')}, published {theirs:.2f} %; difference "
    shown += f"{signed(gap, 2)} points, claimed within {check.tolerance:g}"
    about = {"values": found.by_seed.tolist(), "published": theirs, "difference": gap}
    short = reduced(str(found.method), setting, results)
    if abs(gap) <= check.tolerance:
        return Case(setting, "holds", shown, f"reached with {short}" if short else "", about)
    if short and not check.reduced:
        return Case(setting, "not testable", shown, f"reduced scale: {short}", about)
    return Case(setting, "does not hold", shown, f"with {short}" if short else _few(found), about)


def peak(check: Peak, results: Results) -> list[Case]:
    """Whether an accuracy peaks below some lambda, one case for each setting that was swept.

    Raises
    ------
    NotTestable
        When there is no sweep.
    """
    swept = sweep(results)

    def at(setting: str) -> Case:
        dataset, eps = place(setting)
        here = swept[(swept["dataset"] == dataset) & (swept["eps"] == eps)]
        means = here.groupby(["lambda_ratio", "method"])[check.measure].mean().reset_index()
        best = means.iloc[int(means[check.measure].astype("float64").argmax())]
        inside = best["lambda_ratio"] < check.below
        rivals = means[(means["lambda_ratio"] < check.below) != inside]
        if rivals.empty:
            raise NotTestable(f"the sweep has no λ {'of at least' if inside else 'below'} {check.below:g}")
        other = rivals.iloc[int(rivals[check.measure].astype("float64").argmax())]
        one, two = (accuracy(str(m), check.measure, setting, results) for m in (best["method"], other["method"]))
        case = difference(
            one, two, setting, results, tolerance=check.tolerance, what=check.measure, tries=len(means) - 1
        )
        shown = f"highest at λ = {best['lambda_ratio']:g}; {case.numbers}"
        # The best is above its rival by choice: the claim is about where it is.
        verdict: Verdict = "does not hold" if case.verdict == "holds" and not inside else case.verdict
        return Case(setting, verdict, shown, case.reason, (case.values or {}) | {"best": float(best["lambda_ratio"])})

    return in_each(names(swept), at)


def spread(by_seed: "pd.Series[float]", unit: str) -> str:
    """Mean and standard deviation over seeds in words."""
    digits = 2 if unit == "%" else 3
    value = f"{by_seed.mean():.{digits}f}"
    if len(by_seed) > 1:
        value += f" ± {by_seed.std():.{digits}f}"
    return f"{value} {unit}".rstrip()


def number(value: float) -> float | None:
    """A number as JSON has it: NaN is null."""
    return None if math.isnan(value) else value


def _on_images(left: Values, right: Values, setting: str, results: Results) -> tuple[float, int | None]:
    dataset, eps = place(setting)
    table = results.pairs
    here = table[(table["dataset"] == dataset) & (table["eps"] == eps) & (table["measure"] == left.measure)]
    found = pairs.between(here, str(left.method), str(right.method))
    if found.empty:
        return float("nan"), None
    test = statistics.difference(found)
    return test["p_images"], int(test["images"])


def _beside_published(ours: Any, theirs: PublishedNumber, setting: str, results: Results, *, sign: int) -> Case:
    found, number_ = values(_ours(ours), setting, results), published(theirs, setting, results)
    gap = sign * (float(found.by_seed.mean()) - number_)
    label = results.style.method(theirs.published).label
    shown = f"{theirs.measure}: {found.label} {spread(found.by_seed, '%')}, {label} {number_:.2f} % (published)"
    about = {"values": found.by_seed.tolist(), "published": number_, "difference": gap}
    short = reduced(str(found.method), setting, results)
    if short:
        return Case(setting, "not testable", shown, f"reduced scale ({short}): no match for published numbers", about)
    outside = ((found.low > number_) | (found.high < number_)).all()
    agree = ((found.by_seed > number_).nunique()) == 1
    if not (outside and agree):
        return Case(setting, "not testable", shown, "the difference is not significant", about)
    return Case(setting, "holds" if gap > 0 else "does not hold", shown, _few(found), about)


def _ours(quantity: Any) -> Accuracy | Studied:
    if isinstance(quantity, PublishedNumber):
        raise NotTestable("nothing of ours is compared")
    return quantity  # type: ignore[no-any-return]


def _few(found: Values) -> str:
    return "one seed" if len(found.by_seed) == 1 else ""


def _measured(quantity: Any, other: Any) -> str:
    """What is measured, in words, as far as two quantities have it in common."""
    if isinstance(quantity, Studied) and isinstance(other, Studied):
        shared = {key: value for key, value in quantity.where.items() if other.where.get(key) == value}
        # "all layers" goes without saying.
        where = [_words(key, value) for key, value in shared.items() if value != "all"]
        return quantity.column.replace("_", " ") + (f" ({', '.join(where)})" if where else "")
    return str(quantity.measure).replace("_", " by ")


def _words(key: str, value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{'λ' if key == 'lambda_ratio' else key} = {value:g}"


def _evidence(seeds: int, images: int | None, p_images: float, p_seeds: float) -> str:
    words = ["1 seed" if seeds == 1 else f"{seeds} seeds"]
    if images is not None:
        words.append(f"{images:,} images; p = {p_value(p_images)} on images")
    if not math.isnan(p_seeds):
        words.append(f"p = {p_value(p_seeds)} over seeds")
    return ", ".join(words).replace("p = <", "p < ")
