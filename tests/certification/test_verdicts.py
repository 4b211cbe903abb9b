import pandas as pd
import pytest

from sabr.certification import verdicts
from sabr.errors import SabrError


def shard(first, last, **changes):
    count = last - first
    columns = {
        "index": range(first, last),
        "label": 3,
        "prediction": 3,
        "natural_correct": True,
        "adversarial_correct": True,
        "certified": [i % 2 == 0 for i in range(count)],
        "certified_by": ["crown" if i % 2 == 0 else "" for i in range(count)],
        "margin_lower_bound": [0.5 if i % 2 == 0 else float("nan") for i in range(count)],
        "seconds": 0.25,
    }
    return pd.DataFrame(columns | changes)


ABOUT = {"model_sha256": "abc", "data_sha256": "def", "certification": {"images": 5}, "seconds": 2.0}


@pytest.fixture
def shards(tmp_path):
    paths = [tmp_path / "3-5.csv", tmp_path / "0-3.csv"]
    verdicts.write(shard(3, 5), paths[0], ABOUT)
    verdicts.write(shard(0, 3), paths[1], ABOUT)
    return paths


def test_round_trip(shards):
    table, about = verdicts.read(shards[1], verdicts.COLUMNS)
    pd.testing.assert_frame_equal(table, shard(0, 3), check_dtype=False)
    assert table["certified_by"].tolist() == ["crown", "", "crown"]
    assert about == ABOUT


def test_shards_are_put_in_order(shards):
    table, about = verdicts.merge(shards)
    assert table["index"].tolist() == [0, 1, 2, 3, 4]
    assert about["seconds"] == 4.0


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
    verdicts.write(shard(0, 3, **{column: [False, True, True]}), shards[1], ABOUT)
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
