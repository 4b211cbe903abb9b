import random

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from sabr.errors import SabrError
from sabr.networks.onnx_export import write_onnx
from sabr.networks.onnx_import import read_onnx
from sabr.networks.steps import ScaleStep, forward


def run(path, points):
    """What onnxruntime makes of each point."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    return torch.cat([torch.from_numpy(session.run(None, {name: p[None].numpy()})[0]) for p in points])


def save(path, nodes, constants=None, shape=(1, 2, 4, 4), output="y", opset=13, **changes):
    initialisers = [numpy_helper.from_array(np.asarray(v), name) for name, v in (constants or {}).items()]
    rank = 2 if any(n.op_type in ("Flatten", "Reshape") for n in nodes) else 4
    inputs = changes.get("inputs") or [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    graph = helper.make_graph(
        nodes, "g", inputs, [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * rank)], initialisers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def node(operator, inputs, output="y", **attributes):
    return helper.make_node(
        operator, inputs, [output], name=f"my_{operator}" if output == "y" else f"my_{operator}_{output}", **attributes
    )


def array(*shape, seed=0, low=-1.0):
    return np.random.default_rng(seed).uniform(low, 1, shape).astype(np.float32)


FLAT = [node("Flatten", ["x"], "f")]
CASES = {
    "conv without bias": ([node("Conv", ["x", "w"], strides=[2, 1], pads=[1, 0, 1, 0])], {"w": array(3, 2, 3, 2)}),
    "gemm untransposed": (
        [*FLAT, node("Gemm", ["f", "w", "b"], alpha=2.0, beta=0.5)],
        {"w": array(32, 3), "b": array(1, 3)},
    ),
    "gemm scalar bias": ([*FLAT, node("Gemm", ["f", "w", "b"], transB=1)], {"w": array(3, 32), "b": array()}),
    "gemm no bias": ([*FLAT, node("Gemm", ["f", "w"], transB=1)], {"w": array(3, 32)}),
    "matmul and add": (
        [*FLAT, node("MatMul", ["f", "w"], "m"), node("Add", ["b", "m"])],
        {"w": array(32, 3), "b": array(3)},
    ),
    "reshape": ([node("Reshape", ["x", "s"])], {"s": np.array([1, -1])}),
    "reshape keeping the batch": ([node("Reshape", ["x", "s"])], {"s": np.array([0, 32])}),
    "reshape by a constant node": (
        [node("Constant", [], "s", value=numpy_helper.from_array(np.array([-1, 32]))), node("Reshape", ["x", "s"])],
        {},
    ),
    "norm behind a convolution": (
        [
            node("Conv", ["x", "w", "c"], "k"),
            node("BatchNormalization", ["k", "s", "b", "m", "v"], epsilon=1e-3),
        ],
        {
            "w": array(3, 2, 2, 2),
            "c": array(3, seed=5),
            "s": array(3),
            "b": array(3, seed=1),
            "m": array(3, seed=2),
            "v": array(3, low=0.5),
        },
    ),
    "norm of the input": (
        [node("BatchNormalization", ["x", "s", "b", "m", "v"])],
        {"s": array(2), "b": array(2, seed=1), "m": array(2, seed=2), "v": array(2, low=0.5)},
    ),
    "normalisation": (
        [node("Sub", ["x", "m"], "c"), node("Div", ["c", "d"])],
        {"m": array(1, 2, 1, 1), "d": array(2, 1, 1, low=0.5)},
    ),
    "scalars": (
        [node("Mul", ["two", "x"], "m"), node("Sub", ["one", "m"])],
        {"two": np.float32(2), "one": np.float32([1])},
    ),
    "dropout and identity": ([node("Dropout", ["x"], "d"), node("Identity", ["d"], "i"), node("Relu", ["i"])], {}),
    "twice the input": ([node("Relu", ["x"], "r"), node("Add", ["r", "r"])], {}),
    "a sum and its own input": (
        [
            node("Conv", ["x", "w"], "c"),
            node("Add", ["c", "x"], "a"),
            node("Relu", ["a"], "r"),
            node("Add", ["r", "a"]),
        ],
        {"w": array(2, 2, 1, 1)},
    ),
    "a node that nothing needs": ([node("MatMul", ["x", "x"], "unused"), node("Relu", ["x"])], {}),
    "flattening by the size of the batch": (
        [
            node("Shape", ["x"], "sizes"),
            node("Gather", ["sizes", "zero"], "n"),
            node("Unsqueeze", ["n", "axes"], "n1"),
            node("Concat", ["n1", "rest"], "shape", axis=0),
            node("Reshape", ["x", "shape"]),
        ],
        {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])},
    ),
    "a transposed constant": (
        [*FLAT, node("Transpose", ["w"], "t", perm=[1, 0]), node("MatMul", ["f", "t"])],
        {"w": array(3, 32)},
    ),
    "a constant through identity": ([node("Identity", ["w"], "v"), node("Conv", ["x", "v"])], {"w": array(1, 2, 1, 1)}),
}


@pytest.mark.parametrize("name", CASES)
def test_graphs_of_others_are_read(tmp_path, name):
    nodes, constants = CASES[name]
    path = save(tmp_path / "net.onnx", nodes, constants)
    imported = read_onnx(path)
    points = torch.rand(3, 2, 4, 4)
    expected = run(path, points).flatten(1)
    torch.testing.assert_close(forward(imported.steps, points), expected, rtol=1e-5, atol=1e-5)
    assert imported.outputs == expected.shape[1]


def test_norms_and_biases_are_folded(tmp_path):
    for name in ("norm behind a convolution", "matmul and add"):
        imported = read_onnx(save(tmp_path / "net.onnx", *CASES[name]))
        assert not any(isinstance(step, ScaleStep) for step in imported.steps)


class Block(nn.Module):
    """A residual block as others write it."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, points):
        return torch.relu(self.shortcut(points) + self.path(points))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "options", [{}, {"dynamic_axes": {"x": {0: "n"}}}, {"training": torch.onnx.TrainingMode.PRESERVE}]
)
def test_what_torch_exports_is_read(tmp_path, options):
    layers = [nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), Block(4, 6, 2), Block(6, 6, 1)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4))
    network(torch.rand(16, 3, 16, 16))
    images = torch.rand(3, 3, 16, 16)
    path = tmp_path / "net.onnx"
    torch.onnx.export(network.eval(), images[:1], path, input_names=["x"], dynamo=False, **options)
    imported = read_onnx(path)
    torch.testing.assert_close(forward(imported.steps, images), network(images), rtol=1e-4, atol=1e-5)
    kinds = [type(step).__name__ for step in imported.steps]
    assert kinds.count("SumStep") == 2 and "ScaleStep" not in kinds


def test_the_batch_may_be_open_and_initialisers_listed_as_inputs(tmp_path):
    values = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, 4, 4]),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 2, 1, 1]),
    ]
    path = save(tmp_path / "net.onnx", [node("Conv", ["x", "w"])], {"w": array(3, 2, 1, 1)}, inputs=values)
    assert read_onnx(path).input_shape == (2, 4, 4)


def value(name="x", shape=(1, 2, 4, 4), kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


NOT_FINITE = np.full((3, 2, 1, 1), np.nan, np.float32)
BAD = {
    "operator": ([node("Sigmoid", ["x"])], {}, {}, "my_Sigmoid.*Sigmoid.*supported are: Conv"),
    "nan": ([node("Conv", ["x", "w"])], {"w": NOT_FINITE}, {}, "my_Conv.*finite"),
    "groups": ([node("Conv", ["x", "w"], group=2)], {"w": array(2, 1, 1, 1)}, {}, "my_Conv.*2 groups"),
    "dilation": ([node("Conv", ["x", "w"], dilations=[2, 2])], {"w": array(2, 2, 2, 2)}, {}, "my_Conv.*dilations"),
    "padding": ([node("Conv", ["x", "w"], pads=[0, 0, 1, 1])], {"w": array(2, 2, 1, 1)}, {}, "unequal padding"),
    "auto_pad": ([node("Conv", ["x", "w"], auto_pad="SAME_UPPER")], {"w": array(2, 2, 2, 2)}, {}, "SAME_UPPER"),
    "dynamic weight": ([node("MatMul", ["x", "x"])], {}, {}, "my_MatMul.*both depend"),
    "left matmul": ([node("MatMul", ["w", "x"])], {"w": array(4, 4)}, {}, "would have to be a constant"),
    "strides": ([node("Conv", ["x", "w"], strides=[1])], {"w": array(2, 2, 1, 1)}, {}, "my_Conv.*malformed"),
    "channels": ([node("Conv", ["x", "w"])], {"w": array(2, 3, 1, 1)}, {}, "sizes do not fit at node 'my_Conv'"),
    "broadcast": ([node("Add", ["x", "w"])], {"w": array(5, 1, 4, 4)}, {}, r"shape \(5, 1, 4, 4\)"),
    "division": ([node("Div", ["w", "x"])], {"w": array(1)}, {}, "my_Div.*divides"),
    "zero": ([node("Div", ["x", "w"])], {"w": np.zeros(1, np.float32)}, {}, "divides by zero"),
    "reshape": ([node("Reshape", ["x", "s"])], {"s": np.array([1, 4, 8])}, {}, "my_Reshape.*1, 4, 8"),
    "flatten": ([node("Flatten", ["x"], axis=2)], {}, {}, "my_Flatten.*axis 2"),
    "shapes": (
        [node("Conv", ["x", "w"], "c"), node("Add", ["x", "c"])],
        {"w": array(1, 2, 1, 1)},
        {},
        "my_Add.*different shapes",
    ),
    "shared": (
        [node("Conv", ["x", "w"], "c"), node("Add", ["x", "c"], "a"), node("Add", ["a", "c"])],
        {"w": array(2, 2, 1, 1)},
        {},
        "branches that share",
    ),
    "two inputs": ([node("Relu", ["x"])], {}, {"inputs": [value(), value("z")]}, "2 inputs.*x, z"),
    "open sizes": ([node("Relu", ["x"])], {}, {"inputs": [value(shape=(1, 2, "h", 4))]}, "'h'.*fix all sizes"),
    "a batch of two": ([node("Relu", ["x"])], {}, {"inputs": [value(shape=(2, 3))]}, "fix all sizes"),
    "integers": ([node("Identity", ["x"])], {}, {"inputs": [value(kind=TensorProto.INT64)]}, "INT64"),
    "dangling": ([node("Relu", ["x"], "z")], {}, {}, "y"),
    "half precision": ([node("Conv", ["x", "w"])], {"w": array(1, 2, 1, 1).astype(np.float16)}, {}, "'w'.*float16"),
    "transposed input": ([node("Transpose", ["x"])], {}, {}, "my_Transpose.*rearranges"),
    "broken constants": (
        [node("Concat", ["w", "w"], "v", axis=9), node("Add", ["x", "v"])],
        {"w": array(1)},
        {},
        "Concat",
    ),
    "other domain": ([node("Relu", ["x"], domain="com.my")], {}, {}, "my_Relu.*not supported"),
    "constant output": ([node("Identity", ["w"])], {"w": array(1)}, {}, "does not depend on the input"),
    "random": (
        [node("Dropout", ["x", "", "t"])],
        {"t": np.array(True)},
        {},
        "my_Dropout.*at random",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_named(tmp_path, name):
    nodes, constants, changes, message = BAD[name]
    path = save(tmp_path / "net.onnx", nodes, constants, **changes)
    with pytest.raises(SabrError, match=message) as caught:
        read_onnx(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_cut_off_or_something_else_or_missing(tmp_path, small_network):
    path = tmp_path / "net.onnx"
    with pytest.raises(SabrError, match="No such file"):
        read_onnx(path)
    write_onnx(small_network()[1], (1, 28, 28), path)
    whole = path.read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(SabrError):
            read_onnx(path)
    path.write_text("<html>not found</html>")
    with pytest.raises(SabrError, match="net.onnx"):
        read_onnx(path)


def test_damage_of_any_kind_gives_one_sentence(tmp_path):
    path = save(tmp_path / "net.onnx", *CASES["norm behind a convolution"])
    whole, generator = path.read_bytes(), random.Random(0)
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_onnx(path)
        except SabrError as error:
            assert "\n" not in str(error)
