# Build the Apptainer images that the config does not give.


rule build_image:
    output:
        str(IMAGES["torch"].folder / "{image}-{key}.sif"),
    log:
        "logs/images/{image}-{key}.log",
    benchmark:
        "benchmarks/images/{image}-{key}.tsv"
    retries: 0
    conda:
        "../../envs/host.yaml"
    params:
        build=build_flags,
    message:
        "Build the image {wildcards.image}"
    shell:
        "python -m colbert_zero.machine.images --name {wildcards.image} --output {output:q} {params.build:q} 2> {log:q}"
