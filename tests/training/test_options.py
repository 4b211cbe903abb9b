"""What the literature adds to the paper's protocol, each off by default."""

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.optim.swa_utils import update_bn

from sabr.data.batches import evaluation_images, held_out
from sabr.data.datasets import Split
from sabr.errors import SabrError
from sabr.settings import DATASETS
from sabr.specs import TrainingSpec
from sabr.training import trainer

CPU = torch.device("cpu")


@pytest.fixture
def spec(plan):
    def make(**changes):
        row = next(row for row in plan.main if row.method == "sabr")
        return TrainingSpec.model_validate(row.training.model_dump() | {"train_images": 256} | changes)

    return make


def trained(spec, split):
    return trainer.train(spec, split, device=CPU, report=lambda _: None).network


def test_the_norm_of_the_gradient_is_clipped(spec, mnist_train):
    norms = []

    def note(optimiser, *_):
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm([g for g in gradients if g is not None])))

    handle = register_optimizer_step_pre_hook(note)
    try:
        trained(spec(), mnist_train)
        free, norms[:] = norms[:], []
        free_spec = spec()
        clipped = free_spec.model_dump() | {"method": free_spec.method.model_dump() | {"gradient_clip": 0.5}}
        trained(TrainingSpec.model_validate(clipped), mnist_train)
    finally:
        handle.remove()
    assert len(norms) == len(free) == 12
    assert max(free) > 1 > 0.5001 > max(norms)


def test_population_statistics_are_those_of_update_bn(spec, mnist_train):
    few = Split(mnist_train.images[:256], mnist_train.labels[:256])
    network = trained(spec(validation_images=None), mnist_train)
    expected = trained(spec(), mnist_train)
    images, labels = evaluation_images(few, DATASETS["mnist"], slice(0, 256))
    update_bn(zip(images.split(64), labels.split(64), strict=True), expected)
    trainer.recompute_statistics(network, few, DATASETS["mnist"], 64, CPU)
    for name, tensor in expected.named_buffers():
        if "running" in name:
            torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_with_population_statistics_only_the_running_ones_differ(spec, mnist_train):
    plain = trained(spec(), mnist_train).state_dict()
    population = trained(spec(batch_norm_statistics="population"), mnist_train).state_dict()
    differ = {name for name, tensor in plain.items() if not torch.equal(tensor, population[name])}
    assert differ == {name for name in plain if "running" in name}


def test_validation_images_are_never_trained_on(spec, mnist_train, monkeypatch):
    # Each image carries its own number in its first pixels.
    images = mnist_train.images[:1000].clone()
    numbers = torch.arange(1000)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = (numbers // 256).byte(), (numbers % 256).byte()
    split = Split(images, mnist_train.labels[:1000])

    def number(these):
        return set((these[:, 0, 0, 0].long() * 256 + these[:, 0, 0, 1].long()).tolist())

    held = held_out(split, 300)
    assert number(held.validation.images) | number(held.rest.images) == set(range(1000))
    assert len(number(held.validation.images)) == 300
    assert number(held_out(split, 300).validation.images) == number(held.validation.images)
    seen = set()
    original = trainer.step_loss

    def spy(network, batch, *rest):
        seen.update(number((batch * 255).round()))
        return original(network, batch, *rest)

    monkeypatch.setattr(trainer, "step_loss", spy)
    trained(spec(validation_images=300, train_images=512), split)
    assert len(seen) == 512
    assert not seen & number(held.validation.images)
    with pytest.raises(SabrError, match="1000 validation images cannot be held out of 1000"):
        held_out(split, 1000)


def test_an_attack_in_half_the_precision_learns_too(spec, mnist_train):
    exact, rough = (trained(spec(attack_precision=name), mnist_train) for name in ("float32", "bfloat16"))
    one, two = (network.state_dict()["0.weight"] for network in (exact, rough))
    assert not torch.equal(one, two)
    torch.testing.assert_close(one, two, rtol=0.2, atol=0.02)
