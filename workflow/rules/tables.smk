"""Tables, each as CSV, Markdown and LaTeX."""

TABLES = [f"{RESULTS}/tables/table1.{suffix}" for suffix in ("csv", "md", "tex")]


rule table1:
    input:
        records=f"{RESULTS}/records.csv",
        published=f"{CONFIG}/published.yaml",
        style=f"{CONFIG}/figures.yaml",
    output:
        csv=f"{RESULTS}/tables/table1.csv",
        md=f"{RESULTS}/tables/table1.md",
        tex=f"{RESULTS}/tables/table1.tex",
        html=report(
            f"{RESULTS}/tables/table1.html",
            category="Tables",
            labels={"table": "Table 1"},
            caption="../report/table1.rst",
        ),
    log:
        f"{RESULTS}/logs/table1.log",
    benchmark:
        f"{RESULTS}/logs/table1.tsv"
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    params:
        methods=[f"--method={method}" for method in PLAN.methods],
        scale=PLAN.title,
    shell:
        "sabr table {input.records:q} {params.methods:q} --scale {params.scale:q} --published {input.published:q}"
        " --style {input.style:q} --output {output.csv:q} --output {output.md:q} --output {output.tex:q}"
        " --output {output.html:q} &> {log:q}"
