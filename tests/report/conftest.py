"""Recorded results as the pipeline would write them, small and made up."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sabr.certification.verdicts import COLUMNS, read, write
from sabr.layers import read_yaml
from sabr.plan import resolve
from sabr.report import outline, published, style
from sabr.report.tables.layout import Context
from sabr.specs import TRAINING_REVISION

ATTACK = {"steps": [{"count": 4, "size": 0.5}]}
CONFIG = Path(__file__).parents[2] / "config"
ALL_STAGES = ("interval", "crown-ibp", "crown", "alpha-crown", "attack", "complete")
# Seconds of an image that a stage decides.
SECONDS = dict(zip(ALL_STAGES, (0.002, 0.004, 0.02, 0.2, 0.5, 2.0), strict=True)) | {"": 0.0, "quick-attack": 0.0}

MakeRow = Callable[..., Path]


@pytest.fixture(scope="session")
def certification() -> dict[str, Any]:
    """How the default scale certifies, whatever that is at present."""
    plan = resolve(read_yaml(CONFIG / "config.yaml"), CONFIG)
    return plan.main[0].certification.model_dump(mode="json")


@pytest.fixture
def make_row(tmp_path: Path, certification: dict[str, Any]) -> MakeRow:
    """Write a row folder: `natural`, `adversarial` right answers of `images`; certified and refuted images by stage.

    `certified` are those of the stages that prove, `refuted` those of the last stage and so on back; all others that
    are not adversarially right are refuted by the quick attack.
    """

    def make(
        method: str = "sabr",
        *,
        dataset: str = "mnist",
        eps: str = "0.1",
        seed: int = 1,
        objective: str | None = None,
        lambda_ratio: float = 0.4,
        images: int = 20,
        natural: int = 18,
        adversarial: int = 16,
        certified: Sequence[int] = (4, 3, 2, 1, 1),
        refuted: Sequence[int] = (0, 1),
        stages: Sequence[str] = ALL_STAGES,
        scale: str = "quick",
    ) -> Path:
        folder = tmp_path / scale / dataset / f"eps-{eps}" / method / f"seed-{seed}"
        folder.mkdir(parents=True)
        radius = {"0.1": 0.1, "0.3": 0.3, "2_255": 2 / 255, "8_255": 8 / 255, "1_255": 1 / 255}[eps]
        objective = objective or method.split("-")[0]
        spec: dict[str, Any] = {"objective": objective, "initialisation": "intervals", "l1": 0.0}
        if objective in ("ibp", "sabr"):
            spec |= {"warmup_weight": 0.5, "eps_ratio": 1.0}
        if objective == "sabr":
            spec |= {"lambda_ratio": lambda_ratio, "lambda_end": None, "tau": "scalar", "relu_shrinkage": None}
        if objective in ("pgd", "sabr"):
            spec["attack"] = ATTACK
        run = {
            **{"dataset": dataset, "eps": radius, "architecture": "cnn-small", "train_images": None, "epochs": 3},
            **{"batch_size": 128, "learning_rate": 5e-4, "learning_rate_drops": [2], "learning_rate_factor": 0.2},
            **{"ramp_start": 1, "ramp_end": 2, "method": spec, "seed": seed, "revision": TRAINING_REVISION},
        }
        provenance = {"versions": {"torch": "2.10"}, "commit": None, "machine": {}}
        model = {"spec": run, "provenance": provenance, "seconds": 12.5, "sha256": "aa", "history": []}
        own = {"dataset": dataset, "eps": radius, "images": images, "stages": list(stages)}
        record = {"entered": 0, "certified": 0, "refuted": 0, "unknown": 0}
        judged = {
            "certification": certification | own,
            "model_sha256": "aa",
            "data_sha256": "dd",
            "provenance": provenance | {"commit": "abc"},
            "seconds": 3.0,
            "stages": {stage: record | {"seconds": 0.5} for stage in (*stages, "control")},
        }
        attacked = {"model_sha256": "aa", "data_sha256": "dd", "provenance": provenance, "seconds": 1.5}
        for name, value in (("run", run), ("model", model), ("attack", attacked)):
            (folder / f"{name}.json").write_text(json.dumps(value))
        proofs = [stage for stage in stages if stage != "attack"]
        by = [stage for stage, count in zip(proofs, certified, strict=False) for _ in range(count)]
        later = [stage for stage, count in zip(reversed(stages), refuted, strict=False) for _ in range(count)]
        later += ["quick-attack"] * (natural - adversarial - len(later))
        lines = []
        for index in range(images):
            right, resists = index < natural, index < adversarial
            proof = by[index] if index < len(by) else ""
            counterexample = later[index - adversarial] if right and not resists else ""
            reason = "" if proof or counterexample else f"out of time after {index} subproblems"
            lines.append(
                {"index": index, "label": 7, "prediction": 7 if right else 1}
                | {"natural_correct": right, "adversarial_correct": resists}
                | {"certified": bool(proof), "certified_by": proof, "refuted_by": counterexample}
                | {"reason": reason if right else "misclassified", "margin_lower_bound": 0.1, "subproblems": index}
                | {"seconds": SECONDS[proof or counterexample] if proof or counterexample or not right else 5.3}
            )
        write(pd.DataFrame(lines), folder / "verdicts.csv", judged)
        history = pd.DataFrame({"epoch": [1, 2, 3], "eps": [0, radius / 2, radius], "learning_rate": 5e-4})
        history = history.assign(loss=[1.2, 0.9, 0.4], robust_loss=0.3, regulariser=0.1, l1=0.0)
        history["natural_accuracy"] = [0.6, 0.8, 0.9]
        history["robust_accuracy"] = [None, 0.6, 0.8] if objective != "standard" else None
        history.assign(seconds=3.0, images_per_second=5000.0).to_csv(folder / "history.csv", index=False)
        return folder

    return make


@pytest.fixture
def change_verdict() -> Callable[..., None]:
    """Change some values of one image's verdict in a row folder, as a faulty program would: sidecar and all."""

    def change(folder: Path, row: int, values: dict[str, Any]) -> None:
        path = folder / "verdicts.csv"
        table, about = read(path, COLUMNS)
        for name, value in values.items():
            table[name] = table[name].astype("object")
            table.loc[row, name] = value
        write(table, path, about)

    return change


@pytest.fixture(scope="session")
def looks() -> style.Style:
    return style.read(CONFIG / "figures.yaml")


@pytest.fixture(scope="session")
def literature() -> pd.DataFrame:
    return published.read(CONFIG / "published.yaml")


@pytest.fixture
def plan() -> Callable[..., outline.Outline]:
    """An outline: each network as "mnist-eps-0.1/sabr/1", or with parts of the plan after it: ".../1/main sweep"."""

    def make(*networks: str, title: str = "tiny scale: 60_000 images & 3 epochs") -> outline.Outline:
        rows = []
        for network in networks:
            setting, method, seed, *parts = network.split("/")
            dataset, _, eps = setting.partition("-eps-")
            place = {"dataset": dataset, "eps": eps.replace("_", "/"), "method": method, "seed": int(seed)}
            rows.append(place | {"parts": parts[0].split() if parts else ["main", "studied"]})
        content = {"scale": "tiny", "title": title, "studied": title, "overrides": {}, "rows": rows}
        return outline.parse(json.dumps(content))

    return make


@pytest.fixture
def context(
    plan: Callable[..., outline.Outline], literature: pd.DataFrame, looks: style.Style
) -> Callable[..., Context]:
    """What tables put results into, for a plan as `plan` takes it."""
    return lambda *networks, **more: Context(plan(*networks, **more), literature, looks)
