"""Properties that go to other verifiers, and those that come from them: files in, files or an answer out."""

from pathlib import Path

import torch

from sabr.bounds.boxes import ball
from sabr.certification.properties import verify
from sabr.errors import SabrError
from sabr.kernels import compile_if
from sabr.networks.affine import folded_steps
from sabr.networks.instances import counterexample_text, read_instance, write_instances
from sabr.settings import DATASETS
from sabr.specs import Cascade, CertificationSpec
from sabr.trained import read_images, read_network


def run_export(model: Path, spec: CertificationSpec, output: Path, folder: Path, first: int, last: int) -> None:
    """Write a network and the properties of images first to last - 1 as a folder of VNN-COMP instances.

    Parameters
    ----------
    model, spec, folder
        As in `sabr.certification.job.run_certification`.
    output
        Folder to write.
    first, last
        Which images.

    Raises
    ------
    SabrError
        When a file cannot be read or written, or there are no such images.
    """
    network, _ = read_network(model, spec, folder, torch.device("cpu"))
    if not first < last <= spec.images:
        raise SabrError(f"--first {first} --last {last} is no part of the {spec.images} images of the specification")
    images, labels = read_images(spec, folder, first, last, torch.device("cpu"))
    with torch.no_grad():
        steps = folded_steps(network)
    region = ball(images.double(), spec.eps)
    write_instances(
        output,
        steps,
        region.lower,
        region.upper,
        labels,
        [f"image-{number:05d}" for number in range(first, last)],
        classes=DATASETS[spec.dataset].classes,
        timeout=spec.complete.seconds,
    )


def run_verification(onnx: Path, vnnlib: Path, spec: Cascade) -> str:
    """Decide a property; the answer in VNN-COMP's format, and in a last line behind ; why it is unknown.

    Raises
    ------
    SabrError
        When a file cannot be read, or the two do not fit.
    """
    compile_if(spec.compile)
    network, asked = read_instance(onnx, vnnlib)
    answer = verify(network, asked, spec)
    if answer.inputs is not None and answer.outputs is not None:
        return f"{answer.result}\n{counterexample_text(answer.inputs, answer.outputs)}"
    return f"{answer.result}\n; {answer.reason}" if answer.reason else answer.result
