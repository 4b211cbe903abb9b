"""Datasets: fetched, checked, decoded once."""


# On the machine that Snakemake runs on, as a cluster's nodes often have no internet.
localrules:
    data,


rule data:
    output:
        source=f"{DATA}/{{dataset}}/source.json",
        train=f"{DATA}/{{dataset}}/train.pt",
        test=f"{DATA}/{{dataset}}/test.pt",
    log:
        f"{DATA}/{{dataset}}/data.log",
    benchmark:
        f"{DATA}/{{dataset}}/data.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
        gpu=0,
    params:
        dataset="{dataset}",
        folder=lambda wildcards, output: str(Path(output.source).parents[1]),
        mirror=(
            [f"--mirror={PLAN.config.data.mirror}"] if PLAN.config.data.mirror else []
        ),
    shell:
        "sabr data {params.dataset:q} --data {params.folder:q} &> {log:q}"
