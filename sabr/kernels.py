"""Element-wise kernels: several operations on large tensors, compiled into one pass over memory on demand."""

import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_process = {"compiles": False}
# Calling what is compiled takes some 60 us (measured on a CPU), as long as some operations on so many values.
_FEW = 2**15


def compile_kernels() -> bool:
    """Compile all kernels of this process from now on, each at its first use on many values.

    A property of the process, as its number of threads is. The first use takes some seconds, and torch keeps what it
    compiled for later runs. Compiled kernels differ in the last digit from those that are not.

    Returns
    -------
    bool
        False where it cannot be done, without a C++ compiler for instance: kernels then run operation by operation.
    """
    try:
        if not torch.cuda.is_available() and shutil.which("g++") is None and shutil.which("clang++") is None:
            return False
        torch._inductor.config.compile_threads = 1  # no pool of idle processes beside the training
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.compile(torch.sin, dynamic=True)(torch.zeros(2))
    except Exception:  # noqa: BLE001 - whatever the toolchain stumbles over, training goes on without it
        return False
    _process["compiles"] = True
    return True


def compiles(*arguments: object) -> bool:
    """Whether kernels of this process are compiled; with arguments: whether one that gets them is."""
    return _process["compiles"] and (not arguments or _many(arguments))


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compute operation by operation for a while: where seconds are charged to what is computed, not to compiling."""
    before = _process["compiles"]
    _process["compiles"] = False
    try:
        yield
    finally:
        _process["compiles"] = before


def compile_if(asked: bool) -> bool:
    """Compile all kernels if that is asked for; where it cannot be done, a line on stderr says so."""
    if asked and not compile_kernels():
        print("sabr: kernels cannot be compiled here (is there a C++ compiler?); going on without", file=sys.stderr)
        return False
    return asked


def kernel(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Make a function of tensors a kernel: it must not change its arguments, nor branch on values.

    Few values are computed operation by operation even where kernels are compiled: that is faster.
    """
    compiled: list[Callable[_Arguments, _Result]] = []

    @wraps(function)
    def call(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        if not compiles(*arguments):
            return function(*arguments, **named)
        if not compiled:
            compiled.append(torch.compile(function, dynamic=True))
        return compiled[0](*arguments, **named)

    return call


def _many(arguments: Iterable[object]) -> bool:
    """Whether a tensor among them, or in a list among them, is large."""
    return any(
        argument.numel() >= _FEW if isinstance(argument, Tensor) else isinstance(argument, list) and _many(argument)
        for argument in arguments
    )


def alike(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the memory order of the first one, flat: so that one compiled kernel serves all layers."""
    first = tensors[0]
    if first.dim() == 4 and first.is_contiguous(memory_format=torch.channels_last):
        return [tensor.permute(0, 2, 3, 1).reshape(-1) for tensor in tensors]
    return [tensor.reshape(-1) for tensor in tensors]


def shaped(flat: Tensor, like: Tensor) -> Tensor:
    """What `alike` took apart: a flat tensor in the shape and memory order of `like`."""
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last):
        n, channels, height, width = like.shape
        return flat.view(n, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(like.shape)
