"""Compiled kernels compute what they compute when they are not."""

import shutil
import subprocess
import sys

import pytest

COMPARE = """
import torch
from sabr.bounds.boxes import Box, ball
from sabr.bounds import inner
from sabr.bounds.dual import lines_of, start_of
from sabr.bounds.interval import margin_rows, propagate
from sabr.bounds.optimise import optimise
from sabr.bounds.unrolled import unroll, unroll_each
from sabr import kernels
from sabr.kernels import alike, compile_kernels
from sabr.networks.affine import clean_pass, folded_steps
from sabr.networks.architectures import build
from sabr.settings import ARCHITECTURES, DATASETS
from sabr.training.regularisers import _stable_sums, warmup_regulariser

torch.set_num_threads(1)
kernels._FEW = 0

def gradients():
    network = build(ARCHITECTURES["cnn-tiny"], DATASETS["cifar10"], seed=0).to(memory_format=torch.channels_last)
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    clean = clean_pass(network, images)
    found = propagate(folded_steps(network, clean.statistics), ball(images, 0.01), relu_shrinkage=0.8)
    loss = found.output.upper.sum() + warmup_regulariser(found.relu_inputs, torch.tensor(0.01))
    loss.backward()
    found = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert len(found) == sum(1 for _ in network.parameters()) - len(clean.statistics)  # biases before a batch norm
    return {"loss": loss.detach()} | found

def sums():
    # As many values as CNN7 has at a ReLU; summed one after the other in float32 they would lose the fourth digit.
    generator = torch.Generator().manual_seed(0)
    box = [torch.rand(32, 64, 32, 32, generator=generator) + offset for offset in (-0.5, 0.0)]
    exact = [values.double() for values in box]
    return _stable_sums(alike(*box), box[0].mean())[1:], _stable_sums(alike(*exact), exact[0].mean())[1:]

@torch.no_grad()
def bounds():
    # By CROWN, windows that four neurons share, and whole maps; by alpha-CROWN, with all queries of an image and by one.
    turns, shared = inner._turns, set()
    def noted(*arguments):
        for own, together in turns(*arguments):
            shared.add(together)
            yield own, together
    inner._turns = noted
    *steps, last = folded_steps(build(ARCHITECTURES["cnn-small"], DATASETS["cifar10"], seed=0).eval())
    box = ball(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 0.02)
    found = inner.crown_inputs(steps, box, propagate(steps, box).relu_inputs, memory=2**28)
    inner._turns = turns
    assert shared == {1, inner._GROUP}, shared
    rows = margin_rows(last, torch.tensor([0, 1]))
    pairs = torch.tensor([0, 0, 1]), torch.tensor([0, 5, 8])
    best = []
    for problem in (unroll(steps, box, *rows, found), unroll_each(steps, box, *rows, found, *pairs)):
        lines = lines_of(problem)
        options = {"iterations": 3, "rate": 0.25, "target": float("inf")}
        best.append(optimise(problem, lines, start_of(problem, lines), **options).passed.lower)
    return [end for bound in found for end in bound] + best

before, expected = gradients(), bounds()
if not compile_kernels():
    print("no compiler")
else:
    after = gradients()
    assert before.keys() == after.keys()
    for name, one in before.items():
        torch.testing.assert_close(after[name], one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))
    for one, other in zip(bounds(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    for one, exact in zip(*sums(), strict=True):
        torch.testing.assert_close(one.double(), exact.double(), rtol=1e-5, atol=0)
    few, many = torch.zeros(10), torch.zeros(2**15)
    kernels._FEW = 2**15
    assert kernels.compiles(many) and kernels.compiles([few, many]) and not kernels.compiles(few, [few])
    with kernels.uncompiled():
        assert not kernels.compiles(many)
    assert kernels.compiles()
    print("agree")
"""


def run(environment=None):
    return subprocess.run([sys.executable, "-c", COMPARE], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_kernels_give_the_same_values_and_gradients():
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "agree"


def test_without_a_compiler_training_goes_on_without(tmp_path):
    done = run({"PATH": str(tmp_path), "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "no compiler"
