"""Studies of the paper: of ideas, which need no network, and of trained networks, gathered into one table each."""

from sabr.studies import COLUMNS, VALUES

# Networks of Table 1, one seed of each.
ONE_SEED = [row for row in PLAN.main if row.training.seed == PLAN.run.seeds[0]]
STUDIED = {
    study: paths
    for study in COLUMNS
    if (paths := studied(ONE_SEED if study == "eps-curve" else PLAN.studied, study))
}
STUDIES = [f"{RESULTS}/studies/{study}.csv" for study in STUDIED]


# What each study measures, and nothing that only others do.
STUDY_OPTIONS = {
    study: [
        f"--images={PLAN.studies.images}",
        f"--memory-mb={PLAN.studies.memory_mb}",
        *(
            f"--{name.removesuffix('s').replace('_', '-')}={value:g}"
            for name in ([VALUES[study]] if study in VALUES else [])
            for value in getattr(PLAN.studies, name)
        ),
    ]
    for study in STUDIED
}


rule study:
    output:
        f"{RESULTS}/studies/{{study}}.csv",
    log:
        f"{RESULTS}/logs/study-{{study}}.log",
    benchmark:
        f"{RESULTS}/logs/study-{{study}}.tsv"
    wildcard_constraints:
        study="box-growth|small-box|box-vs-relaxation",
    conda:
        ENV
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
        gpu=0,
    params:
        study="{study}",
    shell:
        "sabr study {params.study:q} --output {output:q} &> {log:q}"


rule study_network:
    input:
        model=ancient(f"{ROW}/model.pt"),
        sidecar=f"{ROW}/model.json",
        spec=lambda wildcards: (
            f"{RESULTS}/{row_of(wildcards).certification_path}"
            if wildcards.study == "eps-curve"
            else f"{RESULTS}/{row_of(wildcards).setting_path}/attack.json"
        ),
        data=ancient(f"{DATA}/{{dataset}}/test.pt"),
    output:
        table=f"{ROW}/studies/{{study}}.csv",
        sidecar=f"{ROW}/studies/{{study}}.json",
    log:
        f"{ROW}/logs/study-{{study}}.log",
    benchmark:
        f"{ROW}/logs/study-{{study}}.tsv"
    wildcard_constraints:
        study="|".join(STUDIED) or "(?!)",
    conda:
        ENV
    threads: JOB.threads
    resources:
        mem_mb=growing(JOB.memory_mb),
        runtime=growing(JOB.minutes),
        gpu=JOB.gpus,
    params:
        study="{study}",
        data=data_folder,
        options=lambda wildcards: STUDY_OPTIONS[wildcards.study],
    shell:
        "sabr study {params.study:q} {input.model:q} --spec {input.spec:q} {params.options:q} --data {params.data:q}"
        " --threads {threads} --output {output.table:q} &> {log:q}"


rule gather:
    input:
        tables=lambda wildcards: [
            f"{RESULTS}/{path}/studies/{wildcards.study}.csv"
            for path in STUDIED[wildcards.study]
        ],
        sidecars=lambda wildcards: [
            f"{RESULTS}/{path}/studies/{wildcards.study}.json"
            for path in STUDIED[wildcards.study]
        ],
        # Studies must be of the networks that are there; kept ones may be taken before these are.
        networks=lambda wildcards: [
            f"{RESULTS}/{path}/model.json" for path in STUDIED[wildcards.study]
        ],
    output:
        f"{RESULTS}/studies/{{study}}.csv",
    log:
        f"{RESULTS}/logs/gather-{{study}}.log",
    benchmark:
        f"{RESULTS}/logs/gather-{{study}}.tsv"
    wildcard_constraints:
        study="|".join(STUDIED) or "(?!)",
    conda:
        REPORT_ENV
    threads: 1
    resources:
        mem_mb=1000,
        runtime=10,
        gpu=0,
    params:
        study="{study}",
        rows=lambda wildcards: [
            f"{RESULTS}/{path}" for path in STUDIED[wildcards.study]
        ],
    shell:
        "sabr gather {params.study:q} {params.rows:q} --output {output:q} &> {log:q}"
