# Shards: training rows in a fixed random order. Batch plans: which rows make step 1, 2, 3 ...


rule build_shards:
    input:
        input_specs,
        shares,
        image=image_file("torch"),
    output:
        "results/shards/{label}-{key}/spec.json",
    log:
        "logs/shards/{label}-{key}.log",
    benchmark:
        "benchmarks/shards/{label}-{key}.tsv"
    priority: 1
    retries: RESUMING_RETRIES
    container:
        image("torch")
    threads: resource("build_shards", "threads")
    resources:
        mem_mb=resource("build_shards", "mem_mb"),
        runtime=resource("build_shards", "runtime"),
        slurm_extra=slurm_extra("build_shards"),
    params:
        spec=spec_file,
    message:
        "Shuffle {wildcards.label} into shards"
    shell:
        "python -m colbert_zero.data.shards --spec {params.spec:q} --threads {threads} 2> {log:q}"


rule plan_batches:
    input:
        input_specs,
        image=image_file("torch"),
    output:
        "results/batches/{label}-{key}/spec.json",
    log:
        "logs/batches/{label}-{key}.log",
    benchmark:
        "benchmarks/batches/{label}-{key}.tsv"
    priority: 1
    container:
        image("torch")
    threads: resource("plan_batches", "threads")
    resources:
        mem_mb=resource("plan_batches", "mem_mb"),
        runtime=resource("plan_batches", "runtime"),
        slurm_extra=slurm_extra("plan_batches"),
    params:
        spec=spec_file,
        rows=row_names,
    message:
        "Plan the batches of the {wildcards.label} stage of {params.rows}"
    shell:
        "python -m colbert_zero.data.batches --spec {params.spec:q} --threads {threads} 2> {log:q}"
