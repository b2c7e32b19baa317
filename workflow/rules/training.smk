# The three stages: one rule, since they differ in their settings only. It goes first: the longest chains are its jobs'.


rule train_stage:
    input:
        made_from,
    output:
        "results/models/{label}-{key}/spec.json",
    log:
        "logs/models/{label}-{key}.log",
    benchmark:
        "benchmarks/models/{label}-{key}.tsv"
    priority: 1
    container:
        image("torch")
    threads: asked_by_stage("threads")
    resources:
        mem_mb=asked_by_stage("mem_mb"),
        runtime=asked_by_stage("runtime"),
        gpu=asked_by_stage("gpu"),
    params:
        spec=spec_of,
        rows=rows_of,
    message:
        "Train the {wildcards.label} stage of {params.rows}"
    shell:
        "python -m colbert_zero.training --spec {params.spec:q} --threads {threads} 2> {log:q}"
