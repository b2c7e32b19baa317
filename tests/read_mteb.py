"""Read results with MTEB, with the packages of `.venv/peers`, and say what it knows of its tasks; without a network.

    PYTHONPATH=.venv/peers python tests/read_mteb.py FOLDER TASK ...

Writes JSON: `results`, by model and revision the main score of each task; `types`, by model; `frame`, the columns of
MTEB's own table of them; and of the tasks that are named, `tasks`: repository, revision, splits, main score.
"""

import json
import sys
from pathlib import Path

import mteb
from mteb.models.model_meta import ModelMeta


def results(folder):
    read = mteb.ResultCache(folder).load_results()
    return {
        f"{model.model_name} {model.model_revision}": {
            result.task_name: result.validate_and_filter_scores().get_score() for result in model.task_results
        }
        for model in read.model_results
    }


def types(folder):
    """What each model is, by a validation that refuses a field that MTEB does not know."""
    metas = [
        ModelMeta.model_validate_json_resolved(path.read_bytes()) for path in Path(folder).rglob("model_meta.json")
    ]
    return {meta.name: meta.model_type for meta in metas}


def task(name):
    metadata = mteb.get_task(name).metadata
    return [metadata.dataset["path"], metadata.revision, metadata.eval_splits, metadata.main_score]


if __name__ == "__main__":
    folder, *names = sys.argv[1:]
    frame = mteb.ResultCache(folder).load_results().to_dataframe()
    answer = {"results": results(folder), "types": types(folder), "frame": list(frame.columns)}
    print(json.dumps(answer | {"tasks": {name: task(name) for name in names}}))
