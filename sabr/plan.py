"""What one configuration asks for: all networks, resolved from the files and changes that are laid over one another."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sabr.config import NAME, TOP, Config, Run
from sabr.consistency import check
from sabr.errors import SabrError
from sabr.layers import CERTIFICATION, TRAINING, Layer, Origins, merged, read_yaml, validate
from sabr.methods import METHODS, Strict
from sabr.problems import written
from sabr.scales import in_words
from sabr.specs import Certification, CertificationSpec, DatasetName, Training, TrainingSpec, parse_eps
from sabr.studies import Studies


@dataclass(frozen=True)
class Row:
    """One network: how it is trained and certified, and the folder of its results below the scale's.

    `limited` says that its method is certified within limits of its own, and not within the setting's.
    """

    setting: str
    method: str
    training: TrainingSpec
    certification: CertificationSpec
    limited: bool

    @property
    def setting_path(self) -> str:
        """Folder of the setting: dataset/eps-..."""
        dataset = self.certification.dataset
        return f"{dataset}/{self.setting.removeprefix(f'{dataset}-')}"

    @property
    def path(self) -> str:
        """Folder of the row: dataset/eps-.../method/seed-..."""
        return f"{self.setting_path}/{self.method}/seed-{self.training.seed}"

    @property
    def certification_path(self) -> str:
        """File below the scale's folder that says how it is certified: the setting's, or its method's own."""
        return f"{self.setting_path}/{f'{self.method}/' if self.limited else ''}certification.json"

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
    name
        Of the scale, as titles say it.
    run
        What the scale runs.
    main
        Rows of Table 1: settings x methods x seeds, where a setting may have methods of its own.
    sweep
        Rows of the figure over lambda, main rows among them.
    comparisons
        Rows of each of `Comparisons`, main rows among them.
    studies
        What is measured on trained networks.
    """

    config: Config
    name: str
    run: Run
    main: tuple[Row, ...]
    sweep: tuple[Row, ...]
    comparisons: Mapping[str, tuple[Row, ...]]
    studies: Studies

    @property
    def methods(self) -> list[str]:
        """Methods of Table 1, each once."""
        return list(dict.fromkeys(row.method for row in self.main))

    @property
    def title(self) -> str:
        """The scale in words, with what Table 1's networks are trained and certified on."""
        return self.described(self.main)

    @property
    def studied(self) -> tuple[Row, ...]:
        """Networks that studies compare: those of the paper's ablation, or else Table 1's in the first setting."""
        first = tuple(row for row in self.main if row.setting == self.run.settings[0])
        return self.comparisons.get("ablation") or first

    def described(self, rows: Iterable[Row]) -> str:
        """The scale in words, with what these of its networks are trained and certified on."""
        rows = list(rows)
        validated = {row.certification.validation_images is not None for row in rows}
        return in_words(
            self.name,
            (row.training.architecture for row in rows),
            (row.training.train_images for row in rows),
            (row.training.epochs for row in rows),
            (row.certification.images for row in rows),
            f"{'validation' if all(validated) else 'test or validation' if any(validated) else 'test'} images",
        )

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Every row by its path."""
        compared = (row for rows in self.comparisons.values() for row in rows)
        return {row.path: row for row in (*self.main, *self.sweep, *compared)}


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
    top = validate(Config, dict(config), Origins(TOP))
    scale_file = _existing(folder / "scales", top.scale, f"{TOP}: scale")
    scale = Layer(f"config/scales/{scale_file.name}", read_yaml(scale_file))
    overrides = Layer(f"{TOP}: overrides", top.overrides)
    base = Layer("config/methods.yaml", read_yaml(folder / "methods.yaml"))
    for layer, keys in ((base, {"methods"}), (scale, _SCALE_KEYS | {"title"}), (overrides, _SCALE_KEYS)):
        layer.check_keys(keys)

    for layer in (scale, overrides):
        layer.check_names(base, folder)
    run = merged(Run, scale.file, {}, [scale.part("run"), overrides.part("run")])
    settings = {name: _read_setting(folder, name) for name in run.settings}
    studies = merged(Studies, scale.file, {}, [scale.part("studies"), overrides.part("studies")])
    compared = run.comparisons.named
    used = {f"comparisons.{name}": one for name, several in compared.items() for one in several}
    for key, part in {"lambda_sweep": run.lambda_sweep, **used}.items():
        if part is not None and part.setting not in settings:
            name = key.partition(".")[0]
            file = overrides.file if name in overrides.part("run").content else scale.file
            raise SabrError(
                f"{file}: run.{key}.setting: {part.setting!r} is not among run.settings; "
                f"allowed: {', '.join(settings)}; or say run.{name}: {'null' if name == 'lambda_sweep' else '{}'}"
            )

    def row(setting: str, method: str, seed: int, sweep: dict[str, Any] | None = None) -> Row:
        own = settings[setting]
        layers = [base, own, scale, scale.setting(setting), overrides, overrides.setting(setting)]
        return _row(setting, method, seed, own, layers, sweep)

    def methods(setting: str) -> tuple[str, ...]:
        own = [part for layer in (scale, overrides) for part in (layer.part("run"), layer.setting(setting).part("run"))]
        return merged(Run, scale.file, {}, own).methods  # type: ignore[no-any-return]

    main = [row(s, m, seed) for s in run.settings for m in methods(s) for seed in run.seeds]
    comparisons = {
        name: tuple(row(c.setting, m, seed) for c in several for m in c.methods for seed in c.seeds or run.seeds)
        for name, several in compared.items()
    }
    sweep = []
    if run.lambda_sweep is not None:
        chosen = run.lambda_sweep
        known = {(r.setting, r.training): r for rows in (main, *comparisons.values()) for r in rows}
        for value in chosen.values:
            for seed in chosen.seeds or run.seeds:
                added = row(chosen.setting, chosen.method, seed, {"lambda_ratio": value})
                sweep.append(known.get((added.setting, added.training), added))
    paths: dict[str, Row] = {}
    for found in (*main, *sweep, *(row for rows in comparisons.values() for row in rows)):
        if paths.setdefault(found.path, found) != found:
            raise SabrError(f"{found.path} would hold two different networks; rename one of the methods")
    title = scale.content.get("title", top.scale)
    if not isinstance(title, str) or not title:
        raise SabrError(f"{scale.file}: title: {written(title)} is not allowed: text is needed here, in quotes")
    plan = Plan(top, title, run, tuple(main), tuple(sweep), comparisons, studies)
    check(plan)
    return plan


_SCALE_KEYS = {"run", "training", "certification", "studies", "methods", "settings"}


def _row(setting: str, method: str, seed: int, own: Layer, layers: list[Layer], sweep: dict[str, Any] | None) -> Row:
    parts = _method_parts(method, layers)
    name = method
    if sweep is not None:
        name = f"{method}-lambda-{sweep['lambda_ratio']:g}"
        parts.append(Layer("run.lambda_sweep", sweep))
    told = next((part for part in reversed(parts) if "objective" in part.content), None)
    objective = None if told is None else told.content["objective"]
    if told is not None and (not isinstance(objective, str) or objective not in METHODS):
        raise SabrError(
            f"{told.file}: {told.prefix}objective: {written(objective)} is not allowed: one of {', '.join(METHODS)} is "
            "needed here"
        )
    if not re.match(NAME, method) or objective is None:
        known = ", ".join(layers[0].part("methods").content)
        raise SabrError(
            f"run.methods: {method!r} has no known objective; allowed methods: {known} (config/methods.yaml)"
        )
    dataset = {"dataset": own.content.get("dataset")}
    where = f"setting {setting}, method {method}"
    trained = [*(layer.part("training") for layer in layers), *(part.part("training") for part in parts)]
    for layer in trained:
        layer.check_keys(TRAINING)
    for layer in layers:
        layer.part("certification").check_keys(CERTIFICATION)
    limits = [part.part("certification") for part in parts]
    for layer in limits:
        layer.check_keys({"complete", "shard_minutes"})
    if sweep is not None and not sweep.keys() <= METHODS[objective].model_fields.keys():
        able = ", ".join(name for name, kind in METHODS.items() if sweep.keys() <= kind.model_fields.keys())
        raise SabrError(
            f"run.lambda_sweep.method: {method!r} has no lambda_ratio; those with the objectives {able} have"
        )
    spec = merged(METHODS[objective], where, {}, [part.without("like", "training", "certification") for part in parts])
    training = merged(Training, where, dataset, trained)
    tested = {**dataset, "eps": own.content.get("eps"), "seed": 0}
    shared = [layer.part("certification") for layer in layers]
    certification = merged(Certification, where, tested, [*shared, *limits])
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
        limited=any(layer.content for layer in limits),
    )


def _method_parts(method: str, layers: list[Layer]) -> list[Layer]:
    """What all layers say of the method that this one is `like`, and of the one that that one is like, then of it."""
    chain = [method]
    while True:
        parts = [layer.part("methods").part(chain[0]) for layer in layers]
        like = next((part for part in reversed(parts) if "like" in part.content), None)
        if like is None:
            return [layer.part("methods").part(name) for name in chain for layer in layers]
        other = like.content["like"]
        if (
            not isinstance(other, str)
            or other in chain
            or not any(other in la.part("methods").content for la in layers)
        ):
            known = ", ".join(name for name in layers[0].part("methods").content if name not in chain)
            raise SabrError(f"{like.file}: {like.prefix}like: {written(other)} is not another method; allowed: {known}")
        chain.insert(0, other)


class _SettingHead(Strict):
    dataset: DatasetName
    eps: Any


def _read_setting(folder: Path, name: str) -> Layer:
    path = _existing(folder / "settings", name, "run.settings")
    file = f"config/settings/{path.name}"
    content = read_yaml(path)
    head: dict[str, Any] = {key: content[key] for key in ("dataset", "eps") if key in content}
    validate(_SettingHead, head, Origins(file))
    try:
        parse_eps(content["eps"])
    except ValueError as error:
        raise SabrError(f"{file}: eps: {error}") from error
    expected = f"{content['dataset']}-eps-{str(content['eps']).replace('/', '_')}"
    if name != expected:
        raise SabrError(f"{file}: this file must be named {expected}.yaml after its dataset and eps")
    layer = Layer(file, content)
    layer.check_keys({"dataset", "eps", "training", "certification", "methods"})
    return layer


def _existing(folder: Path, name: str, key: str) -> Path:
    path = folder / f"{name}.yaml"
    if not path.is_file():
        allowed = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise SabrError(f"{key}: {name!r} is not known; allowed: {allowed}")
    return path
