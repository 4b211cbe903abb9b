import pytest
import torch

from sabr.errors import SabrError
from sabr.networks.instances import (
    Instance,
    counterexample_text,
    read_counterexample,
    read_instance,
    read_instances,
    write_instances,
)
from sabr.networks.onnx_export import write_onnx
from sabr.networks.onnx_import import read_onnx
from sabr.networks.steps import forward
from sabr.networks.vnnlib import read_vnnlib


def write(folder, steps, timeout=30, labels=(3, 9)):
    images = torch.rand(2, 1, 28, 28)
    lower, upper = (images - 0.1).clamp(0, 1), (images + 0.1).clamp(0, 1)
    names = ["image-0", "image-1"]
    listed = write_instances(folder, steps, lower, upper, torch.tensor(labels), names, classes=10, timeout=timeout)
    return listed, lower, upper


def test_a_folder_is_read_as_written(small_network, tmp_path):
    _, steps = small_network()
    listed, lower, upper = write(tmp_path / "a folder", steps, timeout=0.5)
    instances = read_instances(listed)
    assert [i.timeout for i in instances] == [0.5, 0.5]
    assert {i.onnx for i in instances} == {tmp_path / "a folder" / "network.onnx"}
    network = read_onnx(instances[0].onnx)
    for instance, low, high in zip(instances, lower, upper, strict=True):
        (found,) = read_vnnlib(instance.vnnlib)
        assert torch.equal(found.lower, low.flatten().double()) and torch.equal(found.upper, high.flatten().double())
        assert len(found.disjuncts) == network.outputs - 1
    assert torch.equal(forward(network.steps, lower), forward(steps, lower))


def test_each_property_is_about_its_own_label(small_network, tmp_path):
    listed, lower, _ = write(tmp_path, small_network()[1], labels=(3, 9))
    for instance, low, label in zip(read_instances(listed), lower, (3, 9), strict=True):
        (found,) = read_vnnlib(instance.vnnlib)
        assert not found.violated_by(low, torch.eye(10)[label])
        assert found.violated_by(low, torch.eye(10)[0])


def test_a_network_and_a_property_of_another_do_not_go_together(small_network, tmp_path):
    listed, *_ = write(tmp_path / "mnist", small_network()[1])
    (instance, _) = read_instances(listed)
    network, properties = read_instance(instance.onnx, instance.vnnlib)
    assert network.input_shape == (1, 28, 28) and len(properties) == 1
    write_onnx(small_network("cifar10")[1], (3, 32, 32), tmp_path / "cifar10.onnx")
    with pytest.raises(SabrError, match="784 inputs and 10 outputs, but .*cifar10.onnx has 3072 and 10"):
        read_instance(tmp_path / "cifar10.onnx", instance.vnnlib)


@pytest.mark.parametrize("timeout", [0, -1, float("inf"), float("nan")])
def test_a_time_limit_must_be_a_time(small_network, tmp_path, timeout):
    with pytest.raises(SabrError, match="time limit"):
        write(tmp_path, small_network()[1], timeout=timeout)
    assert not list(tmp_path.iterdir())


def test_lists_of_others_are_read(tmp_path):
    path = tmp_path / "instances.csv"
    path.write_text("./onnx/a.onnx, vnnlib/b.vnnlib, 300.0\r\n\r\nc.onnx,d.vnnlib,1e2\n")
    assert read_instances(path) == [
        Instance(tmp_path / "onnx" / "a.onnx", tmp_path / "vnnlib" / "b.vnnlib", 300),
        Instance(tmp_path / "c.onnx", tmp_path / "d.vnnlib", 100),
    ]


@pytest.mark.parametrize("line", ["a.onnx,b.vnnlib", "a.onnx,b.vnnlib,soon", "a,b,0", "a,b,nan", "a,b,inf", "a,b,-3"])
def test_a_line_that_is_no_instance_is_named(tmp_path, line):
    path = tmp_path / "instances.csv"
    path.write_text(f"a.onnx,b.vnnlib,1\n{line}\n")
    with pytest.raises(SabrError, match="line 2"):
        read_instances(path)


def test_a_list_that_is_missing(tmp_path):
    with pytest.raises(SabrError, match="cannot read"):
        read_instances(tmp_path / "instances.csv")


def test_counterexamples_are_read_back_exactly():
    inputs, outputs = torch.rand(1, 2, 2), torch.randn(3)
    text = counterexample_text(inputs, outputs)
    assert text.startswith("((X_0 ") and "\n(Y_0 " in text and text.endswith("))\n")
    again = read_counterexample(text)
    assert torch.equal(again[0], inputs.flatten().double()) and torch.equal(again[1], outputs.double())


@pytest.mark.parametrize(
    "text", ["", "((X_0 0.5)", "((X_1 0.5))", "((X_0 a))", "((X_0))", "((Z_0 1))", "(X_0 1) (Y_0 1)"]
)
def test_a_counterexample_that_is_not_whole(text):
    with pytest.raises(SabrError, match="not a whole counterexample"):
        read_counterexample(text)
