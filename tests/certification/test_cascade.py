import numpy as np
import pytest
import torch

from sabr.bounds.auto_lirpa import BoundedNetwork
from sabr.certification import cascade
from sabr.config import read_yaml, resolve
from sabr.data.batches import evaluation_images
from sabr.data.datasets import load
from sabr.settings import DATASETS
from sabr.specs import CertificationSpec, TrainingSpec
from sabr.training.trainer import train


@pytest.fixture(scope="module")
def trained(mnist_train, mnist_folder, request):
    """An IBP network that certifies some real digits, and the digits."""
    root = request.config.rootpath
    plan = resolve(read_yaml(root / "config" / "config.yaml") | {"scale": "tiny"}, root / "config")
    row = next(row for row in plan.main if row.method == "ibp")
    spec = TrainingSpec.model_validate(row.training.model_dump() | {"train_images": 2048, "epochs": 4, "eps": 0.05})
    network, _ = train(spec, mnist_train, device=torch.device("cpu"), report=lambda _: None)
    split = load(DATASETS["mnist"], mnist_folder, "test")
    images, labels = evaluation_images(split, DATASETS["mnist"], slice(0, 100))
    certification = row.certification.model_dump() | {"images": 100, "eps": 0.05, "batch_size": 30}
    return network, images, labels, CertificationSpec.model_validate(certification)


@pytest.fixture(scope="module")
def verdicts(trained):
    network, images, labels, spec = trained
    attacked, points = cascade.attack(network, images, labels, spec, lambda _: None)
    return attacked, points, cascade.certify(network, images, attacked, spec, lambda _: None)


def test_attacked_points_are_counterexamples(trained, verdicts):
    network, images, labels, spec = trained
    attacked, points, _ = verdicts
    natural = (network(images).argmax(1) == labels).numpy()
    assert attacked["natural_correct"].tolist() == natural.tolist()
    refuted = natural & ~attacked["adversarial_correct"].to_numpy()
    assert 0 < refuted.sum() < natural.sum()
    assert (points - images).abs().max() <= spec.eps + 1e-6
    assert points.min() >= 0 and points.max() <= 1
    assert (network(points).argmax(1) != labels).numpy()[refuted].all()
    assert not attacked["adversarial_correct"][~natural].any()


def test_verdicts_are_what_the_bounds_say(trained, verdicts):
    network, images, labels, spec = trained
    attacked, _, table = verdicts
    certified = table["certified"].to_numpy()
    assert 10 < certified.sum() < attacked["adversarial_correct"].sum() + 1
    assert not (certified & ~attacked["adversarial_correct"]).any()
    assert (table["margin_lower_bound"][certified] > 0).all()
    assert (table["margin_lower_bound"][~certified & attacked["natural_correct"]] <= 0).all()
    assert table["margin_lower_bound"][~attacked["natural_correct"]].isna().all()
    assert set(table["certified_by"][~certified]) == {""}
    assert {"interval"} < set(table["certified_by"][certified])
    assert (table["seconds"][attacked["natural_correct"]] > 0).all()


def test_stages_take_only_what_is_open(trained, verdicts, monkeypatch):
    network, images, _, spec = trained
    attacked, _, table = verdicts
    asked = {stage: 0 for stage in spec.stages}
    original = BoundedNetwork.margin_lower_bounds

    def counting(self, box, labels, *, method):
        asked[method] += len(labels)
        assert len(labels) <= spec.batch_size
        return original(self, box, labels, method=method)

    monkeypatch.setattr(BoundedNetwork, "margin_lower_bounds", counting)
    again = cascade.certify(network, images, attacked, spec, lambda _: None)
    assert again["certified_by"].tolist() == table["certified_by"].tolist()
    by = table["certified_by"].value_counts()
    natural, resists = attacked["natural_correct"].sum(), attacked["adversarial_correct"].sum()
    assert asked["interval"] == natural
    assert asked["crown-ibp"] == natural - by["interval"]
    open_ = resists - by["interval"] - by.get("crown-ibp", 0)
    assert asked["crown"] == open_
    assert asked["alpha-crown"] == open_ - by.get("crown", 0)


def test_shards_give_the_verdicts_of_the_whole(trained, verdicts):
    network, images, _, spec = trained
    attacked, _, table = verdicts
    parts = []
    for first, last in ((0, 37), (37, 100)):
        part = attacked.iloc[first:last].reset_index(drop=True)
        parts.append(cascade.certify(network, images[first:last], part, spec, lambda _: None))
    assert [by for part in parts for by in part["certified_by"]] == table["certified_by"].tolist()
    margins = np.concatenate([part["margin_lower_bound"] for part in parts])
    np.testing.assert_allclose(margins, table["margin_lower_bound"], rtol=1e-2, atol=1e-2)


def test_an_unsound_bound_would_be_seen(trained, verdicts, monkeypatch):
    # Cheap bounds are put to refuted images too: one that proves too much contradicts the attack.
    from sabr.certification.verdicts import refuse_contradictions
    from sabr.errors import SabrError

    network, images, _, spec = trained
    attacked, _, _ = verdicts
    monkeypatch.setattr(
        BoundedNetwork, "margin_lower_bounds", lambda self, box, labels, *, method: torch.ones(len(labels), 9)
    )
    table = cascade.certify(network, images, attacked, spec, lambda _: None)
    with pytest.raises(SabrError, match="although the attack refutes it"):
        refuse_contradictions(table, "here")
