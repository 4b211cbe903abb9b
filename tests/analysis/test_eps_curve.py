import pytest
import torch
from nets import ROUNDS, distance

from sabr.analysis import eps_curve
from sabr.errors import SabrError
from sabr.layers import read_yaml
from sabr.networks.steps import forward
from sabr.plan import resolve
from sabr.studies import COLUMNS


@pytest.fixture(scope="module")
def spec(pytestconfig):
    folder = pytestconfig.rootpath / "config"
    plan = resolve(read_yaml(folder / "config.yaml") | {"scale": "tiny"}, folder)
    return plan.main[0].certification


def measured(steps, images, labels, factors, spec):
    said = []
    table = eps_curve.measure(steps, images, labels, eps_factors=factors, spec=spec, report=said.append)
    assert "resist the quick attack" in said[0]
    return table


@pytest.mark.parametrize(
    ("stages", "certified"), [(("interval", "crown"), [3, 2, 1, 0]), (("interval",), [3, 2, 0, 0])]
)
def test_by_hand(spec, stages, certified):
    """Images 0.5, 0.6, 0.65 are right up to the radii 0.2, 0.1 and 0.05, and 0.8 is wrong.

    Linear bounds are exact here, intervals are off by a factor of 2 where both ReLUs are open: around 0.5.
    """
    images, labels = torch.tensor([[0.5], [0.6], [0.65], [0.8]]), torch.ones(4, dtype=torch.int64)
    own = spec.model_copy(update={"stages": stages, "eps": 0.1, "attack": ROUNDS})
    table = measured(distance(), images, labels, (2.5, 0.4, 0.8, 1.5), own)
    assert list(table.columns) == list(COLUMNS["eps-curve"])
    assert table["tested_eps"].to_numpy() == pytest.approx([0.04, 0.08, 0.15, 0.25])
    assert table["images"].tolist() == [4] * 4 and table["natural"].tolist() == [3] * 4
    assert table["adversarial"].tolist() == [3, 2, 1, 0]
    assert table["certified"].tolist() == certified


def test_no_curve_rises(small_network, spec):
    _, steps = small_network()
    images = torch.rand(20, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = forward(steps, images).argmax(1)
    labels[:3] = (labels[:3] + 1) % 10
    table = measured(steps, images, labels, (0.01, 0.05, 0.2, 6.0), spec)
    assert (table["natural"] == 17).all()
    for name in ("adversarial", "certified"):
        assert (table[name].diff()[1:] <= 0).all()
    assert (table["certified"] <= table["adversarial"]).all() and (table["adversarial"] <= table["natural"]).all()
    assert table["certified"].iloc[0] > 0 and table["adversarial"].iloc[-1] < 17
    again = measured(steps, images, labels, (0.01, 0.05, 0.2, 6.0), spec)
    assert table.equals(again)


def test_bad_input_is_told(spec):
    images, labels = torch.tensor([[0.5]]), torch.tensor([1])
    with pytest.raises(SabrError, match=r"20 times 0\.1 is above 1"):
        measured(distance(), images, labels, (1.0, 20.0), spec)
    attacks = spec.model_copy(update={"stages": ("attack", "complete")})
    with pytest.raises(SabrError, match="no stage that proves anything but the complete verifier"):
        measured(distance(), images, labels, (0.5, 1.0), attacks)
