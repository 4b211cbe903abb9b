import pytest
import torch
from nets import ROUNDS, distance, generator, loss

from sabr.analysis import loss_lambda
from sabr.analysis.adversarial import worst_points
from sabr.attacks.pgd import cross_entropy
from sabr.bounds.boxes import ball
from sabr.networks.steps import forward
from sabr.studies import COLUMNS

RATIOS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


def measured(steps, images, labels, *, eps, ratios=RATIOS, memory_mb=1000.0):
    return loss_lambda.measure(
        steps,
        images,
        labels,
        eps=eps,
        lambda_ratios=ratios,
        rounds=ROUNDS,
        generator=generator(),
        memory_mb=memory_mb,
    )


def test_by_hand():
    """At 0.6, of class 1, eps = 0.2: the worst point of [0.4, 0.8] is 0.8; intervals see both ReLUs open at once."""
    table = measured(distance(), torch.tensor([[0.6]]), torch.tensor([1]), eps=0.2, ratios=(0.0, 0.5, 1.0))
    assert list(table.columns) == list(COLUMNS["loss-lambda"])
    assert table["lambda_ratio"].tolist() == [0.0, 0.5, 1.0] and table["images"].tolist() == [1, 1, 1]
    margins = {
        "standard": [0.1, 0.1, 0.1],
        "adversarial": [-0.1, -0.1, -0.1],
        "box": [-0.1, -0.1, -0.2],  # [0.8, 0.8], [0.6, 0.8], [0.4, 0.8]
        "centred_adversarial": [0.1, 0.0, -0.1],  # at 0.6, 0.7, 0.8
        "centred_box": [0.1, 0.0, -0.2],  # [0.6, 0.6], [0.5, 0.7], [0.4, 0.8]
    }
    for name, values in margins.items():
        assert table[name].to_numpy() == pytest.approx([loss(margin) for margin in values], abs=1e-6), name


@pytest.fixture(scope="module")
def on_noise(request):
    """On images whose borders are black and white, where balls are cut to [0, 1]."""
    images = (2 * torch.rand(12, 1, 28, 28, generator=generator()) - 0.5).clamp(0, 1)
    return images, torch.arange(12) % 10


def test_what_must_hold_of_any_network(small_network, on_noise):
    _, steps = small_network()
    table = measured(steps, *on_noise, eps=0.1)
    assert table["standard"].nunique() == table["adversarial"].nunique() == 1
    first, last = table.iloc[0], table.iloc[-1]
    assert first["box"] == pytest.approx(first["adversarial"], rel=1e-5)
    assert first["centred_box"] == pytest.approx(first["standard"], rel=1e-5)
    assert first["centred_adversarial"] == first["standard"]
    assert last["box"] == pytest.approx(last["centred_box"], rel=1e-6)  # both the whole ball
    assert last["centred_adversarial"] == last["adversarial"]
    for name in ("box", "centred_adversarial", "centred_box"):
        assert (table[name].diff()[1:] > 0).all(), name
    assert (table["box"] >= table["adversarial"] - 1e-6).all()
    assert (table["centred_box"] >= table["centred_adversarial"] - 1e-6).all()
    assert (table["adversarial"] > table["standard"]).all()


def test_the_ball_is_attacked_where_no_ratio_is_1(small_network, on_noise):
    _, steps = small_network()
    table = measured(steps, *on_noise, eps=0.1, ratios=(0.0, 0.5))
    assert (table["adversarial"] > table["centred_adversarial"]).all()


def test_batches_change_nothing_but_the_starts(small_network, on_noise):
    _, steps = small_network()
    whole, cut = (measured(steps, *on_noise, eps=0.1, memory_mb=memory) for memory in (1000.0, 0.5))
    exact = ["standard", "centred_box"]
    torch.testing.assert_close(torch.tensor(whole[exact].to_numpy()), torch.tensor(cut[exact].to_numpy()))
    assert whole["adversarial"].to_numpy() == pytest.approx(cut["adversarial"].to_numpy(), rel=0.1)


def test_worst_points_never_lose_what_is_known(small_network, on_noise):
    _, steps = small_network()
    images, labels = on_noise
    region = ball(images, 0.1)

    def losses(points):
        with torch.no_grad():
            return cross_entropy(forward(steps, points), labels)

    good = worst_points(steps, region, labels, known=images, rounds=ROUNDS, generator=generator())
    assert (good >= region.lower).all() and (good <= region.upper).all()
    assert (losses(good) > losses(images)).all()
    kept = worst_points(steps, region, labels, known=good, rounds=(), generator=generator())
    assert torch.equal(kept, good)
    better = worst_points(steps, region, labels, known=good, rounds=ROUNDS, generator=generator())
    assert (losses(better) >= losses(good)).all()
