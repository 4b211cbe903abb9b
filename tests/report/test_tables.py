import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from sabr.errors import SabrError
from sabr.report import records, tables
from sabr.report.style import Style

MakeRow = Callable[..., Path]
SCALE = "tiny scale: 60_000 images & 3 epochs"
METHODS = ["sabr", "ibp", "my_method"]


@pytest.fixture
def table(make_row: MakeRow, literature: pd.DataFrame) -> pd.DataFrame:
    folders = [
        make_row("sabr"),
        make_row("sabr-lambda-0.1", lambda_ratio=0.1),
        make_row("ibp", seed=1, natural=16),
        make_row("ibp", seed=2, natural=18),
        make_row("my_method", objective="pgd"),
        make_row("sabr", dataset="cifar10", eps="8_255", images=30),
    ]
    chosen = literature[literature["group"] == "table-1"]
    return tables.accuracies(records.collect(folders), chosen, methods=METHODS, scale=SCALE)


def test_tidy_table(table: pd.DataFrame) -> None:
    ours = table[table["origin"] == "ours"]
    assert set(ours["method"]) == {"sabr", "ibp", "my_method"}  # rows of the sweep stay out
    one = ours[(ours["method"] == "sabr") & (ours["dataset"] == "mnist")].set_index("measure")
    assert one.loc["certified", "value"] == pytest.approx(55)
    assert one.loc["certified_crown_ibp", "value"] == pytest.approx(35)
    assert one.loc["unknown", "value"] == pytest.approx(25)
    theirs = table[table["origin"] == "published"]
    assert set(theirs["dataset"]) == {"mnist", "cifar10"}
    assert "0.3" not in set(theirs["eps"])  # a setting that was not run
    assert theirs["source"].str.contains("Table 1").all()
    assert theirs["images"].isna().all()


def test_csv(table: pd.DataFrame) -> None:
    back = pd.read_csv(io.StringIO(tables.to_csv(table)))
    assert len(back) == len(table)
    assert set(back["scale"]) == {SCALE}
    assert set(back["origin"]) == {"ours", "published"}
    assert back.loc[back["origin"] == "ours", "images"].min() == 20


def test_markdown(table: pd.DataFrame, looks: Style) -> None:
    text = tables.to_markdown(table, looks)
    assert SCALE in text
    assert "MNIST, ε = 0.1: first 20 test images; CIFAR-10, ε = 8/255: first 30 test images" in text
    lines = text.splitlines()
    sabr = next(line for line in lines if line.startswith("| MNIST, ε = 0.1 | SABR |"))
    assert sabr.endswith("| 25.0 | 20.0 | 35.0 | 45.0 | 50.0 | 55.0 | 99.23 | 98.22 |")
    assert "| 55.0 [34.2, 74.2] |" in sabr  # Wilson interval of 11 of 20
    ibp = next(line for line in lines if "| IBP |" in line)
    assert "| 85.0 ± 7.1 |" in ibp
    assert ibp.endswith("| ~98.84 | 97.95 |")
    colt = next(line for line in lines if "| COLT (published) |" in line)
    assert colt.endswith("| – | ~99.2 | 97.1 |")
    assert any("| my_method |" in line for line in lines)
    cells = {line.count("|") for line in lines if line.startswith("|")}
    assert len(cells) == 1
    assert "published natural | published certified" in text
    assert "Published numbers are not ours" in text
    assert "~: quoted" in text
    assert "Unknown: neither certified nor refuted" in text


def test_latex(table: pd.DataFrame, looks: Style) -> None:
    text = tables.to_latex(table, looks)
    assert r"60\_000 images \& 3 epochs" in text
    assert r"my\_method & " in text
    assert r"COLT (published) & -- " in text
    assert r"$\sim$99.2 & 97.1 \\" in text
    assert r"85.0 $\pm$ 7.1" in text
    assert r"\multicolumn{2}{c}{published}" in text
    assert not re.search(r"(?<!\\)[%#]", text)
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    counts = {
        len(re.findall(r"(?<!\\)&", line)) for line in body.splitlines() if r"\multicolumn" not in line and "&" in line
    }
    assert len(counts) == 1
    assert not set(text) & set("αεℓ∞±–~")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not on PATH, so the LaTeX is not compiled")
def test_latex_compiles(table: pd.DataFrame, looks: Style, tmp_path: Path) -> None:
    (tmp_path / "table.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\begin{document}"
        + tables.to_latex(table, looks)
        + r"\end{document}"
    )
    subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"], cwd=tmp_path, check=True, timeout=60
    )


def test_without_published_numbers_and_without_results(
    make_row: MakeRow, literature: pd.DataFrame, looks: Style
) -> None:
    found = records.collect([make_row("pgd", stages=("crown",), certified=(3,), refuted=())])
    table = tables.accuracies(found, literature.iloc[:0], methods=["pgd"], scale="tiny")
    text = tables.to_markdown(table, looks)
    assert "+ CROWN |" in text
    assert "interval |" not in text
    assert "Published numbers" not in text
    with pytest.raises(SabrError, match="no results of sabr"):
        tables.accuracies(found, literature, methods=["sabr"], scale="tiny")
