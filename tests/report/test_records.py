import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sabr.errors import SabrError
from sabr.report import records

MakeRow = Callable[..., Path]
CONFIG = Path(__file__).parents[2] / "config"


def change(path: Path, *keys: str, to: Any) -> None:
    value = json.loads(path.read_text())
    part = value
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = to
    path.write_text(json.dumps(value))


def test_counts_by_hand(make_row: MakeRow) -> None:
    table = records.collect([make_row("sabr"), make_row("ibp", certified=(4, 0, 2), adversarial=6)])
    sabr, ibp = table.iloc[0], table.iloc[1]
    assert list(sabr[["dataset", "eps", "method", "objective", "seed"]]) == ["mnist", "0.1", "sabr", "sabr", 1]
    assert list(sabr[["images", "natural", "adversarial", "certified"]]) == [20, 18, 16, 11]
    assert list(sabr[list(records.STAGE_COLUMNS.values())]) == [4, 7, 9, 10, 11]
    assert list(ibp[list(records.STAGE_COLUMNS.values())]) == [4, 4, 6, 6, 6]
    assert (sabr.refuted, sabr.unknown, sabr.unknown_because) == (2, 5, "out of time: 5")
    assert (ibp.refuted, ibp.unknown) == (12, 0)
    assert pd.isna(ibp.unknown_because)
    assert sabr.lambda_ratio == 0.4
    assert pd.isna(ibp.lambda_ratio)
    assert sabr.train_images == 60_000  # null in the specification: all of MNIST
    assert (sabr.train_seconds, sabr.attack_seconds, sabr.certify_seconds) == (12.5, 1.5, 3.0)
    assert (sabr.torch, sabr.certify_commit) == ("2.10", "abc")
    assert pd.isna(sabr.commit)


def test_stage_that_was_not_run_is_missing(make_row: MakeRow) -> None:
    row = records.collect([make_row(stages=("interval", "crown"), certified=(5, 3), refuted=())]).iloc[0]
    assert (row.certified_interval, row.certified_crown, row.certified) == (5, 8, 8)
    assert pd.isna(row.certified_crown_ibp)
    assert pd.isna(row.certified_alpha_crown)
    assert pd.isna(row.certified_complete)


def test_stages_add_up_in_the_order_in_which_they_were_run(make_row: MakeRow) -> None:
    folder = make_row(stages=("crown", "attack", "interval", "complete"), certified=(3, 2, 1), refuted=(1,))
    row = records.collect([folder]).iloc[0]
    assert (row.certified_crown, row.certified_interval, row.certified_complete) == (3, 5, 6)


def test_seeds_of_several_scales_are_refused(make_row: MakeRow) -> None:
    one, other = make_row("sabr", seed=1), make_row("sabr", seed=2)
    assert len(records.collect([one, other])) == 2
    for file, keys in (("run.json", ()), ("model.json", ("spec",))):
        change(other / file, *keys, "epochs", to=4)
    with pytest.raises(
        SabrError, match=r"seed-2/run.json and .*seed-1/run.json .*epochs \(4 here, 3 there\); keep one"
    ):
        records.collect([one, other])


def test_reasons_are_counted_without_their_numbers(make_row: MakeRow, change_verdict: Callable[..., None]) -> None:
    folder = make_row()
    for index, reason in enumerate(("a tie: a margin is 0 up to rounding", "the shard's time is over"), start=11):
        change_verdict(folder, index, {"reason": reason})
    row = records.collect([folder]).iloc[0]
    assert row.unknown_because == "out of time: 3; a tie: 1; the shard's time is over: 1"


def test_round_trip_keeps_types(make_row: MakeRow, tmp_path: Path) -> None:
    table = records.collect(
        [make_row(eps="2_255", dataset="cifar10"), make_row(stages=("crown",), certified=(3,), refuted=())]
    )
    assert list(table["eps"]) == ["2/255", "0.1"]
    records.write(table, tmp_path / "records.csv")
    pd.testing.assert_frame_equal(records.read(tmp_path / "records.csv"), table)


@pytest.mark.parametrize(
    ("file", "keys", "to", "said"),
    [
        ("verdicts.json", ("model_sha256",), "bb", ["verdicts.json", "'bb'", "'aa'"]),
        ("run.json", ("epochs",), 4, ["run.json", "epochs (4 here, 3 there)"]),
        ("verdicts.json", ("certification", "images"), 21, ["verdicts.csv", "20", "21"]),
        ("verdicts.json", ("certification", "eps"), 0.2, ["verdicts.json", "0.2", "0.1"]),
        ("verdicts.json", ("certification", "dataset"), "cifar10", ["'cifar10'", "'mnist'"]),
        ("verdicts.json", ("certification", "stages"), ["crown"], ["certified_by"]),
        ("verdicts.json", ("stages",), {}, ["verdicts.json", "stages.interval"]),
        ("verdicts.json", ("sha256",), "cc", ["verdicts.csv", "does not belong to verdicts.json"]),
        ("attack.json", ("model_sha256",), "bb", ["attack.json", "'bb'", "'aa'"]),
        ("attack.json", ("seconds",), "long", ["attack.json: seconds: 'long' is not allowed: a number is needed here"]),
        ("model.json", ("provenance",), None, ["model.json: provenance: null is not allowed: a mapping of keys"]),
        ("model.json", ("provenance", "versions"), [], ["model.json: provenance.versions: [] is not allowed"]),
        (
            "verdicts.json",
            ("certification",),
            [],
            ["verdicts.json: certification: [] is not allowed: a mapping of keys"],
        ),
        ("verdicts.json", ("stages", "crown"), 3, ["verdicts.json: stages.crown: 3 is not allowed: a mapping of keys"]),
        ("verdicts.json", ("certification", "images"), "many", ["verdicts.json", "certification.images", "'many'"]),
    ],
)
def test_refuses_what_does_not_fit(make_row: MakeRow, file: str, keys: Any, to: Any, said: list[str]) -> None:
    folder = make_row()
    change(folder / file, *keys, to=to)
    with pytest.raises(SabrError) as error:
        records.collect([folder])
    assert all(part in str(error.value) for part in said), error.value


@pytest.mark.parametrize(
    ("index", "values", "said"),
    [
        (0, {"natural_correct": False, "prediction": 3}, "certified, but natural_correct is False"),
        (0, {"adversarial_correct": False}, "certified, but adversarial_correct is False"),
        (19, {"adversarial_correct": True}, "adversarial_correct, but natural_correct is False"),
        (0, {"prediction": 3}, "prediction equals label"),
        (15, {"certified": True}, "certified and certified_by contradict"),
        (15, {"certified_by": "crown"}, "certified and certified_by contradict"),
        (16, {"adversarial_correct": True}, "adversarial_correct and refuted_by contradict"),
        (15, {"adversarial_correct": False}, "adversarial_correct and refuted_by contradict"),
        (15, {"reason": ""}, "not exactly one of certified, refuted and unknown"),
        (0, {"reason": "out of time"}, "not exactly one of certified, refuted and unknown"),
        (0, {"refuted_by": "attack", "adversarial_correct": False, "certified": False}, "contradict"),
        (19, {"reason": "out of time"}, "reason and natural_correct contradict"),
        (15, {"reason": "misclassified"}, "reason and natural_correct contradict"),
        (0, {"certified_by": "magic"}, "none of the stages"),
        (0, {"certified_by": "attack"}, "none of the stages that prove"),
        (16, {"refuted_by": "crown"}, "refuted_by is none of quick-attack, attack, complete"),
        (3, {"index": 4}, "index 4 stands where 3"),
        (3, {"certified": "perhaps"}, "cannot read"),
    ],
)
def test_refuses_contradictory_verdicts(
    make_row: MakeRow, change_verdict: Callable[..., None], index: int, values: dict[str, Any], said: str
) -> None:
    folder = make_row()
    change_verdict(folder, index, values)
    with pytest.raises(SabrError, match=said):
        records.collect([folder])


def test_refuses_missing_keys_files_and_folders(make_row: MakeRow, tmp_path: Path) -> None:
    folder = make_row()
    with pytest.raises(SabrError, match="not a folder of results"):
        records.collect([tmp_path])
    with pytest.raises(SabrError, match="no results"):
        records.collect([])
    (folder / "verdicts.csv").unlink()
    with pytest.raises(SabrError, match="cannot read"):
        records.collect([folder])
    (folder / "model.json").write_text("{}")
    with pytest.raises(SabrError, match="sha256: this key is missing; delete the file and run again"):
        records.collect([folder])
    for file in ("model.json", "attack.json", "verdicts.json"):
        folder = make_row(seed=2, scale=file)
        (folder / file).write_text("[]")
        with pytest.raises(
            SabrError, match=rf"{file}: \[\] is not allowed: a mapping of keys is needed here; delete the"
        ):
            records.collect([folder])


def test_refuses_unequal_settings_and_doubles(make_row: MakeRow) -> None:
    one, other = make_row("sabr"), make_row("ibp", images=30)
    with pytest.raises(SabrError, match="30 images were judged here, but 20"):
        records.collect([one, other])
    with pytest.raises(SabrError, match="same method, setting and seed"):
        records.collect([one, make_row("sabr", scale="laptop")])


def test_histories(make_row: MakeRow, tmp_path: Path) -> None:
    table = records.histories([make_row("sabr", eps="2_255", dataset="cifar10"), make_row("standard")])
    assert list(table["setting"].unique()) == ["cifar10-eps-2_255", "mnist-eps-0.1"]
    assert list(table.columns[:5]) == ["method", "setting", "seed", "epoch", "eps"]
    assert len(table) == 6
    folder = make_row("pgd")
    (folder / "history.csv").unlink()
    with pytest.raises(SabrError, match=r"history\.csv"):
        records.histories([folder])
    (folder / "history.csv").write_text("epoch,loss\n1,2\n")
    with pytest.raises(SabrError, match=r"history\.csv is not the table it should be \(it has no column eps\)"):
        records.histories([folder])
    table.to_csv(tmp_path / "histories.csv", index=False)
    pd.testing.assert_frame_equal(records.read_histories(tmp_path / "histories.csv"), table)


def test_counts_that_cannot_be_are_told(make_row: MakeRow, tmp_path: Path) -> None:
    table = records.collect([make_row()])
    records.write(table.assign(certified=21), tmp_path / "records.csv")
    with pytest.raises(SabrError, match=r"records\.csv is not .* \(line 2: certified is larger than images\)"):
        records.read(tmp_path / "records.csv")


def test_summary_of_one_seed_and_of_several(make_row: MakeRow) -> None:
    one = records.summary(records.collect([make_row()])).set_index("measure").loc["natural"]
    low, high = records.interval(18, 20)
    assert (one.value, one.low, one.high, one.seeds, one.images) == (90.0, 100 * low, 100 * high, 1, 20)
    assert pd.isna(one.deviation)
    folders = [make_row("ibp", seed=1, natural=16), make_row("ibp", seed=2, natural=18)]
    both = records.summary(records.collect(folders)).set_index("measure").loc["natural"]
    assert both.value == 85.0
    assert both.deviation == pytest.approx(50**0.5)  # 80 and 90, n - 1
    assert both.low == pytest.approx(85 - 50**0.5)
    assert both.seeds == 2


def test_the_scale_in_words_is_that_of_the_records(make_row: MakeRow) -> None:
    found = records.collect([make_row("sabr"), make_row("sabr", dataset="cifar10", eps="2_255", images=1200)])
    found.loc[1, ["architecture", "train_images", "epochs"]] = ["cnn-small-wide", 20_000, 40]
    title = "tiny scale: cnn7, all training images, 160 epochs, first 9 / 10,000 validation images"
    assert records.described(found, title) == (
        "tiny scale: cnn-small/cnn-small-wide, all / 20,000 training images, 3 / 40 epochs, first 20 / 1,200 "
        "validation images"
    )
    one = "tiny: cnn-small, all training images, 3 epochs, first 20 images"
    assert records.described(found[:1], "tiny") == one


def test_interval_known_value() -> None:
    # Wilson, 1927: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.959964
    assert records.interval(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_properties(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = records.interval(successes, n)
    assert 0 <= low <= successes / n + 1e-12
    assert successes / n - 1e-12 <= high <= 1
    mirrored = records.interval(n - successes, n)
    assert (low, high) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-9)
    wide = records.interval(4 * successes, 4 * n)
    assert wide[1] - wide[0] < high - low


def test_the_reports_commands_never_import_torch(make_row: MakeRow, tmp_path: Path) -> None:
    folder = make_row()
    other = make_row("ibp")
    files = {"histories": "h.csv", "stages": "s.csv", "limits": "l.csv", "pairs": "p.csv", "protocol": "t.csv"}
    collect = [
        "collect",
        str(folder),
        str(other),
        str(tmp_path / "mnist" / "eps-0.1" / "pgd" / "seed-1"),
        "-o",
        "r.csv",
    ]
    collect += [word for option, file in files.items() for word in (f"--{option}", file)] + ["--provenance", "v.json"]
    plan = {"scale": "tiny", "title": "t", "studied": "t", "overrides": {}}
    rows = [{"dataset": "mnist", "eps": "0.1", "method": m, "seed": 1, "parts": ["main"]} for m in ("sabr", "ibp")]
    outline = ["outline", json.dumps(plan | {"rows": rows}), "-o", "o.json"]
    style = ["--style", str(CONFIG / "figures.yaml")]
    beside = [*style, "--published", str(CONFIG / "published.yaml"), "--outline", "o.json"]
    tables = [
        ["table", name, f"{source}.csv", *beside, "-o", f"{name}.md"]
        for name, source in (("table1", "r"), ("table2", "r"), ("times", "r"), ("seeds", "p"), ("protocol", "t"))
    ]
    claims = ["claims", "--records", "r.csv", "--pairs", "p.csv", *beside, "--claims", str(CONFIG / "claims.yaml")]
    figures = [
        ["figure", name, f"{source}.csv", "--title", "t", *style, "-o", f"{name}.png"]
        for name, source in (("accuracies", "r"), ("training-curves", "h"), ("cascade", "s"), ("time-limit", "l"))
    ]
    code = (
        "import sys; from sabr.cli import app\n"
        f"for command in {[outline, collect, *tables, [*claims, '-o', 'c.json'], *figures]!r}: app(command, standalone_mode=False)\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert "left out: " in done.stderr and "pgd/seed-1 has no run.json" in done.stderr
    made = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert made == {"o.json", "r.csv", "v.json", "c.json", *files.values()} | {
        *(f"{name}.md" for _, name, *_ in tables),
        *(f"{name}.png" for _, name, *_ in figures),
    }
