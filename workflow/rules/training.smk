# The three stages: one rule, since they differ in their settings only. It goes first: the longest chains are its jobs'.


rule train_stage:
    input:
        made_from,
        evaluations,
        image=image_file("torch"),
    output:
        "results/models/{label}-{key}/spec.json",
    log:
        "logs/models/{label}-{key}.log",
    benchmark:
        "benchmarks/models/{label}-{key}.tsv"
    wildcard_constraints:
        key=f"(?!{'|'.join(spec.key for spec in on_several_nodes()) or 'none'})[0-9a-f]{{12}}",
    priority: 1
    retries: RETRIES_OF_TRAINING
    container:
        image("torch")
    threads: of_stage(asked, "threads")
    resources:
        mem_mb=of_stage(asked, "mem_mb"),
        runtime=of_stage(asked, "runtime"),
        gpu=of_stage(gpu),
        slurm_extra=slurm_extra_of_training,
    params:
        spec=spec_of,
        rows=rows_of,
        gpus=of_stage(asked, "gpu"),
        flags=flags_of_training,
    message:
        "Train the {wildcards.label} stage of {params.rows}"
    shell:
        "python -m colbert_zero.machine.launch --gpus {params.gpus} --threads {threads} -- "
        "--spec {params.spec:q} {params.flags:q} 2> {log:q}"


# The same on several nodes. It has no container, since srun is not inside of one: srun starts the image on each node.
rule train_stage_on_nodes:
    input:
        made_from,
        evaluations,
        image=image_file("torch"),
    output:
        "results/models/{label}-{key}/spec.json",
    log:
        "logs/models/{label}-{key}.log",
    benchmark:
        "benchmarks/models/{label}-{key}.tsv"
    wildcard_constraints:
        key="|".join(spec.key for spec in on_several_nodes()) or "none",
    priority: 1
    retries: RETRIES_OF_TRAINING
    conda:
        "../../envs/host.yaml"
    threads: of_stage(asked, "threads")
    resources:
        mem_mb=of_stage(asked, "mem_mb"),
        runtime=of_stage(asked, "runtime"),
        nodes=of_stage(asked, "nodes"),
        tasks=of_stage(asked, "nodes"),
        mpi="srun",
        slurm_extra=slurm_extra_of_training,
    params:
        spec=spec_of,
        rows=rows_of,
        gpus=of_stage(asked, "gpu"),
        flags=flags_of_training,
        image=image("torch") if in_images else "",
        apptainer=workflow.deployment_settings.apptainer_args,
    message:
        "Train the {wildcards.label} stage of {params.rows} on {resources.nodes} nodes"
    shell:
        "python -m colbert_zero.machine.launch --gpus {params.gpus} --threads {threads} --nodes {resources.nodes} "
        "--image={params.image:q} --apptainer-args={params.apptainer:q} -- "
        "--spec {params.spec:q} {params.flags:q} 2> {log:q}"
