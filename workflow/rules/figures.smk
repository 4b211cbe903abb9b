"""Figures, each as PDF and PNG."""

FIGURE_DATA = {
    "accuracies": f"{RESULTS}/records.csv",
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
if not PLAN.sweep:
    del FIGURE_DATA["lambda-sweep"]
if not any("complete" in row.certification.stages for row in PLAN.main):
    del FIGURE_DATA["time-limit"]
# Figures of Table 1's methods, without those of the sweep.
OF_METHODS = ("accuracies", "training-curves", "cascade", "time-limit")
# Titles of figures that say for themselves how many images were studied, and of those that no scale changes.
TITLES = {
    **{
        study: PLAN.title.rpartition(", first ")[0]
        for study in ("loss-lambda", "relu-inputs", "box-sizes", "eps-curve")
    },
    "box-growth": "simulation of one ReLU layer",
    "small-box": "a chosen example with two neurons a layer",
    "box-vs-relaxation": "a chosen example with two neurons a layer",
}
FIGURES = [
    f"{RESULTS}/figures/{name}.{suffix}"
    for name in FIGURE_DATA
    for suffix in ("pdf", "png")
]


rule figure:
    input:
        data=lambda wildcards: FIGURE_DATA[wildcards.figure],
        style=f"{CONFIG}/figures.yaml",
    output:
        pdf=f"{RESULTS}/figures/{{figure}}.pdf",
        png=report(
            f"{RESULTS}/figures/{{figure}}.png",
            category="Figures",
            labels={"figure": "{figure}"},
            caption="../report/figure.rst",
        ),
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
        " --style {input.style:q} --output {output.pdf:q} --output {output.png:q} &> {log:q}"
