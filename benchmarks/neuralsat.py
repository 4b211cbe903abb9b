"""Verdicts and seconds of `sabr verify` beside those of neuralsat 0.2.17, on the same exported instances.

    sabr export MODEL --spec certification.json --output instances --first 0 --last 100

    python -m venv neuralsat
    neuralsat/bin/pip install --no-deps neuralsat==0.2.17
    neuralsat/bin/pip install beartype gurobipy onnx onnxruntime onnxsim rich sortedcontainers torch torchvision tqdm

    python benchmarks/neuralsat.py instances --python neuralsat/bin/python --output comparison.csv

all from the repository's folder, where `sabr verify` finds config/verify.yaml. To compare on a few images, delete the
lines of the others from instances.csv.

neuralsat wants an environment of its own: it is installed as a package named `src`, brings its own copy of auto_LiRPA,
and pins versions that it does not need (so --no-deps). It imports Gurobi; the licence that `gurobipy` brings is limited
to models of 2,000 variables, which suffices: bounds and splits are computed with torch. It runs on the CPU (tried with
Python 3.11, torch 2.14 and the `small` network of MNIST: 9 s for what needs no split, 6 of them an attack; then about
50 subproblems a second), and oversteps its time limit by up to one batch of splits.

Both programs are started anew for each instance, one after the other, with the same limit and threads; the seconds are
those of the whole process. A counterexample is confirmed by a plain forward pass in float64, after it is moved into the
box (float32 may be printed). Exits with 1 if one program says sat and the other unsat.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from sabr.errors import SabrError
from sabr.networks.instances import Instance, read_counterexample, read_instance, read_instances
from sabr.networks.steps import Step, cast, forward
from sabr.networks.vnnlib import Property

VERDICTS = ("sat", "unsat", "unknown", "timeout")
# Beyond its limit a program may finish what it is at, before it is stopped.
GRACE = 60


class Answer(NamedTuple):
    """What one program said: a verdict (or "error"), its wall-clock seconds, and if it is sat, whether that is so."""

    verdict: str
    seconds: float
    confirmed: bool | None = None


def main() -> int:
    """Compare on all instances of a folder, print a table, and say whether the two agree."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what `sabr export` wrote, or any folder with an instances.csv")
    parser.add_argument("--python", type=Path, required=True, help="the interpreter that neuralsat is installed for")
    parser.add_argument("--timeout", type=float, help="seconds an instance; default: what instances.csv says")
    parser.add_argument("--first", type=int, help="only so many instances")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="a CSV file of all answers")
    asked = parser.parse_args()
    try:
        instances = read_instances(asked.folder / "instances.csv")[: asked.first]
        program = installed(asked.python)
        rows = [compare(instance, asked.timeout or instance.timeout, asked, program) for instance in instances]
    except SabrError as error:
        sys.exit(f"error: {error}")
    table = pd.DataFrame(rows)
    if asked.output:
        table.to_csv(asked.output, index=False)
    show(table)
    contradictions = table[[{a, b} == {"sat", "unsat"} for a, b in zip(table.sabr, table.neuralsat, strict=True)]]
    for row in contradictions.itertuples():
        print(f"CONTRADICTION: {row.instance}: sabr {row.sabr}, neuralsat {row.neuralsat}", file=sys.stderr)
    return int(len(contradictions) > 0)


def installed(python: Path) -> Path:
    """Where neuralsat's program lies."""
    question = "import importlib.util as u; print(u.find_spec('src').submodule_search_locations[0])"
    try:
        found = subprocess.run([python, "-c", question], capture_output=True, text=True, check=True, cwd="/")
    except (OSError, subprocess.CalledProcessError) as error:
        raise SabrError(f"{python} has no neuralsat: install it as the head of {__file__} says") from error
    return Path(found.stdout.strip()) / "main.py"


def compare(instance: Instance, timeout: float, asked: argparse.Namespace, program: Path) -> dict[str, object]:
    """Both programs on one instance, as one row."""
    ours, theirs = sabr(instance, timeout, asked.threads), neuralsat(instance, timeout, asked, program)
    row: dict[str, object] = {"instance": instance.vnnlib.stem, "limit": timeout}
    for name, answer in (("sabr", ours), ("neuralsat", theirs)):
        row |= {
            name: answer.verdict,
            f"{name}_seconds": round(answer.seconds, 2),
            f"{name}_confirmed": answer.confirmed,
        }
    print(
        f"{instance.vnnlib.stem}: sabr {ours.verdict} {ours.seconds:.1f} s, "
        f"neuralsat {theirs.verdict} {theirs.seconds:.1f} s",
        flush=True,
    )
    return row


def sabr(instance: Instance, timeout: float, threads: int) -> Answer:
    """`sabr verify` on one instance."""
    program = [sys.executable, "-c", "from sabr.cli import main; main()"]
    command = [*program, "verify", "--onnx", instance.onnx, "--vnnlib", instance.vnnlib]
    text, seconds = run([*command, "--timeout", f"{timeout:g}"], timeout, threads)
    return answer(instance, text, seconds)


def neuralsat(instance: Instance, timeout: float, asked: argparse.Namespace, program: Path) -> Answer:
    """The other program on one instance."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.txt"
        command = [
            asked.python.absolute(),
            program,
            "--net",
            instance.onnx,
            "--spec",
            instance.vnnlib,
            "--device",
            "cpu",
        ]
        options = ["--timeout", f"{timeout:g}", "--verbosity", "0", "--result_file", result, "--export_cex"]
        text, seconds = run([*command, *options], timeout, asked.threads, folder)
        return answer(instance, result.read_text() if result.exists() else text, seconds)


def run(command: list[object], timeout: float, threads: int, folder: str | None = None) -> tuple[str, float]:
    """What a program prints, and its seconds; it is stopped well beyond its limit."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    started = time.perf_counter()
    try:
        arguments = [str(part.absolute() if isinstance(part, Path) else part) for part in command]
        finished = subprocess.run(
            arguments,
            capture_output=True,
            text=True,
            timeout=timeout + GRACE,
            cwd=folder,
            env=environment,
        )
        text = finished.stdout
        if finished.returncode:
            print(finished.stderr.strip(), file=sys.stderr)
    except subprocess.TimeoutExpired:
        text = "timeout"
    return text, time.perf_counter() - started


def answer(instance: Instance, text: str, seconds: float) -> Answer:
    """The verdict in the first line, and for sat whether the counterexample behind it is one."""
    verdict, _, rest = text.partition("\n")
    verdict = verdict.strip()
    if verdict not in VERDICTS:
        return Answer("error", seconds)
    return Answer(verdict, seconds, confirmed(instance, rest) if verdict == "sat" else None)


def confirmed(instance: Instance, text: str) -> bool:
    """Whether a counterexample's inputs, moved into a box of the property, are one in float64."""
    network, properties = read_instance(instance.onnx, instance.vnnlib)
    try:
        inputs, _ = read_counterexample(text)
    except SabrError:
        return False
    return any(holds(network.steps, network.input_shape, inputs, wanted) for wanted in properties)


def holds(steps: Sequence[Step], shape: tuple[int, ...], inputs: torch.Tensor, wanted: Property) -> bool:
    """The same for one box; inputs further than 1e-5 away from it are no counterexample."""
    if inputs.shape != wanted.lower.shape:
        return False
    inside = torch.minimum(torch.maximum(inputs, wanted.lower), wanted.upper)
    outputs = forward(cast(steps, torch.float64), inside.view(1, *shape))
    return bool((inputs - inside).abs().max() <= 1e-5) and wanted.violated_by(inside, outputs)


def show(table: pd.DataFrame) -> None:
    """How many of each verdict, and the seconds."""
    shown = Table(title=f"{len(table)} instances")
    for column in ("", *VERDICTS, "error", "confirmed", "median s", "mean s"):
        shown.add_column(column, justify="right")
    for name in ("sabr", "neuralsat"):
        counts = [str((table[name] == verdict).sum()) for verdict in (*VERDICTS, "error")]
        seconds = table[f"{name}_seconds"]
        sure = str(table[f"{name}_confirmed"].eq(True).sum())
        shown.add_row(name, *counts, sure, f"{seconds.median():.1f}", f"{seconds.mean():.1f}")
    Console(width=100).print(shown)


if __name__ == "__main__":
    sys.exit(main())
