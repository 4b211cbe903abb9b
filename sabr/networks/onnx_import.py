"""From an ONNX file to steps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import onnx
import onnx.reference
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor

from sabr.errors import SabrError, first_line
from sabr.networks.onnx_nodes import FOLDABLE, OPERATORS, SUPPORTED, UnsupportedNode, step_of
from sabr.networks.simplify import simplify
from sabr.networks.steps import FlattenStep, Step, SumStep

_PRECISIONS = {TensorProto.FLOAT: torch.float32, TensorProto.DOUBLE: torch.float64}


class Imported(NamedTuple):
    """A network of an ONNX file.

    Attributes
    ----------
    steps
        Affine and ReLU steps and sums of paths, from (N, *input_shape) to (N, outputs); weights are constants.
    input_shape
        Of one input, without the batch; VNN-LIB's X_i number its entries in row-major order.
    outputs
        Number of outputs, Y_0 to Y_(outputs - 1).
    """

    steps: list[Step]
    input_shape: tuple[int, ...]
    outputs: int


def read_onnx(path: Path) -> Imported:
    """Read a feed-forward or residual network.

    Batch norms and per-channel constants are folded into the affine layer before them. Branches that meet in an Add
    become a sum of paths; they may be nested, but not share a layer.

    Parameters
    ----------
    path
        An ONNX file of the operators of `sabr.networks.onnx_nodes.SUPPORTED`.

    Raises
    ------
    SabrError
        When the file is missing or damaged, has several inputs or outputs or sizes that are not fixed, or has a node
        that is not supported: it is named.
    """
    model = _load(path)
    graph, opset = model.graph, max((o.version for o in model.opset_import if o.domain in _DOMAINS), default=1)
    constants = _constants(path, graph)
    source, dtype, shape = _input(path, graph, constants)
    if len(graph.output) != 1:
        raise SabrError(f"{path} has {len(graph.output)} outputs: give a network with one")
    target = graph.output[0].name
    nodes = _needed(path, graph, source, target, constants)
    reader = _Reader(source, dtype, shape, constants, opset)
    for node in nodes:
        try:
            reader.add(node)
        except UnsupportedNode as refusal:
            raise SabrError(f"{path}: {_label(node)} {refusal}; supported are: {SUPPORTED}") from refusal
        except RuntimeError as error:  # torch's word for shapes that do not fit
            raise SabrError(f"{path}: the sizes do not fit at {_label(node)}; export the network again") from error
        except (ValueError, TypeError, LookupError, AttributeError) as error:  # attributes of a wrong form
            raise SabrError(f"{path}: {_label(node)} is malformed; export the network again") from error
    if target not in reader.shapes:
        raise SabrError(f"{path}: the output {target!r} does not depend on the input; export the network again")
    try:
        steps = simplify(reader.between(source, target))
    except UnsupportedNode as refusal:
        raise SabrError(f"{path}: the network {refusal}; supported are: {SUPPORTED}") from refusal
    if len(reader.shapes[target]) != 1:
        steps.append(FlattenStep())
    return Imported(steps, shape, torch.Size(reader.shapes[target]).numel())


class _Reader:
    """What is known of each value that depends on the input, filled node by node."""

    def __init__(
        self, source: str, dtype: torch.dtype, shape: tuple[int, ...], constants: dict[str, Tensor], opset: int
    ) -> None:
        self._dtype, self._constants, self._opset = dtype, constants, opset
        self.shapes: dict[str, tuple[int, ...]] = {source: shape}
        # The last value before each one that everything passes through, and the steps from there to it.
        self._before: dict[str, str] = {}
        self._steps: dict[str, list[Step]] = {}
        self._depth = {source: 0}
        self._used: set[str] = set()

    def add(self, node: NodeProto) -> None:
        """Take in one node; those before it have been."""
        output = node.output[0]
        dynamic = [name for name in node.input if name in self.shapes and node.op_type != "Shape"]
        if not dynamic:
            self._constants[output] = self._constant(node)
            return
        first, *others = dynamic
        if others:
            if node.op_type != "Add":
                raise UnsupportedNode("combines two values that both depend on the input")
            if any(self.shapes[name] != self.shapes[first] for name in others):
                raise UnsupportedNode("adds values of different shapes")
            meeting = self._meeting(first, *others)
            step: Step | None = SumStep(tuple(tuple(self.between(meeting, name)) for name in dynamic))
            shape = self.shapes[first]
        else:
            meeting = first
            constants = [None if name in self.shapes or not name else self._lookup(name) for name in node.input]
            step = step_of(node, self.shapes[first], constants)
            shape = self._shape_behind(step, self.shapes[first])
        self._before[output], self._steps[output] = meeting, [] if step is None else [step]
        self._depth[output], self.shapes[output] = self._depth[meeting] + 1, shape

    def between(self, start: str, end: str) -> list[Step]:
        """The steps from one value to a later one that depends on the input through it alone."""
        pieces: list[list[Step]] = []
        while end != start:
            if end in self._used:
                raise UnsupportedNode(f"has branches that share the layer that makes {end!r}")
            if self._steps[end]:
                self._used.add(end)
            pieces.append(self._steps[end])
            end = self._before[end]
        return [step for piece in reversed(pieces) for step in piece]

    def _meeting(self, first: str, second: str) -> str:
        """The last value that both pass through."""
        while first != second:
            if self._depth[first] < self._depth[second]:
                first, second = second, first
            first = self._before[first]
        return first

    def _shape_behind(self, step: Step | None, shape: tuple[int, ...]) -> tuple[int, ...]:
        if step is None:
            return shape
        with torch.no_grad():
            return tuple(step.apply(torch.zeros(1, *shape, dtype=self._dtype)).shape[1:])

    def _constant(self, node: NodeProto) -> Tensor:
        """The value of a node that depends on constants alone, or on the sizes of values."""
        if node.op_type == "Shape" and node.input[0] in self.shapes and not node.attribute:
            return torch.tensor([1, *self.shapes[node.input[0]]])
        inputs = [None if not name else self._constants[name].numpy() for name in node.input]
        try:
            evaluator = onnx.reference.ReferenceEvaluator(node, opsets={"": self._opset})
            values = cast("list[Any]", evaluator.run(None, dict(zip(node.input, inputs, strict=True))))
        except Exception as error:  # the evaluator raises whatever numpy does
            raise UnsupportedNode("computes something that is not understood from constants") from error
        return _numbers(np.asarray(values[0]))

    def _lookup(self, name: str) -> Tensor:
        value = self._constants[name]
        return value.to(self._dtype) if value.is_floating_point() else value


def _load(path: Path) -> ModelProto:
    try:
        model = onnx.load(path)
    except (OSError, onnx.checker.ValidationError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise SabrError(f"cannot read {path}: {reason}") from error
    except (DecodeError, ValueError) as error:
        raise SabrError(f"{path} is not a whole ONNX file: get it again") from error
    unknown = [n for n in model.graph.node if n.op_type not in OPERATORS | FOLDABLE or n.domain not in _DOMAINS]
    if unknown:
        kinds = ", ".join(sorted({_shown(node.op_type) for node in unknown}))
        raise SabrError(
            f"{path}: {_label(unknown[0])} is of a kind that is not supported (not supported here: {kinds}); "
            f"supported are: {SUPPORTED}"
        )
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise SabrError(f"{path} is not a valid ONNX file ({first_line(error)}): export it again") from error
    return model


_DOMAINS = ("", "ai.onnx")


def _constants(path: Path, graph: GraphProto) -> dict[str, Tensor]:
    constants = {}
    for initialiser in graph.initializer:
        try:
            constants[initialiser.name] = _numbers(numpy_helper.to_array(initialiser))
        except (UnsupportedNode, ValueError, TypeError, LookupError) as error:
            raise SabrError(f"{path}: the constant {initialiser.name!r} cannot be read: {error}") from error
    return constants


def _numbers(array: NDArray[Any]) -> Tensor:
    if array.dtype.name not in ("float32", "float64", "int32", "int64", "bool"):
        raise UnsupportedNode(f"holds numbers of type {array.dtype.name}, neither float32 nor float64")
    return torch.from_numpy(np.array(array))  # a copy that may be written to


def _input(path: Path, graph: GraphProto, constants: dict[str, Tensor]) -> tuple[str, torch.dtype, tuple[int, ...]]:
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(_shown(value.name) for value in inputs) or "none"
        raise SabrError(f"{path} has {len(inputs)} inputs ({names}): give a network with one")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type not in _PRECISIONS:
        kind = dict(map(reversed, TensorProto.DataType.items())).get(tensor.elem_type, "unknown")
        raise SabrError(f"{path}: the input is of type {kind}: give a network that takes float32 or float64")
    batch, *sizes = [d.dim_value for d in tensor.shape.dim] or [0]
    if not sizes or batch > 1 or any(size < 1 for size in sizes):
        shown = [d.dim_param or d.dim_value or "?" for d in tensor.shape.dim]
        raise SabrError(
            f"{path}: the input is of shape {shown}: fix all sizes but the batch, which comes first and is 1 or open"
        )
    return inputs[0].name, _PRECISIONS[tensor.elem_type], tuple(sizes)


def _needed(
    path: Path, graph: GraphProto, source: str, target: str, constants: dict[str, Tensor]
) -> Iterator[NodeProto]:
    """The nodes that the output depends on, in the file's order, in which each stands behind those it needs."""
    makers = {name: node for node in graph.node for name in node.output}
    wanted, seen = [target], set()
    while wanted:
        name = wanted.pop()
        if name in seen or name in constants or name in (source, ""):
            continue
        seen.add(name)
        if name not in makers:
            raise SabrError(f"{path}: nothing computes the value {name!r}; export the network again")
        wanted += makers[name].input
    return (node for node in graph.node if any(name in seen for name in node.output))


def _label(node: NodeProto) -> str:
    name = node.name or next(iter(node.output), "")
    return f"node {name!r} ({_shown(node.op_type)})"


def _shown(name: object) -> str:
    """A name out of a file as part of one line."""
    return "".join(c if c.isprintable() else "?" for c in str(name)[:80])
