"""The `paper` scale, value by value, against what was published. Nothing here is read from elsewhere."""

from pathlib import Path

import pytest

from sabr.layers import read_yaml
from sabr.plan import resolve
from sabr.settings import ARCHITECTURES, DATASETS

CONFIG = Path(__file__).parents[1] / "config"
PAPER = resolve(read_yaml(CONFIG / "config.yaml") | {"scale": "paper", "overrides": {}}, CONFIG)
ROWS = {(row.setting, row.method): row for row in PAPER.rows.values()}

# Müller et al. (ICLR 2023), appendix C, and the authors' commands (eth-sri/SABR, 1a6c258). All lists are in this order.
SETTINGS = ["mnist-eps-0.1", "mnist-eps-0.3", "cifar10-eps-2_255", "cifar10-eps-8_255", "tinyimagenet-eps-1_255"]
TRAINING = {
    "eps": [0.1, 0.3, 0.00784313725, 0.03137, 0.00392157],
    "epochs": [70, 70, 160, 180, 180],
    "learning_rate_drops": [(50, 60), (50, 60), (120, 140), (140, 160), (140, 160)],
    "ramp_start": [2] * 5,
    "ramp_end": [22, 22, 82, 82, 82],
    "batch_size": [256, 256, 128, 128, 128],
    "learning_rate": [5e-4] * 5,
    "learning_rate_factor": [0.2] * 5,
    "architecture": ["cnn7"] * 5,
    # All images, none held out; the last epoch's running statistics.
    "train_images": [None] * 5,
    "validation_images": [None] * 5,
    "batch_norm_statistics": ["running"] * 5,
    "attack_precision": ["float32"] * 5,
    "seed": [12] * 5,
}
SABR = {
    "objective": ["sabr"] * 5,
    "lambda_ratio": [0.4, 0.6, 0.1, 0.7, 0.4],
    "lambda_end": [None] * 5,
    "l1": [1e-5, 1e-6, 1e-6, 0, 1e-6],
    "relu_shrinkage": [None, None, 0.8, None, None],
    "eps_ratio": [1] * 5,
    "tau": ["scalar"] * 5,
    "initialisation": ["intervals"] * 5,
    "warmup_weight": [0.5] * 5,
    "gradient_clip": [None] * 5,
}
# MN-BaB's: time limit in s for each image, slopes, joint constraints, inner layers after a split.
CERTIFICATION = {
    "eps": [0.1, 0.3, 2 / 255, 8 / 255, 1 / 255],
    "images": [10_000] * 5,
    "seconds": [500, 500, 1000, 1000, 100],
    "slopes": [(20, 0.1)] * 4 + [(40, 0.12)],
    "groups": [(3, 50)] * 4 + [None],
    "recompute": [False, False, True, True, False],
}


def test_every_setting_is_there():
    assert list(PAPER.run.settings) == SETTINGS
    assert PAPER.run.seeds == (12,)
    for setting, dataset in zip(SETTINGS, ["mnist", "mnist", "cifar10", "cifar10", "tinyimagenet"], strict=True):
        assert ROWS[setting, "sabr"].training.dataset == ROWS[setting, "sabr"].certification.dataset == dataset


@pytest.mark.parametrize("key", TRAINING)
def test_training(key):
    for method in ("sabr", "ibp", "pgd"):
        assert [getattr(ROWS[setting, method].training, key) for setting in SETTINGS] == TRAINING[key]


@pytest.mark.parametrize("key", SABR)
def test_sabr(key):
    assert [getattr(ROWS[setting, "sabr"].training.method, key) for setting in SETTINGS] == SABR[key]


def test_the_attack_in_training_has_eight_steps():
    for setting in SETTINGS:
        assert ROWS[setting, "sabr"].training.method.attack.step_sizes == [0.5] * 4 + [0.05] * 3 + [0.005]


def test_certification():
    found = {key: [] for key in CERTIFICATION}
    for setting in SETTINGS:
        asked = ROWS[setting, "sabr"].certification
        groups = asked.complete.multi_neuron
        found["eps"].append(asked.eps)
        found["images"].append(asked.images)
        found["seconds"].append(asked.complete.seconds)
        found["slopes"].append((asked.alpha.iterations, asked.alpha.learning_rate))
        found["groups"].append(None if groups is None else (groups.size, groups.partition))
        found["recompute"].append(asked.complete.recompute)
        assert (asked.complete.iterations, asked.complete.learning_rate) == found["slopes"][-1]
        # 50 points each of 10 diversified and 50 further steps: margin and GAMA five times, margin once more.
        rounds = [(r.loss, r.starts, len(r.diversify_sizes), len(r.step_sizes)) for r in asked.strong_attack]
        assert rounds == [("margin", 250, 10, 50), ("gama", 250, 10, 50), ("margin", 50, 0, 50)]
        assert asked.stages[0] == "interval" and asked.stages[-1] == "complete" and asked.shard_minutes is None
    assert found == CERTIFICATION


def test_networks():
    def channels(name):
        return ([c.channels for c in ARCHITECTURES[name].convolutions], ARCHITECTURES[name].hidden)

    assert channels("cnn7") == ([64, 64, 128, 128, 128], (512,))
    assert channels("cnn7-narrow") == ([32, 32, 64, 64, 64], (216,))
    assert channels("cnn7-wide") == ([96, 96, 192, 192, 192], (512,))
    for name in ("cnn7", "cnn7-narrow", "cnn7-wide"):
        shapes = [(c.kernel, c.stride, c.padding) for c in ARCHITECTURES[name].convolutions]
        assert shapes == [(3, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 1), (3, 1, 1)]


def test_images():
    cifar, tiny, mnist = DATASETS["cifar10"], DATASETS["tinyimagenet"], DATASETS["mnist"]
    assert (mnist.mean, mnist.flip, mnist.padding, mnist.size) == (None, False, 0, 28)
    assert (cifar.mean, cifar.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert (cifar.flip, cifar.padding, cifar.size) == (True, 2, 32)
    assert (tiny.mean, tiny.std) == ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262))
    assert (tiny.flip, tiny.padding, tiny.stored_size, tiny.size) == (True, 0, 64, 56)


def test_the_ablation():
    rows = {row.method: row for row in PAPER.comparisons["ablation"]}
    assert rows.keys() == {"pgd", "ibp", "sabr-ablation"}
    for row in rows.values():
        t = row.training
        assert (row.setting, t.architecture) == ("cifar10-eps-2_255", "cnn7")
        assert (t.epochs, t.learning_rate_drops, t.ramp_end) == (160, (120, 140), 82)
    sabr, ibp, pgd = (rows[name].training.method for name in ("sabr-ablation", "ibp", "pgd"))
    assert (sabr.objective, sabr.lambda_ratio, sabr.l1, sabr.relu_shrinkage) == ("sabr", 0.05, 1e-5, None)
    assert (ibp.objective, ibp.l1) == ("ibp", 0)
    assert (pgd.objective, pgd.l1, pgd.attack.step_sizes) == ("pgd", 1e-5, [0.5] * 4 + [0.05] * 3 + [0.005])


def test_the_sweep_over_lambda_is_of_the_ablations_network():
    own = ROWS["cifar10-eps-2_255", "sabr-ablation"].training
    ratios = [row.training.method.lambda_ratio for row in PAPER.sweep]
    assert ratios == sorted(ratios) and ratios[0] == 0.01 and 0.05 in ratios and ratios[-1] == 1
    for row in PAPER.sweep:
        ratio = {"lambda_ratio": row.training.method.lambda_ratio}
        assert row.training == own.model_copy(update={"method": own.method.model_copy(update=ratio)})


def test_shrinking_and_widths():
    one, other = (row.training for row in PAPER.comparisons["shrinking"])
    assert (one.method.relu_shrinkage, other.method.relu_shrinkage) == (0.8, None)
    assert other.method == one.method.model_copy(update={"relu_shrinkage": None}) and one.dataset == "cifar10"
    widths = [row.training for row in PAPER.comparisons["widths"]]
    assert [t.architecture for t in widths] == ["cnn7-narrow", "cnn7", "cnn7-wide"]
    assert {t.model_copy(update={"architecture": "cnn7"}) for t in widths} == {
        ROWS["cifar10-eps-2_255", "sabr"].training
    }


def test_every_method_is_in_every_setting_that_it_was_published_for():
    everywhere = ["pgd", "ibp", "sabr", "crown-ibp", "cc-ibp", "mtl-ibp", "taps", "staps"]
    for setting in SETTINGS:
        found = {row.method for row in PAPER.main if row.setting == setting}
        assert found == {*everywhere, *([] if setting.startswith("mnist") else ["exp-ibp"])}


# The authors' commands: eps trained, eps attacked, alpha, L1, steps (De Palma et al. 2024).
EXPRESSIVE = {
    ("mnist-eps-0.1", "cc-ibp"): (0.2, 0.2, 0.1, 2e-6, [10]),
    ("mnist-eps-0.1", "mtl-ibp"): (0.2, 0.2, 0.01, 1e-5, [10]),
    ("mnist-eps-0.3", "cc-ibp"): (0.4002, 0.4002, 0.3, 3e-6, [10]),
    ("mnist-eps-0.3", "mtl-ibp"): (0.4002, 0.4002, 0.08, 1e-6, [10]),
    ("cifar10-eps-2_255", "cc-ibp"): (2 / 255, 4.2 / 255, 0.01, 3e-6, [0.25] * 8),
    ("cifar10-eps-2_255", "mtl-ibp"): (2 / 255, 4.2 / 255, 0.004, 3e-6, [0.25] * 8),
    ("cifar10-eps-2_255", "exp-ibp"): (2 / 255, 4.2 / 255, 0.095, 4e-6, [0.25] * 8),
    ("cifar10-eps-8_255", "cc-ibp"): (8 / 255, 8 / 255, 0.5, 0, [10]),
    ("cifar10-eps-8_255", "mtl-ibp"): (8 / 255, 8 / 255, 0.5, 1e-7, [10]),
    ("cifar10-eps-8_255", "exp-ibp"): (8 / 255, 8 / 255, 0.5, 0, [10]),
    ("tinyimagenet-eps-1_255", "cc-ibp"): (1 / 255, 1 / 255, 0.01, 5e-5, [10]),
    ("tinyimagenet-eps-1_255", "mtl-ibp"): (1 / 255, 1 / 255, 0.01, 5e-5, [10]),
    ("tinyimagenet-eps-1_255", "exp-ibp"): (1 / 255, 1 / 255, 0.04, 5e-5, [10]),
}
# Likewise: eps trained, ReLU layers attacked, w_TAPS, L1 by 7 layers, lambda (Mao et al. 2023).
TAPS = {
    ("mnist-eps-0.1", "taps"): (0.2, 1, 5, 0, None),
    ("mnist-eps-0.1", "staps"): (0.2, 1, 5, 2e-5 / 7, 0.4),
    ("mnist-eps-0.3", "taps"): (0.4, 1, 5, 0, None),
    ("mnist-eps-0.3", "staps"): (0.4, 1, 5, 2e-6 / 7, 0.6),
    ("cifar10-eps-2_255", "taps"): (2 / 255, 5, 5, 2e-6 / 7, None),
    ("cifar10-eps-2_255", "staps"): (2 / 255, 1, 2, 2e-6 / 7, 0.1),
    ("cifar10-eps-8_255", "taps"): (8 / 255, 1, 5, 2e-6 / 7, None),
    ("cifar10-eps-8_255", "staps"): (8 / 255, 1, 5, 2e-6 / 7, 0.7),
    ("tinyimagenet-eps-1_255", "taps"): (1 / 255, 1, 5, 0, None),
    ("tinyimagenet-eps-1_255", "staps"): (1 / 255, 1, 5, 1e-6 / 7, 0.6),
}
# eps trained, kappa and beta at the end, loss fusion (Zhang et al. 2020; TinyImageNet: Shi et al. 2021).
CROWN_IBP = {
    "mnist-eps-0.1": (0.2, 0.5, 0, False),
    "mnist-eps-0.3": (0.4, 0.5, 0, False),
    "cifar10-eps-2_255": (2.2 / 255, 0, 1, False),
    "cifar10-eps-8_255": (8.8 / 255, 0, 0, False),
    "tinyimagenet-eps-1_255": (1 / 255, 0, 0, True),
}


def test_rivals_have_their_published_values():
    rows = {(row.setting, row.method): row.training for row in PAPER.main}
    for key, (eps, attacked, alpha, l1, steps) in EXPRESSIVE.items():
        t, m = rows[key], rows[key].method
        assert (t.eps * m.eps_ratio, t.eps * m.eps_ratio * m.attack_eps_ratio) == pytest.approx(
            (eps, attacked), rel=1e-3
        )
        assert (m.alpha, m.l1, m.attack.step_sizes) == (alpha, l1, steps)
    for key, (eps, relus, weight, l1, lambda_ratio) in TAPS.items():
        t, m = rows[key], rows[key].method
        assert (t.eps * m.eps_ratio, m.l1) == pytest.approx((eps, l1), rel=2e-3)
        assert (m.classifier.relus, m.classifier.gradient_weight) == (relus, weight)
        assert getattr(m, "lambda_ratio", None) == lambda_ratio
    for setting, (eps, kappa, beta, fusion) in CROWN_IBP.items():
        t, m = rows[setting, "crown-ibp"], rows[setting, "crown-ibp"].method
        assert t.eps * m.eps_ratio == pytest.approx(eps, rel=1e-3)
        assert (m.kappa_end, m.beta_end, m.loss_fusion) == (kappa, beta, fusion)
