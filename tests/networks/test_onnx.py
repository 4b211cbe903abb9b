import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


@settings(max_examples=30)
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
