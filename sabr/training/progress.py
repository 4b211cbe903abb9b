"""How training shows itself: a progress bar on a terminal, a line per epoch elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sabr.training.trainer import EpochMetrics
from sabr.training.trainer import Progress as Step


@contextmanager
def progress(name: str, epochs: int) -> Iterator[Callable[[Step], None]]:
    """Give a function for `sabr.training.trainer.train` to report to."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: _line(name, epochs, step.metrics)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=None, state="")
        last = ""

        def report(step: Step) -> None:
            nonlocal last
            if step.metrics is not None:
                last = " " + _words(step.metrics)
            state = f"epoch {step.epoch}/{epochs} eps {step.eps:.4f}{last}"
            bar.update(task, completed=step.step, total=step.steps, state=state)

        yield report


def _line(name: str, epochs: int, metrics: EpochMetrics | None) -> None:
    if metrics is not None:
        left = (epochs - metrics.epoch) * metrics.seconds
        text = f"{name}: epoch {metrics.epoch}/{epochs} eps {metrics.eps:.4f} {_words(metrics)} {left:.0f} s left"
        print(text, file=sys.stderr, flush=True)


def _words(m: EpochMetrics) -> str:
    return (
        f"loss {m.loss:.4f} (robust {m.robust_loss:.4f}) natural {m.natural_accuracy:.1%} "
        f"robust {m.robust_accuracy:.1%} {m.images_per_second:.0f} images/s"
    )
