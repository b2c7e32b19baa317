# Rows in a fixed random order, and which of them make step 1, 2, 3 ...


rule share_shards:
    input:
        made_from,
        shares_of_files,
        image=image_file("torch"),
    output:
        temp(touch("results/state/shards/{label}-{key}.{of}-{share}-of-{jobs}")),
    log:
        "logs/shards/{label}-{key}.{of}-{share}-of-{jobs}.log",
    benchmark:
        "benchmarks/shards/{label}-{key}.{of}-{share}-of-{jobs}.tsv"
    wildcard_constraints:
        of="files|shards",
        share="[0-9]+",
        jobs="[0-9]+",
    container:
        image("torch")
    threads: asked("build_shards", "threads")
    resources:
        mem_mb=asked("build_shards", "mem_mb"),
        runtime=asked("build_shards", "runtime"),
        slurm_extra=slurm_extra("build_shards"),
    params:
        spec=spec_of,
    message:
        "Shuffle {wildcards.label}: the {wildcards.of}, share {wildcards.share} of {wildcards.jobs}"
    shell:
        "python -m colbert_zero.data.shard_worker --spec {params.spec:q} --of {wildcards.of} --share {wildcards.share} "
        "--jobs {wildcards.jobs} --threads {threads} 2> {log:q}"


rule build_shards:
    input:
        made_from,
        shares_of_shards,
        image=image_file("torch"),
    output:
        "results/shards/{label}-{key}/spec.json",
    log:
        "logs/shards/{label}-{key}.log",
    benchmark:
        "benchmarks/shards/{label}-{key}.tsv"
    container:
        image("torch")
    threads: asked("build_shards", "threads")
    resources:
        mem_mb=asked("build_shards", "mem_mb"),
        runtime=asked("build_shards", "runtime"),
        slurm_extra=slurm_extra("build_shards"),
    params:
        spec=spec_of,
    message:
        "Shuffle {wildcards.label} into shards"
    shell:
        "python -m colbert_zero.data.shards --spec {params.spec:q} --threads {threads} 2> {log:q}"


rule plan_batches:
    input:
        made_from,
        image=image_file("torch"),
    output:
        "results/batches/{label}-{key}/spec.json",
    log:
        "logs/batches/{label}-{key}.log",
    benchmark:
        "benchmarks/batches/{label}-{key}.tsv"
    container:
        image("torch")
    threads: asked("plan_batches", "threads")
    resources:
        mem_mb=asked("plan_batches", "mem_mb"),
        runtime=asked("plan_batches", "runtime"),
        slurm_extra=slurm_extra("plan_batches"),
    params:
        spec=spec_of,
        rows=rows_of,
    message:
        "Plan the batches of the {wildcards.label} stage of {params.rows}"
    shell:
        "python -m colbert_zero.data.batches --spec {params.spec:q} --threads {threads} 2> {log:q}"
