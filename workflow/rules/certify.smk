"""Certification, cut into shards of test images that run side by side and are merged."""


rule certification_spec:
    output:
        f"{SETTING}/certification.json",
    log:
        f"{SETTING}/logs/certification.log",
    benchmark:
        f"{SETTING}/logs/certification.tsv"
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
        gpu=0,
    params:
        json=lambda wildcards: setting_of(wildcards).certification.model_dump_json(),
    shell:
        "sabr spec certification {params.json:q} --output {output:q} &> {log:q}"


rule certify:
    input:
        model=ancient(f"{ROW}/model.pt"),
        sidecar=f"{ROW}/model.json",
        spec=f"{SETTING}/certification.json",
        attack=f"{ROW}/attack.csv",
        data=ancient(f"{DATA}/{{dataset}}/test.pt"),
    output:
        table=f"{ROW}/shards/{{first}}-{{last}}.csv",
        sidecar=f"{ROW}/shards/{{first}}-{{last}}.json",
    log:
        f"{ROW}/logs/certify-{{first}}-{{last}}.log",
    benchmark:
        f"{ROW}/logs/certify-{{first}}-{{last}}.tsv"
    conda:
        ENV
    threads: JOB.threads
    resources:
        mem_mb=JOB.memory_mb,
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
        lambda wildcards: [
            f"{RESULTS}/{row_of(wildcards).path}/shards/{first}-{last}.csv"
            for first, last in row_of(wildcards).shards(PLAN.run.shard_size)
        ],
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
        "sabr merge {input:q} --output {output.table:q} &> {log:q}"
