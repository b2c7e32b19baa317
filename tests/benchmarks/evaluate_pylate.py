"""Encode and search a collection with PyLate, as its documentation has it.

    python evaluate_pylate.py JSON

Documents and queries are encoded by `encode`, and searched by a PLAID index with `retrieve.ColBERT`, and exactly by
`rank.rerank` of all documents.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pylate import indexes, rank, retrieve

from colbert_zero.data.beir import Collection
from colbert_zero.evaluation.texts import document_texts
from colbert_zero.models.colbert import EncodingSettings, load_colbert

TEXTS_PER_BATCH = 64


def main() -> None:
    """Do it, and print the seconds that each part took."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(asked["threads"])
    model: Any = load_colbert(Path(asked["model"]), EncodingSettings(**asked["encoding"]), asked["device"])
    collection = Collection.open(Path(asked["collection"]))
    ids, documents = zip(*document_texts(collection), strict=True)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = work()
        seconds[name] = time.monotonic() - started
        return result

    def encode(texts: Any, *, is_query: bool) -> Any:
        name = "query" if is_query else "document"
        return model.encode(
            list(texts), prompt_name=name, is_query=is_query, batch_size=TEXTS_PER_BATCH, show_progress_bar=False
        )

    vectors = timed("documents", lambda: encode(documents, is_query=False))
    queries = timed("queries", lambda: encode(collection.judged_queries.values(), is_query=True))
    np.save(asked["vectors"], np.concatenate(vectors))
    index = indexes.PLAID(index_folder=asked["index"], index_name="pylate", override=True, show_progress=False)
    timed("index", lambda: index.add_documents(documents_ids=list(ids), documents_embeddings=vectors))
    timed("plaid", lambda: retrieve.ColBERT(index=index).retrieve(queries, k=asked["depth"]))
    ours = [torch.from_numpy(matrix) for matrix in vectors]

    def rerank() -> None:
        for query in queries:
            rank.rerank([list(ids)], [torch.from_numpy(query)], [ours])

    timed("exact", rerank)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
