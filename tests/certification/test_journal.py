import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sabr.certification.journal import Journal
from sabr.certification.verdicts import Verdict
from sabr.errors import SabrError

ABOUT = {"model_sha256": "abc", "certification": {"images": 9, "eps": 0.1}, "first": 0, "last": 9}
POINT = torch.tensor([[[0.1, -0.0], [1 / 3, 5e-324]]], dtype=torch.float64)
VERDICTS = {
    3: Verdict("crown", "", "", 0.25, 0, 0.5),
    1: Verdict("", "attack", "", -1 / 3, 0, 0.125, POINT),
    2: Verdict("", "", 'out of time after 12 subproblems, "ε"\n', None, 12, 9.5),
}


def same(one, other):
    assert one.keys() == other.keys()
    for number, verdict in one.items():
        fields, others = vars(verdict) | {"point": None}, vars(other[number]) | {"point": None}
        assert fields == others
        points = verdict.point, other[number].point
        if None in points:
            assert points == (None, None)
        else:
            assert points[0].dtype == points[1].dtype == torch.float64
            assert torch.equal(points[0].view(torch.int64), points[1].view(torch.int64))  # every bit, -0 and all


@pytest.fixture
def written(tmp_path):
    """A journal that was never closed, as a kill leaves it, with the verdicts above."""
    path = tmp_path / "shards" / "0-9.journal"
    journal = Journal(path, ABOUT)
    for number, verdict in VERDICTS.items():
        journal.add(number, verdict)
    yield path
    journal.close()


def test_verdicts_are_on_disk_as_soon_as_they_are_added(written):
    again = Journal(written, ABOUT)
    same(again.known, VERDICTS)
    again.remove()
    assert not written.exists()


def test_times_of_all_runs_are_added_up(written):
    journal = Journal(written, ABOUT)
    journal.spend("interval", 0.5)
    journal.spend("complete", 1.0)
    journal.spend("complete", 2.5)
    journal.close()
    again = Journal(written, ABOUT)
    assert again.seconds == {"interval": 0.5, "complete": 3.5}
    again.spend("complete", 0.25)
    again.close()
    last = Journal(written, ABOUT)
    last.close()
    assert last.seconds == again.seconds == {"interval": 0.5, "complete": 3.75}
    same(last.known, VERDICTS)


def test_a_kill_at_any_byte_loses_at_most_the_line_that_it_cut(written, tmp_path):
    whole = written.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 1 + len(VERDICTS)
    for cut in range(len(whole) + 1):
        path = tmp_path / "cut.journal"
        path.write_bytes(whole[:cut])
        journal = Journal(path, ABOUT)
        kept = max(0, sum(end <= cut for end in ends) - 1)
        same(journal.known, dict(list(VERDICTS.items())[:kept]))
        # What comes after the cut is read again, too.
        journal.add(7, VERDICTS[3])
        journal.close()
        again = Journal(path, ABOUT)
        again.close()
        assert again.known.keys() == journal.known.keys()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_sha256": "other"}, "model_sha256 ('abc' here, 'other' there)"),
        ({"certification": {"images": 9, "eps": 0.2}}, "certification.eps (0.1 here, 0.2 there)"),
        ({"last": 8}, "last (9 here, 8 there)"),
    ],
)
def test_another_runs_journal_is_refused_and_kept(written, changes, told):
    before = written.read_bytes()
    with pytest.raises(SabrError) as error:
        Journal(written, ABOUT | changes)
    assert told in str(error.value) and "belongs to another run" in str(error.value)
    assert written.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "{}",
        '{"image": 1, "point": null, "colour": 3}',
        "[1]",
        '"x"',
        '{"stage": "crown", "seconds": "long"}',
        "é",
    ],
)
def test_garbage_is_told(written, line):
    with written.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(SabrError, match=r"cannot use .*0-9\.journal: .*; delete it and run again"):
        Journal(written, ABOUT)


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SabrError, match="cannot write"):
        Journal(tmp_path / "file" / "0-9.journal", ABOUT)


@given(
    margin=st.none() | st.floats(allow_nan=False),
    seconds=st.floats(0, 1e9),
    reason=st.text(),
    values=st.lists(st.floats(width=64, allow_nan=False), min_size=1, max_size=5),
)
def test_any_verdict_comes_back(tmp_path_factory, margin, seconds, reason, values):
    path = tmp_path_factory.mktemp("journal") / "0-9.journal"
    verdict = Verdict("", "complete", reason, margin, 3, seconds, torch.tensor(values, dtype=torch.float64))
    journal = Journal(path, ABOUT)
    journal.add(4, verdict)
    journal.close()
    again = Journal(path, ABOUT)
    again.close()
    same(again.known, {4: verdict})
    first = json.loads(path.read_text().splitlines()[0])
    assert first == ABOUT
