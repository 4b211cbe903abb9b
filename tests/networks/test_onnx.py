import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from sabr.errors import SabrError
from sabr.networks.onnx_export import write_onnx
from sabr.networks.onnx_import import read_onnx
from sabr.networks.steps import (
    ConvolutionStep,
    FlattenStep,
    LinearStep,
    ReLUStep,
    ScaleStep,
    SumStep,
    cast,
    forward,
)
from sabr.settings import DATASETS


def convolution(inputs, outputs, kernel, stride=(1, 1), padding=(0, 0), seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, *kernel, generator=generator) / (inputs * kernel[0] * kernel[1]) ** 0.5
    return ConvolutionStep(weight, torch.randn(outputs, generator=generator), stride, padding)


def linear(inputs, outputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    return LinearStep(weight, torch.randn(outputs, generator=generator))


def run(path, points):
    """What onnxruntime makes of each point."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (name,) = (value.name for value in session.get_inputs())
    return torch.cat([torch.from_numpy(session.run(None, {name: p[None].numpy()})[0]) for p in points])


def assert_same_steps(steps, expected):
    assert [type(step) for step in steps] == [type(step) for step in expected]
    for step, other in zip(steps, expected, strict=True):
        if isinstance(step, SumStep):
            assert len(step.paths) == len(other.paths)
            for path, other_path in zip(step.paths, other.paths, strict=True):
                assert_same_steps(path, other_path)
        else:
            for name, value in vars(other).items():
                same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
                assert same(getattr(step, name), value), name


def assert_runs_alike(path, steps, points, tolerance=1e-5):
    expected = forward(steps, points)
    torch.testing.assert_close(
        run(path, points), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
    )


def residual_network():
    block = SumStep(((convolution(4, 6, (3, 3), (2, 2), (1, 1)), ReLUStep(), convolution(6, 6, (3, 3), padding=(1, 1))),
                     (convolution(4, 6, (1, 1), (2, 2)),)))  # fmt: skip
    inner = SumStep(((ReLUStep(), convolution(6, 6, (3, 3), padding=(1, 1), seed=3)), ()))
    nested = SumStep(((), (inner, convolution(6, 6, (1, 1), seed=4)), (ReLUStep(),)))
    head = [FlattenStep(), linear(6 * 4 * 4, 9), ReLUStep(), linear(9, 5)]
    first = [ScaleStep(torch.tensor([2.0, 3.0]).view(1, 2, 1, 1), torch.tensor([-1.0, 0.5]).view(1, 2, 1, 1))]
    return [*first, convolution(2, 4, (3, 3), padding=(1, 1)), ReLUStep(), block, ReLUStep(), nested, ReLUStep(), *head]


@pytest.mark.parametrize(("dataset", "architecture"), [("mnist", "cnn-small"), ("cifar10", "cnn7-narrow")])
def test_a_trained_network_goes_out_and_comes_back(small_network, tmp_path, dataset, architecture):
    _, steps = small_network(dataset, architecture)
    write_onnx(steps, DATASETS[dataset].shape, tmp_path / "net.onnx")
    assert_runs_alike(tmp_path / "net.onnx", steps, torch.rand(2, *DATASETS[dataset].shape))
    imported = read_onnx(tmp_path / "net.onnx")
    assert imported.input_shape == DATASETS[dataset].shape and imported.outputs == 10
    assert_same_steps(imported.steps, steps)


def test_a_residual_network_goes_out_and_comes_back(tmp_path):
    steps = residual_network()
    write_onnx(steps, (2, 8, 8), tmp_path / "net.onnx")
    points = torch.rand(3, 2, 8, 8)
    assert_runs_alike(tmp_path / "net.onnx", steps, points)
    imported = read_onnx(tmp_path / "net.onnx")
    torch.testing.assert_close(forward(imported.steps, points), forward(steps, points))
    # A sum of three is read as a sum of two, and one more.
    nested = steps[5]
    steps[5] = SumStep(((SumStep(nested.paths[:2]),), nested.paths[2]))
    assert_same_steps(imported.steps, steps)


def test_double_precision_is_kept(tmp_path):
    # onnxruntime has no convolution in float64.
    steps = cast([linear(3, 4), SumStep(((ReLUStep(), linear(4, 4)), ())), linear(4, 2)], torch.float64)
    write_onnx(steps, (3,), tmp_path / "net.onnx")
    assert_runs_alike(tmp_path / "net.onnx", steps, torch.rand(2, 3, dtype=torch.float64), 1e-12)
    assert_same_steps(read_onnx(tmp_path / "net.onnx").steps, steps)


def test_equal_networks_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_onnx(residual_network(), (2, 8, 8), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@st.composite
def networks(draw):
    """Random small networks with convolutions of any stride and padding, sums and scales, and their input shape."""
    channels, height, width = draw(st.integers(1, 3)), draw(st.integers(3, 7)), draw(st.integers(3, 7))
    shape = (channels, height, width)
    steps, seed = [], 0
    for kind in draw(st.lists(st.sampled_from(["conv", "relu", "block", "scale"]), max_size=5)):
        seed += 1
        if kind == "conv":
            kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
            stride = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
            step = convolution(channels, draw(st.integers(1, 3)), kernel, stride, (1, 1), seed)
            channels = len(step.bias)
        elif kind == "relu":
            step = ReLUStep()
        elif kind == "block":
            path = (convolution(channels, channels, (3, 3), padding=(1, 1), seed=seed), ReLUStep())
            step = SumStep(tuple(draw(st.permutations([(), path]))))
        else:
            step = ScaleStep(torch.rand(channels, 1, 1) + 0.5, torch.rand(channels, 1, 1))
        steps.append(step)
    features = forward(steps, torch.zeros(1, *shape)).numel()
    steps += [FlattenStep(), linear(features, draw(st.integers(1, 4)), seed)]
    return steps, shape


@settings(deadline=None, max_examples=30)
@given(networks())
def test_random_networks_run_alike(tmp_path_factory, drawn):
    steps, shape = drawn
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    write_onnx(steps, shape, path)
    points = torch.rand(2, *shape)
    assert_runs_alike(path, steps, points, 2e-5)
    imported = read_onnx(path)
    expected = forward(steps, points)
    torch.testing.assert_close(forward(imported.steps, points), expected, rtol=1e-4, atol=1e-5)
    again = path.with_name("again.onnx")
    write_onnx(imported.steps, shape, again)
    assert_same_steps(read_onnx(again).steps, imported.steps)


# Graphs that other programs write.


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


def test_weights_that_are_not_finite_are_not_exported(tmp_path):
    broken = LinearStep(torch.tensor([[torch.inf]]), torch.zeros(1))
    with pytest.raises(SabrError, match="not finite"):
        write_onnx([broken], (1,), tmp_path / "net.onnx")
    with pytest.raises(SabrError, match="no steps"):
        write_onnx([], (1,), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_half_precision_is_not_exported(tmp_path):
    with pytest.raises(SabrError, match="bfloat16"):
        write_onnx(cast([linear(2, 2)], torch.bfloat16), (2,), tmp_path / "net.onnx")


def test_what_is_written_passes_the_checker(tmp_path):
    write_onnx(residual_network(), (2, 8, 8), tmp_path / "net.onnx")
    onnx.checker.check_model(str(tmp_path / "net.onnx"), full_check=True)
