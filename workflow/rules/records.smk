"""All verdicts of the plan as tidy tables."""


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
        rows=[f"{RESULTS}/{path}" for path in PLAN.rows],
    shell:
        "sabr collect {params.rows:q} --output {output.records:q} --histories {output.histories:q}"
        " --stages {output.stages:q} --limits {output.limits:q} &> {log:q}"
