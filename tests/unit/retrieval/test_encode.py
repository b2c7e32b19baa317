"""Encoding: the vectors are PyLate's, whatever texts are encoded together."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from colbert_zero.models.colbert import EncodingSettings, load_colbert
from colbert_zero.retrieval import encode
from colbert_zero.retrieval.encode import Encoder, encode_texts, texts_per_chunk
from colbert_zero.retrieval.vectors import TokenVectors, VectorWriter

WORDS = ["query", "document", "similarity", "model", "sums", "brown", "fox", "lazy", "prompts", ",", ".", "!", "(", ")"]
GENERATOR = np.random.default_rng(5)
TEXTS = [" ".join(GENERATOR.choice(WORDS, size)) for size in GENERATOR.integers(0, 60, 150)]
UNIT = 2.0**-10
"""Twice the distance of two half-precision numbers just below 1."""


def load(folder: Path, *, expansion: bool = False) -> Any:
    return load_colbert(folder, EncodingSettings("search_query: ", "search_document: ", 24, 40, expansion))


def vectors_of(model: Any, *, is_query: bool = False, precision: str = "fp32") -> list[Any]:
    encoder = Encoder(model, is_query=is_query, precision=precision)
    return encoder.encode(encoder.tokenize(TEXTS)())


def pylate_vectors(model: Any, *, is_query: bool = False, batch_size: int = 64) -> list[Any]:
    name = "query" if is_query else "document"
    found: list[Any] = model.encode(
        TEXTS, prompt_name=name, is_query=is_query, batch_size=batch_size, show_progress_bar=False
    )
    return found


@pytest.mark.parametrize("base", ["modernbert", "bert"])
@pytest.mark.parametrize(("is_query", "expansion"), [(False, False), (True, False), (True, True)])
def test_vectors_are_pylates(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, base: str, is_query: bool, expansion: bool
) -> None:
    model = load(request.getfixturevalue(base), expansion=expansion)
    monkeypatch.setitem(encode.TOKENS_PER_BATCH, "cpu", 500)
    pairs = list(zip(vectors_of(model, is_query=is_query), pylate_vectors(model, is_query=is_query), strict=True))
    assert [len(ours) for ours, _ in pairs] == [len(theirs) for _, theirs in pairs]
    ours, theirs = (np.concatenate(side) for side in zip(*pairs, strict=True))
    assert ours.dtype == np.float16
    np.testing.assert_allclose(ours.astype(np.float32), theirs, atol=UNIT, rtol=0)
    # Other batches change the last bit of what is rounded, where they change anything.
    assert np.mean(ours != theirs.astype(np.float16)) < 0.02


def test_in_the_same_batches_every_bit_is_pylates(modernbert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(modernbert)
    monkeypatch.setitem(encode.TOKENS_PER_BATCH, "cpu", 1)
    alone = [matrix.astype(np.float16) for matrix in pylate_vectors(model, batch_size=1)]
    for ours, theirs in zip(vectors_of(model), alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_neither_threads_nor_how_many_texts_one_tokenises_change_a_bit(
    modernbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(modernbert)
    expected = vectors_of(model)
    monkeypatch.setattr(encode, "TEXTS_PER_TASK", 7)
    encoder = Encoder(model, is_query=False)
    # As on a GPU, where there are several threads.
    monkeypatch.setattr(encoder, "_threads", 5)
    monkeypatch.setattr(encoder, "_pool", ThreadPoolExecutor(5))
    for ours, before in zip(encoder.encode(encoder.tokenize(TEXTS)()), expected, strict=True):
        np.testing.assert_array_equal(ours, before)


def test_each_thread_has_a_tokenizer_of_its_own_and_none_is_copied_twice(
    modernbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "TEXTS_PER_TASK", 7)
    encoder = Encoder(load(modernbert), is_query=False)
    assert encoder._threads == 1, "on a CPU the threads are the model's"
    monkeypatch.setattr(encoder, "_threads", 3)
    for _ in range(2):
        encoder.tokenize(TEXTS)()
    tokenizers = [encoder._tokenizers.get() for _ in range(encoder._tokenizers.qsize())]
    assert len({id(tokenizer) for tokenizer in tokenizers}) == len(tokenizers) == 3


@pytest.mark.parametrize(("is_query", "size"), [(True, 10), (False, 6)])
def test_a_chunk_has_so_many_tokens_of_the_side_s_length(
    modernbert: Path, monkeypatch: pytest.MonkeyPatch, is_query: bool, size: int
) -> None:
    monkeypatch.setattr(encode, "TOKENS_PER_CHUNK", 240)
    written: list[int] = []
    writer: Any = SimpleNamespace(write=lambda ids, matrices: written.append(len(ids)))
    encode_texts(load(modernbert), ((str(at), text) for at, text in enumerate(TEXTS[:30])), writer, is_query=is_query)
    assert written == [size] * (30 // size)


def test_long_texts_are_fewer_in_a_chunk_and_each_pair_is_written_once(
    modernbert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [texts_per_chunk(length) for length in (32, 512, 513, 8192, 2**21)] == [2048, 2048, 2044, 128, 1]
    model = load(modernbert)
    expected = vectors_of(model)
    monkeypatch.setattr(encode, "TEXTS_PER_CHUNK", 40)
    with VectorWriter(tmp_path, "documents") as writer:
        encode_texts(model, ((f"d{number}", text) for number, text in enumerate(TEXTS)), writer, is_query=False)
    found = TokenVectors.open(writer.vectors_file, writer.texts_file)
    assert found.ids == [f"d{number}" for number in range(len(TEXTS))]
    assert found.lengths.tolist() == [len(matrix) for matrix in expected]
    np.testing.assert_allclose(found.vectors.float(), np.concatenate(expected).astype(np.float32), atol=UNIT, rtol=0)


def test_bf16_is_close_to_fp32_and_another_precision(modernbert: Path) -> None:
    model = load(modernbert)
    exact, rounded = (np.concatenate(vectors_of(model, precision=name)) for name in ("fp32", "bf16"))
    assert (exact != rounded).any()
    similarity = (exact.astype(np.float32) * rounded.astype(np.float32)).sum(axis=1)
    assert similarity.min() > 0.99


def test_tf32_is_for_the_time_of_encoding(modernbert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = load(modernbert), []
    embed = encode.embed

    def recorded(*arguments: Any) -> Any:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return embed(*arguments)

    monkeypatch.setattr(encode, "embed", recorded)
    before = torch.backends.cuda.matmul.allow_tf32
    for precision in ("tf32", "fp32"):
        vectors_of(model, precision=precision)
    assert set(seen[: len(seen) // 2]) == {True} and set(seen[len(seen) // 2 :]) == {False}
    assert torch.backends.cuda.matmul.allow_tf32 == before
