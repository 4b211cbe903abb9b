"""Figures, each as PDF and PNG."""

FIGURE_DATA = {
    "accuracies": f"{RESULTS}/records.csv",
    "pareto": f"{RESULTS}/records.csv",
    "examples": f"{RESULTS}/studies/examples.npz",
    "training-curves": f"{RESULTS}/histories.csv",
    "lambda-sweep": f"{RESULTS}/records.csv",
    "cascade": f"{RESULTS}/stages.csv",
    "time-limit": f"{RESULTS}/limits.csv",
    "box-growth": f"{RESULTS}/studies/box-growth.csv",
    "small-box": f"{RESULTS}/studies/small-box.csv",
    "box-vs-relaxation": f"{RESULTS}/studies/box-vs-relaxation.csv",
    "loss-lambda": f"{RESULTS}/studies/loss-lambda.csv",
    "relu-inputs": f"{RESULTS}/studies/relu-inputs.csv",
    "box-sizes": f"{RESULTS}/studies/box-sizes.csv",
    "eps-curve": f"{RESULTS}/studies/eps-curve.csv",
}
# Two values of lambda at least.
if len({row.method for row in present(PLAN.sweep)}) < 2:
    del FIGURE_DATA["lambda-sweep"]
if not any("complete" in row.certification.stages for row in MAIN):
    del FIGURE_DATA["time-limit"]
for name in set(COLUMNS) - set(STUDIED):
    FIGURE_DATA.pop(name, None)
# Whose counterexamples are drawn: of each setting SABR's first network, or, without one, the first of all.
EXAMPLES = [
    max(rows, key=lambda row: row.training.method.objective == "sabr")
    for setting in PLAN.run.settings
    if (rows := [row for row in MAIN if row.setting == setting])
]
# Counterexamples are too large to be kept with verdicts that are taken from elsewhere; the few that are drawn are not.
if not (Path(CHECKPOINTS, "studies/examples.npz").is_file() if KEPT else EXAMPLES):
    del FIGURE_DATA["examples"]
# Figures of Table 1's methods, without those of the sweep.
OF_METHODS = ("accuracies", "pareto", "training-curves", "cascade", "time-limit")
if not MAIN:
    for name in OF_METHODS:
        FIGURE_DATA.pop(name, None)
# Titles of figures that say for themselves how many images were studied, and of those that no scale changes.
TITLES = {
    **{
        study: OUTLINE["studied"]
        for study in ("loss-lambda", "relu-inputs", "box-sizes")
    },
    "eps-curve": without_images(PLAN.title),
    "box-growth": "simulation of one ReLU layer",
    "small-box": "a chosen example with two neurons a layer",
    "box-vs-relaxation": "a chosen example with two neurons a layer",
}
FIGURES = [
    f"{RESULTS}/figures/{name}.{suffix}"
    for name in FIGURE_DATA
    for suffix in ("pdf", "png")
]


rule examples:
    input:
        [f"{RESULTS}/{row.path}/model.pt" for row in EXAMPLES],
        [f"{RESULTS}/{row.path}/attack.pt" for row in EXAMPLES],
        [f"{RESULTS}/{row.path}/verdicts.json" for row in EXAMPLES],
        [
            f"{RESULTS}/{row.path}/shards/{first}-{last}.pt"
            for row in EXAMPLES
            for first, last in row.shards(PLAN.run.shard_size)
        ],
        data=ancient(
            [f"{DATA}/{row.certification.dataset}/test.pt" for row in EXAMPLES]
        ),
    output:
        f"{RESULTS}/studies/examples.npz",
    log:
        f"{RESULTS}/logs/examples.log",
    benchmark:
        f"{RESULTS}/logs/examples.tsv"
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=2000,
        runtime=20,
        gpu=0,
    params:
        rows=[f"{RESULTS}/{row.path}" for row in EXAMPLES],
        data=lambda wildcards, input: str(Path(input.data[0]).parents[1]),
    shell:
        "sabr examples {params.rows:q} --data {params.data:q} --output {output:q} &> {log:q}"


rule figure:
    input:
        data=lambda wildcards: FIGURE_DATA[wildcards.figure],
        published=f"{CONFIG}/published.yaml",
        style=f"{CONFIG}/figures.yaml",
    output:
        pdf=f"{RESULTS}/figures/{{figure}}.pdf",
        png=f"{RESULTS}/figures/{{figure}}.png",
    log:
        f"{RESULTS}/logs/figure-{{figure}}.log",
    benchmark:
        f"{RESULTS}/logs/figure-{{figure}}.tsv"
    wildcard_constraints:
        figure="|".join(FIGURE_DATA),
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    params:
        figure="{figure}",
        title=lambda wildcards: TITLES.get(wildcards.figure, PLAN.title),
        methods=lambda wildcards: (
            [f"--method={method}" for method in PLAN.methods]
            if wildcards.figure in OF_METHODS
            else []
        ),
    shell:
        "sabr figure {params.figure:q} {input.data:q} --title {params.title:q} {params.methods:q}"
        " --published {input.published:q} --style {input.style:q} --output {output.pdf:q} --output {output.png:q} &> {log:q}"
