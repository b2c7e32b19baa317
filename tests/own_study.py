"""A small study of one's own, with every stage: its config, and data to go with it."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq

LENGTHS = {"query_length": 32, "document_length": 64}
CONFIG = {
    "study": "own",
    "seed": 7,
    "prompts": {"search": {"query": "search_query: ", "document": "search_document: "}},
    "sources": {
        "lines": {"file": "data/lines.jsonl", "columns": {"query": "question", "document": "answer"}},
        "table": {"file": "data/table.parquet"},
    },
    "shards": {"rows_per_shard": 50},
    "models": {
        "small": {"random": {"sources": ["lines", "table"], "hidden": 32, "intermediate": 32, "vocabulary": 800}}
    },
    "miners": {"bm25": {"bm25": {}, "depth": 20}, "lsa": {"lsa": {"dimensions": 8}, "depth": 20}},
    "mining": {"fused": {"miners": ["bm25", "lsa"], "negatives": 2, "judge": {"teacher": "bm25"}}},
    "teachers": {
        "bm25": {"bm25": {}, "miners": ["bm25", "lsa"], "documents": 4},
        "binary": {"bm25": {"k1": 0.0}, "miners": ["bm25", "lsa"], "documents": 4},
        "both": {"ensemble": {"members": ["bm25", "binary"]}},
    },
    "stages": {
        "unsupervised": {"batch_size": 16, "epochs": 10, "learning_rate": 3.0e-3, "temperature": 0.2},
        "supervised": {
            "batch_size": 8,
            "learning_rate": 1.0e-3,
            "temperature": 0.2,
            "mining": "fused",
            "negatives": 2,
        },
        "distillation": {"batch_size": 8, "learning_rate": 1.0e-3, "teacher": "both", "documents": 4},
    },
    "recipes": {
        "all": {
            "base": "small",
            "every_stage": {"sources": ["lines", "table"], "prompts": "search", **LENGTHS},
            "stages": ["unsupervised", "supervised", "distillation"],
        }
    },
    "baselines": {"bm25": {"bm25": {}}},
    "collections": {"mine": {"folder": "data/mine"}},
}


def write_data(folder):
    """Pairs whose query and document share a topic's words, and a collection of the same kind."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 8))) for _ in range(400)]

    def text(topic, size):
        topical = words[topic * 10 : topic * 10 + 10]
        return " ".join(rng.choice(topical if rng.random() < 0.6 else words) for _ in range(size))

    pairs = [(text(row % 40, 6), text(row % 40, 20)) for row in range(240)]
    (folder / "mine" / "qrels").mkdir(parents=True)
    with (folder / "lines.jsonl").open("w") as file:
        file.writelines(json.dumps({"question": query, "answer": document}) + "\n" for query, document in pairs[:120])
    queries, documents = zip(*pairs[120:], strict=True)
    pq.write_table(pa.table({"query": queries, "document": documents}), folder / "table.parquet")
    with (folder / "mine" / "corpus.jsonl").open("w") as corpus, (folder / "mine" / "queries.jsonl").open("w") as asked:
        for topic in range(40):
            corpus.write(json.dumps({"_id": f"d{topic}", "title": None, "text": text(topic, 20)}) + "\n")
            asked.write(json.dumps({"_id": f"q{topic}", "text": text(topic, 6)}) + "\n")
    judgements = "".join(f"q{topic}\td{topic}\t1\n" for topic in range(40)) + "q0\tnowhere\t1\n"
    (folder / "mine" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judgements)
