"""What to run, as Snakemake sees it: the validated plan, path patterns, targets."""

import os
import re
from base64 import urlsafe_b64encode
from pathlib import Path
from shlex import quote

from snakemake.exceptions import WorkflowError

from sabr.plan import resolve
from sabr.errors import SabrError
from sabr.files import read_json
from sabr.reference import as_asked, configuration, finished, with_verdicts
from sabr.specs import differing_keys

try:
    PLAN = resolve(configuration(config), Path(workflow.basedir) / "config")
except SabrError as error:
    raise WorkflowError(str(error)) from None

# Folder that networks and verdicts are taken from instead of being made.
CHECKPOINTS = (
    f"{PLAN.config.results}/{PLAN.config.checkpoints}"
    if PLAN.config.checkpoints
    else None
)
RESULTS = (
    f"{PLAN.config.results}/from-{PLAN.config.checkpoints}"
    if CHECKPOINTS
    else f"{PLAN.config.results}/{PLAN.config.scale}"
)
# The rows that tables, figures and the report are made of; and those whose verdicts are taken: nothing is computed for
# them.
try:
    if not PLAN.config.partial:
        ROWS = list(PLAN.rows)
    elif CHECKPOINTS:
        ROWS = finished(PLAN.rows, Path(CHECKPOINTS))
    else:
        ROWS = finished(as_asked(PLAN.rows, Path(RESULTS)), Path(RESULTS))
    KEPT = with_verdicts(ROWS, Path(CHECKPOINTS)) if CHECKPOINTS else []
except SabrError as error:
    raise WorkflowError(str(error)) from None
# Of a kept run, those networks whose weights are there.
WEIGHTS = [
    f"{RESULTS}/{path}/model.pt"
    for path in ROWS
    if not CHECKPOINTS or Path(CHECKPOINTS, path, "model.pt").is_file()
]
SETTING = f"{RESULTS}/{{dataset}}/{{eps}}"
ROW = f"{SETTING}/{{method}}/seed-{{seed}}"
DATA = PLAN.config.data.folder
CONFIG = f"{workflow.basedir}/config"
JOB = PLAN.run.job
# How networks are attacked and certified, by the file that says so; most of a setting share theirs.
TESTS = {}
for row in PLAN.rows.values():
    TESTS[f"{row.setting_path}/attack.json"] = row.certification.attack_spec
    TESTS[row.certification_path] = row.certification
# Not parameters of the rules: whatever they are, the results are the same.
ENVIRONMENT = {"SABR_SAVE_MINUTES": str(JOB.save_minutes)}
# Else all jobs on a machine would share the GPU that it happens to have.
if not JOB.gpus:
    ENVIRONMENT["CUDA_VISIBLE_DEVICES"] = ""
if PLAN.config.data.mirror:
    ENVIRONMENT["SABR_MIRROR"] = PLAN.config.data.mirror
exports = "".join(
    f"export {name}={quote(value)}; " for name, value in ENVIRONMENT.items()
)
shell.prefix(exports.replace("{", "{{").replace("}", "}}"))  # which it formats
# For the scripts that end the making of a conda environment.
os.environ.update(SABR_SOURCE=str(workflow.basedir))
ENV = f"../../envs/{'gpu' if JOB.gpus else 'run'}.yaml"
REPORT_ENV = "../../envs/report.yaml"


def refuse_foreign_results():
    """Stop at a specification of another configuration that Snakemake has no record of, and so would not make again.

    Such files come with results that were copied here, or stay behind when `.snakemake` is deleted.
    """
    asked = {
        f"{RESULTS}/{path}/run.json": row.training for path, row in PLAN.rows.items()
    }
    asked |= {f"{RESULTS}/{path}": spec for path, spec in TESTS.items()}
    for file, spec in asked.items():
        recorded = (
            Path(".snakemake/metadata") / urlsafe_b64encode(file.encode()).decode()
        )
        if Path(file).is_file() and not recorded.exists():
            different = differing_keys(
                spec.model_dump(mode="json"), read_json(Path(file))
            )
            if different:
                # A network goes with what it was trained by; how it is tested is made again alone.
                old = Path(file).parent if Path(file).name == "run.json" else file
                raise SabrError(
                    f"{file} belongs to another configuration: {different[0]}; delete {old}, "
                    "or choose another folder for `results`"
                )


try:
    refuse_foreign_results()
except SabrError as error:
    raise WorkflowError(str(error)) from None


DATASETS = "mnist|cifar10|tinyimagenet"
# The same, but where the name of a kept row begins.
TESTED = (
    rf"(?!(?:{'|'.join(re.escape(path) for path in KEPT)})/)(?:{DATASETS})"
    if KEPT
    else DATASETS
)


wildcard_constraints:
    dataset=DATASETS,
    eps=r"eps-[0-9][0-9._]*",
    method=r"[a-z0-9][a-z0-9._-]*",
    seed=r"[0-9]+",
    first=r"[0-9]+",
    last=r"[0-9]+",


def row_of(wildcards):
    """The row that the wildcards name."""
    path = (
        f"{wildcards.dataset}/{wildcards.eps}/{wildcards.method}/seed-{wildcards.seed}"
    )
    if path not in PLAN.rows:
        raise WorkflowError(
            f"{path} is not part of this configuration; it has {', '.join(PLAN.rows)}"
        )
    return PLAN.rows[path]


def test_of(path):
    """How the networks are tested whose file `path`, below the scale's folder, says so."""
    if path not in TESTS:
        raise WorkflowError(f"{path} is not part of this configuration")
    return TESTS[path]


def shards_of(suffix):
    """An input function: the files of all shards of a row."""

    def files(wildcards):
        row = row_of(wildcards)
        return [
            f"{RESULTS}/{row.path}/shards/{first}-{last}.{suffix}"
            for first, last in row.shards(PLAN.run.shard_size)
        ]

    return files


def of_each_row(name):
    """The file `name` of each row."""
    return [f"{RESULTS}/{path}/{name}" for path in ROWS]


def present(rows):
    """Those of the plan's rows that are not left out."""
    return [row for row in rows if row.path in ROWS]


def studied(rows, study):
    """Those of the rows that are not left out, nor, with `partial`, kept with neither the study nor weights for it."""
    return [
        row.path
        for row in present(rows)
        if not (PLAN.config.partial and CHECKPOINTS)
        or f"{row.path}/studies/{study}" in KEPT_STUDIES
        or Path(CHECKPOINTS, row.path, "model.pt").is_file()
    ]


def growing(amount):
    """A resource of a job that is tried again: `amount`, and twice as much from the second time on."""
    return lambda wildcards, attempt: amount * min(attempt, 2)


def any_of(paths):
    """A pattern for paths; without any, one that nothing fits."""
    return "|".join(re.escape(path) for path in paths) or "(?!)"


def data_folder(wildcards, input):
    """The folder of all datasets, for the option --data."""
    return str(Path(input.data).parents[1])
