"""Products of large matrices, by the library that is fastest at them."""

import torch
from torch import Tensor

# Below so many multiplications a call costs more than it saves.
_LARGE = 1 << 24


def product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return left (m, k) times right (k, n), plus a bias (n,).

    On CPUs oneDNN, which torch keeps for convolutions, is two to three times as fast as torch's own product where that
    one does not know the processor's widest instructions. It knows no gradients: where they are asked for, torch's own
    product is taken.
    """
    if _suits_onednn(left, right):
        transposed = right.t()
        return torch.ops.mkldnn._linear_pointwise(left.contiguous(), transposed, bias, "none", [], "")  # type: ignore
    return left @ right if bias is None else torch.addmm(bias, left, right)


def _suits_onednn(left: Tensor, right: Tensor) -> bool:
    differentiated = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    return (
        not differentiated
        and left.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and left.dim() == 2
        and left.numel() * right.shape[1] >= _LARGE
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
