# For each model and collection: the index, the run and the measures.


rule build_index:
    input:
        input_specs,
        shares,
        image=image_file("torch"),
    output:
        "results/indexes/{label}-{key}/spec.json",
    log:
        "logs/indexes/{label}-{key}.log",
    benchmark:
        "benchmarks/indexes/{label}-{key}.tsv"
    wildcard_constraints:
        label=r"(?!dense\.)[^/]+",
    retries: RESUMING_RETRIES
    group:
        evaluation_group("build_index")
    container:
        image("torch")
    threads: resource("build_index", "threads")
    resources:
        mem_mb=sized("build_index", "mem_mb"),
        runtime=sized("build_index", "runtime"),
        evaluations=1,
        gpu=gpu("build_index"),
        slurm_extra=slurm_extra("build_index"),
    params:
        spec=spec_file,
        device=device("build_index"),
        beside=beside,
        rows=row_names,
    message:
        "Encode {wildcards.label} for {params.rows}"
    shell:
        "python -m colbert_zero.evaluation.index --spec {params.spec:q} --threads {threads} --device {params.device:q} "
        "{params.beside:q} 2> {log:q}"


rule search_index:
    input:
        input_specs,
        files_again,
        shares,
        image=image_file("torch"),
    output:
        "results/runs/colbert.{label}-{key}/spec.json",
    log:
        "logs/runs/colbert.{label}-{key}.log",
    benchmark:
        "benchmarks/runs/colbert.{label}-{key}.tsv"
    # Before other indexes are built, so that few are there at once where they are let go.
    priority: 1
    retries: RESUMING_RETRIES
    group:
        evaluation_group("search_index")
    container:
        image("torch")
    threads: resource("search_index", "threads")
    resources:
        mem_mb=sized("search_index", "mem_mb"),
        runtime=sized("search_index", "runtime"),
        evaluations=1,
        gpu=gpu("search_index"),
        slurm_extra=slurm_extra("search_index"),
    params:
        spec=spec_file,
        device=device("search_index"),
        scratch=scratch(),
        rows=row_names,
        let_go=let_go_command,
    message:
        "Search {wildcards.label} for {params.rows}"
    shell:
        "python -m colbert_zero.evaluation.search --spec {params.spec:q} --threads {threads} --device {params.device:q} --scratch={params.scratch:q} "
        "2> {log:q} "
        "{params.let_go} 2>> {log:q}"


rule embed_documents:
    input:
        input_specs,
        shares,
        image=image_file("torch"),
    output:
        "results/indexes/dense.{label}-{key}/spec.json",
    log:
        "logs/indexes/dense.{label}-{key}.log",
    benchmark:
        "benchmarks/indexes/dense.{label}-{key}.tsv"
    retries: RESUMING_RETRIES
    group:
        evaluation_group("embed_documents")
    container:
        image("torch")
    threads: resource("embed_documents", "threads")
    resources:
        mem_mb=sized("embed_documents", "mem_mb"),
        runtime=sized("embed_documents", "runtime"),
        evaluations=1,
        gpu=gpu("embed_documents"),
        slurm_extra=slurm_extra("embed_documents"),
    params:
        spec=spec_file,
        device=device("embed_documents"),
        beside=beside,
        rows=row_names,
    message:
        "Encode {wildcards.label} for {params.rows}, a vector for each text"
    shell:
        "python -m colbert_zero.evaluation.dense_index --spec {params.spec:q} --threads {threads} --device {params.device:q} "
        "{params.beside:q} 2> {log:q}"


rule search_embeddings:
    input:
        input_specs,
        files_again,
        image=image_file("torch"),
    output:
        "results/runs/dense.{label}-{key}/spec.json",
    log:
        "logs/runs/dense.{label}-{key}.log",
    benchmark:
        "benchmarks/runs/dense.{label}-{key}.tsv"
    # Before other indexes are built, so that few are there at once where they are let go.
    priority: 1
    group:
        evaluation_group("search_embeddings")
    container:
        image("torch")
    threads: resource("search_embeddings", "threads")
    resources:
        mem_mb=sized("search_embeddings", "mem_mb"),
        runtime=sized("search_embeddings", "runtime"),
        evaluations=1,
        gpu=gpu("search_embeddings"),
        slurm_extra=slurm_extra("search_embeddings"),
    params:
        spec=spec_file,
        device=device("search_embeddings"),
        rows=row_names,
        let_go=let_go_command,
    message:
        "Search {wildcards.label} for {params.rows}, by one vector for each text"
    shell:
        "python -m colbert_zero.evaluation.dense_search --spec {params.spec:q} --threads {threads} --device {params.device:q} 2> {log:q} "
        "{params.let_go} 2>> {log:q}"


rule make_again:
    input:
        input_specs,
        own_spec,
        image=image_file("torch", again=True),
    output:
        temp(touch("results/state/{kind}/{label}-{key}.again")),
    log:
        "logs/{kind}/{label}-{key}.again.log",
    benchmark:
        "benchmarks/{kind}/{label}-{key}.again.tsv"
    wildcard_constraints:
        kind="indexes",
    retries: RESUMING_RETRIES
    container:
        image("torch")
    threads: for_step(resource, "threads")
    resources:
        mem_mb=for_step(resource, "mem_mb"),
        runtime=for_step(resource, "runtime"),
        gpu=for_step(gpu),
        slurm_extra=for_step(slurm_extra),
    params:
        spec=spec_file,
        command=step_command,
        rows=row_names,
    message:
        "Encode {wildcards.label} for {params.rows} again: the files were let go"
    shell:
        "python -m {params.command:q} --spec {params.spec:q} --threads {threads} 2> {log:q}"


rule search_bm25:
    input:
        input_specs,
        image=image_file("lucene"),
    output:
        "results/runs/bm25.{label}-{key}/spec.json",
    log:
        "logs/runs/bm25.{label}-{key}.log",
    benchmark:
        "benchmarks/runs/bm25.{label}-{key}.tsv"
    group:
        evaluation_group("search_bm25")
    container:
        image("lucene")
    threads: resource("search_bm25", "threads")
    resources:
        mem_mb=sized("search_bm25", "mem_mb"),
        runtime=sized("search_bm25", "runtime"),
        evaluations=1,
        slurm_extra=slurm_extra("search_bm25"),
    params:
        spec=spec_file,
        heap_mb=heap_mb,
    message:
        "Search {wildcards.label} with BM25"
    shell:
        "python -m colbert_zero.evaluation.bm25 --spec {params.spec:q} --threads {threads} --heap-mb {params.heap_mb} 2> {log:q}"


rule measure_run:
    input:
        input_specs,
        image=image_file("lucene"),
    output:
        "results/measures/{label}-{key}/spec.json",
    log:
        "logs/measures/{label}-{key}.log",
    benchmark:
        "benchmarks/measures/{label}-{key}.tsv"
    group:
        evaluation_group("measure_run")
    container:
        image("lucene")
    threads: resource("measure_run", "threads")
    resources:
        mem_mb=sized("measure_run", "mem_mb"),
        runtime=sized("measure_run", "runtime"),
        evaluations=1,
        slurm_extra=slurm_extra("measure_run"),
    params:
        spec=spec_file,
        rows=row_names,
    message:
        "Measure {params.rows} on {wildcards.label}"
    shell:
        "python -m colbert_zero.evaluation.measure --spec {params.spec:q} --threads {threads} 2> {log:q}"
