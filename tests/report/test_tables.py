import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from sabr.errors import SabrError
from sabr.report import pairs, protocol, records
from sabr.report.tables import accuracies, layout, seeds, studies, times
from sabr.report.tables.layout import Context, Table
from sabr.report.tables.protocol import hyper_parameters
from sabr.studies import COLUMNS, NETWORK_COLUMNS

MakeRow = Callable[..., Path]
MakeContext = Callable[..., Context]
SCALE = "tiny scale: 60_000 images & 3 epochs"
PLAN = (
    *("mnist-eps-0.1/sabr/1", "mnist-eps-0.1/ibp/1", "mnist-eps-0.1/ibp/2", "mnist-eps-0.1/my_method/1"),
    *("mnist-eps-0.1/sabr-lambda-0.1/1/sweep", "cifar10-eps-8_255/sabr/1"),
)


@pytest.fixture
def folders(make_row: MakeRow) -> list[Path]:
    return [
        make_row("sabr"),
        make_row("sabr-lambda-0.1", lambda_ratio=0.1),
        make_row("ibp", seed=1, natural=16),
        make_row("ibp", seed=2, natural=18),
        make_row("my_method", objective="pgd"),
        make_row("sabr", dataset="cifar10", eps="8_255", images=30),
    ]


@pytest.fixture
def table(folders: list[Path], context: MakeContext) -> Table:
    return accuracies.table1(records.collect(folders), context(*PLAN))


@pytest.fixture
def every_table(folders: list[Path], context: MakeContext, make_row: MakeRow) -> dict[str, Table]:
    found = records.collect(folders)
    here = context(*PLAN, "mnist-eps-0.1/pgd/1")
    compared = context(*(f"{network}/main widths" for network in PLAN[:4]))
    return {
        "table1": accuracies.table1(found, here),
        "table2": accuracies.table2(found, here),
        "widths": accuracies.comparison("widths", "Widths", found, compared),
        "times": times.times(found, here),
        "seeds": seeds.seeds(pairs.pairs(folders), here),
        "protocol": hyper_parameters(protocol.hyper_parameters(folders), here),
        "table3": studies.table3(alignment(), here),
        "table4": studies.table4(states(), here),
    }


def alignment() -> pd.DataFrame:
    lines = [
        ("mnist", "0.1", "sabr", 1, loss, at, 50, cosine, 0.1)
        for loss, at, cosine in (("sabr", "clean", 0.81), ("sabr", "adversarial", 0.9), ("ibp", "clean", 0.4))
    ]
    lines += [("mnist", "0.1", "ibp", seed, "ibp", "clean", 50, 0.5 + 0.1 * seed, 0.2) for seed in (1, 2)]
    return pd.DataFrame(lines, columns=[*NETWORK_COLUMNS, "loss", "at", "images", "cosine", "deviation"])


def states() -> pd.DataFrame:
    shares = {"point": (20.0, 80.0, 0.0), "region": (15.0, 75.0, 10.0)}
    lines = [
        ("mnist", "0.1", "sabr", 1, where, 50, layer, *share)
        for where, share in shares.items()
        for layer in ("1", "2", "all")
    ]
    return pd.DataFrame(lines, columns=[*NETWORK_COLUMNS, *COLUMNS["relu-states"]])


def test_tidy_table(table: Table) -> None:
    numbers = table.numbers
    ours = numbers[numbers["origin"] == "ours"]
    assert set(ours["method"]) == {"sabr", "ibp", "my_method"}  # rows of the sweep stay out
    one = ours[(ours["method"] == "sabr") & (ours["dataset"] == "mnist")].set_index("measure")
    assert one.loc["certified", "value"] == pytest.approx(55)
    assert one.loc["certified_crown_ibp", "value"] == pytest.approx(35)
    assert one.loc["unknown", "value"] == pytest.approx(25)
    theirs = numbers[numbers["origin"] == "published"]
    assert set(theirs["dataset"]) == {"mnist", "cifar10"}
    assert "0.3" not in set(theirs["eps"])  # a setting that was not run
    assert theirs["source"].str.contains("Table 1").all()
    assert theirs["images"].isna().all()


def test_csv(table: Table) -> None:
    back = pd.read_csv(io.StringIO(layout.to_csv(table)))
    assert len(back) == len(table.numbers)
    assert set(back["scale"]) == {SCALE}
    assert set(back["origin"]) == {"ours", "published"}
    assert back.loc[back["origin"] == "ours", "images"].min() == 20


def test_markdown(table: Table) -> None:
    text = layout.to_markdown(table)
    assert SCALE in text
    assert "Test images: 20 for MNIST, ε = 0.1; 30 for CIFAR-10, ε = 8/255." in text
    lines = text.splitlines()
    sabr = next(line for line in lines if line.startswith("| MNIST, ε = 0.1 | SABR |"))
    assert sabr.endswith("| 99.23 | 98.22 | 25.0 | 20.0 | 35.0 | 45.0 | 50.0 | 55.0 |")
    assert "| 55.0 [34.2, 74.2] |" in sabr  # Wilson interval of 11 of 20
    ibp = next(line for line in lines if "| IBP |" in line)
    assert "| 85.0 ± 7.1 |" in ibp
    assert "| ~98.84 | 97.95 |" in ibp
    colt = next(line for line in lines if "| COLT (published) |" in line)
    assert "| – | ~99.20 | 97.10 |" in colt
    assert any("| my_method |" in line for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert "published natural | published certified" in text
    assert "Published numbers are not ours" in text
    assert "~: quoted" in text
    assert "Unknown: neither certified nor refuted" in text
    assert "±: standard deviation over 2 seeds." in text


def test_latex(table: Table) -> None:
    text = layout.to_latex(table)
    assert r"60\_000 images \& 3 epochs" in text
    assert r"my\_method & " in text
    assert r"COLT (published) & -- " in text
    assert r"$\sim$99.20 & 97.10 \\" in text
    assert r"85.0 $\pm$ 7.1" in text
    assert r"\multicolumn{2}{c}{published} \\" in text
    assert r"\cmidrule(lr){5-6}" in text  # method and three measures stand before it
    assert "CROWN}" not in text  # columns of detail are left out


def test_every_table_in_every_form(every_table: dict[str, Table]) -> None:
    for name, made in every_table.items():
        text = layout.to_latex(made)
        assert not re.search(r"(?<!\\)[%#]", text), name
        assert not set(text) & set("αεℓ∞±–~−λ<>×") - set("<"), name
        body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
        cells = [
            len(re.findall(r"(?<!\\)&", line))
            for line in body.splitlines()
            if "multicolumn" not in line and "&" in line
        ]
        assert len(set(cells)) == 1, name
        page = layout.to_html(made)
        widths = {
            len(re.findall("<t[dh][ >]", line))
            for line in page.splitlines()
            if line.startswith(('<tr><td class="words"', '<tr><th class="words"'))
        }
        assert widths == {len(made.columns)}, name
        inner = layout.fragment(page)
        assert inner.startswith('<p class="caption">') and inner.endswith("</div>") and "<body" not in inner
        assert not re.findall(r"(?:src|href)=", page)
        assert layout.to_markdown(made).startswith(made.caption)
        assert SCALE.partition(":")[0] in made.caption
        assert set(pd.read_csv(io.StringIO(layout.to_csv(made)))["scale"]) == {SCALE}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not on PATH, so the LaTeX is not compiled")
def test_latex_compiles(every_table: dict[str, Table], tmp_path: Path) -> None:
    body = "\n".join(map(layout.to_latex, every_table.values()))
    (tmp_path / "tables.tex").write_text(
        rf"\documentclass{{article}}\usepackage[utf8]{{inputenc}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_what_is_missing_is_said_and_the_rest_is_made(make_row: MakeRow, context: MakeContext) -> None:
    folders = [make_row("sabr", seed=1), make_row("sabr", seed=2)]
    here = context(
        *(f"mnist-eps-0.1/{method}/{seed}" for method in ("sabr", "ibp") for seed in (1, 2, 3)), "mnist-eps-0.3/sabr/1"
    )
    made = [accuracies.table1(records.collect(folders), here), times.times(records.collect(folders), here)]
    for table in made:
        text = layout.to_markdown(table)
        assert "Missing in MNIST, ε = 0.1: IBP (seed 1, 2, 3), SABR (seed 3)." in text
        assert "Missing in MNIST, ε = 0.3: SABR (seed 1)." in text
        assert "| MNIST, ε = 0.1 | IBP | missing |" in text
        assert "| MNIST, ε = 0.3 | SABR | missing |" in text
    assert "90.0 ± 0.0" in layout.to_markdown(made[0])
    with pytest.raises(SabrError, match="no two networks"):
        seeds.seeds(pairs.pairs(folders), here)
    pair = pairs.pairs([folders[0], make_row("ibp", seed=1)])
    text = layout.to_markdown(
        seeds.seeds(pair, context("mnist-eps-0.1/sabr/1", "mnist-eps-0.1/ibp/1", "mnist-eps-0.1/pgd/1"))
    )
    assert "| PGD | IBP | missing | missing |" in text
    assert "| IBP | SABR | +0.0 | 1.00 | – | not significant |" in text


def test_without_published_numbers_and_without_results(
    make_row: MakeRow, context: MakeContext, literature: pd.DataFrame
) -> None:
    found = records.collect([make_row("pgd", stages=("crown",), certified=(3,), refuted=())])
    here = context("mnist-eps-0.1/pgd/1")
    bare = Context(here.outline, literature.iloc[:0], here.style)
    text = layout.to_markdown(accuracies.table1(found, bare))
    assert "+ CROWN |" in text
    assert "interval |" not in text
    assert "Published numbers" not in text
    with pytest.raises(SabrError, match="no results of sabr"):
        accuracies.table1(found, context("mnist-eps-0.1/sabr/1"))
    with pytest.raises(SabrError, match="no results of this part"):
        accuracies.comparison("widths", "Widths", found, here)
    for build, empty in ((studies.table3, alignment().iloc[:0]), (studies.table4, states().iloc[:0])):
        with pytest.raises(SabrError, match="run that study"):
            build(empty, here)


def test_captions_say_how_these_networks_were_trained(every_table: dict[str, Table]) -> None:
    assert SCALE in every_table["table1"].caption
    own = "(tiny scale: cnn-small, all training images, 3 epochs, first 20 images)."
    assert every_table["widths"].caption.endswith(own)
    assert every_table["times"].caption.endswith("first 20 / 30 images).")


def test_table_2_is_about_sabr_and_distance_nets(every_table: dict[str, Table]) -> None:
    lines = layout.to_markdown(every_table["table2"]).splitlines()
    names = [line.split("|")[2].strip() for line in lines if line.startswith("| MNIST")]
    assert names == ["SABR", "ℓ∞-distance net (published)"]
    assert "unknown" not in set(every_table["table2"].numbers["measure"])


def test_table_3(every_table: dict[str, Table]) -> None:
    lines = layout.to_markdown(every_table["table3"]).splitlines()
    assert "| MNIST, ε = 0.1 | SABR | SABR | 0.810 | 0.900 | ~0.8071 | ~0.9062 |" in lines
    assert "| MNIST, ε = 0.1 | SABR | IBP | 0.400 | missing | – | – |" in lines
    assert "| MNIST, ε = 0.1 | IBP | IBP | 0.650 ± 0.071 | missing | ~0.5586 | ~0.8047 |" in lines
    assert any(line.startswith("| MNIST, ε = 0.1 | PGD | missing |") for line in lines)
    assert any("CNN7 on CIFAR-10, ε = 2/255" in line for line in lines)


def test_table_4(every_table: dict[str, Table]) -> None:
    lines = layout.to_markdown(every_table["table4"]).splitlines()
    assert "| MNIST, ε = 0.1 | SABR | 20.00 | 80.00 | 0.00 | 15.00 | 75.00 | 10.00 | – |" in lines
    assert any(line.startswith("| MNIST, ε = 0.1 | IBP | missing |") and line.endswith("| ~1.18 |") for line in lines)


def test_times(every_table: dict[str, Table]) -> None:
    lines = layout.to_markdown(every_table["times"]).splitlines()
    assert "| MNIST, ε = 0.1 | SABR | cnn-small | 3 | 4.2 s | 12 s | 1.5 s | 3 s | 0.15 s | ~3 h 23 min |" in lines
    assert any("RTX 2080 Ti" in line for line in lines)
    said = [times.duration(seconds) for seconds in (0.314, 42.4, 59.6, 425, 3599.9, 206_640)]
    assert said == ["0.31 s", "42 s", "1 min 00 s", "7 min 05 s", "1 h 00 min", "57 h 24 min"]


def test_hyper_parameters(every_table: dict[str, Table]) -> None:
    lines = layout.to_markdown(every_table["protocol"]).splitlines()
    sabr = next(line for line in lines if line.startswith("| MNIST, ε = 0.1 | SABR | cnn-small"))
    assert sabr.endswith("| cnn-small | 60,000 | 3 | 128 | 0.0005 | 2 | 1 to 2 | 0.1 | 0.4 | 0 | – |")
    assert any(line.startswith("| MNIST, ε = 0.1 | SABR (λ = 0.1) |") for line in lines)
