import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sabr.errors import SabrError
from sabr.report import counterexamples, examples, pareto, records, style

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


def test_archives_that_are_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "examples.npz"
    with pytest.raises(SabrError, match="cannot read"):
        examples.read(path)
    path.write_text("index,point\n")
    with pytest.raises(SabrError, match="no archive of counterexamples"):
        examples.read(path)
    np.savez(path, **{f"{name}-1": np.array(1) for name in examples.FIELDS})
    with pytest.raises(SabrError, match="no archive of counterexamples"):
        examples.read(path)


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
