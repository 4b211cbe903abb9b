import json

import pandas as pd
import pytest

from sabr.certification import verdicts
from sabr.certification.verdicts import Verdict
from sabr.errors import SabrError
from sabr.files import checksum


def shard(first, last, **changes):
    count = last - first
    odd = [i % 2 == 1 for i in range(count)]
    columns = {
        "index": range(first, last),
        "label": 3,
        "prediction": 3,
        "natural_correct": True,
        "adversarial_correct": True,
        "certified": [not o for o in odd],
        "certified_by": ["" if o else "crown" for o in odd],
        "refuted_by": "",
        "reason": ["out of time after 4 subproblems" if o else "" for o in odd],
        "margin_lower_bound": [float("nan") if o else 0.5 for o in odd],
        "subproblems": [4 if o else 0 for o in odd],
        "seconds": 0.25,
    }
    return pd.DataFrame(columns | changes)


def record(entered, certified, seconds):
    return {"entered": entered, "certified": certified, "refuted": 0, "unknown": 0, "seconds": seconds}


ABOUT = {"model_sha256": "abc", "data_sha256": "def", "certification": {"images": 5}, "seconds": 2.0}


@pytest.fixture
def shards(tmp_path):
    paths = [tmp_path / "3-5.csv", tmp_path / "0-3.csv"]
    verdicts.write(shard(3, 5), paths[0], ABOUT | {"stages": {"interval": record(2, 0, 0.5), "crown": record(2, 1, 1)}})
    verdicts.write(shard(0, 3), paths[1], ABOUT | {"stages": {"interval": record(3, 0, 1.5), "crown": record(3, 2, 4)}})
    return paths


def test_round_trip(shards):
    table, about = verdicts.read(shards[1], verdicts.COLUMNS)
    pd.testing.assert_frame_equal(table, shard(0, 3), check_dtype=False)
    assert table["certified_by"].tolist() == ["crown", "", "crown"]
    assert {name: about[name] for name in ABOUT} == ABOUT


def test_a_shards_table_says_what_is_known_of_every_image():
    attacked = pd.DataFrame(
        {
            "index": [4, 5, 6, 7, 8],
            "label": 3,
            "prediction": [1, 3, 3, 3, 3],
            "natural_correct": [False, True, True, True, True],
            "adversarial_correct": [False, False, True, True, True],
        }
    )
    known = {
        6: Verdict("crown", "", "", 0.5, 0, 0.25),
        7: Verdict("", "complete", "", -0.5, 9, 1.25),
        8: Verdict("", "", "out of time after 8 subproblems", None, 8, 2.25),
    }
    table = verdicts.table(attacked, known).set_index("index")
    assert table["adversarial_correct"].tolist() == [False, False, True, False, True]
    assert table["certified"].tolist() == [False, False, True, False, False]
    assert table["certified_by"].tolist() == ["", "", "crown", "", ""]
    assert table["refuted_by"].tolist() == ["", "quick-attack", "", "complete", ""]
    assert table["reason"].tolist() == ["misclassified", "", "", "", "out of time after 8 subproblems"]
    assert table["margin_lower_bound"].isna().tolist() == [True, True, False, False, True]
    assert table["subproblems"].tolist() == [0, 0, 0, 9, 8]
    assert table["seconds"].tolist() == [0, 0, 0.25, 1.25, 2.25]


def test_shards_are_put_in_order_and_their_work_is_added_up(shards):
    table, about = verdicts.merge(shards)
    assert table["index"].tolist() == [0, 1, 2, 3, 4]
    assert about["seconds"] == 4.0
    assert about["stages"] == {"interval": record(5, 0, 2.0), "crown": record(5, 3, 5)}
    assert list(about["stages"]) == ["interval", "crown"]


def test_missing_and_repeated_images_are_refused(shards):
    with pytest.raises(SabrError, match="hold 2 verdicts, not one for each of 5 images"):
        verdicts.merge(shards[:1])
    with pytest.raises(SabrError, match="hold 4 verdicts"):
        verdicts.merge([shards[0], shards[0]])


@pytest.mark.parametrize("key", ["model_sha256", "data_sha256", "certification"])
def test_shards_of_different_runs_are_refused(shards, key):
    verdicts.write(shard(0, 3), shards[1], ABOUT | {key: "other"})
    with pytest.raises(SabrError, match=f"differ in {key}"):
        verdicts.merge(shards)


@pytest.mark.parametrize("column", ["adversarial_correct", "natural_correct"])
def test_certified_and_refuted_at_once_stops(shards, column):
    verdicts.write(shard(0, 3, **{column: [False, True, True]}), shards[1], ABOUT | {"stages": {}})
    with pytest.raises(SabrError, match="test image 0 was certified by crown with margin 0.5 although"):
        verdicts.merge(shards)


def test_half_written_files_are_refused(shards):
    shards[0].write_text(shards[0].read_text()[:-20])
    with pytest.raises(SabrError, match=r"cannot read .*3-5\.csv"):
        verdicts.merge(shards)
    verdicts.write(pd.DataFrame({"index": [1], "label": [2]}), shards[0], ABOUT)
    with pytest.raises(SabrError, match="has the columns index, label; expected"):
        verdicts.merge(shards)
    shards[0].with_suffix(".json").write_text("[]")
    with pytest.raises(SabrError, match="does not belong to 3-5.json"):
        verdicts.merge(shards)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seconds": "long"}, r"3-5\.json: seconds: 'long' is not allowed: a number is needed here; delete it and"),
        ({"seconds": None}, r"3-5\.json: seconds: null is not allowed"),
        ({"stages": [1]}, r"3-5\.json: stages: \[1\] is not allowed: a mapping of keys is needed here"),
        ({"stages": {"crown": 3}}, r"3-5\.json: stages\.crown: 3 is not allowed"),
    ],
)
def test_sidecars_of_another_form_are_told(shards, changes, told):
    verdicts.write(shard(3, 5), shards[0], ABOUT | changes)
    with pytest.raises(SabrError, match=told):
        verdicts.merge(shards)


@pytest.mark.parametrize("asked", [3, {"images": "all"}, {}])
def test_specifications_of_another_form_are_told(shards, asked):
    for path, lines in zip(shards, (shard(3, 5), shard(0, 3)), strict=True):
        verdicts.write(lines, path, ABOUT | {"certification": asked})
    with pytest.raises(SabrError, match=r"3-5\.json: certification.* (is not allowed|is missing).*; delete it and"):
        verdicts.merge(shards)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("4,3,3,maybe,True,False,,,out,,0,0.25", "line 3: natural_correct: 'maybe' is not True or False"),
        ("four,3,3,True,True,False,,,out,,0,0.25", "line 3: index: 'four' is not a whole number"),
        ("4,3,3,True,True,False,,,out,,0,soon", "line 3: seconds: 'soon' is not a number"),
        ("4,3", "line 3: prediction: '' is not a whole number"),
    ],
)
def test_cells_of_another_form_are_told(shards, line, told):
    head, first, _ = shards[0].read_text().splitlines()
    shards[0].write_text("\n".join([head, first, line]) + "\n")
    about = json.loads(shards[0].with_suffix(".json").read_text()) | {"sha256": checksum(shards[0])}
    shards[0].with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(SabrError, match=rf"cannot read .*3-5\.csv: {told}; delete it and run again"):
        verdicts.merge(shards)
