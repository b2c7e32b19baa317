# Candidates per training query, and the negatives: the candidates that the positive-aware filter keeps.


rule mine_bm25:
    input:
        input_specs,
        shares,
        image=image_file("lucene"),
    output:
        "results/candidates/bm25.{label}-{key}/spec.json",
    log:
        "logs/candidates/bm25.{label}-{key}.log",
    benchmark:
        "benchmarks/candidates/bm25.{label}-{key}.tsv"
    priority: 1
    retries: RESUMING_RETRIES
    container:
        image("lucene")
    threads: resource("mine_bm25", "threads")
    resources:
        mem_mb=resource("mine_bm25", "mem_mb"),
        runtime=resource("mine_bm25", "runtime"),
        slurm_extra=slurm_extra("mine_bm25"),
    params:
        spec=spec_file,
        heap_mb=heap_mb,
    message:
        "Search {wildcards.label} for candidates with BM25"
    shell:
        "python -m colbert_zero.mining.bm25 --spec {params.spec:q} --threads {threads} --heap-mb {params.heap_mb} "
        "2> {log:q}"


rule mine_dense:
    input:
        input_specs,
        shares,
        image=image_file("torch"),
    output:
        "results/candidates/dense.{label}-{key}/spec.json",
    log:
        "logs/candidates/dense.{label}-{key}.log",
    benchmark:
        "benchmarks/candidates/dense.{label}-{key}.tsv"
    priority: 1
    retries: RESUMING_RETRIES
    container:
        image("torch")
    threads: resource("mine_dense", "threads")
    resources:
        mem_mb=resource("mine_dense", "mem_mb"),
        runtime=resource("mine_dense", "runtime"),
        gpu=gpu("mine_dense"),
        slurm_extra=slurm_extra("mine_dense"),
    params:
        spec=spec_file,
        device=device("mine_dense"),
    message:
        "Search {wildcards.label} for candidates with a dense encoder"
    shell:
        "python -m colbert_zero.mining.dense --spec {params.spec:q} --threads {threads} --device {params.device:q} 2> {log:q}"


rule filter_negatives:
    input:
        input_specs,
        shares,
        image=image_file("torch"),
    output:
        "results/negatives/{label}-{key}/spec.json",
    log:
        "logs/negatives/{label}-{key}.log",
    benchmark:
        "benchmarks/negatives/{label}-{key}.tsv"
    priority: 1
    retries: RESUMING_RETRIES
    container:
        image("torch")
    threads: resource("filter_negatives", "threads")
    resources:
        mem_mb=resource("filter_negatives", "mem_mb"),
        runtime=resource("filter_negatives", "runtime"),
        slurm_extra=slurm_extra("filter_negatives"),
    params:
        spec=spec_file,
    message:
        "Choose the negatives of {wildcards.label}"
    shell:
        "python -m colbert_zero.mining.negatives --spec {params.spec:q} --threads {threads} 2> {log:q}"
