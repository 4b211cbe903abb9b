"""Specifications: what each network is trained, attacked and certified with."""


rule training_spec:
    output:
        f"{ROW}/run.json",
    log:
        f"{ROW}/logs/run.log",
    benchmark:
        f"{ROW}/logs/run.tsv"
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=500,
        runtime=5,
        gpu=0,
    params:
        json=lambda wildcards: row_of(wildcards).training.model_dump_json(),
    shell:
        "sabr spec training {params.json:q} --output {output:q} &> {log:q}"


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
