import pytest

from sabr.training.schedules import EpsRamp, learning_rate


def test_the_ramp_is_smooth_and_ends_where_it_should():
    ramp = EpsRamp(0.1, 2, 22, 234)
    steps = range(234, 24 * 234)
    values = [ramp.at(step) for step in steps]
    assert values[0] == 0.0
    assert ramp.at(2 * 234 - 1) == 0.0
    assert 0 < ramp.at(2 * 234) < 1e-12
    assert ramp.at(22 * 234) == 0.1
    assert values[-1] == 0.1
    assert all(b >= a for a, b in zip(values, values[1:], strict=False))
    assert max(b - a for a, b in zip(values, values[1:], strict=False)) < 2 * 0.1 / (20 * 234)
    first = 2 * 234 - 1
    middle = first + int(0.25 * (22 * 234 - first))
    assert ramp.at(middle) == pytest.approx(0.1 / 13, rel=1e-2)


def test_learning_rate_drops_at_the_start_of_its_epochs():
    rates = [learning_rate(5e-4, [50, 60], 0.2, epoch) for epoch in (1, 49, 50, 59, 60, 70)]
    assert rates == pytest.approx([5e-4, 5e-4, 1e-4, 1e-4, 2e-5, 2e-5])
