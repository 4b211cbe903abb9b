"""Long runs and large data sets cost per image what short and small ones do, and leave nothing behind."""

import ctypes
import gc
import statistics
import time

import pytest
import torch

from sabr.methods import METHODS
from sabr.specs import TrainingSpec
from sabr.training.step import initial_network, step_loss
from sabr.training.trainer import train

CPU = torch.device("cpu")
FEW = 128  # images: two batches


@pytest.fixture(scope="module")
def spec(plan):
    """The tiny scale's specification of a method, with a ramp that ends after epoch 3, and changes."""

    def make(method, **changes):
        row = next(row for row in plan.main if row.method == method)
        own = {"train_images": FEW, "ramp_start": 1, "ramp_end": 3, "learning_rate_drops": ()}
        return TrainingSpec.model_validate(row.training.model_dump() | own | changes)

    return make


def at_epoch_ends(spec, split, measure):
    seen = [measure()]

    def report(progress):
        if progress.metrics is not None:
            seen.append(measure())

    train(spec, split, device=CPU, report=report, save=lambda state: None)
    return seen


def cpu_seconds(spec, split):
    """CPU seconds of each epoch; unlike the clock's they do not depend on what else the machine does."""
    ends = at_epoch_ends(spec, split, time.process_time)
    return [end - start for start, end in zip(ends, ends[1:], strict=False)]


class _Mallinfo(ctypes.Structure):
    """What glibc says of its heap: the system's count of resident pages also has the holes between the blocks."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def test_memory_does_not_grow_with_the_epochs(spec, mnist_train):
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        pytest.skip("this C library does not say how much memory is in use")
    mallinfo.restype = _Mallinfo

    def in_use():
        said = mallinfo()
        return said.uordblks + said.hblkhd

    seen = at_epoch_ends(spec("sabr", epochs=60), mnist_train, in_use)
    assert max(seen[40:]) - max(seen[10:40]) < 5e5


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("ramp", [0.5, 1])
def test_a_step_leaves_no_tensors_to_the_garbage_collector(spec, name, ramp):
    # What only the collector frees stays for many steps, and with CNN7 that is gigabytes.
    asked = spec(name, epochs=3)
    network, generator = initial_network(asked, CPU), torch.Generator().manual_seed(0)
    images, labels = torch.rand(8, 1, 28, 28, generator=generator), torch.arange(8)

    def step():
        step_loss(network, images, labels, ramp * asked.eps, asked, generator).total.backward()

    step()
    gc.collect()
    gc.disable()
    try:
        step()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [garbage.shape for garbage in gc.garbage if isinstance(garbage, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []


def test_time_does_not_grow_with_the_epochs(spec, mnist_train):
    seconds = cpu_seconds(spec("ibp", epochs=120), mnist_train)
    # If it grew in proportion to the epochs, it would triple.
    assert statistics.median(seconds[90:]) < 1.5 * statistics.median(seconds[15:45])


def test_time_for_an_image_does_not_grow_with_the_data_set(spec, mnist_train):
    few, many = (
        statistics.median(cpu_seconds(spec("ibp", epochs=epochs, train_images=count), mnist_train)[3:]) / count
        for epochs, count in ((24, FEW), (6, 12 * FEW))
    )
    assert many < 1.5 * few
