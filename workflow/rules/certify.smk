"""Certification, cut into shards of test images that run side by side and are merged."""


localrules:
    merge,


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
    wildcard_constraints:
        dataset=TESTED,
    conda:
        ENV
    threads: JOB.threads
    resources:
        mem_mb=growing(JOB.memory_mb),
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
    wildcard_constraints:
        dataset=TESTED,
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    shell:
        "sabr merge {input.tables:q} --output {output.table:q} &> {log:q}"
