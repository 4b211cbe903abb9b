import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sabr.errors import SabrError
from sabr.layers import read_yaml
from sabr.report import pairs, pareto, protocol, records, stages, style
from sabr.report.claims import evaluate, model
from sabr.report.claims.quantities import Results
from sabr.report.page import build, captions
from sabr.report.tables import accuracies, layout
from sabr.report.tables.layout import Context

MakeRow = Callable[..., Path]
CONFIG = Path(__file__).parents[2] / "config"
RULES = CONFIG.parent / "workflow" / "rules"


@pytest.fixture
def sources(
    make_row: MakeRow, plan: Callable[..., Any], literature: pd.DataFrame, looks: style.Style, tmp_path: Path
) -> Callable[..., build.Sources]:
    """What a report of two networks is made of, a third one of which is missing."""
    folders = [make_row("sabr"), make_row("ibp")]

    def make(**changes: Any) -> build.Sources:
        outline = plan(*(f"mnist-eps-0.1/{method}/1" for method in ("sabr", "ibp", "pgd")), title="tiny <scale> & co")
        found = records.collect(folders)
        results = Results(
            *(outline, found, pairs.pairs(folders), {}),
            *(literature, model.read(CONFIG / "claims.yaml").full_scale, looks),
        )
        judged = evaluate.evaluate(model.read(CONFIG / "claims.yaml").claims, results)
        table, figure = tmp_path / "table1.html", tmp_path / "accuracies.png"
        table.write_text(layout.to_html(accuracies.table1(found, Context(outline, literature, looks))))
        numbers = tmp_path / "records.csv"
        records.write(found, numbers)
        style.save(pareto.pareto(pareto.read(numbers, CONFIG / "published.yaml"), "t", looks), figure)
        content = {
            "outline": outline,
            "captions": captions.read(CONFIG / "report.yaml"),
            "claims": json.loads(json.dumps(evaluate.to_json(judged, results))),
            "records": found,
            "limits": stages.limits(folders),
            "provenance": protocol.provenance(folders),
            "tables": {"table1": table},
            "figures": {"accuracies": figure},
            "style": looks,
        }
        return build.Sources(**(content | changes))

    return make


class Checked(HTMLParser):
    """Whether elements are closed in order, which ids there are and what is linked."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [str(found["id"])] if "id" in found else []
        self.links += [str(found[name]) for name in ("href", "src") if name in found]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_one_page_that_loads_nothing(sources: Callable[..., build.Sources]) -> None:
    page = build.build(sources())
    found = Checked(page)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    inside = [link[1:] for link in found.links if link.startswith("#")]
    assert inside and set(inside) <= set(found.ids)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in found.links)
    assert "<script" not in page and "@import" not in page and "url(" not in page
    text = re.sub('base64,[^"]+', "", page)
    assert not re.search(r"{{|{%|\bNone\b|\bnan\b|\bNaN\b", text)
    assert 'content="width=device-width' in page
    assert "tiny &lt;scale&gt; &amp; co" in page and "<scale>" not in page


def test_claims_come_first_with_numbers_and_reasons(sources: Callable[..., build.Sources]) -> None:
    page = build.build(sources())
    places = [page.index(f'id="{name}"') for name in ("claims", "accuracy", "cost", "provenance")]
    assert places == sorted(places)
    assert "SABR has a higher natural accuracy than IBP, in every setting." in page
    assert (
        "SABR 90.00 %, IBP 90.00 %; difference +0.00 points (1 seed, 20 images; p\u00a0=\u00a01.00 on images)" in page
    )
    assert "Not testable: CIFAR-10, ε = 2/255 is not part of this run;" in page
    assert "Missing in MNIST, ε = 0.1: PGD (seed 1)." in page


def test_what_a_run_does_not_have_is_left_out(sources: Callable[..., build.Sources]) -> None:
    page = build.build(sources())
    ids = set(Checked(page).ids)
    assert {"table1", "accuracies"} <= ids
    assert not {"table2", "pareto", "the-small-box"} & ids
    alone = build.build(sources(tables={}, figures={}))
    assert not {"table1", "accuracies", "accuracy"} & set(Checked(alone).ids)


def test_costs_add_up(sources: Callable[..., build.Sources]) -> None:
    page = build.build(sources())
    # Twice 12.5 s of training, 1.5 s of attack, 3 s of certification.
    assert "<td>all settings</td><td>2</td><td>25 s</td><td>3 s</td><td>6 s</td><td>34 s</td>" in page
    assert "complete verifier: at most " in page


def test_captions_are_about_their_own_networks(
    sources: Callable[..., build.Sources], make_row: MakeRow, plan: Callable[..., Any]
) -> None:
    rows = [
        make_row("sabr", seed=2),
        make_row("sabr", seed=3),
        make_row("sabr-long", seed=4, dataset="cifar10", eps="2_255", images=30),
    ]
    place = "mnist-eps-0.1/sabr"
    networks = (f"{place}/2", f"{place}/3", "cifar10-eps-2_255/sabr-long/4/long")
    given = sources()
    figure = given.figures["accuracies"]
    figures = dict.fromkeys(("accuracies", "eps-curve", "loss-lambda", "lambda-sweep", "box-growth"), figure)
    tables = dict.fromkeys(("table1", "long", "times"), given.tables["table1"])
    found = records.collect(rows)
    page = build.build(
        sources(
            outline=plan(*networks, title="tiny: t"),
            records=found,
            limits=stages.limits(rows),
            tables=tables,
            figures=figures,
        )
    )
    made = {name: page.partition(f'id="{name}"')[2].partition("</figcaption>")[0] for name in (*tables, *figures)}
    trained = "Tiny: cnn-small, all training images, 3 epochs"
    assert f"{trained}, first 20 images; seeds 2, 3; complete verifier: at most" in made["table1"]
    assert f"{trained}, first 30 images; seed 4; complete verifier: at most" in made["long"]
    assert f"{trained}, first 20 / 30 images; seeds 2, 3, 4; complete" in made["times"]
    assert made["eps-curve"].endswith(f"{trained}; images: as its title says; seed 2.</p>")
    assert made["loss-lambda"].endswith(f"{trained}; images: as its title says; seeds 2, 3.</p>")
    assert made["lambda-sweep"].endswith("Tiny: t.</p>")  # without results of its own
    assert made["box-growth"].endswith("The same for every run and scale.</p>")


def test_mistakes_are_told(sources: Callable[..., build.Sources], tmp_path: Path) -> None:
    (tmp_path / "unknown.png").write_bytes(b"")
    with pytest.raises(SabrError, match="no caption for unknown"):
        build.build(sources(figures={"unknown": tmp_path / "unknown.png"}))
    with pytest.raises(SabrError, match=r"unknown\.png is not a PNG"):
        build.build(sources(figures={"pareto": tmp_path / "unknown.png"}))
    with pytest.raises(SabrError, match=r"cannot read .*none\.html"):
        build.build(sources(tables={"table1": tmp_path / "none.html"}))
    (tmp_path / "claims.json").write_text("[]")
    with pytest.raises(
        SabrError, match=r"claims\.json: \[\] is not allowed: a mapping of keys is needed here; delete it"
    ):
        build.read_claims(tmp_path / "claims.json")
    counts = {"holds": 1, "does not hold": 0, "not testable": 0}
    (tmp_path / "claims.json").write_text(json.dumps({"counts": counts, "claims": [{"id": "a"}]}))
    with pytest.raises(SabrError, match=r"claims\.json: claims\.0\.text: this key is missing; delete it and run again"):
        build.read_claims(tmp_path / "claims.json")
    (tmp_path / "provenance.json").write_text('{"trained": {}, "certified": []}')
    with pytest.raises(SabrError, match=r"provenance\.json: trained: \{\} is not allowed: a list is needed here"):
        build.read_provenance(tmp_path / "provenance.json")
    (tmp_path / "bytes.html").write_bytes(b"\xff")
    with pytest.raises(SabrError, match=r"bytes\.html is not text in UTF-8"):
        build.build(sources(tables={"table1": tmp_path / "bytes.html"}))


def test_every_table_and_figure_of_the_workflow_has_a_caption() -> None:
    known = set(captions.read(CONFIG / "report.yaml").names)
    for file, name in (("tables.smk", "TABLE_DATA"), ("figures.smk", "FIGURE_DATA")):
        content = (RULES / file).read_text().partition(f"{name} = {{")[2].partition("\n}")[0]
        names = set(re.findall(r'"([a-z0-9-]+)"', content))
        assert len(names) > 5 and names <= known, names - known


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"title": ""}, "title"),
        ({"sections": []}, "sections"),
        ({"sections": [{"title": "A", "items": [{"name": "a", "kind": "film"}]}]}, "sections.0.items.0.kind"),
        ({"sections": [{"title": "A", "items": 2 * [{"name": "a", "kind": "table", "title": "A", "look": "L", "made": "M"}]}]},
         "'a' is given twice"),
        ({"colour": "red"}, "colour: unknown key"),
    ],
)  # fmt: skip
def test_captions_are_validated(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    content = read_yaml(CONFIG / "report.yaml") | change
    path = tmp_path / "report.yaml"
    path.write_text(json.dumps(content))
    with pytest.raises(SabrError, match=said) as error:
        captions.read(path)
    assert "report.yaml" in str(error.value)
