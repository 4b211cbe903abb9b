import pytest
import torch

from sabr.data.datasets import Split
from sabr.errors import SabrError
from sabr.methods import METHODS
from sabr.specs import TrainingSpec
from sabr.training.trainer import train


@pytest.fixture
def spec(plan):
    """The tiny scale's specification of a method, with changes."""

    def make(method, **changes):
        row = next(row for row in plan.main if row.method == method)
        return TrainingSpec.model_validate(row.training.model_dump() | changes)

    return make


def run(spec, split):
    seen = []
    network, history = train(spec, split, device=torch.device("cpu"), report=seen.append)
    return network, history, seen


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_real_digits(spec, mnist_train, method):
    _, history, seen = run(spec(method), mnist_train)
    assert [m.epoch for m in history] == [1, 2, 3]
    assert history[-1].natural_accuracy > 0.6 > 2 * history[0].natural_accuracy - 0.6
    assert history[-1].eps == pytest.approx(0.1)
    assert [p.step for p in seen] == list(range(1, 25))
    assert [p.metrics for p in seen if p.metrics] == history


def test_equal_specifications_give_equal_weights(spec, mnist_train):
    short = {"epochs": 2, "ramp_start": 1, "ramp_end": 2, "learning_rate_drops": (2,), "train_images": 256}
    quick = spec("sabr", **short)
    one, _, _ = run(quick, mnist_train)
    torch.rand(7)  # the global generator plays no part
    two, _, _ = run(quick, mnist_train)
    other, _, _ = run(spec("sabr", **short, seed=2), mnist_train)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name]), name
    assert not torch.equal(one[0].weight, other[0].weight)


def test_too_few_images_are_refused(spec, mnist_train):
    few = Split(mnist_train.images[:100], mnist_train.labels[:100])
    with pytest.raises(SabrError, match="512 training images are asked for, but only 100 of mnist"):
        run(spec("ibp"), few)


def test_divergence_is_told(spec, mnist_train):
    with pytest.raises(SabrError, match=r"diverged in epoch 1, step 2, at eps 0: the loss is not finite \(robust nan"):
        run(spec("ibp", learning_rate=1e30), mnist_train)
