# A model's index, its run and its measures, for each collection.


rule build_index:
    input:
        made_from,
        image=image_file("torch"),
    output:
        "results/indexes/{label}-{key}/spec.json",
    log:
        "logs/indexes/{label}-{key}.log",
    benchmark:
        "benchmarks/indexes/{label}-{key}.tsv"
    container:
        image("torch")
    threads: asked("build_index", "threads")
    resources:
        mem_mb=asked("build_index", "mem_mb"),
        runtime=asked("build_index", "runtime"),
        gpu=gpu("build_index"),
        slurm_extra=slurm_extra("build_index"),
    params:
        spec=spec_of,
        device=device("build_index"),
        rows=rows_of,
    message:
        "Encode {wildcards.label} for {params.rows}"
    shell:
        "python -m colbert_zero.evaluation.index --spec {params.spec:q} --threads {threads} --device {params.device:q} 2> {log:q}"


rule search_index:
    input:
        made_from,
        image=image_file("torch"),
    output:
        "results/runs/colbert.{label}-{key}/spec.json",
    log:
        "logs/runs/colbert.{label}-{key}.log",
    benchmark:
        "benchmarks/runs/colbert.{label}-{key}.tsv"
    container:
        image("torch")
    threads: asked("search_index", "threads")
    resources:
        mem_mb=asked("search_index", "mem_mb"),
        runtime=asked("search_index", "runtime"),
        gpu=gpu("search_index"),
        slurm_extra=slurm_extra("search_index"),
    params:
        spec=spec_of,
        device=device("search_index"),
        rows=rows_of,
    message:
        "Search {wildcards.label} for {params.rows}"
    shell:
        "python -m colbert_zero.evaluation.search --spec {params.spec:q} --threads {threads} --device {params.device:q} 2> {log:q}"


rule search_bm25:
    input:
        made_from,
        image=image_file("lucene"),
    output:
        "results/runs/bm25.{label}-{key}/spec.json",
    log:
        "logs/runs/bm25.{label}-{key}.log",
    benchmark:
        "benchmarks/runs/bm25.{label}-{key}.tsv"
    container:
        image("lucene")
    threads: asked("search_bm25", "threads")
    resources:
        mem_mb=asked("search_bm25", "mem_mb"),
        runtime=asked("search_bm25", "runtime"),
        slurm_extra=slurm_extra("search_bm25"),
    params:
        spec=spec_of,
    message:
        "Search {wildcards.label} with BM25"
    shell:
        "python -m colbert_zero.evaluation.bm25 --spec {params.spec:q} --threads {threads} 2> {log:q}"


rule measure_run:
    input:
        made_from,
        image=image_file("lucene"),
    output:
        "results/measures/{label}-{key}/spec.json",
    log:
        "logs/measures/{label}-{key}.log",
    benchmark:
        "benchmarks/measures/{label}-{key}.tsv"
    container:
        image("lucene")
    threads: asked("measure_run", "threads")
    resources:
        mem_mb=asked("measure_run", "mem_mb"),
        runtime=asked("measure_run", "runtime"),
        slurm_extra=slurm_extra("measure_run"),
    params:
        spec=spec_of,
        rows=rows_of,
    message:
        "Measure {params.rows} on {wildcards.label}"
    shell:
        "python -m colbert_zero.evaluation.measure --spec {params.spec:q} --threads {threads} 2> {log:q}"
