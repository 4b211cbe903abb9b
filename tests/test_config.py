import re
import shutil
from pathlib import Path

import pytest
import yaml

from sabr.config import TOP, read_cascade
from sabr.errors import SabrError
from sabr.layers import read_yaml
from sabr.plan import resolve
from sabr.specs import parse_eps

CONFIG = Path(__file__).parents[1] / "config"
SCALES = sorted(path.stem for path in (CONFIG / "scales").glob("*.yaml"))


def plan(scale="tiny", **overrides):
    return resolve(read_yaml(CONFIG / "config.yaml") | {"scale": scale, "overrides": overrides}, CONFIG)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_resolves(scale):
    resolved = plan(scale)
    assert {row.setting for row in resolved.main} == set(resolved.run.settings)
    assert {row.training.seed for row in resolved.main} == set(resolved.run.seeds)
    assert set(resolved.run.methods) <= set(resolved.methods)
    assert all(re.fullmatch(r"[a-z0-9]+/eps-[0-9._]+/[a-z0-9.-]+/seed-\d+", path) for path in resolved.rows)


def test_the_default_is_quick():
    assert read_yaml(CONFIG / "config.yaml")["scale"] == "quick"


def test_a_setting_may_have_methods_of_its_own(tmp_path):
    settings = ["mnist-eps-0.1", "mnist-eps-0.3"]
    own = {"mnist-eps-0.3": {"run": {"methods": ["taps", "sabr"]}}}
    resolved = plan(run={"settings": settings, "methods": ["ibp", "sabr"]}, settings=own)
    found = [(row.setting.removeprefix("mnist-eps-"), row.method) for row in resolved.main]
    assert found == [("0.1", "ibp"), ("0.1", "sabr"), ("0.3", "taps"), ("0.3", "sabr")]
    assert resolved.methods == ["ibp", "sabr", "taps"]
    # The scale's choice for one setting gives way to an override of all.
    shutil.copytree(CONFIG, tmp_path, dirs_exist_ok=True)
    scale = read_yaml(CONFIG / "scales/tiny.yaml") | {"settings": {"mnist-eps-0.1": own["mnist-eps-0.3"]}}
    (tmp_path / "scales/own.yaml").write_text(yaml.safe_dump(scale))
    top = read_yaml(CONFIG / "config.yaml") | {"scale": "own"}
    assert resolve(top, tmp_path).methods == ["taps", "sabr"]
    assert resolve(top | {"overrides": {"run": {"methods": ["ibp"]}}}, tmp_path).methods == ["ibp"]


def test_a_sweep_uses_main_rows_again():
    resolved = plan(run={"lambda_sweep": {"setting": "mnist-eps-0.1", "method": "sabr", "values": [0.1, 0.4]}})
    assert [row.method for row in resolved.sweep] == ["sabr-lambda-0.1", "sabr"]
    assert resolved.sweep[0].training.method.lambda_ratio == 0.1


def test_a_sweep_uses_rows_of_comparisons_again():
    resolved = plan("laptop")
    assert [row.method for row in resolved.sweep if row.training.method.lambda_ratio == 0.05] == ["sabr-ablation"]
    assert "sabr-ablation" not in {row.method for row in resolved.main}


def test_a_method_may_be_certified_within_limits_of_its_own():
    limits = {"shard_minutes": 7, "complete": None}
    limits["complete"] = plan().main[0].certification.complete.model_dump() | {"seconds": 9}
    rows = {row.method: row for row in plan(methods={"pgd": {"certification": limits}}).main}
    own, other = rows["pgd"], rows["ibp"]
    assert (own.certification.shard_minutes, own.certification.complete.seconds) == (7, 9)
    assert (own.certification_path, other.certification_path) == (
        "mnist/eps-0.1/pgd/certification.json",
        "mnist/eps-0.1/certification.json",
    )
    assert other == next(row for row in plan().main if row.method == "ibp")
    # The same images and the same quick attack for all.
    assert own.certification.attack_spec == other.certification.attack_spec
    with pytest.raises(SabrError, match="methods.pgd.certification.images: unknown key; allowed: complete, shard_min"):
        plan(methods={"pgd": {"certification": {"images": 10}}})


def test_two_networks_never_share_a_folder():
    from_sweep = {"objective": "sabr", "initialisation": "intervals", "warmup_weight": 0, "lambda_ratio": 0.3}
    method = from_sweep | {"l1": 0, "relu_shrinkage": None, "attack": {"steps": [{"count": 1, "size": 1}]}}
    method |= {"eps_ratio": 1, "lambda_end": None, "tau": "scalar"}
    with pytest.raises(SabrError, match="sabr-lambda-0.1/seed-1 would hold two different networks"):
        plan(methods={"sabr-lambda-0.1": method}, run={"methods": ["sabr", "sabr-lambda-0.1"]})


def test_the_title_says_what_is_run():
    assert "512 training images, 3 epochs, first 24 test images" in plan().title
    assert "first 10 test images" in plan(certification={"images": 10}).title


def test_shards_cover_every_image_once():
    row = plan(certification={"images": 25}).main[0]
    assert row.shards(12) == [(0, 12), (12, 24), (24, 25)]


SPLIT = read_yaml(CONFIG / "methods.yaml")["methods"]["taps"]["classifier"]
SWEEP = {"setting": "mnist-eps-0.1", "values": [0.1, 1]}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scale": "quik"}, f"{TOP}: scale: 'quik' is not known; allowed: laptop, paper, quick, tiny"),
        (
            {"colour": 1},
            f"{TOP}: colour: unknown key; allowed: scale, results, checkpoints, partial, data, overrides",
        ),
        ({"partial": "perhaps"}, f"{TOP}: partial: 'perhaps' is not allowed: true or false is needed here"),
        (
            {"data": {"folder": True, "mirror": None}},
            f"{TOP}: data.folder: true is not allowed: text is needed here, in q",
        ),
        ({"data": None}, f"{TOP}: data: null is not allowed: a mapping of keys is needed here"),
        ({"overrides": None}, f"{TOP}: overrides: null is not allowed: a mapping of keys is needed here"),
        ({"results": "~nobody-here/x"}, f"{TOP}: results: '~nobody-here/x' is not allowed: there is no such home"),
        ({1: 2}, f"{TOP}: 1: unknown key; allowed: scale, "),
        ({"overrides": {"training": {"epochs": "many"}}}, "overrides: training.epochs: 'many' is not allowed"),
        ({"overrides": {"training": {"epoch": 3}}}, "overrides: training.epoch: unknown key; allowed: architecture"),
        ({"overrides": {"training": {"eps": 8}}}, "overrides: training.eps: 8 is not in (0, 1]; pixels run"),
        ({"overrides": {"methods": {"sabr": {"lambda_ratio": 1.5}}}}, "overrides: methods.sabr.lambda_ratio: 1.5"),
        ({"overrides": {"methods": {"sabr": {"lambda_ratio": 0}}}}, "overrides: methods.sabr.lambda_ratio: 0"),
        ({"overrides": {"training": {"dataset": "svhn"}}}, "overrides: training.dataset: unknown key; allowed"),
        ({"overrides": {"training": {"architecture": "cnn-smal"}}}, "'cnn-smal' is not an architecture; allowed: cnn7"),
        ({"overrides": {"training": {"epochs": 2}}}, "must lie within epochs (2), unlike 3"),
        (
            {"overrides": {"training": {"train_images": 64, "ramp_start": 1}}},
            "from epoch 1 to 3 has fewer than 4 steps",
        ),
        (
            {"overrides": {"methods": {"sbar": {"lambda_ratio": 0.2}}}},
            "overrides: methods.sbar: unknown key; allowed: cc-ibp",
        ),
        ({"overrides": {"settings": {"mnist-eps-0.33": {}}}}, "overrides: settings.mnist-eps-0.33: unknown key"),
        ({"overrides": {"run": {"settings": ["svhn-eps-0.1"]}}}, "'svhn-eps-0.1' is not known; allowed: cifar10-eps"),
        (
            {"overrides": {"settings": {"mnist-eps-0.1": {"run": {"methods": []}}}}},
            "overrides: settings.mnist-eps-0.1.run.methods: [] is not allowed",
        ),
        (
            {"overrides": {"settings": {"mnist-eps-0.1": {"run": {"seeds": [2]}}}}},
            "settings.mnist-eps-0.1.run.seeds: unknown key; allowed: methods",
        ),
        ({"overrides": {"run": {"methods": ["x; touch y"]}}}, "run.methods.0: 'x; touch y' is not allowed"),
        ({"overrides": {"run": {"methods": ["colt"]}}}, "'colt' has no known objective; allowed methods: standard"),
        ({"overrides": {"certification": {"images": 20000}}}, "images is 20000, but mnist has 10000 test images"),
        ({"overrides": {"training": {"ramp_end": 1}}}, "ramp_end (1) must come after ramp_start (2)"),
        ({"overrides": {"training": {"train_images": 10}}}, "batch_size (64) is larger than train_images (10)"),
        (
            {"overrides": {"methods": 3}},
            f"{TOP}: overrides: methods: 3 is not allowed: a mapping of keys is needed here",
        ),
        (
            {"overrides": {"training": []}},
            f"{TOP}: overrides: training: [] is not allowed: a mapping of keys is needed",
        ),
        ({"overrides": {"training": {"epochs": 1.5}}}, "training.epochs: 1.5 is not allowed: a whole number is needed"),
        ({"overrides": {"training": {"compile": "ja"}}}, "training.compile: 'ja' is not allowed: true or false is"),
        ({"overrides": {"training": {"learning_rate_drops": 3}}}, "learning_rate_drops: 3 is not allowed: a list is"),
        (
            {"overrides": {"training": {"learning_rate": float("nan")}}},
            ".nan is not allowed: a finite number is needed",
        ),
        ({"overrides": {"training": {"eps": None}}}, "training.eps: null is not a radius"),
        ({"overrides": {"training": {"eps": "1e400"}}}, "training.eps: '1e400' is not a radius"),
        (
            {"overrides": {"certification": {"attack": []}}},
            "certification.attack: [] is not allowed: a list of 1 or more",
        ),
        (
            {"overrides": {"methods": {"sabr": {"objective": ["sabr"]}}}},
            "sabr.objective: ['sabr'] is not allowed: one of",
        ),
        (
            {"overrides": {"methods": {"sabr": {"objective": "sbar"}}}},
            "sabr.objective: 'sbar' is not allowed: one of st",
        ),
        ({"overrides": {"methds": {}}}, f"{TOP}: overrides: methds: unknown key; allowed"),
        ({"overrides": {"training": {"eps": "8/0"}}}, "training.eps: '8/0' is not a radius"),
        ({"overrides": {"run": {"seeds": [1, 2, 1]}}}, "overrides: run.seeds: 1 is given twice"),
        ({"overrides": {"run": {"methods": ["ibp", "ibp"]}}}, "overrides: run.methods: 'ibp' is given twice"),
        # What would be found hours later only.
        ({"overrides": {"studies": {"images": 10001}}}, "10001 is not allowed: mnist-eps-0.1 has 10000 test images"),
        (
            {"overrides": {"studies": {"eps_factors": [1, 20]}}},
            "20 is not allowed: times 0.1, the eps of mnist-eps-0.1",
        ),
        (
            {"overrides": {"certification": {"stages": ["attack"]}}},
            "certification.stages: attack is not allowed for mnist-eps-0.1",
        ),
        (
            {"overrides": {"run": {"methods": ["taps"]}, "methods": {"taps": {"classifier": SPLIT | {"relus": 3}}}}},
            "classifier.relus: 3 is not allowed: cnn-tiny has 3 ReLU layers",
        ),
        # Of what is not in the run.
        ({"overrides": {"methods": {"taps": {"nonsense": 1}}}}, "overrides: methods.taps.nonsense: unknown key"),
        (
            {"overrides": {"settings": {"cifar10-eps-2_255": {"training": {"epohcs": 3}}}}},
            "overrides: settings.cifar10-eps-2_255.training.epohcs: unknown key",
        ),
        (
            {"overrides": {"run": {"settings": ["cifar10-eps-2_255"]}}},
            "'mnist-eps-0.1' is not among run.settings; allowed: cifar10-eps-2_255; or say run.lambda_sweep: null",
        ),
        (
            {"overrides": {"run": {"lambda_sweep": SWEEP | {"method": "ibp"}}}},
            "run.lambda_sweep.method: 'ibp' has no lambda_ratio; those with the objectives sabr",
        ),
        (
            {"overrides": {"certification": {"eps": 0.2}}},
            "overrides: certification.eps: unknown key; allowed: alpha, ",
        ),
    ],
)
def test_mistakes_are_told_in_one_sentence_with_their_place(changes, told):
    config = read_yaml(CONFIG / "config.yaml") | {"scale": "tiny"} | changes
    with pytest.raises(SabrError) as error:
        resolve(config, CONFIG)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_places_are_written_as_snakemake_wants_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = read_yaml(CONFIG / "config.yaml") | {"scale": "tiny", "data": {"folder": "./data/", "mirror": None}}
    found = resolve(config | {"results": "~/mine"}, CONFIG).config
    assert (found.results, found.data.folder) == (str(tmp_path / "mine"), "data")


def test_a_setting_file_must_be_named_after_its_content(tmp_path):
    shutil.copytree(CONFIG, tmp_path / "config")
    path = tmp_path / "config" / "settings" / "mnist-eps-0.1.yaml"
    path.write_text(path.read_text().replace("\neps: 0.1", "\neps: 0.2"))
    with pytest.raises(SabrError, match="must be named mnist-eps-0.2.yaml"):
        resolve(read_yaml(CONFIG / "config.yaml") | {"scale": "tiny"}, tmp_path / "config")


def test_broken_yaml_is_told(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1")
    with pytest.raises(SabrError, match="broken.yaml is not valid YAML"):
        read_yaml(path)
    path.write_text("- 1")
    with pytest.raises(SabrError, match="must hold keys and values"):
        read_yaml(path)
    path.write_text("a: 2024-13-45")
    with pytest.raises(SabrError, match="broken.yaml is not valid YAML: month must be"):
        read_yaml(path)
    path.write_text("a: [{yes: 1}]")
    with pytest.raises(
        SabrError, match=r"broken.yaml: a\.0\.true is not allowed: a key must be text; put it in quotes"
    ):
        read_yaml(path)
    path.write_bytes(b"a: \xff")
    with pytest.raises(SabrError, match="broken.yaml is not text in UTF-8; save it as UTF-8"):
        read_yaml(path)


def test_a_title_is_text(tmp_path):
    shutil.copytree(CONFIG, tmp_path / "config")
    scale = tmp_path / "config" / "scales" / "tiny.yaml"
    scale.write_text(yaml.safe_dump(read_yaml(scale) | {"title": None}))
    with pytest.raises(SabrError, match="scales/tiny.yaml: title: null is not allowed: text is needed here"):
        resolve(read_yaml(CONFIG / "config.yaml") | {"scale": "tiny"}, tmp_path / "config")


def test_the_cascade_of_a_property_takes_another_time_limit():
    path = CONFIG / "verify.yaml"
    own, other = read_cascade(path, seconds=None), read_cascade(path, seconds=3)
    assert own.shard_minutes is None and own.complete.seconds == read_yaml(path)["complete"]["seconds"]
    assert other.complete.seconds == 3 and other.shard_minutes == 3 / 60
    assert other.model_copy(update={"complete": own.complete, "shard_minutes": None}) == own


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sead": 1}, "sead: unknown key; allowed: engine, stages, "),
        ({"stages": ["interval", "guess"]}, "stages.1: 'guess' is not allowed"),
        ({"stages": []}, "stages: "),
        ({"stages": ["crown", "crown"]}, "stages must be given once each"),
        ({"complete": {"seconds": 60}}, "complete.inner_iterations: this key is missing"),
        ({"complete": 60}, "complete: 60 is not allowed"),
        ({"complete": None}, "complete: null is not allowed: a mapping of keys is needed here"),
        ({"engine": None}, "engine: null is not allowed: 'native' or 'auto_lirpa' is needed here"),
    ],
)
@pytest.mark.parametrize("seconds", [None, 5.0])
def test_mistakes_in_a_cascade_are_told_in_one_sentence(tmp_path, changes, told, seconds):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(read_yaml(CONFIG / "verify.yaml") | changes))
    with pytest.raises(SabrError) as error:
        read_cascade(path, seconds=seconds)
    assert str(error.value).startswith(f"{path}: ") and told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_time_limit_must_be_a_time(seconds):
    with pytest.raises(SabrError, match="seconds: .* is not allowed"):
        read_cascade(CONFIG / "verify.yaml", seconds=seconds)


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), (0.1, 0.1), ("0.3", 0.3), (1, 1.0)])
def test_eps_is_a_number_or_a_fraction(text, value):
    assert parse_eps(text) == pytest.approx(value)


@pytest.mark.parametrize("wrong", [0, -0.1, 8, "255/8", "eight", None, True, "nan", float("nan"), float("inf")])
def test_other_eps_are_refused(wrong):
    with pytest.raises(ValueError):
        parse_eps(wrong)


def test_no_configuration_file_holds_tabs_or_duplicate_keys():
    class Unique(yaml.SafeLoader):
        pass

    def mapping(loader, node, deep=False):
        keys = [loader.construct_object(key) for key, _ in node.value if key.value != "<<"]
        assert len(keys) == len(set(keys)), keys
        return yaml.SafeLoader.construct_mapping(loader, node, deep)

    Unique.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for path in CONFIG.rglob("*.yaml"):
        yaml.load(path.read_text(), Unique)


def variants(**methods):
    compared = {"shrinking": {"setting": "mnist-eps-0.1", "methods": ["sabr", *methods], "seeds": [7]}}
    return plan(run={"comparisons": compared, "seeds": [7, 8]}, methods=methods)


def test_a_variant_is_like_another_method_but_for_what_it_says():
    resolved = variants(
        wide={"like": "sabr", "l1": 0.5, "training": {"epochs": 4}}, wider={"like": "wide", "training": {"eps": 0.2}}
    )
    sabr, wide, wider = resolved.comparisons["shrinking"]
    assert sabr == next(row for row in resolved.main if row.method == "sabr" and row.training.seed == 7)
    assert wide.training.method == sabr.training.method.model_copy(update={"l1": 0.5})
    assert wide.training == sabr.training.model_copy(update={"method": wide.training.method, "epochs": 4})
    assert wider.training == wide.training.model_copy(update={"eps": 0.2})
    assert wide.path in resolved.rows and wide not in resolved.main


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({"wide": {"like": "sabre"}}, ["methods.wide.like", "'sabre'", "allowed", "sabr"]),
        ({"wide": {"like": "wide"}}, ["methods.wide.like", "'wide'", "another"]),
        ({"a": {"like": "b"}, "b": {"like": "a"}}, ["methods.b.like", "'a'"]),
        ({"wide": {"like": "sabr", "training": {"epoch": 4}}}, ["methods.wide.training.epoch", "unknown key"]),
        ({"wide": {"like": "sabr", "training": {"epochs": 0}}}, ["methods.wide.training.epochs", "0"]),
    ],
)
def test_a_variant_that_is_none_is_told(methods, words):
    with pytest.raises(SabrError) as error:
        variants(**methods)
    for word in words:
        assert word in str(error.value)


def test_a_comparison_in_a_setting_that_is_not_run_is_told():
    compared = {"widths": {"setting": "cifar10-eps-2_255", "methods": ["sabr"]}}
    with pytest.raises(SabrError, match=r"run.comparisons.widths.setting: 'cifar10-eps-2_255' is not among"):
        plan(run={"comparisons": compared})
