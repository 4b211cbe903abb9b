import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from sabr.errors import SabrError
from sabr.report import counterexamples, examples, pareto, records, style
from sabr.trained import Trained

MakeRow = Callable[..., Path]
CONFIG = Path(__file__).parents[2] / "config"


def lines() -> list[dict[str, Any]]:
    about = {"eps": "2/255", "method": "sabr", "seed": 1, "radius": 0.1, "label": 3, "refuted_by": "attack", "wrong": 5}
    grey, colour = np.full((1, 28, 28), 0.5, np.float32), np.full((3, 32, 32), 0.5, np.float32)
    return [
        about | {"dataset": dataset, "index": index, "image": image, "point": image + np.float32(0.05)}
        for dataset, image in (("mnist", grey), ("cifar10", colour))
        for index in (0, 4)
    ]


def test_round_trip(tmp_path: Path) -> None:
    counterexamples.write(lines(), tmp_path / "examples.npz")
    found = examples.read(tmp_path / "examples.npz")
    assert list(found.columns) == list(examples.FIELDS)
    assert list(found["index"]) == [0, 4, 0, 4] and list(found["dataset"])[1:3] == ["mnist", "cifar10"]
    assert found["image"][2].shape == (3, 32, 32) and np.array_equal(found["point"][0], lines()[0]["point"])


@pytest.fixture
def refuted(make_row: MakeRow, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A row whose images 16 (by the strong attack) and 17 (by the quick one) are refuted, and what is stored of them.

    Every image is 0.5 and of class 7, which the network sees where the mean is at most 0.52, and class 1 beyond.
    """
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 8))
    with torch.no_grad():
        network[1].weight.zero_()[1] = 0.25
        network[1].bias.zero_()[7] = 0.52
    images, labels = torch.full((20, 1, 2, 2), 0.5), torch.full((20,), 7)
    monkeypatch.setattr(counterexamples, "read_network", lambda *_: Trained(network, {}))
    monkeypatch.setattr(
        counterexamples, "read_images", lambda _, __, first, last, ___: (images[first:last], labels[first:last])
    )

    def make(by_attack: dict[int, float], by_others: dict[int, float]) -> Path:
        folder = make_row("sabr", natural=18, adversarial=16)
        (folder / "shards").mkdir()
        for path, points in ((folder / "attack.pt", by_attack), (folder / "shards" / "0-20.pt", by_others)):
            values = torch.tensor(list(points.values()), dtype=torch.float64)
            stored = {
                "index": torch.tensor(list(points), dtype=torch.int64),
                "points": values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2),
            }
            torch.save(stored, path)
        return folder

    return make


def test_counterexamples_are_gathered_from_all_files(refuted: Callable[..., Path], tmp_path: Path) -> None:
    folder = refuted({17: 0.6}, {16: 0.55})
    found = counterexamples.collect([folder], tmp_path, each=8)
    assert [(line["index"], line["label"], line["wrong"], line["refuted_by"]) for line in found] == [
        *((16, 7, 1, "attack"), (17, 7, 1, "quick-attack")),
    ]
    assert found[0]["radius"] == 0.1 and found[0]["point"] == pytest.approx(np.full((1, 2, 2), 0.55))
    assert len(counterexamples.collect([folder], tmp_path, each=1)) == 1


@pytest.mark.parametrize(
    ("by_attack", "by_others", "said"),
    [
        ({}, {16: 0.55}, "image 17 is refuted, but no counterexample of it is there"),
        ({17: 0.6}, {16: 0.61}, "image 16 lies outside the ball"),
        ({17: 0.51}, {16: 0.55}, "image 17 is classified right"),
    ],
)
def test_what_is_no_counterexample_is_refused(
    refuted: Callable[..., Path], tmp_path: Path, by_attack: dict[int, float], by_others: dict[int, float], said: str
) -> None:
    with pytest.raises(SabrError, match=said):
        counterexamples.collect([refuted(by_attack, by_others)], tmp_path, each=8)


def test_a_file_of_counterexamples_that_is_none_is_told(refuted: Callable[..., Path], tmp_path: Path) -> None:
    folder = refuted({17: 0.6}, {16: 0.55})
    (folder / "attack.pt").write_bytes(b"PK")
    with pytest.raises(SabrError, match=r"attack\.pt is no file of counterexamples"):
        counterexamples.collect([folder], tmp_path, each=8)


def test_archives_that_are_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "examples.npz"
    with pytest.raises(SabrError, match="cannot read"):
        examples.read(path)
    path.write_text("index,point\n")
    with pytest.raises(SabrError, match="no archive of counterexamples"):
        examples.read(path)
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(SabrError, match="no archive of counterexamples"):
        examples.read(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(SabrError, match="no archive of counterexamples"):
        examples.read(path)
    np.savez(path, **{f"{name}-1": np.array(1) for name in examples.FIELDS})
    with pytest.raises(SabrError, match="no archive of counterexamples"):
        examples.read(path)


@pytest.mark.parametrize("name", ["label", "wrong"])
@pytest.mark.parametrize("number", [10, -1])
def test_classes_that_are_none_are_told(tmp_path: Path, name: str, number: int) -> None:
    counterexamples.write([line | {name: number} for line in lines()], tmp_path / "examples.npz")
    with pytest.raises(SabrError, match=rf"examples\.npz: cifar10 has no class {number}; delete it and run again"):
        examples.read(tmp_path / "examples.npz")


def test_drawn(tmp_path: Path, looks: style.Style) -> None:
    counterexamples.write(lines(), tmp_path / "examples.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = examples.examples(examples.read(tmp_path / "examples.npz"), "tiny scale", looks)
        style.save(figure, tmp_path / "examples.png")
    words = " ".join(text.get_text() for part in figure.subfigs for axes in part.axes for text in axes.texts)
    assert "5\nstrong attack" in words and "dog\nstrong attack" in words and "counterexample" in words
    assert [part.get_suptitle() for part in figure.subfigs] == ["MNIST, ε = 2/255, SABR", "CIFAR-10, ε = 2/255, SABR"]
    with pytest.raises(SabrError, match="nothing to draw"):
        examples.examples(pd.DataFrame(columns=list(examples.FIELDS)), "t", looks)


def test_many_networks_fit_a_page(tmp_path: Path, looks: style.Style) -> None:
    five = [line | {"seed": seed} for seed in range(5) for line in 8 * lines()[:1]]
    counterexamples.write(five, tmp_path / "examples.npz")
    figure = examples.examples(examples.read(tmp_path / "examples.npz"), "tiny scale", looks)
    assert figure.get_figheight() < 10
    drawn = [sum(bool(axes.images) for axes in part.axes) for part in figure.subfigs]
    assert drawn == 5 * [12] + [0]  # four images each: before, change, after


def test_natural_against_certified(make_row: MakeRow, tmp_path: Path, looks: style.Style) -> None:
    good = {"certified": (10, 3, 2)}
    folders = [make_row("sabr", **good), make_row("ibp", **good), make_row("pgd", certified=(1,))]
    folders.append(make_row("sabr", dataset="cifar10", eps="8_255"))
    records.write(records.collect(folders), tmp_path / "records.csv")
    numbers = pareto.read(tmp_path / "records.csv", CONFIG / "published.yaml")
    ours = numbers[numbers["origin"] == "ours"].set_index(["dataset", "method"])
    assert ours.loc[("mnist", "sabr"), ["natural", "certified"]].tolist() == pytest.approx([90, 75])
    assert ours.loc[("mnist", "sabr"), "certified_low"] == pytest.approx(100 * records.interval(15, 20)[0])
    theirs = numbers[numbers["origin"] == "published"]
    assert {"taps", "ctbench-sabr", "colt"} <= set(theirs["method"]) and "0.3" not in set(theirs["eps"])
    figure = pareto.pareto(numbers, "tiny scale", looks)
    style.save(figure, tmp_path / "pareto.png")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["MNIST, ε = 0.1", "CIFAR-10, ε = 8/255"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["PGD: 90.0, 5.0 ↓"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["PGD", "IBP", "SABR"] and labels[-1] == "small: CTBench"
