from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from sabr.errors import SabrError
from sabr.report import stages

MakeRow = Callable[..., Path]
COUNTS = ["entered", "certified", "refuted", "unknown"]


def test_stages_by_hand(make_row: MakeRow) -> None:
    table = stages.stages([make_row("ibp", eps="2_255", dataset="cifar10")])
    assert set(table["eps"]) == {"2/255"}
    found = {line.stage: tuple(getattr(line, name) for name in COUNTS) for line in table.itertuples()}
    assert list(found.items()) == [
        ("quick-attack", (18, 0, 1, 0)),
        ("interval", (17, 4, 0, 0)),
        ("crown-ibp", (13, 3, 0, 0)),
        ("crown", (10, 2, 0, 0)),
        ("alpha-crown", (8, 1, 0, 0)),
        ("attack", (7, 0, 1, 0)),
        ("complete", (6, 1, 0, 5)),
        ("control", (11, 0, 0, 0)),
    ]
    assert list(table["seconds"]) == [1.5, *7 * [0.5]]


@pytest.mark.parametrize("order", [("complete", "attack"), ("crown", "attack"), ("attack", "complete", "interval")])
def test_every_image_leaves_once(make_row: MakeRow, order: tuple[str, ...]) -> None:
    certified = (2, 1)[: len(set(order) - {"attack"})]
    folder = make_row(stages=order, certified=certified, refuted=())
    table = stages.stages([folder]).set_index("stage")
    left = table[["certified", "refuted", "unknown"]].sum().sum()
    assert left == table.loc["quick-attack", "entered"] == 18
    last = "complete" if "complete" in order else order[-1]
    assert table["unknown"].to_dict() == dict.fromkeys(table.index, 0) | {last: 16 - sum(certified)}
    after = list(table.index)[list(table.index).index(last) + 1 : -1]
    decided = table.loc[after, ["certified", "refuted"]].sum().sum()
    assert all(table.loc[stage, "entered"] == decided for stage in after[:1])


def test_time_limits_by_hand(make_row: MakeRow) -> None:
    table = stages.limits([make_row()]).set_index("limit")
    assert table.index.is_monotonic_increasing and table.index.is_unique
    assert {1.0, 3.0} < set(table.index)
    assert table.index.max() == 5.0  # the configured one
    # Four by intervals in 2 ms each; the complete verifier's one takes 2 s.
    assert table.loc[0.001, "certified"] == 0
    assert table.loc[0.01, "certified"] == 7
    assert (table.loc[1.0, "certified"], table.loc[3.0, "certified"], table.loc[5.0, "certified"]) == (10, 11, 11)
    # The quick attack refutes before any clock runs; the strong one in half a second.
    assert (table.loc[0.001, "refuted"], table.loc[1.0, "refuted"]) == (1, 2)
    assert set(table[["certified", "refuted", "undecided"]].sum(axis=1)) == {18}


def test_at_the_configured_limit_all_verdicts_count(make_row: MakeRow, change_verdict: Callable[..., None]) -> None:
    folder = make_row()
    change_verdict(folder, 10, {"seconds": 7.5})
    table = stages.limits([folder]).set_index("limit")
    assert (table.loc[3.0, "certified"], table.loc[5.0, "certified"]) == (10, 11)


def test_without_the_complete_verifier_there_is_no_limit(make_row: MakeRow) -> None:
    assert stages.limits([make_row(stages=("crown",), certified=(3,), refuted=())]).empty


def test_round_trip_keeps_types(make_row: MakeRow, tmp_path: Path) -> None:
    folder = make_row()
    for made, read in ((stages.stages, stages.read_stages), (stages.limits, stages.read_limits)):
        table = made([folder])
        table.to_csv(tmp_path / "table.csv", index=False)
        pd.testing.assert_frame_equal(read(tmp_path / "table.csv"), table)
    with pytest.raises(SabrError, match="not the table"):
        stages.read_stages(tmp_path / "table.csv")
