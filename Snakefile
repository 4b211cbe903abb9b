"""SABR: fetch data, train, attack, certify, and turn the verdicts into the paper's tables and figures."""


configfile: f"{workflow.basedir}/config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/specs.smk"


if CHECKPOINTS:

    include: "workflow/rules/checkpoints.smk"

elif not PLAN.config.partial:

    include: "workflow/rules/train.smk"


if not PLAN.config.partial and len(KEPT) < len(ROWS):

    include: "workflow/rules/attack.smk"
    include: "workflow/rules/certify.smk"


include: "workflow/rules/records.smk"
include: "workflow/rules/studies.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    models,
    tables,
    figures,
    training_spec,
    setting_spec,
    method_spec,
    outline,
    records,
    gather,


rule all:
    default_target: True
    input:
        TABLES,
        STUDIES,
        FIGURES,
        REPORT,


rule models:
    input:
        WEIGHTS,


rule tables:
    input:
        TABLES,


rule figures:
    input:
        FIGURES,
