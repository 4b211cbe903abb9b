"""What was planned, and all verdicts of the plan as tidy tables."""

import json

from sabr.scales import without_images

PARTS = {
    "main": PLAN.main,
    "studied": PLAN.studied,
    "sweep": PLAN.sweep,
    **PLAN.comparisons,
}
# The plan as tables, claims and the report need it: each network once, with the parts that it is for.
OUTLINE = {
    "scale": PLAN.config.scale,
    "title": PLAN.title,
    "studied": without_images(PLAN.described(PLAN.studied)),
    "overrides": PLAN.config.overrides,
    "rows": [
        {
            "dataset": row.certification.dataset,
            "eps": row.setting.partition("-eps-")[2].replace("_", "/"),
            "method": row.method,
            "seed": row.training.seed,
            "parts": [name for name, rows in PARTS.items() if row in rows],
        }
        for row in PLAN.rows.values()
    ],
}


# Before all others: without it a run that is not finished cannot be kept.
rule outline:
    output:
        f"{RESULTS}/outline.json",
    log:
        f"{RESULTS}/logs/outline.log",
    benchmark:
        f"{RESULTS}/logs/outline.tsv"
    priority: 1
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
        gpu=0,
    params:
        json=json.dumps(OUTLINE),
    shell:
        "sabr outline {params.json:q} --output {output:q} &> {log:q}"


rule records:
    input:
        of_each_row("run.json"),
        of_each_row("model.json"),
        of_each_row("history.csv"),
        of_each_row("attack.json"),
        of_each_row("verdicts.csv"),
        of_each_row("verdicts.json"),
    output:
        records=f"{RESULTS}/records.csv",
        histories=f"{RESULTS}/histories.csv",
        stages=f"{RESULTS}/stages.csv",
        limits=f"{RESULTS}/limits.csv",
        pairs=f"{RESULTS}/pairs.csv",
        protocol=f"{RESULTS}/protocol.csv",
        provenance=f"{RESULTS}/provenance.json",
    log:
        f"{RESULTS}/logs/records.log",
    benchmark:
        f"{RESULTS}/logs/records.tsv"
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    params:
        rows=[f"{RESULTS}/{path}" for path in ROWS],
    shell:
        "sabr collect {params.rows:q} --output {output.records:q} --histories {output.histories:q}"
        " --stages {output.stages:q} --limits {output.limits:q} --pairs {output.pairs:q}"
        " --protocol {output.protocol:q} --provenance {output.provenance:q} &> {log:q}"
