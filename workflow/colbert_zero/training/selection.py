"""Select one of the models that a stage trained with several values of a setting.

    python -m colbert_zero.training.selection --spec '{"kind":"selections","label":"supervised",...}'

The best is the one with the highest mean over collections of the mean over queries; of equal ones, the first. What is
published is its model, and a table of all values. The collections are no longer held out for it: a report says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from colbert_zero.evaluation.values import VALUES_FILE, mean_value, read_values
from colbert_zero.graph.artifact import Artifact, Job, step_main
from colbert_zero.graph.local_files import link_or_copy


def make(job: Job) -> Mapping[str, Any]:
    """Publish the files of the selected model.

    Returns:
        values (the setting's values of each model), means (what each has), selected (the values of the best),
        collections (what they were selected on), seconds (the training time of all).
    """
    models, measures = ([Artifact.open(name) for name in job.spec.inputs[role]] for role in ("models", "measures"))
    means = selection_means(job.settings["measure"], measures, len(models))
    best = means.index(max(means))
    for name in models[best].files():
        target = job.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(models[best].file(name), target)
    return {
        "values": job.settings["values"],
        "means": means,
        "selected": job.settings["values"][best],
        "model": models[best].name,
        "collections": [artifact.spec.label for artifact in measures[: len(measures) // len(models)]],
        "seconds": math.fsum(model.facts["seconds"] for model in models),
    }


def selection_means(measure: str, measures: Sequence[Artifact], models: int) -> list[float]:
    """The mean over collections of each model.

    Args:
        measure: The measure's name.
        measures: The measures of the first model, a collection each, then those of the second ...
        models: How many models there are.
    """
    values = [mean_value(read_values(artifact.file(VALUES_FILE))[measure]) for artifact in measures]
    collections = len(values) // models
    return [fmean(values[number * collections : (number + 1) * collections]) for number in range(models)]


if __name__ == "__main__":
    step_main(make, __doc__)
