"""Certification, cut into shards of test images that run side by side and are merged."""


rule setting_spec:
    output:
        f"{SETTING}/{{kind}}.json",
    log:
        f"{SETTING}/logs/{{kind}}.log",
    benchmark:
        f"{SETTING}/logs/{{kind}}.tsv"
    wildcard_constraints:
        kind="attack|certification",
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
        gpu=0,
    params:
        kind="{kind}",
        json=lambda wildcards: test_of(
            f"{wildcards.dataset}/{wildcards.eps}/{wildcards.kind}.json"
        ).model_dump_json(),
    shell:
        "sabr spec {params.kind:q} {params.json:q} --output {output:q} &> {log:q}"


# Of a method that is certified within limits of its own.
rule method_spec:
    output:
        f"{SETTING}/{{method}}/certification.json",
    log:
        f"{SETTING}/{{method}}/logs/certification.log",
    benchmark:
        f"{SETTING}/{{method}}/logs/certification.tsv"
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
        gpu=0,
    params:
        json=lambda wildcards: test_of(
            f"{wildcards.dataset}/{wildcards.eps}/{wildcards.method}/certification.json"
        ).model_dump_json(),
    shell:
        "sabr spec certification {params.json:q} --output {output:q} &> {log:q}"


# Its verdicts lie in shards/A-B.journal until it is done, which Snakemake must not know: it deletes what a failed job
# made. Run again, it goes on with them.
rule certify:
    input:
        model=ancient(f"{ROW}/model.pt"),
        sidecar=f"{ROW}/model.json",
        spec=lambda wildcards: f"{RESULTS}/{row_of(wildcards).certification_path}",
        attack=f"{ROW}/attack.csv",
        attack_sidecar=f"{ROW}/attack.json",
        data=ancient(f"{DATA}/{{dataset}}/test.pt"),
    output:
        table=f"{ROW}/shards/{{first}}-{{last}}.csv",
        sidecar=f"{ROW}/shards/{{first}}-{{last}}.json",
        counterexamples=f"{ROW}/shards/{{first}}-{{last}}.pt",
    log:
        f"{ROW}/logs/certify-{{first}}-{{last}}.log",
    benchmark:
        f"{ROW}/logs/certify-{{first}}-{{last}}.tsv"
    conda:
        ENV
    threads: JOB.threads
    resources:
        mem_mb=lambda wildcards, attempt: JOB.memory_mb * min(attempt, 2),
        runtime=JOB.minutes,
        gpu=JOB.gpus,
    params:
        data=data_folder,
        first="{first}",
        last="{last}",
    shell:
        "sabr certify {input.model:q} --spec {input.spec:q} --attack {input.attack:q} --data {params.data:q}"
        " --first {params.first} --last {params.last} --threads {threads} --output {output.table:q} &> {log:q}"


rule merge:
    input:
        tables=shards_of("csv"),
        sidecars=shards_of("json"),
    output:
        table=f"{ROW}/verdicts.csv",
        sidecar=f"{ROW}/verdicts.json",
    log:
        f"{ROW}/logs/merge.log",
    benchmark:
        f"{ROW}/logs/merge.tsv"
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    shell:
        "sabr merge {input.tables:q} --output {output.table:q} &> {log:q}"
