# The whole study as one graph: from raw text to the table.
#
#   snakemake --profile local            the embedded study, on this machine
#   snakemake --profile slurm            the paper's study, on a cluster
#   snakemake --profile slurm released   only its rows that need no training
#   snakemake --profile slurm release    each recipe's model as a folder to publish
#   snakemake --profile slurm images     only the Apptainer images that the others run in
#   snakemake --profile local --directory MYSTUDY     a study of your own: a folder with a config.yaml
#
# Every artifact is a folder named by what decides it. A changed setting gives new names to the artifacts that it
# decides: only those are made, and the old ones stay.
import sys

from snakemake.utils import min_version

min_version("9.20")


include: "workflow/rules/common.smk"
include: "workflow/rules/images.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/shards.smk"
include: "workflow/rules/shares.smk"
include: "workflow/rules/mining.smk"
include: "workflow/rules/teaching.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/evaluation.smk"
include: "workflow/rules/audit.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/release.smk"


localrules:
    all,
    released,
    release,
    images,
    build_image,
    fetch_source,
    fetch_collection,
    fetch_base,
    write_report,
    release_model,


rule all:
    default_target: True
    input:
        study.report.folder / "spec.json",
    message:
        "The study {study.name} is complete: {study.report.folder}/report.html"


rule released:
    input:
        study.released.folder / "spec.json",
    message:
        "The models that are not trained here are compared: {study.released.folder}/report.html"


rule release:
    input:
        [spec.folder / "spec.json" for spec in study.releases.values()],
    message:
        "The models of the study {study.name} are in results/releases, ready to be published"


rule images:
    input:
        [image.file for image in IMAGES.values() if image.is_built_here],
    message:
        "The images are complete: {input}"
