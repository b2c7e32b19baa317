# Jobs that share the work of a step: `resources: { STEP: { jobs: 8 } }` gives each of its artifacts eight, for each part
# of the work. The step's own rule then finds all work done, and publishes the artifact.


ruleorder: share_lucene_work > share_work


rule share_work:
    input:
        input_specs,
        files_again,
        shares_before,
        image=image_file("torch"),
    output:
        temp(touch("results/state/{kind}/{label}-{key}.{part}-{share}-of-{jobs}")),
    log:
        "logs/{kind}/{label}-{key}.{part}-{share}-of-{jobs}.log",
    benchmark:
        "benchmarks/{kind}/{label}-{key}.{part}-{share}-of-{jobs}.tsv"
    wildcard_constraints:
        kind="[a-z]+",
        part="[a-z]+",
        share="[0-9]+",
        jobs="[0-9]+",
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
    message:
        "Work on {wildcards.kind}/{wildcards.label}: the {wildcards.part}, share {wildcards.share} of {wildcards.jobs}"
    shell:
        "python -m {params.command:q} --spec {params.spec:q} --part {wildcards.part} --share {wildcards.share} "
        "--jobs {wildcards.jobs} --threads {threads} 2> {log:q}"


rule share_lucene_work:
    input:
        input_specs,
        shares_before,
        image=image_file("lucene"),
    output:
        temp(touch("results/state/{kind}/{label}-{key}.{part}-{share}-of-{jobs}")),
    log:
        "logs/{kind}/{label}-{key}.{part}-{share}-of-{jobs}.log",
    benchmark:
        "benchmarks/{kind}/{label}-{key}.{part}-{share}-of-{jobs}.tsv"
    wildcard_constraints:
        kind="candidates",
        label=r"bm25\.[^/]+",
        part="[a-z]+",
        share="[0-9]+",
        jobs="[0-9]+",
    retries: RESUMING_RETRIES
    container:
        image("lucene")
    threads: for_step(resource, "threads")
    resources:
        mem_mb=for_step(resource, "mem_mb"),
        runtime=for_step(resource, "runtime"),
        slurm_extra=for_step(slurm_extra),
    params:
        spec=spec_file,
        command=step_command,
        heap_mb=heap_mb,
    message:
        "Work on {wildcards.kind}/{wildcards.label}: the {wildcards.part}, share {wildcards.share} of {wildcards.jobs}"
    shell:
        "python -m {params.command:q} --spec {params.spec:q} --part {wildcards.part} --share {wildcards.share} "
        "--jobs {wildcards.jobs} --threads {threads} --heap-mb {params.heap_mb} 2> {log:q}"
