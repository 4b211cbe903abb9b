"""Configuration files laid one over the other, and which of them to blame; the only place that knows YAML."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sabr.errors import SabrError
from sabr.files import read_text
from sabr.methods import METHODS
from sabr.problems import first_problem, written
from sabr.specs import Certification, Training

# What may be said of training and of certification; what else they hold follows from the setting.
TRAINING = set(Training.model_fields) - {"dataset"}
CERTIFICATION = set(Certification.model_fields) - {"dataset", "eps", "seed"}
_OF_METHODS = {"like", "training", "certification"}.union(*(kind.model_fields for kind in METHODS.values()))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises
    ------
    SabrError
        When it cannot be read, is not YAML, or holds something else.
    """
    text = read_text(path, "save it as UTF-8")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, for instance
        raise SabrError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise SabrError(f"{path} must hold keys and values")
    _check_keys_are_text(value, f"{path}: ")
    return value


def _check_keys_are_text(value: object, where: str) -> None:
    """Refuse keys such as 1, yes and null, which no mapping here has."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, content in below:
        if isinstance(value, dict) and not isinstance(key, str):
            raise SabrError(f"{where}{written(key)} is not allowed: a key must be text; put it in quotes")
        _check_keys_are_text(content, f"{where}{key}.")


@dataclass
class Origins:
    """Where each key of a merged mapping was last set, to blame the right file."""

    default: str
    of: dict[str, str] = field(default_factory=dict)

    def blame(self, path: str) -> str:
        """Return 'file: key path' for a key path of the merged mapping, or the nearest one above it."""
        head = path
        while head and head not in self.of:
            head = head.rpartition(".")[0]
        return f"{self.of[head]}{path.removeprefix(head)}" if head else f"{self.default}: {path}".removesuffix(": ")


@dataclass(frozen=True)
class Layer:
    """One file's say, or a part of it."""

    file: str
    content: Mapping[str, Any]
    prefix: str = ""

    def part(self, key: str) -> "Layer":
        """What is said below a key; nothing, if the key is not there."""
        value = self.content.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise SabrError(
                f"{self.file}: {self.prefix}{key}: {written(value)} is not allowed: a mapping of keys is needed here"
            )
        return Layer(self.file, value, f"{self.prefix}{key}.")

    def setting(self, name: str) -> "Layer":
        """What is said for a single setting."""
        part = self.part("settings").part(name)
        part.check_keys({"run", "training", "certification", "methods"})
        part.part("run").check_keys({"methods"})
        return part

    def without(self, *keys: str) -> "Layer":
        """The same without some keys."""
        return Layer(self.file, {k: v for k, v in self.content.items() if k not in keys}, self.prefix)

    def check_keys(self, allowed: set[str]) -> None:
        """Refuse all other keys."""
        for key in self.content:
            if key not in allowed:
                raise SabrError(f"{self.file}: {self.prefix}{key}: unknown key; allowed: {', '.join(sorted(allowed))}")

    def check_names(self, base: "Layer", folder: Path) -> None:
        """Refuse methods and settings that nothing else speaks of; `objective` or `like` makes a method a new one."""
        known = set(base.part("methods").content)
        self.part("settings").check_keys({path.stem for path in (folder / "settings").glob("*.yaml")})
        for layer in (self, *(self.setting(name) for name in self.part("settings").content)):
            methods = layer.part("methods")
            methods.check_keys(
                known | {n for n in methods.content if {"objective", "like"} & methods.part(n).content.keys()}
            )
            # Also of what this run does not use: a mistyped key would stay unseen.
            layer.part("training").check_keys(TRAINING)
            layer.part("certification").check_keys(CERTIFICATION)
            for name in methods.content:
                methods.part(name).check_keys(_OF_METHODS)


def merged(model: type[Any], where: str, start: dict[str, Any], layers: list[Layer]) -> Any:
    """Validate `start` with layers on top of it, the last that has a key wins; `where` is blamed for `start`."""
    values = dict(start)
    origins = Origins(where)
    for layer in layers:
        for key, value in layer.content.items():
            values[key] = value
            origins.of[key] = f"{layer.file}: {layer.prefix}{key}"
    return validate(model, values, origins)


def validate(model: type[Any], value: Mapping[str, Any], origins: Origins) -> Any:
    """Return the model of some values.

    Raises
    ------
    SabrError
        One sentence: file, key path, value, and what is allowed.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        path, message = first_problem(error, value)
        if message == "unknown key" and "." not in path:
            message += f"; allowed: {', '.join(model.model_fields)}"
        raise SabrError(f"{origins.blame(path)}: {message}") from error
