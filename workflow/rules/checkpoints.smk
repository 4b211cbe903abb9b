"""Networks, verdicts and studies, taken from the folder of another run: nothing here trains."""

# Studies that the folder has; others are made from the weights.
KEPT_STUDIES = {
    f"{path}/studies/{file.stem}"
    for path in KEPT
    for file in Path(CHECKPOINTS, path, "studies").glob("*.csv")
}


ruleorder: take_study > study_network


localrules:
    take_results,
    take_weights,
    take_checkpoint,
    take_study,


rule take_results:
    input:
        run=f"{RESULTS}/{{row}}/run.json",
        source=f"{CHECKPOINTS}/{{row}}/verdicts.json",
    output:
        sidecar=f"{RESULTS}/{{row}}/model.json",
        history=f"{RESULTS}/{{row}}/history.csv",
        attack=f"{RESULTS}/{{row}}/attack.csv",
        attack_sidecar=f"{RESULTS}/{{row}}/attack.json",
        verdicts=f"{RESULTS}/{{row}}/verdicts.csv",
        verdicts_sidecar=f"{RESULTS}/{{row}}/verdicts.json",
    log:
        f"{RESULTS}/{{row}}/logs/take.log",
    benchmark:
        f"{RESULTS}/{{row}}/logs/take.tsv"
    wildcard_constraints:
        row=any_of(KEPT),
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
        gpu=0,
    params:
        source=lambda wildcards, input: str(Path(input.source).parent),
    shell:
        "sabr take {params.source:q} --run {input.run:q} {output:q} &> {log:q}"


rule take_weights:
    input:
        run=f"{RESULTS}/{{row}}/run.json",
        weights=f"{CHECKPOINTS}/{{row}}/model.pt",
    output:
        f"{RESULTS}/{{row}}/model.pt",
    log:
        f"{RESULTS}/{{row}}/logs/take-weights.log",
    benchmark:
        f"{RESULTS}/{{row}}/logs/take-weights.tsv"
    wildcard_constraints:
        row=any_of(KEPT),
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
        gpu=0,
    params:
        source=lambda wildcards, input: str(Path(input.weights).parent),
    shell:
        "sabr take {params.source:q} --run {input.run:q} {output:q} &> {log:q}"


# Without verdicts: they are made here.
rule take_checkpoint:
    input:
        run=f"{RESULTS}/{{row}}/run.json",
        weights=f"{CHECKPOINTS}/{{row}}/model.pt",
    output:
        model=f"{RESULTS}/{{row}}/model.pt",
        sidecar=f"{RESULTS}/{{row}}/model.json",
        history=f"{RESULTS}/{{row}}/history.csv",
    log:
        f"{RESULTS}/{{row}}/logs/take.log",
    benchmark:
        f"{RESULTS}/{{row}}/logs/take.tsv"
    wildcard_constraints:
        row=any_of(path for path in PLAN.rows if path not in KEPT),
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
        gpu=0,
    params:
        source=lambda wildcards, input: str(Path(input.weights).parent),
    shell:
        "sabr take {params.source:q} --run {input.run:q} {output:q} &> {log:q}"


rule take_study:
    input:
        run=lambda wildcards: f"{RESULTS}/{wildcards.taken.partition('/studies/')[0]}/run.json",
        table=f"{CHECKPOINTS}/{{taken}}.csv",
        sidecar=f"{CHECKPOINTS}/{{taken}}.json",
    output:
        table=f"{RESULTS}/{{taken}}.csv",
        sidecar=f"{RESULTS}/{{taken}}.json",
    log:
        f"{RESULTS}/logs/take/{{taken}}.log",
    benchmark:
        f"{RESULTS}/logs/take/{{taken}}.tsv"
    wildcard_constraints:
        taken=any_of(KEPT_STUDIES),
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
        gpu=0,
    params:
        source=lambda wildcards, input: str(Path(input.table).parents[1]),
    shell:
        "sabr take {params.source:q} --run {input.run:q} {output:q} &> {log:q}"


if KEPT:

    ruleorder: take_examples > examples

    localrules:
        take_examples,

    rule take_examples:
        input:
            f"{CHECKPOINTS}/studies/examples.npz",
        output:
            f"{RESULTS}/studies/examples.npz",
        log:
            f"{RESULTS}/logs/take/examples.log",
        benchmark:
            f"{RESULTS}/logs/take/examples.tsv"
        conda:
            REPORT_ENV
        threads: 1
        resources:
            mem_mb=500,
            runtime=5,
            gpu=0,
        shell:
            "{{ cp {input:q} {output:q}.part && mv {output:q}.part {output:q}; }} &> {log:q}"
