import warnings
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from test_figures import drawn_texts

from sabr.errors import SabrError
from sabr.report import illustrations, study_figures, style
from sabr.studies import COLUMNS, NETWORK_COLUMNS

TITLE = "tiny scale: a small network, 1,000 training images, 3 epochs"
METHODS = ("pgd", "ibp", "sabr")
ROW = {"dataset": "cifar10", "eps": "2/255", "method": "sabr", "seed": 1}


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def losses(methods: tuple[str, ...] = METHODS, seeds: tuple[int, ...] = (1, 2)) -> pd.DataFrame:
    lines = []
    for place, method in enumerate(methods):
        for seed in seeds:
            for ratio in (0.0, 0.1, 0.4, 1.0):
                standard = 0.1 * (place + 1) + 0.01 * seed
                found = (standard, 2 * standard, 2 * standard * 20**ratio, standard * 2**ratio, standard * 40**ratio)
                lines.append(ROW | {"method": method, "seed": seed} | dict(_filled("loss-lambda", (ratio, 50, *found))))
    return _table("loss-lambda", lines)


def inputs() -> pd.DataFrame:
    lines = []
    for place, method in enumerate(METHODS):
        edges = np.round(np.arange(-40, 21) * 0.1, 10)
        heights = np.exp(-((edges[:-1] + 1 + 0.3 * place) ** 2))
        for low, high, share in zip(edges, edges[1:], heights / heights.sum(), strict=False):
            numbers = (6, 50, low, high, share, -1.0 - 0.3 * place, 0.8)
            lines.append(ROW | {"method": method} | dict(_filled("relu-inputs", numbers)))
    return _table("relu-inputs", lines)


def sizes(methods: tuple[str, ...] = METHODS, layers: int = 6) -> pd.DataFrame:
    lines = []
    for method in methods:
        for layer in range(1, layers + 1):
            for stage, power in (("before", 1 + 0.02 * layer), ("after", 1 + 0.05 * layer)):
                for ratio in (0.05, 0.2, 1.0):
                    linear = ratio * 2.0**layer / 255
                    numbers = (layer, stage, ratio, 50, ratio * 2 / 255, linear * (ratio / 0.05) ** (power - 1), linear)
                    lines.append(ROW | {"method": method} | dict(_filled("box-sizes", numbers)))
    return _table("box-sizes", lines)


def curves(settings: tuple[tuple[str, str, float], ...]) -> pd.DataFrame:
    lines = []
    for dataset, eps, radius in settings:
        for place, method in enumerate(("pgd", "ibp", "sabr", "crown-ibp", "cc-ibp", "mtl-ibp", "exp-ibp", "staps")):
            for factor in (0.25, 0.5, 1.0, 1.5):
                left = 45 - int((8 + place) * factor)
                numbers = (factor * radius, 50, 45, left, max(0, left - 3 * place - 5))
                row = ROW | {"dataset": dataset, "eps": eps, "method": method}
                lines.append(row | dict(_filled("eps-curve", numbers)))
    return _table("eps-curve", lines)


def relaxed() -> pd.DataFrame:
    """The identity in place of a network: what `sabr.analysis.box_vs_relaxation.study` would give."""
    lines = []
    for layer in ("first hidden", "second hidden", "output"):
        lines += [(layer, "lower", 0, 0, 0.0, 1.0), (layer, "upper", 0, 0, 1.0, 2.0), (layer, "clean", 0, 0, 0.5, 1.6)]
        corners = ((-0.1, 1.0), (1.0, 1.0), (1.0, 2.1), (0.0, 2.0))
        lines += [(layer, "relaxation", i, 0, x, y) for i, (x, y) in enumerate(corners)]
        grid = np.linspace(0, 1, 3)
        lines += [(layer, "grid", i, j, x, y + 1) for i, x in enumerate(grid) for j, y in enumerate(grid)]
    return pd.DataFrame(lines, columns=["layer", "kind", "row", "column", "x", "y"])


def _filled(study: str, numbers: tuple[object, ...]) -> Iterator[tuple[str, object]]:
    yield from zip(COLUMNS[study], numbers, strict=True)


def _table(study: str, lines: list[dict[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(lines).astype(NETWORK_COLUMNS | COLUMNS[study])


MNIST = (("mnist", "0.1", 0.1),)
ALL = (*MNIST, ("mnist", "0.3", 0.3), ("cifar10", "2/255", 2 / 255), ("cifar10", "8/255", 8 / 255))
FIVE = (*ALL, ("tinyimagenet", "1/255", 1 / 255))


@pytest.fixture(scope="module")
def drawn(looks: style.Style) -> dict[str, Figure]:
    return {
        "loss_lambda": study_figures.loss_lambda(losses(), TITLE, looks),
        "relu_inputs": study_figures.relu_inputs(inputs(), TITLE, looks),
        "box_sizes": study_figures.box_sizes(sizes(), TITLE, looks),
        "box_sizes_page": study_figures.box_sizes(sizes((*METHODS, "crown-ibp"), 3), TITLE, looks),
        "eps_curve": study_figures.eps_curve(curves(MNIST), TITLE, looks),
        "eps_curve_of_five_page": study_figures.eps_curve(curves(FIVE), TITLE, looks),
        "eps_curve_page": study_figures.eps_curve(curves(ALL), TITLE, looks),
        "box_vs_relaxation": illustrations.box_vs_relaxation(relaxed(), TITLE, looks),
    }


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


def test_widths_and_titles(drawn: dict[str, Figure], looks: style.Style) -> None:
    for name, figure in drawn.items():
        width = looks.widths.page if name.endswith("page") else looks.widths.column
        assert figure.get_figwidth() == width
        title = " ".join(figure.get_suptitle().split())
        assert title.endswith(TITLE + (", first 50 images" if name != "box_vs_relaxation" else ""))
        # The setting is named once: in the title where there is one, else over each panel.
        assert title.startswith("CIFAR-10, ε = 2/255") == name.startswith(("loss", "relu", "box_sizes"))


def test_same_data_same_bytes(looks: style.Style, tmp_path: Path) -> None:
    for name in ("one", "two"):
        for kind, figure in (
            ("losses", study_figures.loss_lambda(losses(), TITLE, looks)),
            ("curves", study_figures.eps_curve(curves(ALL), TITLE, looks)),
        ):
            style.save(figure, tmp_path / f"{kind}-{name}.pdf")
            style.save(figure, tmp_path / f"{kind}-{name}.png")
    for kind in ("losses", "curves"):
        for suffix in ("pdf", "png"):
            one, two = (tmp_path / f"{kind}-{name}.{suffix}" for name in ("one", "two"))
            assert one.read_bytes() == two.read_bytes()


def test_losses_are_means_over_seeds(drawn: dict[str, Figure], looks: style.Style) -> None:
    upper, lower = drawn["loss_lambda"].axes
    lines = [line for line in upper.get_lines() if line.get_color() == looks.method("sabr").colour]
    ends = {line.get_linestyle(): line.get_ydata()[-1] for line in lines}
    standard = 0.3 + 0.015
    assert ends == pytest.approx({":": standard, "--": 2 * standard, "-": 40 * standard})
    centred = [line for line in lower.get_lines() if line.get_color() == looks.method("sabr").colour]
    assert [line.get_ydata()[0] for line in centred] == pytest.approx([standard] * 3)
    assert upper.get_yscale() == "log" and len(upper.collections) == 9  # the range of seeds, shaded


def test_losses_of_methods_differ_without_colour(drawn: dict[str, Figure], looks: style.Style) -> None:
    figure = drawn["loss_lambda"]
    styles = [(line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines]
    assert len(set(styles)) == len(styles) == 3 * len(METHODS)
    legend = figure.legends[0]
    entries = dict(zip((text.get_text() for text in legend.texts), legend.legend_handles, strict=True))
    assert all(entries[looks.method(name).label].get_marker() == looks.method(name).marker for name in METHODS)


def test_a_box_loss_far_above_all_others_leaves_the_panel_and_is_told(looks: style.Style) -> None:
    table = losses(seeds=(1,))
    table.loc[table["method"] == "pgd", ["box", "centred_box"]] *= 1000
    upper, lower = study_figures.loss_lambda(table, TITLE, looks).axes
    shown = table[table["method"] != "pgd"]
    for axes in (upper, lower):
        assert axes.texts[0].get_text() == "PGD: Box loss up to 4,400"
        assert shown[["box", "centred_box", "adversarial"]].max(axis=None) < axes.get_ylim()[1] < 100
    assert not study_figures.loss_lambda(shown, TITLE, looks).axes[0].texts[0].get_text()


def test_histograms_are_whole(drawn: dict[str, Figure]) -> None:
    panels = [axes for axes in drawn["relu_inputs"].axes if axes.patches]
    assert [axes.get_title(loc="left") for axes in panels] == ["PGD", "IBP", "SABR"]
    for axes in panels:
        assert sum(bar.get_width() * bar.get_height() for bar in axes.patches) == pytest.approx(1)
        assert "80 % below 0" in axes.texts[0].get_text() and "mean −1" in axes.texts[0].get_text()
    assert panels[0].get_xlim() == panels[2].get_xlim()


def test_curves_start_at_natural_accuracy(drawn: dict[str, Figure]) -> None:
    adversarial, certified = drawn["eps_curve"].axes
    for axes in (adversarial, certified):
        curves = [line for line in axes.get_lines() if len(line.get_xdata()) == 5]
        assert len(curves) == 8
        assert all((line.get_xdata()[0], line.get_ydata()[0]) == (0.0, 90.0) for line in curves)
    (own,) = [line for line in certified.get_lines() if len(line.get_xdata()) == 2]
    assert list(own.get_xdata()) == [0.1, 0.1]
    page = drawn["eps_curve_page"].axes
    assert page[2].get_xlim() == (0.0, pytest.approx(3.0)) and "1/255" in page[6].get_xlabel()


def test_growth_is_against_linear_growth(drawn: dict[str, Figure]) -> None:
    lower = drawn["box_sizes"].axes[3]
    assert lower.get_yscale() == "linear" and drawn["box_sizes"].axes[0].get_yscale() == "log"
    assert all(line.get_ydata()[0] == pytest.approx(1) for line in lower.get_lines())
    last = [line.get_ydata()[-1] for line in lower.get_lines() if line.get_linestyle() == "-"]
    assert last == pytest.approx([20 ** (0.05 * layer) for layer in range(1, 7)])


def test_nothing_to_draw_is_said(looks: style.Style) -> None:
    for draw, table in (
        (study_figures.loss_lambda, losses()),
        (study_figures.relu_inputs, inputs()),
        (study_figures.box_sizes, sizes()),
        (study_figures.eps_curve, curves(MNIST)),
        (illustrations.box_vs_relaxation, relaxed()),
    ):
        with pytest.raises(SabrError, match="nothing to draw"):
            draw(table.iloc[:0], TITLE, looks)


def test_one_seed_is_drawn_without_a_range(looks: style.Style) -> None:
    figure = study_figures.loss_lambda(losses(("sabr",), (1,)), TITLE, looks)
    assert not figure.axes[0].collections
