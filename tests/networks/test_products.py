import pytest
import torch

from sabr.networks import products
from sabr.networks.steps import LinearStep


@pytest.mark.parametrize("shape", [(64, 512, 600), (128, 513, 301), (3, 5, 7)], ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["right", "right transposed"])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
def test_a_product_is_a_matrix_product(shape, turned, biased):
    m, k, n = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(k, m, generator=generator).t()  # not contiguous
    right = torch.randn(n, k, generator=generator).t() if turned else torch.randn(k, n, generator=generator)
    bias = torch.randn(n, generator=generator) if biased else None
    exact = left.double() @ right.double() + (0 if bias is None else bias.double())
    rounding = 2 * k * torch.finfo(torch.float32).eps * (left.abs() @ right.abs() + 1)
    assert ((products.product(left, right, bias).double() - exact).abs() <= rounding).all()


def test_large_products_take_the_fast_way_where_there_is_one():
    left, right = torch.ones(64, 512), torch.ones(512, 600)
    assert products._suits_onednn(left, right) == torch.backends.mkldnn.is_available()
    assert not products._suits_onednn(left.double(), right.double())
    assert not products._suits_onednn(left[:1], right[:, :1])


@pytest.mark.parametrize("absolute", [False, True], ids=["W x + b", "|W| r"])
def test_gradients_are_those_of_torch(absolute):
    generator = torch.Generator().manual_seed(0)
    points, weight = torch.randn(64, 512, generator=generator), torch.randn(600, 512, generator=generator)
    bias, towards = torch.randn(600, generator=generator), torch.randn(64, 600, generator=generator)

    def gradients(function, dtype):
        leaves = [leaf.to(dtype).requires_grad_() for leaf in (points, weight, bias)]
        return torch.autograd.grad(function(*leaves), leaves, towards.to(dtype), materialize_grads=True)

    def ours(x, w, b):
        return LinearStep(w, b).spread(x) if absolute else LinearStep(w, b).apply(x)

    def plain(x, w, b):
        return x @ w.abs().t() if absolute else x @ w.t() + b

    for own, exact in zip(gradients(ours, torch.float32), gradients(plain, torch.float64), strict=True):
        torch.testing.assert_close(own.double(), exact, rtol=1e-4, atol=1e-3)


def test_a_bound_backward_through_a_layer_keeps_its_gradient():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(512, 600, generator=generator, requires_grad=True)
    line = torch.randn(64, 512, generator=generator, requires_grad=True)
    assert products._suits_onednn(line.detach(), weight.detach()) == torch.backends.mkldnn.is_available()
    found = torch.autograd.grad(LinearStep(weight, torch.zeros(512)).pull(line, (600,)).square().sum(), (line, weight))
    exact = torch.autograd.grad((line @ weight).square().sum(), (line, weight))
    for own, other in zip(found, exact, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-2)
