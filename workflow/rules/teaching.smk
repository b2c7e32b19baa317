# A teacher's scores for each query's documents.


rule teach_bm25:
    input:
        input_specs,
        image=image_file("lucene"),
    output:
        "results/scores/bm25.{label}-{key}/spec.json",
    log:
        "logs/scores/bm25.{label}-{key}.log",
    benchmark:
        "benchmarks/scores/bm25.{label}-{key}.tsv"
    priority: 1
    container:
        image("lucene")
    threads: resource("teach_bm25", "threads")
    resources:
        mem_mb=resource("teach_bm25", "mem_mb"),
        runtime=resource("teach_bm25", "runtime"),
        slurm_extra=slurm_extra("teach_bm25"),
    params:
        spec=spec_file,
        heap_mb=heap_mb,
    message:
        "Score {wildcards.label} with BM25"
    shell:
        "python -m colbert_zero.teaching.bm25 --spec {params.spec:q} --threads {threads} --heap-mb {params.heap_mb} 2> {log:q}"


rule teach_neural:
    input:
        input_specs,
        shares,
        image=image_file("torch"),
    output:
        "results/scores/neural.{label}-{key}/spec.json",
    log:
        "logs/scores/neural.{label}-{key}.log",
    benchmark:
        "benchmarks/scores/neural.{label}-{key}.tsv"
    priority: 1
    retries: RESUMING_RETRIES
    container:
        image("torch")
    threads: resource("teach_neural", "threads")
    resources:
        mem_mb=resource("teach_neural", "mem_mb"),
        runtime=resource("teach_neural", "runtime"),
        gpu=gpu("teach_neural"),
        slurm_extra=slurm_extra("teach_neural"),
    params:
        spec=spec_file,
        device=device("teach_neural"),
    message:
        "Score {wildcards.label} with a re-ranker"
    shell:
        "python -m colbert_zero.teaching.neural --spec {params.spec:q} --threads {threads} --device {params.device:q} 2> {log:q}"


rule teach_ensemble:
    input:
        input_specs,
        image=image_file("torch"),
    output:
        "results/scores/ensemble.{label}-{key}/spec.json",
    log:
        "logs/scores/ensemble.{label}-{key}.log",
    benchmark:
        "benchmarks/scores/ensemble.{label}-{key}.tsv"
    priority: 1
    container:
        image("torch")
    threads: resource("teach_ensemble", "threads")
    resources:
        mem_mb=resource("teach_ensemble", "mem_mb"),
        runtime=resource("teach_ensemble", "runtime"),
        slurm_extra=slurm_extra("teach_ensemble"),
    params:
        spec=spec_file,
    message:
        "Average the scores of several teachers of {wildcards.label}"
    shell:
        "python -m colbert_zero.teaching.ensemble --spec {params.spec:q} --threads {threads} 2> {log:q}"
