"""Laws of mining with BM25."""

from __future__ import annotations

from pathlib import Path

from pytest import MonkeyPatch

from bm25_texts import DOCUMENTS, K1, QUERIES, B
from colbert_zero.graph.artifact import Spec, run_step
from colbert_zero.mining import bm25 as mining_bm25
from colbert_zero.mining import candidates as mining_candidates
from colbert_zero.mining import negatives
from colbert_zero.mining.bm25 import PARTS, make
from colbert_zero.mining.candidates import read_candidates
from colbert_zero.retrieval.lucene import LuceneIndex, add_heap_option
from mined import publish_shards, publish_step, rows_in
from publishing import publish_collection


def test_candidates_are_the_best_documents_and_every_positive_is_scored(
    tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = publish_shards([(QUERIES[row], DOCUMENTS[row]) for row in range(150)] + [("zzz", "yyy")])
    spec = Spec("candidates", "bm25.mine", {"k1": K1, "b": B, "depth": 5}, {"shards": [source.name]})
    found = publish_step(make, spec, "--threads", "2", add_options=add_heap_option)
    assert found.facts["rows"] == 151 and found.facts["documents"] == 151
    rows = list(read_candidates(found))
    with LuceneIndex([*DOCUMENTS[:150], "yyy"], K1, B) as index:
        for number, (row, hits) in enumerate(zip(rows, index.search([*QUERIES[:150], "zzz"], 151), strict=True)):
            assert row.documents.tolist() == hits.documents[:5].tolist()
            assert row.scores.tolist() == hits.scores[:5].tolist()
            own = hits.scores[hits.documents == number].tolist() or [0.0]
            assert [row.positive_score] == own
    assert found.facts["rows_without_candidates"] == sum(not len(row.documents) for row in rows) > 0
    assert found.facts["positives_found"] == sum(number in row.documents for number, row in enumerate(rows))


def test_several_jobs_find_the_same_candidates_in_slices(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mining_candidates, "ROWS_PER_GROUP", 8)
    source = publish_shards([(QUERIES[row], DOCUMENTS[row]) for row in range(60)])
    settings, inputs = {"k1": K1, "b": B, "depth": 20}, {"shards": [source.name]}
    expected = publish_step(make, Spec("candidates", "bm25.mine", settings, inputs), add_options=add_heap_option)
    monkeypatch.setattr(mining_bm25.Bm25Mining, "documents_per_piece", 17)
    monkeypatch.setattr(mining_bm25.Bm25Mining, "queries_per_piece", 16)
    spec = Spec("candidates", "bm25.mine", settings | {"jobs": 3}, inputs)
    for part in PARTS:
        for share in ("3", "1", "2"):
            shared = ["--spec", spec.text, "--part", part, "--share", share, "--jobs", "3"]
            assert run_step(make, None, shared, add_options=add_heap_option, parts=PARTS) == 0
    for name in ("write_index", "LuceneSearcher"):
        monkeypatch.setattr(mining_bm25, name, None)
    found = publish_step(make, spec, add_options=add_heap_option)
    assert found.manifest["outputs"] == expected.manifest["outputs"]
    assert found.facts == expected.facts


def test_negatives_come_from_the_collection_that_is_mined_in(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = publish_shards([(DOCUMENTS[row][:40], DOCUMENTS[row]) for row in range(20)])
    others = {f"d{number}": text for number, text in enumerate(DOCUMENTS[20:120])}
    collection = publish_collection("toy", others, {"q": "x"}, {"q": {"d1": 1}})
    inputs = {"shards": [source.name], "corpus": [collection.name]}
    spec = Spec("candidates", "bm25.mine", {"k1": K1, "b": B, "depth": 50}, inputs)
    found = publish_step(make, spec, "--threads", "2", add_options=add_heap_option)
    assert (found.facts["rows"], found.facts["documents"]) == (20, 120)
    settings = {"p": 0.95, "negatives": 2, "skip": 0, "choose": "random", "seed": 1}
    made = publish_step(
        negatives.make,
        Spec("negatives", "mine", settings, {**inputs, "candidates": [found.name]}),
        parts=negatives.PARTS,
    )
    chosen = [text for row in rows_in(made) for text in row["negatives"]]
    assert {*chosen} & {*others.values()} and {*chosen} <= {*DOCUMENTS[:120]}
