# The table of a study: as Markdown, as CSV and as a page.


rule write_report:
    input:
        input_specs,
        image=image_file("torch"),
    output:
        "results/reports/{label}-{key}/spec.json",
    log:
        "logs/reports/{label}-{key}.log",
    benchmark:
        "benchmarks/reports/{label}-{key}.tsv"
    container:
        image("torch")
    params:
        spec=spec_file,
    message:
        "Write the report of {wildcards.label}"
    shell:
        "python -m colbert_zero.report.page --spec {params.spec:q} 2> {log:q}"
