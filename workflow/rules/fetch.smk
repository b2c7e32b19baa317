# What comes from outside: the only rules that may touch the network are fetch_*.


rule read_docstrings_source:
    input:
        made_from,
        image=image_file("torch"),
    output:
        "resources/sources/package.{label}-{key}/spec.json",
    log:
        "logs/sources/package.{label}-{key}.log",
    benchmark:
        "benchmarks/sources/package.{label}-{key}.tsv"
    container:
        image("torch")
    threads: asked("read_docstrings", "threads")
    resources:
        mem_mb=asked("read_docstrings", "mem_mb"),
        runtime=asked("read_docstrings", "runtime"),
        slurm_extra=slurm_extra("read_docstrings"),
    params:
        spec=spec_of,
    message:
        "Read the documentation of {wildcards.label}"
    shell:
        "python -m colbert_zero.data.docstrings --spec {params.spec:q} --threads {threads} 2> {log:q}"


rule read_docstrings_collection:
    input:
        made_from,
        image=image_file("torch"),
    output:
        "resources/collections/package.{label}-{key}/spec.json",
    log:
        "logs/collections/package.{label}-{key}.log",
    benchmark:
        "benchmarks/collections/package.{label}-{key}.tsv"
    container:
        image("torch")
    threads: asked("read_docstrings", "threads")
    resources:
        mem_mb=asked("read_docstrings", "mem_mb"),
        runtime=asked("read_docstrings", "runtime"),
        slurm_extra=slurm_extra("read_docstrings"),
    params:
        spec=spec_of,
    message:
        "Read the held-out documentation of {wildcards.label}"
    shell:
        "python -m colbert_zero.data.docstrings --spec {params.spec:q} --threads {threads} 2> {log:q}"


rule fetch_source:
    input:
        made_from,
    output:
        "resources/sources/{origin}.{label}-{key}/spec.json",
    log:
        "logs/sources/{origin}.{label}-{key}.log",
    benchmark:
        "benchmarks/sources/{origin}.{label}-{key}.tsv"
    conda:
        "../../envs/host.yaml"
    params:
        spec=spec_of,
        path=path_of,
    message:
        "Fetch the source {wildcards.label}"
    shell:
        "HF_HUB_OFFLINE=0 python -m colbert_zero.data.fetch --spec {params.spec:q} --path={params.path:q} 2> {log:q}"


rule fetch_collection:
    input:
        made_from,
    output:
        "resources/collections/{origin}.{label}-{key}/spec.json",
    log:
        "logs/collections/{origin}.{label}-{key}.log",
    benchmark:
        "benchmarks/collections/{origin}.{label}-{key}.tsv"
    conda:
        "../../envs/host.yaml"
    params:
        spec=spec_of,
        path=path_of,
    message:
        "Fetch the collection {wildcards.label}"
    shell:
        "HF_HUB_OFFLINE=0 python -m colbert_zero.data.fetch --spec {params.spec:q} --path={params.path:q} 2> {log:q}"


rule fetch_base:
    input:
        made_from,
    output:
        "resources/bases/{origin}.{label}-{key}/spec.json",
    log:
        "logs/bases/{origin}.{label}-{key}.log",
    benchmark:
        "benchmarks/bases/{origin}.{label}-{key}.tsv"
    conda:
        "../../envs/host.yaml"
    params:
        spec=spec_of,
        path=path_of,
    message:
        "Fetch the model {wildcards.label}"
    shell:
        "HF_HUB_OFFLINE=0 python -m colbert_zero.data.fetch --spec {params.spec:q} --path={params.path:q} 2> {log:q}"


rule build_base:
    input:
        made_from,
        image=image_file("torch"),
    output:
        "resources/bases/random.{label}-{key}/spec.json",
    log:
        "logs/bases/random.{label}-{key}.log",
    benchmark:
        "benchmarks/bases/random.{label}-{key}.tsv"
    container:
        image("torch")
    threads: asked("build_base", "threads")
    resources:
        mem_mb=asked("build_base", "mem_mb"),
        runtime=asked("build_base", "runtime"),
        slurm_extra=slurm_extra("build_base"),
    params:
        spec=spec_of,
    message:
        "Make the untrained model {wildcards.label}"
    shell:
        "python -m colbert_zero.models.random_base --spec {params.spec:q} --threads {threads} 2> {log:q}"
