"""From steps to an ONNX file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from sabr.errors import SabrError
from sabr.files import atomic
from sabr.networks.steps import (
    ConvolutionStep,
    FlattenStep,
    LinearStep,
    ReLUStep,
    ScaleStep,
    Step,
    SumStep,
    first_weight,
)

# What every verifier of the last years reads.
_OPSET, _IR_VERSION = 13, 8


def write_onnx(steps: Sequence[Step], input_shape: Sequence[int], path: Path) -> None:
    """Write a network as an ONNX file, whole or not at all; equal networks give equal bytes.

    The graph takes ``input``, (1, *input_shape), to ``output``, in the precision of the weights. Operators: Conv, Gemm,
    Mul and Add of constants, Flatten, Relu, and Add for sums of paths.

    Parameters
    ----------
    steps
        A folded network.
    input_shape
        Shape of one input, without the batch.
    path
        The file to write.

    Raises
    ------
    SabrError
        When a weight is not a finite number, there are no steps, or the file cannot be written.
    """
    weight = first_weight(steps)
    dtype = torch.float32 if weight is None else weight.dtype
    device = "cpu" if weight is None else weight.device
    with torch.no_grad():
        graph = _Graph(dtype)
        _, points = graph.add_path(steps, "input", torch.zeros(1, *input_shape, dtype=dtype, device=device))
    if not graph.nodes:
        raise SabrError("cannot export a network of no steps to ONNX: give it a layer")
    graph.nodes[-1].output[0] = "output"  # the last node made makes the last value
    kind = helper.np_dtype_to_tensor_dtype(graph.numpy_dtype)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "network",
            [helper.make_tensor_value_info("input", kind, [1, *input_shape])],
            [helper.make_tensor_value_info("output", kind, list(points.shape))],
            graph.constants,
        ),
        producer_name="sabr",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model)
    with atomic(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


class _Graph:
    """Nodes and constants, added step by step; values are named after the node that makes them."""

    def __init__(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise SabrError(f"cannot export weights of type {dtype} to ONNX: cast them to float32 or float64 first")
        self.numpy_dtype = np.dtype("float32" if dtype == torch.float32 else "float64")
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def add_path(self, steps: Sequence[Step], value: str, points: Tensor) -> tuple[str, Tensor]:
        """Append `steps` behind `value`; gives the name of their output, and what they make of `points`."""
        for step in steps:
            value = self._add(step, value, points)
            points = step.apply(points)
        return value, points

    def _add(self, step: Step, value: str, points: Tensor) -> str:
        match step:
            case ConvolutionStep(weight, bias, stride, padding):
                name = self._name("Conv")
                inputs = [value, self._constant(f"{name}.weight", weight), self._constant(f"{name}.bias", bias)]
                return self._node(
                    name,
                    inputs,
                    kernel_shape=list(weight.shape[2:]),
                    strides=list(stride),
                    pads=[*padding, *padding],
                    dilations=[1, 1],
                    group=1,
                )
            case LinearStep(weight, bias):
                name = self._name("Gemm")
                inputs = [value, self._constant(f"{name}.weight", weight), self._constant(f"{name}.bias", bias)]
                return self._node(name, inputs, transB=1)
            case ScaleStep(scale, shift):
                name = self._name("Mul")
                product = self._node(name, [value, self._constant(f"{name}.scale", scale)])
                name = self._name("Add")
                return self._node(name, [product, self._constant(f"{name}.shift", shift)])
            case FlattenStep():
                return self._node(self._name("Flatten"), [value], axis=1)
            case ReLUStep():
                return self._node(self._name("Relu"), [value])
            case SumStep(paths):
                total, *others = (self.add_path(path, value, points)[0] for path in paths)
                for other in others:
                    total = self._node(self._name("Add"), [total, other])
                return total

    def _name(self, operator: str) -> str:
        return f"{operator}_{len(self.nodes)}"

    def _node(self, name: str, inputs: list[str], **attributes: Any) -> str:
        operator = name.partition("_")[0]
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def _constant(self, name: str, values: Tensor) -> str:
        if not values.isfinite().all():
            raise SabrError(f"cannot export to ONNX: {name} holds values that are not finite; train the network again")
        array = np.ascontiguousarray(values.detach().cpu().numpy().astype(self.numpy_dtype))
        self.constants.append(numpy_helper.from_array(array, name))
        return name
