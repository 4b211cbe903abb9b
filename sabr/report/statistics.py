"""Which differences between methods are more than chance: over the same images, and over seeds."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import binomtest, ttest_1samp

# Differences with a larger p-value are not called differences.
SIGNIFICANT = 0.05

COMPARED = [
    *("dataset", "eps", "first", "second", "measure", "first_value", "second_value", "difference", "deviation"),
    *("seeds", "images", "p_images", "p_seeds", "p", "p_holm", "verdict"),
]


def mcnemar(first_only: int, second_only: int) -> float:
    """McNemar's exact test (1947): p-value of two classifiers being right equally often on the same images.

    Parameters
    ----------
    first_only, second_only
        Images that count for one and not for the other.
    """
    discordant = first_only + second_only
    return float(binomtest(first_only, discordant, 0.5).pvalue) if discordant else 1.0


def over_seeds(differences: Sequence[float]) -> float:
    """Paired t-test over seeds: p-value of a mean difference of 0; NaN for a single seed.

    Equal differences that are not 0 give 0, equal differences of 0 give 1.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return float("nan")
    if np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return 1.0 if abs(values[0]) <= 1e-12 else 0.0
    return float(ttest_1samp(values, 0.0).pvalue)


def combined(p_values: Sequence[float]) -> float:
    """One p-value of several, valid however they depend on each other (Rüger 1978, at the upper median).

    The k-th smallest of n times n / k, with k just above n / 2: for one it is itself, for two the larger one, for three
    1.5 times the middle one.
    """
    ordered = sorted(p_values)
    k = len(ordered) // 2 + 1
    return min(1.0, ordered[k - 1] * len(ordered) / k)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values: each times the number of those not smaller, in increasing order."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def difference(pairs: pd.DataFrame) -> dict[str, float]:
    """The difference of two methods in one measure.

    Parameters
    ----------
    pairs
        Lines of `sabr.report.pairs.pairs` with the same methods, setting and measure; one for each seed.

    Returns
    -------
    dict
        first_value, second_value: means over seeds in %; difference: of first from second, in points; deviation: of
        the difference over seeds (NaN for one); seeds, images; p_images: McNemar's of each seed, `combined`; p_seeds:
        `over_seeds`; p: the larger of the two, so that a small one means both.
    """
    first, second = (100 * pairs[f"{name}_right"] / pairs["images"] for name in ("first", "second"))
    differences = first - second
    tests = [mcnemar(int(a), int(b)) for a, b in zip(pairs["first_only"], pairs["second_only"], strict=True)]
    p_images, p_seeds = combined(tests), over_seeds(differences.tolist())
    return {
        "first_value": float(first.mean()),
        "second_value": float(second.mean()),
        "difference": float(differences.mean()),
        "deviation": float(differences.std()),
        "seeds": len(pairs),
        "images": int(pairs["images"].iloc[0]),
        "p_images": p_images,
        "p_seeds": p_seeds,
        "p": p_images if math.isnan(p_seeds) else max(p_images, p_seeds),
    }


def compare(pairs: pd.DataFrame) -> pd.DataFrame:
    """Every pair of methods, with a verdict that accounts for the number of pairs.

    Parameters
    ----------
    pairs
        What `sabr.report.pairs.pairs` returns, for the methods to compare.

    Returns
    -------
    pandas.DataFrame
        One line per setting, pair and measure: `COMPARED`. p_holm: p, by Holm's method for all pairs of one setting
        and measure. verdict: higher or lower (the first than the second) where p_holm is below `SIGNIFICANT`, else
        "not significant"; with a single seed "higher, one seed", as nothing is known of other seeds.
    """
    lines = []
    for (dataset, eps, measure), part in pairs.groupby(["dataset", "eps", "measure"], sort=False):
        found = [
            {"dataset": dataset, "eps": eps, "measure": measure, "first": first, "second": second} | difference(own)
            for (first, second), own in part.groupby(["first", "second"], sort=False)
        ]
        for line, adjusted in zip(found, holm([float(line["p"]) for line in found]), strict=True):  # type: ignore[arg-type]
            lines.append(line | {"p_holm": adjusted, "verdict": _verdict(line, adjusted)})
    return pd.DataFrame(lines, columns=COMPARED)


def _verdict(line: dict[str, object], adjusted: float) -> str:
    if adjusted >= SIGNIFICANT:
        return "not significant"
    word = "higher" if float(line["difference"]) > 0 else "lower"  # type: ignore[arg-type]
    return word if line["seeds"] != 1 else f"{word}, one seed"
