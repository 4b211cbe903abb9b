"""Studies of several networks put together."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sabr.errors import SabrError
from sabr.files import checksum
from sabr.report import gathering
from sabr.studies import COLUMNS, NETWORK_COLUMNS

RADII = {"0.1": 0.1, "2_255": 2 / 255}
MakeStudy = Callable[..., Path]


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """Write a row folder with one study, as `sabr study relu-states` would; gives the folder."""

    def make(
        method: str = "sabr", *, dataset: str = "mnist", eps: str = "0.1", seed: int = 1, images: int = 5, **about: Any
    ) -> Path:
        folder = tmp_path / "quick" / dataset / f"eps-{eps}" / method / f"seed-{seed}"
        (folder / "studies").mkdir(parents=True)
        (folder / "model.json").write_text(json.dumps({"sha256": method}))
        path = folder / "studies" / "relu-states.csv"
        lines = [(where, images, layer, 40, 30.5, 29.5) for where in ("point", "region") for layer in ("1", "all")]
        pd.DataFrame(lines, columns=list(COLUMNS["relu-states"])).to_csv(path, index=False)
        sidecar = {
            "study": {"study": "relu-states", "images": images, "memory_mb": 10},
            "model_sha256": method,
            "data_sha256": "dd",
            "spec": {"dataset": dataset, "eps": RADII[eps], "attack": [], "images": 100, "complete": {"seconds": 1}},
            "sha256": checksum(path),
        }
        path.with_suffix(".json").write_text(json.dumps(sidecar | about))
        return folder

    return make


def gathered(*folders: Path) -> tuple[pd.DataFrame, list[str]]:
    said: list[str] = []
    return gathering.gather("relu-states", folders, said.append), said


def test_networks_stand_in_front(make_study: MakeStudy, tmp_path: Path) -> None:
    folders = [make_study("pgd"), make_study("sabr", seed=2), make_study(dataset="cifar10", eps="2_255", images=7)]
    table, said = gathered(*folders)
    assert not said and list(table.columns) == [*NETWORK_COLUMNS, *COLUMNS["relu-states"]]
    assert table[list(NETWORK_COLUMNS)].drop_duplicates().to_numpy().tolist() == [
        ["mnist", "0.1", "pgd", 1],
        ["mnist", "0.1", "sabr", 2],
        ["cifar10", "2/255", "sabr", 1],
    ]
    assert table["layer"].tolist() == 6 * ["1", "all"] and len(table) == 12
    table.to_csv(tmp_path / "all.csv", index=False)
    pd.testing.assert_frame_equal(gathering.read("relu-states", tmp_path / "all.csv"), table)
    with pytest.raises(SabrError, match=r"all\.csv is not the table it should be"):
        gathering.read("box-sizes", tmp_path / "all.csv")
    with pytest.raises(SabrError, match="not a study that this reads; allowed: box-growth, loss-lambda"):
        gathering.read("all", tmp_path / "all.csv")


def test_what_is_missing_is_said_and_left_out(make_study: MakeStudy) -> None:
    folders = [make_study("pgd"), make_study("sabr")]
    (folders[1] / "studies" / "relu-states.csv").unlink()
    table, said = gathered(*folders)
    assert set(table["method"]) == {"pgd"}
    assert len(said) == 1 and "sabr/seed-1/studies/relu-states.csv is missing" in said[0]
    with pytest.raises(
        SabrError, match="there is no study relu-states in the given folders; run `sabr study relu-states`"
    ):
        gathered(folders[1])


def test_limits_of_the_complete_verifier_may_differ(make_study: MakeStudy) -> None:
    longer = {"dataset": "mnist", "eps": 0.1, "attack": [], "images": 900, "complete": {"seconds": 9}}
    table, _ = gathered(make_study("pgd"), make_study("sabr", spec=longer))
    assert table["method"].nunique() == 2


def test_what_does_not_belong_together_is_refused(make_study: MakeStudy) -> None:
    pgd = make_study("pgd")
    with pytest.raises(SabrError, match="holds a network that was given before"):
        gathered(pgd, pgd)
    with pytest.raises(
        SabrError, match=r"ibp.*was made in another way than .*pgd.*: study\.images \(6 here, 5 there\)"
    ):
        gathered(pgd, make_study("ibp", images=6))
    attack = {"dataset": "mnist", "eps": 0.1, "attack": [1]}
    with pytest.raises(SabrError, match=r"was made in another way than .*: spec\.attack"):
        gathered(pgd, make_study("sabr", spec=attack))
    with pytest.raises(SabrError, match=r"was made of another network than .*model\.json is about"):
        gathered(make_study("taps", model_sha256="other"))
    with pytest.raises(SabrError, match=r"is of the dataset cifar10, not of mnist"):
        gathered(make_study("staps", spec={"dataset": "cifar10", "eps": 0.1}))
    with pytest.raises(SabrError, match=r"is for eps 0\.3, but its folder says 0\.1"):
        gathered(make_study("cc-ibp", spec={"dataset": "mnist", "eps": 0.3}))
    with pytest.raises(SabrError, match=r"is of the study box-sizes, not of relu-states"):
        gathered(make_study("exp-ibp", study={"study": "box-sizes"}))
    with pytest.raises(SabrError, match=r"relu-states\.json: study\.study: this key is missing; delete the file"):
        gathered(make_study("mtl-ibp", study={}))
    with pytest.raises(
        SabrError, match=r"relu-states\.json: spec\.eps: '0\.1' is not allowed: a number is needed here"
    ):
        gathered(make_study("crown-ibp", spec={"dataset": "mnist", "eps": "0.1"}))
    with pytest.raises(
        SabrError, match=r"relu-states\.json: spec: \[\] is not allowed: a mapping of keys is needed here"
    ):
        gathered(make_study("standard", spec=[]))
    with pytest.raises(SabrError, match=r"is not a folder of results; expected"):
        gathered(pgd.parent)


def test_damaged_tables_are_refused(make_study: MakeStudy) -> None:
    folder = make_study()
    path = folder / "studies" / "relu-states.csv"
    path.write_text(path.read_text().replace("29.5", "92.5"))
    with pytest.raises(SabrError, match=r"is damaged or does not belong to relu-states\.json"):
        gathered(folder)
    path.with_suffix(".json").unlink()
    with pytest.raises(SabrError, match=r"cannot read .*relu-states\.json"):
        gathered(folder)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (b"a,b\n1,2\n", "it has no column dataset"),
        (b"dataset\xff\n", "it is not text in UTF-8"),
        (
            b"@\nmnist,0.1,sabr,1,point,5,1,40,30,30\nmnist,0.1,sabr,1,point,5,1,40,30,30,9\n",
            "line 3 does not have as many",
        ),
        (b"@\nmnist,0.1,sabr,1,point,5,1,many,30,30\n", "line 2: active: 'many' is not a number"),
        (b"@\nmnist,0.1,sabr,1,point,5.5,1,40,30,30\n", r"line 2: images: '5\.5' is not a whole number"),
        (b"@\nmnist,0.1,sabr,1,point,0,1,40,30,30\n", "line 2: images is too small"),
        (b"@\nmnist,0.1,sabr,1,point,5,1,,30,30\n", "line 2: active is empty"),
        (b"@\nmnist,0.1,sabr,1,point,5,1,inf,30,30\n", "line 2: active is not finite"),
        (b"@\nmnist,0.1,,1,point,5,1,40,30,30\n", "line 2: method is empty"),
        (b"@\nmnst,0.1,sabr,1,point,5,1,40,30,30\n", "line 2: 'mnst' is not a dataset; allowed: mnist"),
        (b"@\nmnist,8/0,sabr,1,point,5,1,40,30,30\n", "line 2: eps: '8/0' is not a radius"),
    ],
)
def test_where_a_table_is_damaged_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    head = ",".join([*NETWORK_COLUMNS, *COLUMNS["relu-states"]]).encode()
    (tmp_path / "all.csv").write_bytes(content.replace(b"@", head))
    with pytest.raises(
        SabrError, match=rf"all\.csv is not the table it should be \({told}.*\); delete it and run again"
    ):
        gathering.read("relu-states", tmp_path / "all.csv")


def test_neither_gathering_nor_drawing_imports_torch(make_study: MakeStudy, sabr_command: Any, tmp_path: Path) -> None:
    folder = make_study()
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not wanted here')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = sabr_command("gather", "relu-states", folder, tmp_path / "no", "-o", tmp_path / "all.csv", env=environment)
    assert done.returncode == 1 and "is not a folder of results" in done.stderr
    done = sabr_command("gather", "relu-states", folder, "-o", tmp_path / "all.csv", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    drawing = ("figure", "box-sizes", tmp_path / "all.csv", "--title", "t", "-o", tmp_path / "a.png")
    done = sabr_command(*drawing, env=environment)
    assert done.returncode == 1 and "all.csv is not the table it should be" in done.stderr
