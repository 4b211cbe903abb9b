"""One node of an ONNX graph as a step."""

from collections.abc import Sequence
from typing import Any

import torch
from onnx import NodeProto, helper
from torch import Tensor

from sabr.networks.steps import ConvolutionStep, FlattenStep, LinearStep, ReLUStep, ScaleStep, Step

SUPPORTED = (
    "Conv (2-d, symmetric padding, one group, no dilation), Gemm, MatMul by a constant on the right, Relu, "
    "BatchNormalization, Flatten or Reshape to (batch, features), Add of two branches, "
    "Add, Sub, Mul and Div with a constant, Identity, Dropout, and anything common that is computed from constants"
)
OPERATORS = frozenset(
    "Conv Gemm MatMul Relu BatchNormalization Flatten Reshape Add Sub Mul Div Identity Dropout Constant".split()
)
# Understood where their inputs are constant, or sizes: exporters flatten and transpose weights with them.
FOLDABLE = frozenset("Cast Concat Gather Shape Slice Squeeze Transpose Unsqueeze".split())


class UnsupportedNode(Exception):
    """A node is not of a supported kind; says why."""


def step_of(node: NodeProto, shape: Sequence[int], constants: Sequence[Tensor | None]) -> Step | None:
    """What a node does to its one input that is not constant; None: nothing.

    Parameters
    ----------
    node
        Any but a sum of two values that both depend on the network's input.
    shape
        Of that input, without the batch.
    constants
        For each input of the node its value; None for the one that is not constant and for those left out.

    Raises
    ------
    UnsupportedNode
        When there is no step that does the same.
    """
    if any(c is not None and c.is_floating_point() and not c.isfinite().all() for c in constants):
        raise UnsupportedNode("has weights that are not finite numbers")
    attributes: dict[str, Any] = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    inputs = _Inputs(node, constants)
    match node.op_type:
        case "Conv":
            return _convolution(inputs, attributes)
        case "Gemm":
            return _gemm(inputs, attributes)
        case "MatMul":
            weight = inputs.matrix(1)
            return LinearStep(weight.t().contiguous(), weight.new_zeros(weight.shape[1]))
        case "Relu":
            return ReLUStep()
        case "BatchNormalization":
            return _batch_norm(inputs, attributes, shape)
        case "Flatten" | "Reshape":
            return _flatten(inputs, attributes, shape)
        case "Add" | "Sub" | "Mul" | "Div":
            return _scale(node.op_type, constants, shape)
        case "Identity":
            return None
        case "Dropout":
            if inputs.optional(2) is not None and bool(inputs.constant(2)):
                raise UnsupportedNode("drops values at random (training_mode)")
            return None
        case _:
            raise UnsupportedNode("rearranges values that depend on the input")


class _Inputs:
    """The constant inputs of one node."""

    def __init__(self, node: NodeProto, constants: Sequence[Tensor | None]) -> None:
        self._names, self._constants = list(node.input), constants

    def optional(self, index: int) -> Tensor | None:
        """Constant input number `index`, or None when it is left out."""
        if index >= len(self._names) or not self._names[index]:
            return None
        return self.constant(index)

    def constant(self, index: int) -> Tensor:
        """Constant input number `index`."""
        value = self._constants[index] if index < len(self._constants) else None
        if value is None:
            raise UnsupportedNode(f"has an input (number {index}) that would have to be a constant")
        return value

    def matrix(self, index: int) -> Tensor:
        """The same, two-dimensional."""
        value = self.constant(index)
        if value.dim() != 2:
            raise UnsupportedNode(f"has weights of shape {tuple(value.shape)} in the place of a matrix")
        return value


def _convolution(inputs: _Inputs, attributes: dict[str, Any]) -> Step:
    weight, bias = inputs.constant(1), inputs.optional(2)
    if weight.dim() != 4:
        raise UnsupportedNode(f"is a convolution in {weight.dim() - 2} dimensions")
    if list(attributes.get("kernel_shape", weight.shape[2:])) != list(weight.shape[2:]):
        raise UnsupportedNode("has a kernel_shape that is not that of its weights")
    if attributes.get("group", 1) != 1:
        raise UnsupportedNode(f"has {attributes['group']} groups")
    if any(d != 1 for d in attributes.get("dilations", ())):
        raise UnsupportedNode(f"has dilations {list(attributes['dilations'])}")
    if attributes.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise UnsupportedNode(f"pads by {attributes['auto_pad'].decode()}")
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) != (bottom, right):
        raise UnsupportedNode(f"has unequal padding {[top, left, bottom, right]}")
    if min(top, left) < 0:
        raise UnsupportedNode(f"has negative padding {[top, left]}")
    height, width = attributes.get("strides", (1, 1))
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return ConvolutionStep(weight, bias, (height, width), (top, left))


def _gemm(inputs: _Inputs, attributes: dict[str, Any]) -> Step:
    weight, bias = inputs.matrix(1), inputs.optional(2)
    if attributes.get("transA", 0):
        raise UnsupportedNode("transposes its input (transA)")
    if not attributes.get("transB", 0):
        weight = weight.t().contiguous()
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    weight = weight if alpha == 1 else alpha * weight
    if bias is None:
        return LinearStep(weight, weight.new_zeros(len(weight)))
    if bias.numel() != 1 and (bias.numel() != len(weight) or bias.shape[-1] != len(weight)):
        raise UnsupportedNode(f"has a bias of shape {tuple(bias.shape)} for {len(weight)} outputs")
    bias = bias.flatten().expand(len(weight)).contiguous()
    return LinearStep(weight, bias if beta == 1 else beta * bias)


def _batch_norm(inputs: _Inputs, attributes: dict[str, Any], shape: Sequence[int]) -> Step:
    if attributes.get("training_mode", 0) or not attributes.get("spatial", 1):
        raise UnsupportedNode("normalises by the statistics of the batch, or each pixel apart")
    weight, bias, mean, variance = (inputs.constant(index).double() for index in (1, 2, 3, 4))
    scale = weight / torch.sqrt(variance + attributes.get("epsilon", 1e-5))
    if not scale.isfinite().all():
        raise UnsupportedNode("divides by a variance that is not positive")
    sizes = (-1,) + (1,) * (len(shape) - 1)
    dtype = inputs.constant(1).dtype
    return ScaleStep(scale.view(sizes).to(dtype), (bias - mean * scale).view(sizes).to(dtype))


def _flatten(inputs: _Inputs, attributes: dict[str, Any], shape: Sequence[int]) -> Step | None:
    features = torch.Size(shape).numel()
    if (wanted := inputs.optional(1)) is not None:
        sizes = wanted.tolist()
        # 0 copies a size of the input, -1 is what remains; the batch is 1.
        batch, *others = sizes if sizes else [None]
        flat = others in ([-1], [features]) and batch in (0, 1, -1) and sizes != [-1, -1]
        if others == [0] and len(shape) == 1:
            flat = batch in (0, 1, -1)
        if not flat or (sizes[0] == 0 and attributes.get("allowzero", 0)):
            raise UnsupportedNode(f"reshapes to {sizes}, which is not (batch, {features})")
    elif attributes.get("axis", 1) not in (1, -len(shape)):
        raise UnsupportedNode(f"flattens from axis {attributes['axis']}")
    return None if len(shape) == 1 else FlattenStep()


def _scale(operator: str, constants: Sequence[Tensor | None], shape: Sequence[int]) -> Step:
    first, second = constants
    constant = second if first is None else first
    if constant is None:
        raise UnsupportedNode("combines two values that both depend on the input")
    try:
        constant.broadcast_to(torch.Size((1, *shape)))
    except RuntimeError as error:
        sizes = f"{tuple(constant.shape)} with values of shape {(1, *shape)}"
        raise UnsupportedNode(f"combines a constant of shape {sizes}") from error
    one, zero = torch.ones_like(constant), torch.zeros_like(constant)
    match operator, first is None:
        case "Add", _:
            return ScaleStep(one, constant)
        case "Sub", True:
            return ScaleStep(one, -constant)
        case "Sub", False:
            return ScaleStep(-one, constant)
        case "Mul", _:
            return ScaleStep(constant, zero)
        case _, False:
            raise UnsupportedNode("divides by a value that depends on the input")
    if (constant == 0).any():
        raise UnsupportedNode("divides by zero")
    return ScaleStep(1 / constant, zero)
