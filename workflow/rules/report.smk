"""The verdict on every claim, and the report: one HTML file that loads nothing."""

# Studies that claims are checked on.
CLAIM_DATA = [*STUDIES, f"{RESULTS}/studies/box-growth.csv"]
REPORT = [
    f"{RESULTS}/report.html",
    f"{RESULTS}/claims.json",
    f"{RESULTS}/claims.md",
]


rule claims:
    input:
        records=f"{RESULTS}/records.csv",
        pairs=f"{RESULTS}/pairs.csv",
        outline=f"{RESULTS}/outline.json",
        studies=CLAIM_DATA,
        claims=f"{CONFIG}/claims.yaml",
        published=f"{CONFIG}/published.yaml",
        style=f"{CONFIG}/figures.yaml",
    output:
        json=f"{RESULTS}/claims.json",
        md=f"{RESULTS}/claims.md",
    log:
        f"{RESULTS}/logs/claims.log",
    benchmark:
        f"{RESULTS}/logs/claims.tsv"
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    params:
        studies=[f"--study={path}" for path in CLAIM_DATA],
    shell:
        "sabr claims --records {input.records:q} --pairs {input.pairs:q} --outline {input.outline:q}"
        " {params.studies:q} --claims {input.claims:q} --published {input.published:q} --style {input.style:q}"
        " --output {output.json:q} --output {output.md:q} &> {log:q}"


rule page:
    input:
        records=f"{RESULTS}/records.csv",
        limits=f"{RESULTS}/limits.csv",
        provenance=f"{RESULTS}/provenance.json",
        verdicts=f"{RESULTS}/claims.json",
        outline=f"{RESULTS}/outline.json",
        tables=[path for path in TABLES if path.endswith(".html")],
        figures=[path for path in FIGURES if path.endswith(".png")],
        captions=f"{CONFIG}/report.yaml",
        style=f"{CONFIG}/figures.yaml",
    output:
        f"{RESULTS}/report.html",
    log:
        f"{RESULTS}/logs/report.log",
    benchmark:
        f"{RESULTS}/logs/report.tsv"
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    params:
        shown=[f"--table={path}" for path in TABLES if path.endswith(".html")]
        + [f"--figure={path}" for path in FIGURES if path.endswith(".png")],
    shell:
        "sabr page --records {input.records:q} --limits {input.limits:q} --provenance {input.provenance:q}"
        " --verdicts {input.verdicts:q} --outline {input.outline:q} {params.shown:q} --captions {input.captions:q}"
        " --style {input.style:q} --output {output:q} &> {log:q}"
