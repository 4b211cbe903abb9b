"""A network and properties of it as a folder of VNN-COMP instances; counterexamples in VNN-COMP's format."""

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from sabr.errors import SabrError
from sabr.files import write_text
from sabr.networks.expressions import MalformedText, parse
from sabr.networks.onnx_export import write_onnx
from sabr.networks.onnx_import import Imported, read_onnx
from sabr.networks.steps import Step
from sabr.networks.vnnlib import Property, read_vnnlib, write_robustness


class Instance(NamedTuple):
    """One line of an instances.csv: a network, a property of it, and a time limit in seconds."""

    onnx: Path
    vnnlib: Path
    timeout: float


def write_instances(
    folder: Path,
    steps: Sequence[Step],
    lower: Tensor,
    upper: Tensor,
    labels: Tensor,
    names: Sequence[str],
    *,
    classes: int,
    timeout: float,
) -> Path:
    """Write a network, the robustness property of each image, and, last, the list of them.

    Parameters
    ----------
    folder
        Gets ``network.onnx``, ``vnnlib/NAME.vnnlib`` for each image, and ``instances.csv``.
    steps
        A folded network.
    lower, upper
        (N, ...): the box of each image.
    labels
        (N,): the class that should win.
    names
        One file name an image, without suffix.
    classes
        Number of classes.
    timeout
        Seconds an instance, as written into the list.

    Returns
    -------
    Path
        ``instances.csv``.

    Raises
    ------
    SabrError
        When something cannot be written, as in `write_onnx` and `robustness_text`.
    """
    if not 0 < timeout < math.inf:
        raise SabrError(f"a time limit of {timeout} s an instance cannot be kept: give a number above 0")
    write_onnx(steps, lower.shape[1:], folder / "network.onnx")
    rows = []
    for low, high, label, name in zip(lower, upper, labels.tolist(), names, strict=True):
        write_robustness(folder / "vnnlib" / f"{name}.vnnlib", low, high, label, classes)
        rows.append(f"network.onnx,vnnlib/{name}.vnnlib,{timeout:g}\n")
    write_text(folder / "instances.csv", "".join(rows))
    return folder / "instances.csv"


def read_instances(path: Path) -> list[Instance]:
    """Read an instances.csv; its paths are relative to its folder.

    Raises
    ------
    SabrError
        When it cannot be read, or a line is not "network,property,seconds"; the line is named.
    """
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except OSError as error:
        raise SabrError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SabrError(f"{path} is not a table of instances ({error}): get it again") from error
    instances = []
    for number, row in enumerate(rows, 1):
        if row:
            seconds = _seconds(row[2]) if len(row) == 3 else None
            if seconds is None:
                raise SabrError(f'{path}, line {number} is not "network.onnx,property.vnnlib,seconds": correct it')
            instances.append(Instance(path.parent / row[0].strip(), path.parent / row[1].strip(), seconds))
    return instances


def read_instance(network: Path, wanted: Path) -> tuple[Imported, list[Property]]:
    """Read a network and a property of it.

    Raises
    ------
    SabrError
        As in `read_onnx` and `read_vnnlib`, and when the two have different numbers of inputs or outputs.
    """
    imported, properties = read_onnx(network), read_vnnlib(wanted)
    sizes = (torch.Size(imported.input_shape).numel(), imported.outputs)
    asked = (len(properties[0].lower), properties[0].disjuncts[0].rows.shape[1])
    if asked != sizes:
        raise SabrError(
            f"{wanted} is about {asked[0]} inputs and {asked[1]} outputs, but {network} has {sizes[0]} and {sizes[1]}: "
            "give a property of this network"
        )
    return imported, properties


def counterexample_text(inputs: Tensor, outputs: Tensor) -> str:
    """A counterexample as VNN-COMP wants it after the line "sat"; numbers are read back exactly."""
    values = [(f"X_{i}", v) for i, v in enumerate(inputs.flatten().tolist())]
    values += [(f"Y_{i}", v) for i, v in enumerate(outputs.flatten().tolist())]
    return "(" + "\n".join(f"({name} {value!r})" for name, value in values) + ")\n"


def read_counterexample(text: str) -> tuple[Tensor, Tensor]:
    """The inputs (n,) and outputs (K,), float64, of a counterexample as `counterexample_text` writes it.

    Raises
    ------
    SabrError
        When the text is cut off or is something else.
    """
    values: dict[str, list[float]] = {"X": [], "Y": []}
    try:
        (whole,) = parse(text)
        for pair in whole.items:
            name, value = (item.word or "" for item in pair.items)
            kind, _, number = name.partition("_")
            if kind not in values or number != str(len(values[kind])):
                raise MalformedText(f"line {pair.line}: {pair} is out of order")
            values[kind].append(float(value))
    except (MalformedText, ValueError) as error:
        raise SabrError(f"this is not a whole counterexample ({error}): get it again") from error
    inputs, outputs = (torch.tensor(values[kind], dtype=torch.float64) for kind in "XY")
    return inputs, outputs


def _seconds(text: str) -> float | None:
    """A positive decimal number, or None."""
    value = float(text) if re.fullmatch(r"\s*\d+(\.\d*)?([eE][+-]?\d+)?\s*", text) else 0.0
    return value if 0 < value < math.inf else None
