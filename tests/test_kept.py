"""A run that is kept: what is told of one that cannot be taken."""

import json
from pathlib import Path

import pytest

from sabr import reference
from sabr.errors import SabrError
from sabr.layers import read_yaml
from sabr.plan import resolve

CONFIG = Path(__file__).parents[1] / "config"
OUTLINE = {"scale": "tiny", "title": "t", "overrides": {}, "rows": []}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"overrides": []}, "overrides: [] is not allowed: a mapping of keys is needed here"),
        (
            {"rows": [{"dataset": "mnist", "eps": 0.1}]},
            "rows.0.eps: 0.1 is not allowed: text is needed here, in quotes",
        ),
        ({"rows": 3}, "rows: 3 is not allowed: a list is needed here"),
        ({"scale": None}, "scale: null is not allowed: text is needed here"),
    ],
)
def test_the_outline_of_a_kept_run_that_is_none_is_told(tmp_path, changes, told):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "outline.json").write_text(json.dumps(OUTLINE | changes))
    with pytest.raises(SabrError) as error:
        reference.configuration({"results": str(tmp_path), "checkpoints": "kept", "overrides": {}})
    assert f"kept/outline.json is no outline of a run: {told}; `sabr outline` writes one" in str(error.value)


def test_kept_runs_in_a_place_that_is_none_are_told():
    with pytest.raises(SabrError, match="results: '~nobody-here/x' is not allowed: there is no such home directory"):
        reference.configuration({"results": "~nobody-here/x", "checkpoints": "kept"})
    assert reference.configuration({"results": None, "checkpoints": "kept"})["results"] is None


def test_files_are_taken_below_the_folder_of_their_specification(tmp_path):
    spec = resolve(read_yaml(CONFIG / "config.yaml") | {"scale": "tiny"}, CONFIG).main[0].training
    about = {"architecture": spec.architecture, "dataset": spec.dataset, "spec": spec.model_dump(mode="json")}
    for name, content in (("kept/model.json", about | {"sha256": "aa"}), ("new/run.json", about["spec"])):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(SabrError, match=r"other/model\.json is not below .*new, the folder of run\.json"):
        reference.take(tmp_path / "kept", tmp_path / "new" / "run.json", [tmp_path / "other" / "model.json"])
    with pytest.raises(SabrError, match=r"cannot read .*history\.csv"):
        reference.take(tmp_path / "kept", tmp_path / "new" / "run.json", [tmp_path / "new" / "history.csv"])
