"""Sections of the report and the captions of its items, `config/report.yaml`: typed and validated."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from sabr.layers import read_yaml
from sabr.methods import Strict
from sabr.problems import checked
from sabr.report.outline import Choice, Part


class Item(Strict):
    """A table or figure.

    Attributes
    ----------
    name
        That of its file, without suffix.
    look
        What to look at.
    made
        How it was made, and its limits.
    networks
        Which ones it is about: a part of the plan; those that are studied; Table 1's of the first seed; all; or none,
        as it is the same for every run and scale.
    own_images
        Whether it is about the images of a study, whose number it says itself, not about those that were certified.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    kind: Literal["table", "figure"]
    title: str = Field(min_length=1)
    look: str = Field(min_length=1)
    made: str = Field(min_length=1)
    networks: Part | Choice | Literal["none"] = "main"
    own_images: bool = False


class Section(Strict):
    """Items under a heading."""

    title: str = Field(min_length=1)
    items: tuple[Item, ...] = Field(min_length=1)


class Captions(Strict):
    """The whole of `config/report.yaml`."""

    title: str = Field(min_length=1)
    introduction: str = Field(min_length=1)
    sections: tuple[Section, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> "Captions":
        names = self.names
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"sections: {twice!r} is given twice")
        return self

    @property
    def names(self) -> list[str]:
        """Names of all items."""
        return [item.name for section in self.sections for item in section.items]


def read(path: Path) -> Captions:
    """Read and check a file like `config/report.yaml`.

    Raises
    ------
    SabrError
        One sentence: file, key path, value, and what is allowed.
    """
    return checked(Captions, read_yaml(path), str(path))
