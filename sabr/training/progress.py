"""How training shows itself: a progress bar on a terminal, a line per epoch elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from sabr.training.metrics import EpochMetrics
from sabr.training.trainer import Progress as Step


@contextmanager
def progress(name: str, epochs: int) -> Iterator[Callable[[Step], None]]:
    """Give a function for `sabr.training.trainer.train` to report to."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: _line(name, epochs, step.metrics)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("steps, left:"),
        TimeRemainingColumn(),
        console=console,
    )
    words = Text()
    task = bar.add_task(name, total=None)
    with Live(Group(bar, words), console=console, refresh_per_second=4):
        last = ""

        def report(step: Step) -> None:
            nonlocal last
            if step.metrics is not None:
                last = ", last epoch: " + _words(step.metrics)
            bar.update(task, completed=step.step, total=step.steps)
            words.plain = f"epoch {step.epoch}/{epochs}, eps {step.eps:.4f}{last}"

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
