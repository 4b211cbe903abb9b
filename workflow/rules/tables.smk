"""Tables, each as CSV, Markdown, LaTeX and HTML."""

MAIN = present(PLAN.main)
# What tables need to have anything to show; those that are not named here always have.
NEEDED = {
    "table1": MAIN,
    "table2": [row for row in MAIN if row.method == "sabr"],
    "table3": STUDIED.get("gradient-alignment"),
    "table4": STUDIED.get("relu-states"),
    # Two methods with one setting and seed.
    "seeds": len(MAIN) > len({(row.setting, row.training.seed) for row in MAIN}),
    **{
        name: present(PLAN.comparisons.get(name, []))
        for name in ("shrinking", "widths", "long")
    },
}
TABLE_DATA = {
    "table1": f"{RESULTS}/records.csv",
    "table2": f"{RESULTS}/records.csv",
    "table3": f"{RESULTS}/studies/gradient-alignment.csv",
    "table4": f"{RESULTS}/studies/relu-states.csv",
    "seeds": f"{RESULTS}/pairs.csv",
    "shrinking": f"{RESULTS}/records.csv",
    "widths": f"{RESULTS}/records.csv",
    "long": f"{RESULTS}/records.csv",
    "times": f"{RESULTS}/records.csv",
    "protocol": f"{RESULTS}/protocol.csv",
}
TABLE_DATA = {name: data for name, data in TABLE_DATA.items() if NEEDED.get(name, True)}
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
