"""Prediction and quick attack of all images that are certified later; the strong attack is a stage of that."""


rule attack:
    input:
        model=ancient(f"{ROW}/model.pt"),
        sidecar=f"{ROW}/model.json",
        spec=f"{SETTING}/attack.json",
        data=ancient(f"{DATA}/{{dataset}}/test.pt"),
    output:
        table=f"{ROW}/attack.csv",
        sidecar=f"{ROW}/attack.json",
        counterexamples=f"{ROW}/attack.pt",
    log:
        f"{ROW}/logs/attack.log",
    benchmark:
        f"{ROW}/logs/attack.tsv"
    wildcard_constraints:
        dataset=TESTED,
    conda:
        ENV
    threads: JOB.threads
    resources:
        mem_mb=growing(JOB.memory_mb),
        runtime=growing(JOB.minutes),
        gpu=JOB.gpus,
    params:
        data=data_folder,
    shell:
        "sabr attack {input.model:q} --spec {input.spec:q} --data {params.data:q} --threads {threads}"
        " --output {output.table:q} &> {log:q}"
