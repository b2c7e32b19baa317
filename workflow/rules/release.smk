# Releases: each recipe's model as a folder that can be published. Publishing it is left to the user.


rule release_model:
    input:
        input_specs,
        image=image_file("torch"),
    output:
        "results/releases/{label}-{key}/spec.json",
    log:
        "logs/releases/{label}-{key}.log",
    benchmark:
        "benchmarks/releases/{label}-{key}.tsv"
    container:
        image("torch")
    params:
        spec=spec_file,
    message:
        "Release the model of {wildcards.label}"
    shell:
        "python -m colbert_zero.report.release --spec {params.spec:q} 2> {log:q}"
