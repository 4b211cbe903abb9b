"""The user's configuration, typed and validated, resolved into a plan of rows; the only place that knows YAML."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from sabr.errors import SabrError
from sabr.methods import METHODS, Strict
from sabr.specs import (
    Cascade,
    Certification,
    CertificationSpec,
    DatasetName,
    Training,
    TrainingSpec,
    first_problem,
    parse_eps,
)

_NAME = r"^[a-z0-9][a-z0-9._-]*$"
Name = Annotated[str, Field(pattern=_NAME)]


class LambdaSweep(Strict):
    """One method, trained at several lambda_ratio; main rows that fit are used again."""

    setting: Name
    method: Name
    values: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)


class Job(Strict):
    """What one job that trains, attacks or certifies may use, and how much training may be lost when it is killed."""

    threads: PositiveInt
    gpus: NonNegativeInt
    memory_mb: PositiveInt
    minutes: PositiveInt
    save_minutes: PositiveFloat


class Run(Strict):
    """What a scale runs: settings x methods x seeds, a sweep over lambda, and how many images a job certifies.

    Single settings may have other `methods`.
    """

    settings: tuple[Name, ...] = Field(min_length=1)
    methods: tuple[Name, ...] = Field(min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    lambda_sweep: LambdaSweep | None
    shard_size: PositiveInt
    job: Job


class Data(Strict):
    """Where datasets are kept, and where they may come from."""

    folder: str
    mirror: str | None


class Config(Strict):
    """The keys of `config/config.yaml`."""

    scale: Name
    results: str
    data: Data
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One network: how it is trained and certified, and the folder of its results below the scale's."""

    setting: str
    method: str
    training: TrainingSpec
    certification: CertificationSpec

    @property
    def setting_path(self) -> str:
        """Folder of the setting: dataset/eps-..."""
        dataset = self.certification.dataset
        return f"{dataset}/{self.setting.removeprefix(f'{dataset}-')}"

    @property
    def path(self) -> str:
        """Folder of the row: dataset/eps-.../method/seed-..."""
        return f"{self.setting_path}/{self.method}/seed-{self.training.seed}"

    def shards(self, size: int) -> list[tuple[int, int]]:
        """Cut the certified images into (first, last + 1) pairs of at most `size`."""
        images = self.certification.images
        return [(first, min(first + size, images)) for first in range(0, images, size)]


@dataclass(frozen=True)
class Plan:
    """All that one configuration asks for.

    Attributes
    ----------
    config
        The top level of the configuration.
    title
        The scale in words, for the titles of tables and figures.
    run
        What the scale runs.
    main
        Rows of Table 1: settings x methods x seeds, where a setting may have methods of its own.
    sweep
        Rows of the figure over lambda, main rows among them.
    """

    config: Config
    title: str
    run: Run
    main: tuple[Row, ...]
    sweep: tuple[Row, ...]

    @property
    def methods(self) -> list[str]:
        """Methods of Table 1, each once."""
        return list(dict.fromkeys(row.method for row in self.main))

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Every row by its path."""
        return {row.path: row for row in (*self.main, *self.sweep)}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises
    ------
    SabrError
        When it cannot be read, is not YAML, or holds something else.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SabrError(f"cannot read {path}: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        raise SabrError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise SabrError(f"{path} must hold keys and values")
    return value


def read_cascade(path: Path, *, seconds: float | None) -> Cascade:
    """Read how a property is verified.

    Parameters
    ----------
    path
        YAML with the keys of `sabr.specs.Cascade`.
    seconds
        Time limit, for all stages and for the complete verifier, in the place of the file's; None: the file's.

    Raises
    ------
    SabrError
        One sentence: file, key path, value, and what is allowed.
    """
    content = read_yaml(path)
    if seconds is not None and isinstance(content.get("complete"), dict):
        content |= {"complete": {**content["complete"], "seconds": seconds}, "shard_minutes": seconds / 60}
    return _validate(Cascade, content, _Origins(str(path)))  # type: ignore[no-any-return]


def resolve(config: Mapping[str, Any], folder: Path) -> Plan:
    """Validate a whole configuration and turn it into rows.

    Parameters
    ----------
    config
        The keys of `config/config.yaml`, after the user's overlays.
    folder
        The `config` folder, with `methods.yaml`, `settings/` and `scales/`.

    Raises
    ------
    SabrError
        One sentence: file, key path, value, and what is allowed.
    """
    top = _validate(Config, dict(config), _Origins("config/config.yaml"))
    scale_file = _existing(folder / "scales", top.scale, "config/config.yaml: scale")
    scale = _Layer(f"config/scales/{scale_file.name}", read_yaml(scale_file))
    overrides = _Layer("config/config.yaml: overrides", top.overrides)
    base = _Layer("config/methods.yaml", read_yaml(folder / "methods.yaml"))
    for layer, keys in ((base, {"methods"}), (scale, _SCALE_KEYS | {"title"}), (overrides, _SCALE_KEYS)):
        layer.check_keys(keys)

    for layer in (scale, overrides):
        layer.check_names(base, folder)
    run = _merged(Run, scale.file, {}, [scale.part("run"), overrides.part("run")])
    settings = {name: _read_setting(folder, name) for name in run.settings}
    if run.lambda_sweep is not None and run.lambda_sweep.setting not in settings:
        raise SabrError(
            f"{scale.file}: run.lambda_sweep.setting: {run.lambda_sweep.setting!r} is not among run.settings; "
            f"allowed: {', '.join(settings)}"
        )

    def row(setting: str, method: str, seed: int, sweep: dict[str, Any] | None = None) -> Row:
        own = settings[setting]
        layers = [base, own, scale, scale.setting(setting), overrides, overrides.setting(setting)]
        return _row(setting, method, seed, own, layers, sweep)

    def methods(setting: str) -> tuple[str, ...]:
        own = [part for layer in (scale, overrides) for part in (layer.part("run"), layer.setting(setting).part("run"))]
        return _merged(Run, scale.file, {}, own).methods  # type: ignore[no-any-return]

    main = [row(s, m, seed) for s in run.settings for m in methods(s) for seed in run.seeds]
    sweep = []
    if run.lambda_sweep is not None:
        chosen = run.lambda_sweep
        known = {(r.setting, r.training): r for r in main}
        for value in chosen.values:
            for seed in run.seeds:
                added = row(chosen.setting, chosen.method, seed, {"lambda_ratio": value})
                sweep.append(known.get((added.setting, added.training), added))
    paths: dict[str, Row] = {}
    for found in (*main, *sweep):
        if paths.setdefault(found.path, found) != found:
            raise SabrError(f"{found.path} would hold two different networks; rename one of the methods")
    return Plan(top, _title(str(scale.content.get("title", top.scale)), main), run, tuple(main), tuple(sweep))


def _title(scale: str, rows: list[Row]) -> str:
    """Say the scale in words, with what was really trained and certified."""

    def words(values: set[int | None]) -> str:
        return " / ".join("all" if value is None else f"{value:,}" for value in sorted(values, key=lambda v: v or 0))

    networks = "/".join(sorted({row.training.architecture for row in rows}))
    trained = words({row.training.train_images for row in rows})
    epochs = words({row.training.epochs for row in rows})
    tested = words({row.certification.images for row in rows})
    validated = {row.certification.validation_images is not None for row in rows}
    kind = "validation" if all(validated) else "test or validation" if any(validated) else "test"
    return f"{scale}: {networks}, {trained} training images, {epochs} epochs, first {tested} {kind} images"


_SCALE_KEYS = {"run", "training", "certification", "methods", "settings"}


@dataclass
class _Origins:
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
class _Layer:
    """One file's say, or a part of it."""

    file: str
    content: Mapping[str, Any]
    prefix: str = ""

    def part(self, key: str) -> "_Layer":
        value = self.content.get(key) or {}
        if not isinstance(value, dict):
            raise SabrError(
                f"{self.file}: {self.prefix}{key}: {value!r} is not allowed: keys and values are needed here"
            )
        return _Layer(self.file, value, f"{self.prefix}{key}.")

    def setting(self, name: str) -> "_Layer":
        part = self.part("settings").part(name)
        part.check_keys({"run", "training", "certification", "methods"})
        part.part("run").check_keys({"methods"})
        return part

    def check_keys(self, allowed: set[str]) -> None:
        for key in self.content:
            if key not in allowed:
                raise SabrError(f"{self.file}: {self.prefix}{key}: unknown key; allowed: {', '.join(sorted(allowed))}")

    def check_names(self, base: "_Layer", folder: Path) -> None:
        """Refuse methods and settings that nothing else speaks of; an objective makes a method a new one."""
        known = set(base.part("methods").content)
        self.part("settings").check_keys({path.stem for path in (folder / "settings").glob("*.yaml")})
        for layer in (self, *(self.setting(name) for name in self.part("settings").content)):
            methods = layer.part("methods")
            methods.check_keys(known | {name for name in methods.content if "objective" in methods.part(name).content})


def _row(setting: str, method: str, seed: int, own: _Layer, layers: list[_Layer], sweep: dict[str, Any] | None) -> Row:
    methods = [layer.part("methods").part(method) for layer in layers]
    name = method
    if sweep is not None:
        name = f"{method}-lambda-{sweep['lambda_ratio']:g}"
        methods.append(_Layer("run.lambda_sweep", sweep))
    objective = next((m.content["objective"] for m in reversed(methods) if "objective" in m.content), None)
    if not re.match(_NAME, method) or objective not in METHODS:
        known = ", ".join(layers[0].part("methods").content)
        raise SabrError(
            f"run.methods: {method!r} has no known objective; allowed methods: {known} (config/methods.yaml)"
        )
    dataset = {"dataset": own.content.get("dataset")}
    where = f"setting {setting}, method {method}"
    for layer in layers:
        layer.part("training").check_keys(set(Training.model_fields) - {"dataset"})
        layer.part("certification").check_keys(set(Certification.model_fields) - {"dataset", "eps", "seed"})
    spec = _merged(METHODS[objective], where, {}, methods)
    training = _merged(Training, where, dataset, [layer.part("training") for layer in layers])
    tested = {**dataset, "eps": own.content.get("eps"), "seed": 0}
    certification = _merged(Certification, where, tested, [layer.part("certification") for layer in layers])
    if certification.validation_images not in (None, training.validation_images):
        raise SabrError(
            f"{where}: certification.validation_images is {certification.validation_images}, but "
            f"training.validation_images is {training.validation_images}; both must be the same, or images that were "
            "trained on would be certified"
        )
    return Row(
        setting,
        name,
        TrainingSpec(**training.model_dump(), method=spec.model_dump(), seed=seed),
        CertificationSpec(**certification.model_dump()),
    )


def _merged(model: type[Any], where: str, start: dict[str, Any], layers: list[_Layer]) -> Any:
    merged = dict(start)
    origins = _Origins(where)
    for layer in layers:
        for key, value in layer.content.items():
            merged[key] = value
            origins.of[key] = f"{layer.file}: {layer.prefix}{key}"
    return _validate(model, merged, origins)


def _validate(model: type[Any], value: Mapping[str, Any], origins: _Origins) -> Any:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        path, _, message = first_problem(error).partition(": ")
        if not message:
            path, message = "", path
        if message == "unknown key" and "." not in path:
            message += f"; allowed: {', '.join(model.model_fields)}"
        raise SabrError(f"{origins.blame(path)}: {message}") from error


class _SettingHead(Strict):
    dataset: DatasetName
    eps: Any


def _read_setting(folder: Path, name: str) -> _Layer:
    path = _existing(folder / "settings", name, "run.settings")
    file = f"config/settings/{path.name}"
    content = read_yaml(path)
    head: dict[str, Any] = {key: content[key] for key in ("dataset", "eps") if key in content}
    _validate(_SettingHead, head, _Origins(file))
    try:
        parse_eps(content["eps"])
    except ValueError as error:
        raise SabrError(f"{file}: eps: {error}") from error
    expected = f"{content['dataset']}-eps-{str(content['eps']).replace('/', '_')}"
    if name != expected:
        raise SabrError(f"{file}: this file must be named {expected}.yaml after its dataset and eps")
    layer = _Layer(file, content)
    layer.check_keys({"dataset", "eps", "training", "certification", "methods"})
    return layer


def _existing(folder: Path, name: str, key: str) -> Path:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        allowed = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise SabrError(f"{key}: {name!r} is not known; allowed: {allowed}")
    return path
