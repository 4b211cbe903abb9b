import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, ttest_rel

from sabr.errors import SabrError
from sabr.report import pairs, statistics

MakeRow = Callable[..., Path]
P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_mcnemar_by_hand() -> None:
    assert statistics.mcnemar(0, 0) == 1
    assert statistics.mcnemar(5, 5) == 1
    assert statistics.mcnemar(0, 5) == pytest.approx(2 / 2**5)
    assert statistics.mcnemar(10, 2) == pytest.approx(2 * binom.cdf(2, 12, 0.5))
    assert statistics.mcnemar(2, 10) == statistics.mcnemar(10, 2)


def test_over_seeds() -> None:
    assert math.isnan(statistics.over_seeds([1.0]))
    assert statistics.over_seeds([0.0, 0.0]) == 1
    assert statistics.over_seeds([2.0, 2.0, 2.0]) == 0
    one, other = [1.0, 2.0, 4.0], [0.5, 1.8, 2.0]
    differences = [a - b for a, b in zip(one, other, strict=True)]
    assert statistics.over_seeds(differences) == pytest.approx(ttest_rel(one, other).pvalue)


def test_combined_by_hand() -> None:
    assert statistics.combined([0.03]) == 0.03
    assert statistics.combined([0.01, 0.2]) == 0.2
    assert statistics.combined([0.01, 0.02, 0.9]) == pytest.approx(0.03)
    assert statistics.combined([0.9, 0.8, 0.7]) == 1


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1, 1]
    assert statistics.holm([]) == []


@given(P_VALUES)
def test_p_values_stay_p_values(p_values: list[float]) -> None:
    adjusted = statistics.holm(p_values)
    assert all(p <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    assert min(p_values) <= statistics.combined(p_values) <= 1
    if len(set(p_values)) == 1:
        assert statistics.combined(p_values) == pytest.approx(
            min(1, p_values[0] * len(p_values) / (len(p_values) // 2 + 1))
        )


def test_pairs_by_hand(make_row: MakeRow) -> None:
    folders = [make_row("sabr", natural=18), make_row("ibp", natural=16), make_row("pgd", seed=2)]
    table = pairs.pairs(folders)
    assert len(table) == 3  # three measures of one pair; the other seed has nothing beside it
    natural = table[table["measure"] == "natural"].iloc[0]
    assert list(natural[["first", "second", "images", "first_right", "second_right"]]) == ["sabr", "ibp", 20, 18, 16]
    assert (natural["first_only"], natural["second_only"]) == (2, 0)
    certified = table[table["measure"] == "certified"].iloc[0]
    assert (certified["first_only"], certified["second_only"], certified["first_right"]) == (0, 0, 11)
    turned = pairs.between(table, "ibp", "sabr").set_index("measure").loc["natural"]
    assert (turned["first_right"], turned["second_right"], turned["first_only"], turned["second_only"]) == (
        16,
        18,
        0,
        2,
    )


def test_pairs_round_trip_and_refusals(make_row: MakeRow, change_verdict: Callable[..., None], tmp_path: Path) -> None:
    folders = [make_row("sabr"), make_row("ibp")]
    table = pairs.pairs(folders)
    table.to_csv(tmp_path / "pairs.csv", index=False)
    pd.testing.assert_frame_equal(pairs.read(tmp_path / "pairs.csv"), table)
    change_verdict(folders[0], 3, {"label": 5, "prediction": 5})
    with pytest.raises(SabrError, match="other labels"):
        pairs.pairs(folders)
    with pytest.raises(SabrError, match="20 images"):
        pairs.pairs([folders[1], make_row("pgd", images=21)])


def line(seed: int, first_only: int, second_only: int, second: str = "ibp", images: int = 1000) -> dict[str, object]:
    names = {"dataset": "mnist", "eps": "0.1", "first": "sabr", "second": second, "seed": seed, "measure": "natural"}
    counts = {"images": images, "first_right": 500 + first_only, "second_right": 500 + second_only}
    return names | counts | {"first_only": first_only, "second_only": second_only}


def test_a_difference_needs_both_tests() -> None:
    steady = pd.DataFrame([line(1, 40, 10), line(2, 42, 11), line(3, 41, 9)])
    found = statistics.difference(steady)
    assert found["difference"] == pytest.approx(3.1)
    assert found["seeds"] == 3
    assert found["p"] == max(found["p_images"], found["p_seeds"]) < 0.01
    # Significant on images for each seed, but not over seeds.
    scattered = statistics.difference(pd.DataFrame([line(1, 40, 10), line(2, 10, 40), line(3, 60, 10)]))
    assert scattered["p_images"] < 0.01 < 0.05 < scattered["p_seeds"] == scattered["p"]
    # The same over all seeds, but of a few images.
    few = statistics.difference(pd.DataFrame([line(1, 3, 1), line(2, 3, 1), line(3, 3, 1)]))
    assert few["p_seeds"] == 0 and few["p"] == few["p_images"] == 1 * statistics.combined(
        3 * [statistics.mcnemar(3, 1)]
    )


def test_verdicts() -> None:
    many = pd.DataFrame([line(seed, 40 + seed, 10) for seed in (1, 2, 3)])
    assert list(statistics.compare(many)["verdict"]) == ["higher"]
    swapped = pd.DataFrame([line(seed, 10, 40 + seed) for seed in (1, 2, 3)])
    assert list(statistics.compare(swapped)["verdict"]) == ["lower"]
    assert list(statistics.compare(pd.DataFrame([line(1, 40, 10)]))["verdict"]) == ["higher, one seed"]
    # Alone it is significant, among four pairs it is not.
    alone = pd.DataFrame([line(1, 20, 8)])
    assert list(statistics.compare(alone)["verdict"]) == ["higher, one seed"]
    four = pd.DataFrame([line(1, 20, 8, second) for second in ("a", "b", "c", "d")])
    assert set(statistics.compare(four)["verdict"]) == {"not significant"}
