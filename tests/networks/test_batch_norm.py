import pytest
import torch
from torch import nn

from sabr.networks.batch_norm import normalise


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (8, 3)])
@pytest.mark.parametrize("relu", [True, False])
def test_values_statistics_and_gradients_are_those_of_torch(shape, relu):
    values = torch.randn(shape, dtype=torch.double, requires_grad=True)
    layer = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(3).double()
    nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    axes = [axis for axis in range(len(shape)) if axis != 1]
    variance, mean = torch.var_mean(values, axes, correction=0)
    plain = layer(values).relu() if relu else layer(values)
    ours = normalise(values, layer.weight, layer.bias, layer.eps, relu=relu)
    for one, two in zip(ours, (plain, mean, variance), strict=True):
        torch.testing.assert_close(one, two)
    # A loss that looks at the values and at the statistics, as a box that is propagated with them does.
    factors = [torch.randn_like(part) for part in ours]

    def gradients(parts):
        loss = sum((factor * part).sum() for factor, part in zip(factors, parts, strict=True))
        return torch.autograd.grad(loss, [values, layer.weight, layer.bias], retain_graph=True)

    for one, two in zip(gradients(ours), gradients((plain, mean, variance)), strict=True):
        torch.testing.assert_close(one, two)


def test_gradients_in_double_precision_are_right():
    values = torch.randn(5, 2, 3, 3, dtype=torch.double, requires_grad=True)
    weight, bias = torch.rand(2, dtype=torch.double) + 0.5, torch.randn(2, dtype=torch.double)
    assert torch.autograd.gradcheck(
        lambda v, w, b: normalise(v, w, b, 1e-5, relu=False),
        (values, weight.requires_grad_(), bias.requires_grad_()),
    )
