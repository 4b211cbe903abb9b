"""A convolution with frozen weights whose gradient towards images of few channels is cheap."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# One channel was measured (fourfold on a CPU); colour images are taken to gain too.
FEW_CHANNELS = 4


class FrozenConvolution(torch.autograd.Function):
    """`torch.nn.functional.conv2d`, differentiable towards its input alone.

    The gradient of the input is a matrix product over output channels, then a sum over overlapping windows
    (`torch.nn.functional.fold`). Attacks take it at every step, and for one input channel the library's own way
    costs half of a small network's pass.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> Tensor:
        """Convolve images (N, C, H, W)."""
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride, ctx.padding = images.shape[2:], stride, padding
        return F.conv2d(images, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Gradient towards the images."""
        (weight,) = ctx.saved_tensors
        windows = weight.flatten(1).t() @ gradients[0].flatten(2)
        images = F.fold(windows, ctx.size, weight.shape[2:], padding=ctx.padding, stride=ctx.stride)
        return images, None, None, None, None
