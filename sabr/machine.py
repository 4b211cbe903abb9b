"""What a process computes with: threads, device, memory; and the signals that ask it to stop."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from sabr.errors import SabrError, first_line


def use(threads: int, device: str) -> torch.device:
    """Fix the number of CPU threads, and choose the device.

    Parameters
    ----------
    threads
        Threads of PyTorch's CPU kernels.
    device
        cpu, cuda, cuda:1, ..., or auto: a GPU where there is one.

    Raises
    ------
    SabrError
        When the device cannot be used here.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    # On GPUs, 10-bit mantissas would make proofs and trained weights less than float32 ones.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cpu", "cuda"):
            raise SabrError(f"--device {device} cannot be used here: give cpu, cuda, cuda:1, ..., or auto")
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise SabrError(f"--device {device} cannot be used here: {first_line(error)}") from error
    return chosen


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor; does nothing with another C library.

    By default each tensor over 32 MB is fresh memory from the system, and to clear its pages takes several times as
    long as an element-wise operation on it.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(trim_threshold, -1)
    mallopt(mmap_max, 0)


def prefer_speed(deterministic: bool) -> None:
    """Let GPU libraries choose the fastest algorithms, or only those that always give the same bits; CPUs always do."""
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.deterministic = deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    torch.use_deterministic_algorithms(deterministic)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Note the first SIGTERM or SIGINT instead of dying of it; the second one is obeyed at once.

    Yields
    ------
    Whether there has been one.
    """
    requested = False
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: requested
    finally:
        restore()
