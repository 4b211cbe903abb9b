"""How figures and tables look: labels, order, colours, widths; and how a figure becomes a file."""

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, ParamSpec

import matplotlib.style
from matplotlib.figure import Figure
from pydantic import Field, PositiveFloat

from sabr.files import allow_suffixes, atomic
from sabr.layers import read_yaml
from sabr.methods import Strict
from sabr.problems import checked

_MPLSTYLE = Path(__file__).with_name("sabr.mplstyle")
FORMATS = (".pdf", ".png")

P = ParamSpec("P")


class Look(Strict):
    """Label of one method, measure or stage, and the colour, marker and line style, or hatch, that it is drawn with."""

    label: str = Field(min_length=1)
    colour: str = Field("#7F7F7F", pattern=r"^#[0-9A-Fa-f]{6}$")
    marker: Literal["o", "s", "^", "v", "<", "D", "P", "X", "h", "x", "*"] = "*"
    line: Literal["-", "--", "-.", ":"] = "-"
    hatch: Literal["", "...."] = ""


class Widths(Strict):
    """Figure widths in inches."""

    column: PositiveFloat
    page: PositiveFloat


class Style(Strict):
    """The keys of `config/figures.yaml`."""

    widths: Widths
    datasets: dict[str, str]
    methods: dict[str, Look]
    measures: dict[str, Look]
    stages: dict[str, Look]

    def method(self, name: str) -> Look:
        """How a method looks; "sabr-lambda-0.1" as sabr, with lambda; an unknown one goes by its own name, in grey."""
        family, swept, ratio = name.partition("-lambda-")
        if name not in self.methods and swept and family in self.methods:
            return self.methods[family].model_copy(update={"label": f"{self.methods[family].label} (λ = {ratio})"})
        return self.methods.get(name) or Look(label=name)

    def measure(self, name: str) -> Look:
        """How a measure looks; an unknown one goes by its own name, in grey."""
        return self.measures.get(name) or Look(label=name)

    def stage(self, name: str) -> Look:
        """How a stage of the cascade looks; an unknown one goes by its own name, in grey."""
        return self.stages.get(name) or Look(label=name)

    def order(self, methods: Iterable[str]) -> list[str]:
        """The given methods, once each: known ones in the order of the file, a sweep's by lambda, then the others."""
        known = list(self.methods)

        def place(name: str) -> tuple[int, float, str]:
            family, _, ratio = name.partition("-lambda-")
            found = known.index(name) if name in known else known.index(family) if family in known else len(known)
            return found, float(ratio) if re.fullmatch(r"[0-9.]+", ratio) else -1.0, name

        return sorted(set(methods), key=place)

    def setting(self, dataset: str, eps: str) -> str:
        """Label of a setting, such as "MNIST, ε = 0.1"; `eps` as it is written."""
        return f"{self.datasets.get(dataset, dataset)}, ε = {eps}"


def read(path: Path) -> Style:
    """Read and check a file like `config/figures.yaml`.

    Raises
    ------
    SabrError
        When it cannot be read, or a key or value is not allowed.
    """
    return checked(Style, read_yaml(path), str(path))


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Let a function draw with our style file, whatever the caller's matplotlib settings are."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.style.context(["default", _MPLSTYLE]):
            return draw(*args, **kwargs)

    return drawn


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all, as PDF (vectors, no date: same figure, same bytes) or PNG (200 dpi).

    Raises
    ------
    SabrError
        When the suffix is neither .pdf nor .png, or the file cannot be written.
    """
    allow_suffixes([path], "a figure", FORMATS)
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
    with matplotlib.style.context(["default", _MPLSTYLE]), atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
