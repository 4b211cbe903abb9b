from pathlib import Path

import pandas as pd
import pytest

from sabr.errors import SabrError
from sabr.report import published


def test_the_papers_numbers(literature: pd.DataFrame) -> None:
    def number(**wanted: str) -> pd.Series:
        found = literature[(literature[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        assert len(found) == 1
        return found.iloc[0]

    certified = number(method="sabr", dataset="cifar10", eps="2/255", measure="certified")
    assert (certified["value"], certified["quoted"]) == (62.84, False)
    assert "Table 1" in certified["source"]
    colt = number(method="colt", dataset="mnist", eps="0.1", measure="natural")
    assert (colt["value"], colt["quoted"]) == (99.2, True)
    nets = number(method="linf-distance-nets", dataset="cifar10", eps="8/255", measure="certified")
    assert (nets["value"], nets["group"]) == (40.06, "table-2")


def test_every_number_has_a_source_and_a_label(literature: pd.DataFrame, looks: object) -> None:
    assert literature["source"].str.len().min() > 10
    assert set(literature["method"]) <= set(looks.methods)  # type: ignore[attr-defined]
    # Counted in the tables by hand, 55 of them quoted: all of Tables 3 and 4 and of the times.
    sizes = {"later": 76, "table-1": 42, "table-2": 10, "table-3": 4, "table-4": 2, "times": 5}
    assert literature.groupby("group").size().to_dict() == sizes
    assert literature["quoted"].sum() == 44 + 4 + 2 + 5


GOOD = """published:
- group: a
  source: Table 9
  results:
  - {dataset: mnist, eps: 0.1, method: x, natural: {value: 9}}
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  source: Table 9\n", "", "source: this key is missing"),
        ("{value: 9}", "9", "published.0.results.0.natural: 9 is not allowed: a mapping of keys is needed here"),
        ("eps: 0.1", "eps: null", "eps: null is not a radius"),
        ("Table 9", "''", "source"),
        ("value: 9}", "value: 109}", "109 is not allowed"),
        ("natural:", "accuracy:", "unknown key"),
        ("natural:", "cosine_clean:", "9.* is not allowed"),
        ("natural: {value: 9}", "training_minutes: {value: 0}", "0.* is not allowed"),
        ("natural: {value: 9}", "unstable_region: {value: 101}", "101.* is not allowed"),
        (", natural: {value: 9}", "", "a number is needed: natural, certified, "),
        ("mnist", "nmist", "'nmist' is not a dataset"),
        ("0.1", "3/2", "not in"),
    ],
)
def test_refuses(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(GOOD)
    assert len(published.read(path)) == 1
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(SabrError, match=said) as error:
        published.read(path)
    assert "published.yaml" in str(error.value)


def test_refuses_a_number_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(GOOD + GOOD.splitlines()[-1] + "\n")
    with pytest.raises(SabrError, match="given twice"):
        published.read(path)
