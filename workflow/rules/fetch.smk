# Sources, collections and base models. Only the rules fetch_* may use the network.


rule read_docstrings_source:
    input:
        input_specs,
        image=image_file("torch"),
    output:
        "resources/sources/package.{label}-{key}/spec.json",
    log:
        "logs/sources/package.{label}-{key}.log",
    benchmark:
        "benchmarks/sources/package.{label}-{key}.tsv"
    priority: 1
    container:
        image("torch")
    threads: resource("read_docstrings", "threads")
    resources:
        mem_mb=resource("read_docstrings", "mem_mb"),
        runtime=resource("read_docstrings", "runtime"),
        slurm_extra=slurm_extra("read_docstrings"),
    params:
        spec=spec_file,
    message:
        "Read the documentation of {wildcards.label}"
    shell:
        "python -m colbert_zero.data.docstrings --spec {params.spec:q} --threads {threads} 2> {log:q}"


rule read_docstrings_collection:
    input:
        input_specs,
        image=image_file("torch"),
    output:
        "resources/collections/package.{label}-{key}/spec.json",
    log:
        "logs/collections/package.{label}-{key}.log",
    benchmark:
        "benchmarks/collections/package.{label}-{key}.tsv"
    container:
        image("torch")
    threads: resource("read_docstrings", "threads")
    resources:
        mem_mb=resource("read_docstrings", "mem_mb"),
        runtime=resource("read_docstrings", "runtime"),
        slurm_extra=slurm_extra("read_docstrings"),
    params:
        spec=spec_file,
    message:
        "Read the held-out documentation of {wildcards.label}"
    shell:
        "python -m colbert_zero.data.docstrings --spec {params.spec:q} --threads {threads} 2> {log:q}"


rule fetch_source:
    input:
        input_specs,
    output:
        "resources/sources/{origin}.{label}-{key}/spec.json",
    log:
        "logs/sources/{origin}.{label}-{key}.log",
    benchmark:
        "benchmarks/sources/{origin}.{label}-{key}.tsv"
    priority: 1
    conda:
        "../../envs/host.yaml"
    params:
        spec=spec_file,
        path=local_path,
    message:
        "Fetch the source {wildcards.label}"
    shell:
        "HF_HUB_OFFLINE=0 python -m colbert_zero.data.fetch --spec {params.spec:q} --path={params.path:q} 2> {log:q}"


rule fetch_collection:
    input:
        input_specs,
    output:
        "resources/collections/{origin}.{label}-{key}/spec.json",
    log:
        "logs/collections/{origin}.{label}-{key}.log",
    benchmark:
        "benchmarks/collections/{origin}.{label}-{key}.tsv"
    conda:
        "../../envs/host.yaml"
    params:
        spec=spec_file,
        path=local_path,
    message:
        "Fetch the collection {wildcards.label}"
    shell:
        "HF_HUB_OFFLINE=0 python -m colbert_zero.data.fetch --spec {params.spec:q} --path={params.path:q} 2> {log:q}"


rule fetch_base:
    input:
        input_specs,
    output:
        "resources/bases/{origin}.{label}-{key}/spec.json",
    log:
        "logs/bases/{origin}.{label}-{key}.log",
    benchmark:
        "benchmarks/bases/{origin}.{label}-{key}.tsv"
    priority: 1
    conda:
        "../../envs/host.yaml"
    params:
        spec=spec_file,
        path=local_path,
    message:
        "Fetch the model {wildcards.label}"
    shell:
        "HF_HUB_OFFLINE=0 python -m colbert_zero.data.fetch --spec {params.spec:q} --path={params.path:q} 2> {log:q}"


rule build_base:
    input:
        input_specs,
        image=image_file("torch"),
    output:
        "resources/bases/random.{label}-{key}/spec.json",
    log:
        "logs/bases/random.{label}-{key}.log",
    benchmark:
        "benchmarks/bases/random.{label}-{key}.tsv"
    priority: 1
    container:
        image("torch")
    threads: resource("build_base", "threads")
    resources:
        mem_mb=resource("build_base", "mem_mb"),
        runtime=resource("build_base", "runtime"),
        slurm_extra=slurm_extra("build_base"),
    params:
        spec=spec_file,
    message:
        "Make the untrained model {wildcards.label}"
    shell:
        "python -m colbert_zero.models.random_base --spec {params.spec:q} --threads {threads} 2> {log:q}"
