"""A study of the paper's shape: all rows of `config.yaml`, on texts and models of a few kilobytes, made in minutes.

    python tests/paper_shape.py FOLDER          makes the study's config and data in FOLDER
    python tests/paper_shape.py FOLDER --run    and all its artifacts, in this process and without Snakemake

What is read from outside is replaced: sources by files, models by folders of random weights, the published scores by
a teacher's, the 26 collections by two. Recipes, baselines, stages and prompts are those of `config.yaml`; one recipe
gets two seeds and one a sweep.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from colbert_zero.graph.paths import REPOSITORY

ROWS_PER_SOURCE = 24
THINGS = [
    *("anchor", "basket", "candle", "dragon", "engine", "falcon", "garden", "hammer", "island", "jacket", "kettle"),
    *("ladder", "magnet", "needle", "orange", "pepper", "quartz", "rabbit", "saddle", "tunnel", "violin", "walnut"),
]
DEEDS = ["carries", "covers", "finds", "follows", "keeps", "moves", "opens", "paints", "repairs", "washes"]
COLLECTIONS = ("fiqa", "scifact")
MINED = ("msmarco_distillation_simlm_rescored_reranked_min15", "nq_cocondensor_hn_mine_reranked_min15")
OTHER_MINED = ("hotpotqa_hn_mine_shuffled", "fever_hn_mine")
DENSE = ("modernbert-embed-base-unsupervised", "modernbert-embed-base", "gte-modernbert-base", "gte-base")
SEEDED, SEEDS = "supervised-distillation", [42, 43]
SWEPT, SWEEP = "distillation-only-shorter", {"learning_rate": [1.0e-3, 3.0e-3], "collections": ["scifact"]}


def _pairs(purpose: str, count: int) -> Iterator[tuple[str, str]]:
    """Questions about a thing and a deed, each with the sentence that answers it."""
    draw = random.Random(purpose)
    for number in range(count):
        first, second = draw.sample(THINGS, 2)
        deed = draw.choice(DEEDS)
        yield f"what {deed} the {second} {number}", f"the {first} {deed} the {second} in house {number}"


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_source(path: Path, name: str, *, negatives: bool) -> None:
    pairs = list(_pairs(name, ROWS_PER_SOURCE))
    others = [document for _, document in pairs]
    _write_lines(
        path,
        (
            {"query": query, "document": document}
            | ({"negatives": [others[number - 1], others[number - 2]]} if negatives else {})
            for number, (query, document) in enumerate(pairs)
        ),
    )


def _write_collection(folder: Path, name: str) -> None:
    pairs = list(_pairs(f"collection {name}", 30))
    _write_lines(
        folder / "corpus.jsonl",
        ({"_id": f"d{number}", "title": "", "text": document} for number, (_, document) in enumerate(pairs)),
    )
    queries = list(enumerate(pairs))[:10]
    _write_lines(folder / "queries.jsonl", ({"_id": f"q{number}", "text": query} for number, (query, _) in queries))
    (folder / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *(f"q{number}\td{number}\t1" for number, _ in queries)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_models(folder: Path, names: list[str]) -> None:
    """Dense models, released checkpoints and the teacher."""
    from tiny_models import dense_model, late_interaction_model, tiny_causal_lm, tiny_modernbert

    texts = [text for name in ("models", *MINED) for pair in _pairs(name, 60) for text in pair]
    base = tiny_modernbert(folder / "base", [*texts, "search_query: search_document:"], positions=1024)
    for name in names:
        if name in DENSE:
            dense_model(folder / name, base)
        elif name == "bge-reranker-v2-gemma":
            tiny_causal_lm(folder / name, [*texts, *["Yes"] * 200])
        elif name != "modernbert-base":
            has_prompts = "noprompts" not in name and "gte" not in name
            late_interaction_model(folder / name, base, has_prompts=has_prompts)


def config() -> dict[str, Any]:
    """The config: that of the paper, of which the sizes and what comes from outside are replaced."""
    paper: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    sources = ("nomic-unsupervised", "nomic-supervised", "bge-gemma-scores", *MINED, *OTHER_MINED)
    models = {name: {"folder": f"models/{name}"} for name in paper["models"]}
    models["modernbert-base"] = {
        "random": {
            "sources": ["nomic-unsupervised", *MINED],
            **{"layers": 1, "hidden": 32, "heads": 2, "intermediate": 48, "vocabulary": 400},
        }
    }
    small = {"batch_size": 8, "learning_rate": 3.0e-3, "precision": "fp32", "dimensions": 16}
    stages = {name: settings | small for name, settings in paper["stages"].items()}
    stages["supervised"]["negatives"] = 2
    stages["distillation"] |= {"documents": 4, "teacher": "bm25"}
    recipes = paper["recipes"]
    recipes[SEEDED]["seeds"] = SEEDS
    ((stage, settings),) = recipes[SWEPT]["stages"][0].items()
    recipes[SWEPT]["stages"] = [{stage: settings | {"sweep": SWEEP}}]
    miners = {name: miner | {"depth": 8} for name, miner in paper["miners"].items()}
    teacher = paper["teachers"]["bge-reranker"]
    return paper | {
        "study": "paper-shape",
        "sources": {name: {"file": f"data/{name}.jsonl"} for name in sources},
        "shards": paper["shards"] | {"rows_per_shard": 50},
        "models": models,
        "miners": miners,
        "mining": {name: mining | {"negatives": 2} for name, mining in paper["mining"].items()},
        "teachers": {
            "bge-reranker": teacher | {"documents": 4, "causal-lm": teacher["causal-lm"] | {"precision": "fp32"}},
            "bm25": {"bm25": {}, "miners": ["bm25"], "documents": 4},
        },
        "stages": stages,
        "recipes": recipes,
        "collections": {name: {"folder": f"data/{name}"} for name in COLLECTIONS},
        "resources": {},
    }


def write(folder: Path) -> None:
    """Write config, data and models into a folder, which does not exist yet."""
    settings = config()
    for name in settings["sources"]:
        _write_source(folder / "data" / f"{name}.jsonl", name, negatives=name == "nomic-supervised")
    for name in COLLECTIONS:
        _write_collection(folder / "data" / name, name)
    _write_models(folder / "models", list(settings["models"]))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def main() -> None:
    """Make the study, or only its config and data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", action="store_true", help="make all artifacts as well")
    options = parser.parse_args()
    if not options.folder.exists():
        write(options.folder)
    if options.run:
        from finished_study import make_missing

        make_missing(options.folder, lambda study: study.known.values())


if __name__ == "__main__":
    main()
