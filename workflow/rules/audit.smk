# The audit: texts of the test in the training rows, and whether everything below the table is as it was made.


rule find_contamination:
    input:
        input_specs,
        image=image_file("torch"),
    output:
        "results/contamination/{label}-{key}/spec.json",
    log:
        "logs/contamination/{label}-{key}.log",
    benchmark:
        "benchmarks/contamination/{label}-{key}.tsv"
    container:
        image("torch")
    threads: resource("find_contamination", "threads")
    resources:
        mem_mb=resource("find_contamination", "mem_mb"),
        runtime=resource("find_contamination", "runtime"),
        slurm_extra=slurm_extra("find_contamination"),
    params:
        spec=spec_file,
    message:
        "Look for texts of the test in the training rows of {wildcards.label}"
    shell:
        "python -m colbert_zero.audit.find_contamination --spec {params.spec:q} --threads {threads} 2> {log:q}"


# No container: like planning, verifying takes what a login node has, and the plan's own code, which images do not hold.
rule audit_study:
    input:
        input_specs,
    output:
        "results/audits/{label}-{key}/spec.json",
    log:
        "logs/audits/{label}-{key}.log",
    benchmark:
        "benchmarks/audits/{label}-{key}.tsv"
    conda:
        "../../envs/host.yaml"
    threads: resource("audit_study", "threads")
    resources:
        mem_mb=resource("audit_study", "mem_mb"),
        runtime=resource("audit_study", "runtime"),
        slurm_extra=slurm_extra("audit_study"),
    params:
        spec=spec_file,
    message:
        "Verify everything below the table of {wildcards.label}"
    shell:
        "python -m colbert_zero.audit.study_audit --spec {params.spec:q} --threads {threads} 2> {log:q}"


# `snakemake audit`, of a study whose config does not end with one: `snakemake audit --config audit=True`.
if study.audit is not None:

    localrules:
        audit,

    rule audit:
        input:
            study.audit.folder / "spec.json",
        message:
            "The study {study.name} is audited: {study.audit.folder}/audit.json"
