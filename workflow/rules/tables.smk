"""Tables, each as CSV, Markdown, LaTeX and HTML."""

# Tables that every plan has, and those of a comparison that it may have.
TABLE_DATA = {
    "table1": f"{RESULTS}/records.csv",
    "table2": f"{RESULTS}/records.csv",
    "table3": f"{RESULTS}/studies/gradient-alignment.csv",
    "table4": f"{RESULTS}/studies/relu-states.csv",
    "seeds": f"{RESULTS}/pairs.csv",
    **{
        name: f"{RESULTS}/records.csv"
        for name in ("shrinking", "widths", "long")
        if present(PLAN.comparisons.get(name, []))
    },
    "times": f"{RESULTS}/records.csv",
    "protocol": f"{RESULTS}/protocol.csv",
}
for name, study in (("table3", "gradient-alignment"), ("table4", "relu-states")):
    if study not in STUDIED:
        del TABLE_DATA[name]
TABLES = [
    f"{RESULTS}/tables/{name}.{suffix}"
    for name in TABLE_DATA
    for suffix in ("csv", "md", "tex", "html")
]


rule table:
    input:
        data=lambda wildcards: TABLE_DATA[wildcards.table],
        outline=f"{RESULTS}/outline.json",
        published=f"{CONFIG}/published.yaml",
        style=f"{CONFIG}/figures.yaml",
    output:
        csv=f"{RESULTS}/tables/{{table}}.csv",
        md=f"{RESULTS}/tables/{{table}}.md",
        tex=f"{RESULTS}/tables/{{table}}.tex",
        html=f"{RESULTS}/tables/{{table}}.html",
    log:
        f"{RESULTS}/logs/table-{{table}}.log",
    benchmark:
        f"{RESULTS}/logs/table-{{table}}.tsv"
    wildcard_constraints:
        table="|".join(TABLE_DATA),
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    params:
        table="{table}",
    shell:
        "sabr table {params.table:q} {input.data:q} --outline {input.outline:q} --published {input.published:q}"
        " --style {input.style:q} --output {output.csv:q} --output {output.md:q} --output {output.tex:q}"
        " --output {output.html:q} &> {log:q}"
