"""What to run, as Snakemake sees it: the validated plan, path patterns, targets."""

from pathlib import Path

from snakemake.exceptions import WorkflowError

from sabr.config import resolve
from sabr.errors import SabrError

try:
    PLAN = resolve(config, Path(workflow.basedir) / "config")
except SabrError as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"{PLAN.config.results}/{PLAN.config.scale}"
SETTING = f"{RESULTS}/{{dataset}}/{{eps}}"
ROW = f"{SETTING}/{{method}}/seed-{{seed}}"
DATA = PLAN.config.data.folder
CONFIG = f"{workflow.basedir}/config"
JOB = PLAN.run.job
ENV = "../../envs/run.yaml"
REPORT_ENV = "../../envs/report.yaml"


wildcard_constraints:
    dataset="mnist|cifar10|tinyimagenet",
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


def setting_of(wildcards):
    """Any row of the setting that the wildcards name; all are certified alike."""
    path = f"{wildcards.dataset}/{wildcards.eps}"
    rows = [row for row in PLAN.rows.values() if row.setting_path == path]
    if not rows:
        raise WorkflowError(f"{path} is not part of this configuration")
    return rows[0]


def of_each_row(name):
    """The file `name` of each row of the plan."""
    return [f"{RESULTS}/{path}/{name}" for path in PLAN.rows]


def data_folder(wildcards, input):
    """The folder of all datasets, for the option --data."""
    return str(Path(input.data).parents[1])
