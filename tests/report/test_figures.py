import warnings
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from sabr.analysis import box_growth
from sabr.cli import reporting
from sabr.errors import SabrError
from sabr.methods import METHODS
from sabr.report import effort, figures, illustrations, records, stages, style
from sabr.specs import PROOFS

MakeRow = Callable[..., Path]
TITLE = "tiny scale: a small network, 1,000 training images and the first 20 test images"


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def folders(make_row: MakeRow) -> list[Path]:
    return [
        *(make_row(method) for method in ("standard", "pgd", "ibp", "sabr")),
        make_row("mine", objective="pgd", seed=1),
        make_row("mine", objective="pgd", seed=2, natural=20),
        make_row("sabr", eps="0.3", adversarial=12, certified=(0, 0, 0, 0, 0)),
    ]


def draw_small_box() -> pd.DataFrame:
    """The identity, in place of a network: what `sabr.analysis.small_box.study` would give."""
    lines = []
    for layer in ("input", "hidden", "output"):
        for region, low, high in (("ball", 0.0, 1.0), ("small", 0.6, 1.0)):
            lines += [(layer, region, "lower", 0, 0, low, low + 1), (layer, region, "upper", 0, 0, high, high + 1)]
            grid = np.linspace(low, high, 3)
            lines += [(layer, region, "grid", i, j, x, y + 1) for i, x in enumerate(grid) for j, y in enumerate(grid)]
        lines += [(layer, "image", kind, 0, 0, x, x + 1) for kind, x in (("clean", 0.5), ("adversarial", 0.9))]
    return pd.DataFrame(lines, columns=["layer", "region", "kind", "row", "column", "x", "y"])


@pytest.fixture
def drawn(make_row: MakeRow, folders: list[Path], looks: style.Style) -> dict[str, Figure]:
    sweep = [make_row(f"sabr-lambda-{value:g}", lambda_ratio=value) for value in (0.05, 0.1, 0.2, 0.7, 1.0)]
    large = (("cifar10", "2_255"), ("cifar10", "8_255"), ("tinyimagenet", "1_255"))
    five = [*folders, *(make_row("sabr", dataset=dataset, eps=eps) for dataset, eps in large)]
    growth = box_growth.simulate(np.linspace(0, 2, 21), centres=1000)
    return {
        "accuracies": figures.accuracies(records.collect(folders), TITLE, looks),
        "training_curves": figures.training_curves(records.histories(folders[:4]), TITLE, looks),
        "training_curves_page": figures.training_curves(records.histories(folders), TITLE, looks),
        "training_curves_five_page": figures.training_curves(records.histories(five), TITLE, looks),
        "lambda_sweep": figures.lambda_sweep(records.collect([*folders, *sweep]), TITLE, looks),
        "cascade_page": effort.cascade(stages.stages(folders), TITLE, looks),
        "time_limit": effort.time_limit(stages.limits(folders[:3]), TITLE, looks),
        "time_limit_page": effort.time_limit(stages.limits(folders), TITLE, looks),
        "time_limit_five_page": effort.time_limit(stages.limits(five), TITLE, looks),
        "box_growth": illustrations.box_growth(growth, TITLE, looks),
        "small_box": illustrations.small_box(draw_small_box(), TITLE, looks),
    }


def drawn_texts(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Bbox]]:
    """Every text that is really drawn (ticks outside the axes are not), and its place in pixels."""
    texts = []
    draw = Text.draw

    def record(self: Text, renderer: RendererBase) -> None:
        if self.get_visible() and self.get_text().strip():
            texts.append((self.get_text(), self.get_window_extent(renderer)))
        draw(self, renderer)

    monkeypatch.setattr(Text, "draw", record)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    monkeypatch.undo()
    return texts


def test_texts_stay_inside_and_do_not_overlap(drawn: dict[str, Figure], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, figure in drawn.items():
        texts, edge = drawn_texts(figure, monkeypatch), figure.bbox
        assert len(texts) > 5
        for text, box in texts:
            inside = box.x0 >= edge.x0 - 1 and box.x1 <= edge.x1 + 1 and box.y0 >= edge.y0 - 1 and box.y1 <= edge.y1 + 1
            assert inside, f"{name}: {text!r} is cut off"
        for (one, first), (other, second) in combinations(texts, 2):
            width = min(first.x1, second.x1) - max(first.x0, second.x0)
            height = min(first.y1, second.y1) - max(first.y0, second.y0)
            # A text's box has room for descenders: less than 2 px of overlap is none.
            assert min(width, height) < 2, f"{name}: {one!r} and {other!r} overlap"


def test_saved_as_pdf_and_png(drawn: dict[str, Figure], tmp_path: Path) -> None:
    for name, figure in drawn.items():
        style.save(figure, tmp_path / f"{name}.pdf")
        style.save(figure, tmp_path / f"{name}.png")
        content = (tmp_path / f"{name}.pdf").read_bytes()
        assert b"CreationDate" not in content
        assert b"/Type3" not in content  # fonts are embedded as TrueType
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SabrError, match=r"\.svg"):
        style.save(drawn["box_growth"], tmp_path / "figure.svg")
    assert not list(tmp_path.glob("*.svg")) and not list(tmp_path.glob(".*"))


def test_with_one_wrong_name_no_figure_is_written(tmp_path):
    names = [tmp_path / "figure.png", tmp_path / "figure.svg"]
    with pytest.raises(SabrError, match=r"figure\.svg: a figure cannot be written as '\.svg'; allowed: \.pdf, \.png"):
        reporting.figure("accuracies", tmp_path / "records.csv", "title", names)
    assert not list(tmp_path.iterdir())


def test_same_data_same_bytes(folders: list[Path], looks: style.Style, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for kind, figure in (
            ("accuracies", figures.accuracies(records.collect(folders), TITLE, looks)),
            ("cascade", effort.cascade(stages.stages(folders), TITLE, looks)),
            ("time-limit", effort.time_limit(stages.limits(folders), TITLE, looks)),
        ):
            style.save(figure, tmp_path / name / f"{kind}.pdf")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_widths_and_title(drawn: dict[str, Figure], looks: style.Style) -> None:
    for name, figure in drawn.items():
        width = looks.widths.page if name.endswith("page") else looks.widths.column
        assert figure.get_figwidth() == width
        own = "tiny scale: cnn-small, all training images, 3 epochs, first 20 test images"
        assert " ".join(figure.get_suptitle().split()) == (own if name.startswith("lambda_sweep") else TITLE)


def test_no_point_is_hidden(drawn: dict[str, Figure]) -> None:
    left, right = drawn["accuracies"].axes[0].get_xlim()
    assert left < 0 < 100 <= right  # 0 of 20 certified at eps 0.3, 20 of 20 natural for one method
    lower = drawn["lambda_sweep"].axes[1]
    assert len(lower.containers) == 5  # error bars of the five stages that prove
    assert [f"{tick:g}" for tick in lower.get_xticks()] == ["0.05", "0.1", "0.2", "0.4", "0.7", "1"]


def test_bars_of_the_cascade_are_whole(drawn: dict[str, Figure], folders: list[Path], looks: style.Style) -> None:
    images, time = drawn["cascade_page"].axes[:2]
    names = [label.get_text() for label in images.get_yticklabels()]
    for axes in (images, time):
        ends: dict[int, float] = {}
        for bar in axes.patches:
            place = round(bar.get_y() + bar.get_height() / 2)
            ends[place] = ends.get(place, 0.0) + bar.get_width()
        assert ends == pytest.approx(dict.fromkeys(range(len(names)), 100.0))
    sabr = [bar for bar in images.patches if round(bar.get_y() + bar.get_height() / 2) == names.index("SABR")]
    widths = [round(bar.get_width()) for bar in sorted(sabr, key=lambda bar: bar.get_x())]
    # Certified by five stages, unknown, refuted by the strong and by the quick attack, misclassified.
    assert widths == [20, 15, 10, 5, 5, 25, 5, 5, 10]
    striped = ["/" in (bar.get_hatch() or "") for bar in sorted(sabr, key=lambda bar: bar.get_x())]
    assert striped == 6 * [False] + 2 * [True] + [False]
    assert drawn["cascade_page"].axes[1].texts[0].get_text() == "0.25 s"  # 1.5 s of quick attack and seven times 0.5 s


def test_stages_that_prove_differ_in_grey(looks: style.Style) -> None:
    greys = {
        name: float(np.dot(to_rgb(looks.stage(name).colour), (0.299, 0.587, 0.114)))
        for name in PROOFS
        if not looks.stage(name).hatch
    }
    assert len(greys) == len(PROOFS) - 1
    assert all(abs(greys[one] - greys[other]) > 0.1 for one, other in combinations(greys, 2)), greys


def test_ibp_is_a_reference_only_where_it_was_run(make_row: MakeRow, looks: style.Style) -> None:
    sweep = [make_row(f"sabr-lambda-{value:g}", lambda_ratio=value) for value in (0.1, 0.2)]

    def legend(folders: list[Path]) -> list[str]:
        axes = figures.lambda_sweep(records.collect(folders), TITLE, looks).axes[0]
        found = axes.get_legend()
        assert found is not None
        return [text.get_text() for text in found.get_texts()]

    assert legend(sweep) == ["natural", "adversarial", "certified"]
    assert legend([*sweep, make_row("ibp")])[-1].startswith("IBP")


def test_a_sweep_shows_the_seeds_of_all_its_points(make_row: MakeRow, looks: style.Style) -> None:
    first = [make_row(f"sabr-lambda-{value:g}", lambda_ratio=value) for value in (0.1, 0.2)]
    second = make_row("sabr-lambda-0.1", lambda_ratio=0.1, seed=2, natural=17)

    def natural(folders: list[Path]) -> list[float]:
        line = figures.lambda_sweep(records.collect(folders), TITLE, looks).axes[0].containers[0].lines[0]
        return [float(value) for value in line.get_ydata()]

    assert natural([*first, second]) == pytest.approx([90, 90])
    assert natural([*first[1:], second]) == pytest.approx([85, 90])  # they share none


def test_nothing_to_draw_is_said(make_row: MakeRow, looks: style.Style) -> None:
    table = records.collect([make_row("sabr")])
    with pytest.raises(SabrError, match="two values of lambda"):
        figures.lambda_sweep(table, TITLE, looks)
    with pytest.raises(SabrError, match="nothing to draw"):
        figures.accuracies(table.iloc[:0], TITLE, looks)
    with pytest.raises(SabrError, match="nothing to draw"):
        effort.cascade(stages.stages([]), TITLE, looks)
    with pytest.raises(SabrError, match="nothing to draw"):
        effort.time_limit(stages.limits([make_row("ibp", stages=("crown",), refuted=())]), TITLE, looks)


def test_style(looks: style.Style, tmp_path: Path) -> None:
    assert looks.order(["zeta", "sabr", "alpha", "pgd", "sabr"]) == ["pgd", "sabr", "alpha", "zeta"]
    assert looks.method("zeta").label == "zeta"
    assert looks.method("zeta").colour == "#7F7F7F"
    assert looks.setting("mnist", "0.1") == "MNIST, ε = 0.1"
    drawn = [looks.methods[name] for name in ("standard", "pgd", "ibp", "sabr")]
    for one, other in combinations(drawn, 2):
        assert one.marker != other.marker and one.line != other.line and one.colour != other.colour
    grey = sorted(np.dot([int(look.colour[i : i + 2], 16) for i in (1, 3, 5)], (0.299, 0.587, 0.114)) for look in drawn)
    assert np.diff(grey).min() > 25  # of 255
    everything = [(look.colour, look.marker, look.line) for look in looks.methods.values() if look.marker != "*"]
    assert len(everything) == len(set(everything))
    assert set(METHODS) <= set(looks.methods)
    assert looks.method("sabr-lambda-0.1").label == "SABR (λ = 0.1)"
    assert looks.order(["sabr-lambda-1", "ibp", "sabr-lambda-0.2", "sabr"])[1:] == [
        "sabr",
        "sabr-lambda-0.2",
        "sabr-lambda-1",
    ]
    bad = tmp_path / "figures.yaml"
    bad.write_text(
        "widths: {column: 3.3, page: 6.9}\ndatasets: {}\nmeasures: {}\nstages: {}\n"
        "methods: {sabr: {label: S, colour: red}}\n"
    )
    with pytest.raises(SabrError, match=r"methods\.sabr\.colour: 'red' is not allowed"):
        style.read(bad)


def test_points_that_are_missing_are_told(tmp_path: Path) -> None:
    path, table = tmp_path / "small-box.csv", draw_small_box()
    table.to_csv(path, index=False)
    assert len(illustrations.read_small_box(path)) == len(table)
    table[table["kind"] != "clean"].to_csv(path, index=False)
    with pytest.raises(
        SabrError, match=r"small-box\.csv is not .* \(a point of the kind clean is missing\); delete it"
    ):
        illustrations.read_small_box(path)
    table.drop(index=table.index[table["kind"] == "grid"][0]).to_csv(path, index=False)
    with pytest.raises(SabrError, match="points of a grid are missing"):
        illustrations.read_small_box(path)
    with pytest.raises(SabrError, match="a point of the kind relaxation is missing"):
        illustrations.read_box_vs_relaxation(path)
