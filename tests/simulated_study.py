"""A study of the paper's shape and of any size, of generated texts, with models that compute next to nothing.

    python tests/simulated_study.py FOLDER --documents 1000000 --queries 100000

makes its config, data and models in FOLDER. It has BEIR's collections but for the forums, which share the documents in
the proportions of the registry, as they share a half of the queries; the other half are rows to mine negatives for, and
rows for a teacher. Words come from Zipf's distribution; a query is some of the words of its document, and has one
answer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from colbert_zero.graph.paths import WORKFLOW

WORDS, EXPONENT = 20_000, 1.1
"""Size of the vocabulary, and by how much the frequency of its words falls with their rank."""
DOCUMENT_WORDS, QUERY_WORDS = 7, 3
TEXTS_PER_DRAW = 65_536
LETTERS = "bcdfghjklmnprstvwz", "aeiou"
COMMON = {"query_length": 16, "document_length": 32}


def word(number: int) -> str:
    """The word with a number: three syllables, others than those of any other."""
    consonants, vowels = LETTERS
    syllables = []
    for _ in range(3):
        number, place = divmod(number, len(consonants) * len(vowels))
        syllables.append(consonants[place // len(vowels)] + vowels[place % len(vowels)])
    return "".join(syllables)


VOCABULARY = np.array([word(number * 7919 % 729_000) for number in range(WORDS)])


def texts(purpose: int, count: int) -> Iterator[tuple[str, str]]:
    """Draw so many queries, each with the document that answers it; `purpose` seeds them."""
    frequencies = np.arange(1, WORDS + 1.0) ** -EXPONENT
    bounds = np.cumsum(frequencies / frequencies.sum())
    generator = np.random.default_rng(purpose)
    for start in range(0, count, TEXTS_PER_DRAW):
        size = min(TEXTS_PER_DRAW, count - start)
        numbers = np.minimum(np.searchsorted(bounds, generator.random((size, DOCUMENT_WORDS))), WORDS - 1)
        documents, queries = _join(numbers), _join(generator.permuted(numbers, axis=1)[:, :QUERY_WORDS])
        # A number of its own keeps two texts from being the same.
        for place in range(size):
            yield f"{queries[place]}", f"{documents[place]} {start + place}"


def _join(numbers: npt.NDArray[np.int64]) -> list[str]:
    return [" ".join(row) for row in VOCABULARY[numbers].tolist()]


def collection_sizes(documents: int, queries: int) -> dict[str, tuple[int, int]]:
    """By collection, how many of so many documents and queries it has, ten at least."""
    registry = yaml.safe_load((WORKFLOW / "registry" / "collections.yaml").read_text(encoding="utf-8"))["collections"]
    some = {name: entry for name, entry in registry.items() if not name.startswith("cqadupstack")}
    totals = [sum(entry[key] for entry in some.values()) for key in ("documents", "queries")]
    sizes = {}
    for name, entry in some.items():
        of_documents, of_queries = (
            max(10, round(wanted * entry[key] / total))
            for wanted, key, total in zip((documents, queries), ("documents", "queries"), totals, strict=True)
        )
        sizes[name] = of_documents, min(of_documents, of_queries)
    return sizes


def config(documents: int, queries: int) -> dict[str, Any]:
    """The study's config."""
    stage = {"prompts": "search", "batch_size": 32, "learning_rate": 1.0e-3, "dimensions": 16} | COMMON
    return {
        "study": "simulated",
        "prompts": {"search": {"query": "search_query: ", "document": "search_document: "}},
        "sources": {name: {"file": f"data/{name}.jsonl"} for name in ("mined", "taught")},
        "shards": {"rows_per_shard": 10_000},
        "models": {name: {"folder": f"models/{name}"} for name in ("base", "dense", "teacher")},
        "miners": {
            "bm25": {"bm25": {}, "depth": 30},
            "dense": {"encoder": {"model": "dense", "maximum_length": 32}, "depth": 30},
        },
        "mining": {"fused": {"miners": ["bm25", "dense"], "negatives": 3, "choose": "random", "near_duplicates": 0.9}},
        "teachers": {
            "stand-in": {
                "cross-encoder": {"model": "teacher", "maximum_length": 64},
                "miners": ["bm25"],
                "documents": 8,
            }
        },
        "stages": {
            "supervised": stage | {"sources": ["mined"], "mining": "fused", "negatives": 3, "temperature": 0.2},
            "distillation": stage | {"sources": ["taught"], "teacher": "stand-in", "documents": 8},
        },
        "recipes": {"simulated": {"base": "base", "stages": ["supervised", "distillation"]}},
        "baselines": {"bm25": {"bm25": {}}},
        "evaluation": {"keep_indexes": False},
        "collections": {name: {"folder": f"data/{name}"} for name in collection_sizes(documents, queries)},
        # One thread each, so that the bytes are the same however many jobs there are at once.
        "resources": {
            "default": {"threads": 1, "mem_mb": 3000},
            **{stage: {"checkpoint_seconds": 10} for stage in ("supervised", "distillation")},
        },
    }


def write(folder: Path, documents: int, queries: int) -> None:
    """Write config, data and models into a folder, which does not exist yet."""
    evaluated = queries // 2
    rows = {"mined": (queries - evaluated) * 3 // 4, "taught": (queries - evaluated) // 4}
    settings = config(documents - sum(rows.values()), evaluated)
    folder.mkdir(parents=True)
    (folder / "data").mkdir()
    for purpose, (name, count) in enumerate(rows.items()):
        with (folder / "data" / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for query, document in texts(purpose, count):
                file.write(json.dumps({"query": query, "document": document}) + "\n")
    for purpose, (name, sizes) in enumerate(collection_sizes(documents - sum(rows.values()), evaluated).items(), 100):
        _write_collection(folder / "data" / name, purpose, *sizes)
    _write_models(folder / "models")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def _write_collection(folder: Path, purpose: int, documents: int, queries: int) -> None:
    (folder / "qrels").mkdir(parents=True)
    with (
        (folder / "corpus.jsonl").open("w", encoding="utf-8") as corpus,
        (folder / "queries.jsonl").open("w", encoding="utf-8") as asked,
        (folder / "qrels" / "test.tsv").open("w", encoding="utf-8") as judged,
    ):
        judged.write("query-id\tcorpus-id\tscore\n")
        for number, (query, document) in enumerate(texts(purpose, documents)):
            corpus.write(json.dumps({"_id": f"d{number}", "title": "", "text": document}) + "\n")
            if number < queries:
                asked.write(json.dumps({"_id": f"q{number}", "text": query}) + "\n")
                judged.write(f"q{number}\td{number}\t1\n")


def _write_models(folder: Path) -> None:
    from tiny_models import dense_model, tiny_bert, tiny_cross_encoder, tiny_modernbert

    base = tiny_modernbert(folder / "base", [*VOCABULARY.tolist(), "search_query: search_document:"])
    dense_model(folder / "dense", base)
    tiny_cross_encoder(folder / "teacher", tiny_bert(folder / "bert", VOCABULARY.tolist()))


def main() -> None:
    """Write a study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=100_000)
    options = parser.parse_args()
    write(options.folder, options.documents, options.queries)


if __name__ == "__main__":
    main()
