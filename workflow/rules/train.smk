"""Networks, trained."""


# Its state lies in model.resume.pt until it is done, which Snakemake must not know: it deletes what a failed job made.
# Exit code 75: stopped by SIGTERM, to be continued; run again (a profile's `retries` does so), it goes on from there.
rule train:
    input:
        run=f"{ROW}/run.json",
        data=ancient(f"{DATA}/{{dataset}}/train.pt"),
    output:
        model=f"{ROW}/model.pt",
        sidecar=f"{ROW}/model.json",
        history=f"{ROW}/history.csv",
    log:
        f"{ROW}/logs/train.log",
    benchmark:
        f"{ROW}/logs/train.tsv"
    conda:
        ENV
    threads: JOB.threads
    resources:
        mem_mb=growing(JOB.memory_mb),
        runtime=JOB.minutes,
        gpu=JOB.gpus,
    params:
        data=data_folder,
    shell:
        "sabr train {input.run:q} --data {params.data:q} --threads {threads}"
        " --output {output.model:q} --history {output.history:q} &> {log:q}"
