import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sabr.errors import SabrError
from sabr.report import pairs, records, style
from sabr.report.claims import evaluate, model, quantities
from sabr.report.claims.evaluate import Judged
from sabr.report.claims.model import Claim, FullScale
from sabr.report.claims.quantities import Results

MakeRow = Callable[..., Path]
CONFIG = Path(__file__).parents[2] / "config"
HERE = "mnist-eps-0.1"


@pytest.fixture
def results(
    plan: Callable[..., Any], literature: pd.DataFrame, looks: style.Style, make_row: MakeRow
) -> Callable[..., Results]:
    """What claims are checked on: row folders, studies, and the parts that methods belong to besides main."""
    nothing = records.collect([make_row("none", objective="pgd")]).iloc[:0]

    def make(folders: list[Path] | None = None, *, full: FullScale | None = None, **studies: pd.DataFrame) -> Results:
        places = ["/".join(folder.parts[-4:]).split("/") for folder in folders or []]
        networks = [
            f"{dataset}-{eps}/{method}/{seed.removeprefix('seed-')}/{'sweep' if 'lambda' in method else 'main'}"
            for dataset, eps, method, seed in places
        ]
        return Results(
            outline=plan(*(networks or [f"{HERE}/sabr/1"])),
            records=records.collect(folders) if folders else nothing,
            pairs=pairs.pairs(folders or []),
            studies={name.replace("_", "-"): table for name, table in studies.items()},
            published=literature,
            full_scale=full or FullScale(architecture="cnn-small", epochs={HERE: 3, "cifar10-eps-8_255": 3}),
            style=looks,
        )

    return make


def judge(results: Results, *checks: dict[str, Any], **more: Any) -> Judged:
    claim = {"id": "a", "text": "A claim.", "source": "Table 1", "checks": list(checks)} | more
    return evaluate.evaluate([Claim.model_validate(claim)], results)[0]


def beats(left: dict[str, Any], right: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"kind": "above", "left": left, "right": right, "tolerance": 1} | more


NATURAL = {name: {"method": name, "measure": "natural"} for name in ("sabr", "ibp")}
LARGE = {"images": 400, "adversarial": 100, "certified": (40, 20)}


def test_above_both_ways_and_neither(make_row: MakeRow, results: Callable[..., Results]) -> None:
    far = results([make_row("sabr", natural=380, **LARGE), make_row("ibp", natural=340, **LARGE)])
    up, down = beats(NATURAL["sabr"], NATURAL["ibp"]), beats(NATURAL["ibp"], NATURAL["sabr"])
    found = judge(far, up)
    assert (found.verdict, found.summary) == ("holds", "holds")
    case = found.cases[0]
    assert (
        "SABR 95.00 %, IBP 85.00 %; difference +10.00 points (1 seed, 400 images; p < 0.001 on images)" in case.numbers
    )
    assert (case.setting, case.reason) == (HERE, "one seed")
    assert case.values and case.values["p_images"] < 1e-9 and case.values["p_seeds"] is None
    assert judge(far, down).verdict == "does not hold"
    # Beyond chance on these images, but one seed: not beyond what a seed may change.
    one = judge(far, up | {"tolerance": 11})
    assert (one.verdict, one.cases[0].reason) == ("not testable", "there is one seed, which may change 11 points")


def test_above_is_not_testable_when_not_significant(make_row: MakeRow, results: Callable[..., Results]) -> None:
    near = results([make_row("sabr", natural=343, **LARGE), make_row("ibp", natural=340, **LARGE)])
    found = judge(near, beats(NATURAL["sabr"], NATURAL["ibp"]))
    assert found.verdict == "not testable"
    assert "not significant (p = 0.25)" in found.cases[0].reason  # 3 of 3 discordant images


def test_above_over_seeds(make_row: MakeRow, results: Callable[..., Results]) -> None:
    def run(scale: str, sabr: tuple[int, ...], ibp: tuple[int, ...]) -> Judged:
        folders = [
            make_row(method, seed=seed, natural=natural, scale=scale, **LARGE)
            for method, counts in (("sabr", sabr), ("ibp", ibp))
            for seed, natural in enumerate(counts)
        ]
        return judge(results(folders), beats(NATURAL["sabr"], NATURAL["ibp"]))

    steady = run("steady", (380, 381, 379), (340, 343, 341))
    assert steady.verdict == "holds"
    assert "SABR 95.00 ± 0.25 %" in steady.cases[0].numbers
    assert "3 seeds, 400 images; p < 0.001 on images, p < 0.001 over seeds" in steady.cases[0].numbers
    scattered = run("scattered", (390, 330, 380), (340, 350, 330))
    assert scattered.verdict == "not testable"
    assert "not significant" in scattered.cases[0].reason


def test_absent_data_say_so(make_row: MakeRow, results: Callable[..., Results]) -> None:
    here = results([make_row("sabr"), make_row("ibp", seed=2)])
    settings = {"settings": [HERE, "cifar10-eps-2_255"]}
    found = judge(here, beats(NATURAL["sabr"], NATURAL["ibp"], **settings))
    assert found.summary == "not testable in 2 of 2"
    assert found.cases[0].reason == "SABR and IBP have no seed in common"
    assert found.cases[1].reason == "CIFAR-10, ε = 2/255 is not part of this run"
    for check, reason in (
        (beats(NATURAL["sabr"], {"method": "pgd", "measure": "natural"}), "PGD has no results in MNIST, ε = 0.1"),
        ({"kind": "peak", "measure": "certified", "below": 1}, "this run has no sweep over λ"),
        ({"kind": "growth", "study": "box-growth", "factor": 2}, "the study box-growth was not made in this run"),
        (
            {"kind": "bound", "of": {"study": "relu-inputs", "method": "ibp", "column": "mean"}, "at_most": 0},
            "the study relu-inputs was not made in this run",
        ),
    ):
        assert [case.reason for case in judge(here, check).cases] == [reason]


def test_a_claim_of_several_settings(make_row: MakeRow, results: Callable[..., Results]) -> None:
    folders = [
        make_row(method, dataset=dataset, eps=eps, natural=natural, **LARGE)
        for dataset, eps, sabr, ibp in (
            ("mnist", "0.1", 380, 340),
            ("mnist", "0.3", 381, 380),
            ("cifar10", "8_255", 300, 340),
        )
        for method, natural in (("sabr", sabr), ("ibp", ibp))
    ]
    check = beats(NATURAL["sabr"], NATURAL["ibp"])
    found = judge(results(folders), check)
    assert (found.verdict, found.summary) == ("does not hold", "does not hold in 1 of 3, 1 holds, 1 not testable")
    found = judge(results(folders[:4]), check)
    assert (found.verdict, found.summary) == ("holds", "holds in 1 of 2, 1 not testable")
    # Two checks: one of them holds nowhere.
    found = judge(results(folders[:2]), check, beats(NATURAL["sabr"], {"method": "pgd", "measure": "natural"}))
    assert (found.verdict, found.summary) == ("not testable", "not testable in 1 of 2, 1 holds")


def test_another_setting_than_the_papers_is_said(make_row: MakeRow, results: Callable[..., Results]) -> None:
    here = results([make_row("sabr", natural=380, **LARGE), make_row("ibp", natural=340, **LARGE)])
    found = judge(here, beats(NATURAL["sabr"], NATURAL["ibp"]), setting="cifar10-eps-2_255")
    assert found.cases[0].reason == "one seed; the paper's claim is about CIFAR-10, ε = 2/255"


def test_published_numbers_need_the_full_scale(make_row: MakeRow, results: Callable[..., Results]) -> None:
    all_images = {"images": 10_000, "natural": 6000, "adversarial": 5000, "dataset": "cifar10", "eps": "8_255"}
    nets = {"published": "linf-distance-nets", "measure": "certified"}  # 40.06 %
    sabr = {"method": "sabr", "measure": "certified"}
    settings = {"settings": ["cifar10-eps-8_255"]}
    below = results([make_row("sabr", certified=(2000, 1500), scale="a", **all_images)])
    assert judge(below, beats(nets, sabr, **settings)).verdict == "holds"
    assert judge(below, beats(sabr, nets, **settings)).verdict == "does not hold"
    about = results([make_row("sabr", certified=(2000, 2000), scale="b", **all_images)])
    assert judge(about, beats(nets, sabr, **settings)).cases[0].reason == "the difference is not significant"
    small = results([make_row("sabr", certified=(2, 1), dataset="cifar10", eps="8_255", scale="c")])
    case = judge(small, beats(nets, sabr, **settings)).cases[0]
    assert case.verdict == "not testable"
    assert "reduced scale (20 test images)" in case.reason


def test_quoted_numbers_are_never_checked_against(make_row: MakeRow, results: Callable[..., Results]) -> None:
    folder = make_row("sabr", images=10_000, natural=9900, adversarial=9000, certified=(9, 1))
    nets = {"published": "linf-distance-nets", "measure": "natural"}
    settings = {"settings": [HERE]}
    for check in (
        beats({"method": "sabr", "measure": "natural"}, nets, **settings),
        {"kind": "near", "of": {"method": "sabr", "measure": "natural"}, "to": nets, "tolerance": 50} | settings,
    ):
        case = judge(results([folder]), check).cases[0]
        assert (case.verdict, case.reason) == (
            "not testable",
            "the published 98.93 % of ℓ∞-distance net is quoted, not checked against its source",
        )
    unknown = {"published": "nobody", "measure": "natural"}
    case = judge(results([folder]), beats({"method": "sabr", "measure": "natural"}, unknown, **settings)).cases[0]
    assert case.reason == "no natural accuracy of nobody is published"


def test_near(make_row: MakeRow, results: Callable[..., Results]) -> None:
    def run(scale: str, natural: int, images: int, **more: bool) -> Judged:
        folder = make_row("sabr", natural=natural, images=images, adversarial=10, certified=(1, 1), scale=scale)
        check = {"kind": "near", "of": NATURAL["sabr"], "to": {"published": "sabr", "measure": "natural"}}
        return judge(results([folder]), check | {"settings": [HERE], "tolerance": 0.5} | more)  # 99.23 % is published

    assert run("a", 9900, 10_000).verdict == "holds"
    assert run("b", 9800, 10_000).verdict == "does not hold"
    small = run("c", 99, 100)
    assert (small.verdict, small.cases[0].reason) == ("holds", "reached with 100 test images")
    far = run("d", 90, 100)
    assert (far.verdict, far.cases[0].reason) == ("not testable", "reduced scale: 100 test images")
    counts = run("e", 90, 100, reduced=True)
    assert (counts.verdict, counts.cases[0].reason) == ("does not hold", "with 100 test images")


def test_bound(make_row: MakeRow, results: Callable[..., Results]) -> None:
    interval = {"method": "sabr", "measure": "certified_interval"}
    counts = {"images": 1000, "natural": 900, "adversarial": 800}

    def run(scale: str, certified: int, **limit: float) -> Judged:
        folder = make_row("sabr", certified=(certified, 50), scale=scale, **counts)
        return judge(results([folder]), {"kind": "bound", "of": interval} | limit)

    assert run("a", 2, at_most=1).verdict == "holds"
    assert run("b", 200, at_most=1).verdict == "does not hold"
    close = run("c", 10, at_most=1)  # 1.0 %, whose interval is around the limit
    assert (close.verdict, close.cases[0].reason) == (
        "not testable",
        "too close to the limit to tell, on so few images or seeds",
    )
    assert run("d", 200, at_least=10).verdict == "holds"
    assert run("e", 200, at_least=50).verdict == "does not hold"
    assert "certified by interval: SABR 20.00 %; claimed at least 50 %" in run("f", 200, at_least=50).cases[0].numbers


def sweep(make_row: MakeRow, scale: str, certified: dict[float, int]) -> list[Path]:
    return [
        make_row(
            f"sabr-lambda-{ratio:g}",
            lambda_ratio=ratio,
            images=400,
            natural=380,
            adversarial=350,
            certified=(count,),
            scale=scale,
        )
        for ratio, count in certified.items()
    ]


def test_peak(make_row: MakeRow, results: Callable[..., Results]) -> None:
    check = {"kind": "peak", "measure": "certified", "below": 1, "tolerance": 0.5}
    inside = judge(results(sweep(make_row, "a", {0.1: 200, 0.4: 260, 1.0: 210})), check)
    assert inside.verdict == "holds"
    assert inside.cases[0].numbers.startswith(
        "highest at λ = 0.4; certified: SABR (λ = 0.4) 65.00 %, SABR (λ = 1) 52.50 %"
    )
    assert inside.cases[0].values and inside.cases[0].values["best"] == 0.4
    assert judge(results(sweep(make_row, "b", {0.1: 200, 0.4: 210, 1.0: 260})), check).verdict == "does not hold"
    flat = judge(results(sweep(make_row, "c", {0.1: 200, 0.4: 206, 1.0: 200})), check)
    assert flat.verdict == "not testable"
    # Six of six discordant images: p = 0.031, twice that for the choice among three.
    assert flat.cases[0].reason.startswith("the difference is not significant (p = 0.062)")
    ends = judge(results(sweep(make_row, "d", {0.1: 200, 0.4: 260})), check)
    assert ends.cases[0].reason == "the sweep has no λ of at least 1"


def test_networks_of_the_sweep(make_row: MakeRow, results: Callable[..., Results]) -> None:
    here = results(sweep(make_row, "a", {1.0: 210, 0.1: 200, 0.4: 260}))
    chosen = {which: quantities.swept(which, HERE, here) for which in ("smallest", "largest", "best")}
    assert chosen == {"smallest": "sabr-lambda-0.1", "largest": "sabr-lambda-1", "best": "sabr-lambda-0.4"}
    found = judge(here, beats({"swept": "best", "measure": "certified"}, {"swept": "largest", "measure": "certified"}))
    assert found.verdict == "holds"


def curve(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"dataset": "mnist", "eps": "0.1", "method": "sabr", "seed": 1} | columns)


def test_growth(results: Callable[..., Results]) -> None:
    simulated = pd.DataFrame({"input_size": [1.0, 2.0], "output_size": [1.0, 3.0], "linear": [1.0, 2.0]})
    check = {"kind": "growth", "study": "box-growth"}
    assert judge(results(box_growth=simulated), check | {"factor": 1.4}).verdict == "holds"
    assert judge(results(box_growth=simulated), check | {"factor": 1.6}).verdict == "does not hold"
    measured = curve(
        layer=["1", "1", "2", "2"],
        stage="after",
        lambda_ratio=[0.5, 1, 0.5, 1],
        mean_radius=[1, 2.4, 2, 8],
        linear=[1, 2, 2, 4],
    )
    check |= {"study": "box-sizes", "method": ["sabr-ablation", "sabr"], "where": {"stage": "after"}}
    found = judge(results(box_sizes=measured), check | {"factor": 1.1})
    assert found.verdict == "holds"
    assert "SABR, times the linear extrapolation: 1.200 in layer 1, 2.000 in layer 2" in found.cases[0].numbers
    assert judge(results(box_sizes=measured), check | {"factor": 3}).verdict == "does not hold"
    mixed = judge(results(box_sizes=measured), check | {"factor": 1.5})
    assert (mixed.verdict, mixed.cases[0].reason) == ("does not hold", "not in every layer and for every seed")
    case = judge(results(box_sizes=measured), check | {"factor": 2, "method": "ibp"}).cases[0]
    assert case.reason == "the study box-sizes was not made for IBP in MNIST, ε = 0.1"


def test_crosses(results: Callable[..., Results]) -> None:
    def run(box: list[float], seeds: int = 1, **more: Any) -> Judged:
        tables = [curve(lambda_ratio=[0, 0.5, 1], adversarial=1.0, box=box).assign(seed=seed) for seed in range(seeds)]
        check = {
            "kind": "crosses",
            "method": "sabr",
            "rising": "box",
            "through": "adversarial",
            "low": 0.1,
            "high": 0.9,
        }
        return judge(results(loss_lambda=pd.concat([*tables, *more.get("others", [])])), check)

    found = run([0.5, 0.8, 2.8])
    assert found.verdict == "holds"
    assert "box loss reaches the adversarial loss at λ = 0.550" in found.cases[0].numbers
    assert run([0.5, 0.6, 0.8]).cases[0].numbers == "SABR: box loss is below the adversarial loss throughout"
    above = run([1.5, 1.6, 1.8])
    assert (above.verdict, "is above the adversarial loss throughout" in above.cases[0].numbers) == (
        "does not hold",
        True,
    )
    assert run([0.99, 2, 3]).verdict == "does not hold"  # at 0.005
    other = curve(lambda_ratio=[0, 0.5, 1], adversarial=1.0, box=[0.99, 2, 3]).assign(seed=7)
    mixed = run([0.5, 0.8, 2.8], others=[other])
    assert (mixed.verdict, mixed.cases[0].reason) == ("not testable", "seeds disagree")


def test_numbers_of_studies(results: Callable[..., Results]) -> None:
    lines = [
        curve(where=where, layer=["1", "all"], unstable=[1.0, share]).assign(method=method, seed=seed)
        for method, share in (("ibp", 2.0), ("sabr", 5.0))
        for seed in (1, 2, 3)
        for where in ("point", "region")
    ]
    here = results(relu_states=pd.concat(lines))
    share = {"study": "relu-states", "column": "unstable", "where": {"where": "region", "layer": "all"}}
    up = beats(share | {"method": "sabr"}, share | {"method": "ibp"})
    found = judge(here, up)
    assert found.verdict == "holds"
    assert "unstable (region): SABR 5.00 ± 0.00 %, IBP 2.00 ± 0.00 %" in found.cases[0].numbers
    assert judge(here, up | {"left": up["right"], "right": up["left"]}).verdict == "does not hold"
    with pytest.raises(SabrError, match="leaves several values of unstable"):
        judge(here, beats(share | {"method": "sabr", "where": {"where": "region"}}, share | {"method": "ibp"}))
    with pytest.raises(SabrError, match="has no column 'stable'"):
        judge(here, beats(share | {"method": "sabr", "column": "stable"}, share | {"method": "ibp"}))
    with pytest.raises(SabrError, match="column: layer of the study relu-states holds text; name a column of numbers"):
        judge(here, beats(share | {"method": "sabr", "column": "layer"}, share | {"method": "ibp"}))
    with pytest.raises(SabrError, match="where: layer of the study relu-states holds text; .* put the value in quotes"):
        judge(here, beats(share | {"method": "sabr", "where": {"layer": 1}}, share | {"method": "ibp"}))
    with pytest.raises(SabrError, match="has no column 'place'"):
        judge(here, beats(share | {"method": "sabr", "where": {"place": "region"}}, share | {"method": "ibp"}))


def test_written(make_row: MakeRow, results: Callable[..., Results]) -> None:
    here = results([make_row("sabr", natural=380, **LARGE), make_row("ibp", natural=340, **LARGE)])
    judged = [judge(here, beats(NATURAL["sabr"], NATURAL["ibp"]))]
    content = json.loads(json.dumps(evaluate.to_json(judged, here), allow_nan=False))
    assert content["counts"] == {"holds": 1, "does not hold": 0, "not testable": 0}
    assert content["claims"][0]["cases"][0]["label"] == "MNIST, ε = 0.1"
    text = evaluate.to_markdown(judged, here)
    assert "holds: 1, does not hold: 0, not testable: 0." in text
    assert "* MNIST, ε = 0.1: holds. Natural: SABR 95.00 %" in text


def test_nothing_recorded_is_not_an_error(results: Callable[..., Results]) -> None:
    judged = evaluate.evaluate(model.read(CONFIG / "claims.yaml").claims, results())
    assert {one.verdict for one in judged} == {"not testable"}
    assert all(case.reason for one in judged for case in one.cases)
