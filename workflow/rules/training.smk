# The three stages: one rule, since only their settings differ. It has priority, as all have that make what it trains
# on: the longest chains are of its jobs, and the indexes of rows without training can wait.


rule train_stage:
    input:
        input_specs,
        evaluation_inputs,
        image=image_file("torch"),
    output:
        "results/models/{label}-{key}/spec.json",
    log:
        "logs/models/{label}-{key}.log",
    benchmark:
        "benchmarks/models/{label}-{key}.tsv"
    wildcard_constraints:
        key=f"(?!{'|'.join(spec.key for spec in multi_node_models()) or 'none'})[0-9a-f]{{12}}",
    priority: 1
    retries: RESUMING_RETRIES
    container:
        image("torch")
    threads: for_stage(resource, "threads")
    resources:
        mem_mb=for_stage(resource, "mem_mb"),
        runtime=for_stage(resource, "runtime"),
        gpu=for_stage(gpu),
        slurm_extra=training_slurm_extra,
    params:
        spec=spec_file,
        rows=row_names,
        gpus=for_stage(resource, "gpu"),
        flags=training_flags,
    message:
        "Train the {wildcards.label} stage of {params.rows}"
    shell:
        "python -m colbert_zero.machine.launch --gpus {params.gpus} --threads {threads} -- "
        "--spec {params.spec:q} {params.flags:q} 2> {log:q}"


# Of the models that a stage is trained with several values of a setting, the best.
rule select_model:
    input:
        input_specs,
        image=image_file("torch"),
    output:
        "results/selections/{label}-{key}/spec.json",
    log:
        "logs/selections/{label}-{key}.log",
    benchmark:
        "benchmarks/selections/{label}-{key}.tsv"
    priority: 1
    container:
        image("torch")
    params:
        spec=spec_file,
        rows=row_names,
    message:
        "Select the model of the {wildcards.label} stage of {params.rows}"
    shell:
        "python -m colbert_zero.training.selection --spec {params.spec:q} 2> {log:q}"


# The same on several nodes. The rule has no container, since an image has no srun: srun starts the image on each node.
rule train_stage_on_nodes:
    input:
        input_specs,
        evaluation_inputs,
        image=image_file("torch"),
    output:
        "results/models/{label}-{key}/spec.json",
    log:
        "logs/models/{label}-{key}.log",
    benchmark:
        "benchmarks/models/{label}-{key}.tsv"
    wildcard_constraints:
        key="|".join(spec.key for spec in multi_node_models()) or "none",
    priority: 1
    retries: RESUMING_RETRIES
    conda:
        "../../envs/host.yaml"
    threads: for_stage(resource, "threads")
    resources:
        mem_mb=for_stage(resource, "mem_mb"),
        runtime=for_stage(resource, "runtime"),
        nodes=for_stage(resource, "nodes"),
        tasks=for_stage(resource, "nodes"),
        mpi="srun",
        slurm_extra=training_slurm_extra,
    params:
        spec=spec_file,
        rows=row_names,
        gpus=for_stage(resource, "gpu"),
        flags=training_flags,
        image=image("torch") if use_images else "",
        apptainer=workflow.deployment_settings.apptainer_args,
    message:
        "Train the {wildcards.label} stage of {params.rows} on {resources.nodes} nodes"
    shell:
        "python -m colbert_zero.machine.launch --gpus {params.gpus} --threads {threads} --nodes {resources.nodes} "
        "--image={params.image:q} --apptainer-args={params.apptainer:q} -- "
        "--spec {params.spec:q} {params.flags:q} 2> {log:q}"
