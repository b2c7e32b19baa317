"""Token vectors on disk: what is written comes back, in however many parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from colbert_zero.graph.console import UserError
from colbert_zero.retrieval.vectors import SlicedTokenVectors, TokenVectors, VectorWriter


def test_vectors_begin_at_a_multiple_of_64_bytes_and_there_may_be_none(tmp_path: Path) -> None:
    with VectorWriter(tmp_path, "none") as writer:
        pass
    with writer.vectors_file.open("rb") as file:
        assert (8 + int.from_bytes(file.read(8), "little")) % 64 == 0
    assert TokenVectors.open(writer.vectors_file, writer.texts_file).vectors.shape == (0, 0)


def test_vectors_come_back_as_they_went_in_to_half_precision(tmp_path: Path) -> None:
    matrices = [np.linspace(-1, 1, 3 * size, dtype=np.float32).reshape(size, 3) for size in (2, 0, 5)]
    with VectorWriter(tmp_path, "documents") as writer:
        writer.write(["a", "b"], matrices[:2])
        writer.write(["ç"], matrices[2:])
    vectors = TokenVectors.open(writer.vectors_file, writer.texts_file)
    assert vectors.ids == ["a", "b", "ç"]
    assert vectors.offsets.tolist() == [0, 2, 2]
    torch.testing.assert_close(vectors.vectors, torch.from_numpy(np.concatenate(matrices)).half(), atol=0, rtol=0)
    with safe_open(writer.vectors_file, framework="pt") as file:
        assert list(file.keys()) == ["tokens"]


def test_a_vector_that_is_not_finite_is_refused_with_the_text_it_is_of(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'broken'"), VectorWriter(tmp_path, "documents") as writer:
        writer.write(["fine", "broken"], [np.ones((1, 2), np.float32), np.array([[1, np.nan]], np.float32)])
    assert not writer.texts_file.exists()


def test_texts_in_several_parts_are_written_as_one(tmp_path: Path) -> None:
    matrices = {name: np.full((size, 4), size / 8, np.float32) for name, size in (("a", 2), ("b", 0), ("c", 3))}
    with VectorWriter(tmp_path, "whole") as whole:
        whole.write(matrices, list(matrices.values()))
    parts = []
    for names in (["a"], ["b", "c"]):
        with VectorWriter(tmp_path, names[0]) as part:
            part.write(names, [matrices[name] for name in names])
        parts.append(TokenVectors.open(part.vectors_file, part.texts_file))
    with VectorWriter(tmp_path, "joined") as joined:
        for texts in parts:
            joined.copy(texts)
    for one, other in ((whole.vectors_file, joined.vectors_file), (whole.texts_file, joined.texts_file)):
        assert one.read_bytes() == other.read_bytes()


def test_texts_of_slices_are_taken_by_their_numbers(tmp_path: Path) -> None:
    lengths = [2, 0, 3, 1, 4]
    matrices = [np.full((length, 2), number, np.float32) for number, length in enumerate(lengths)]
    folders = []
    for start in (0, 2, 4):
        folders.append(tmp_path / str(start))
        folders[-1].mkdir()
        with VectorWriter(folders[-1], "documents") as writer:
            writer.write(map(str, range(start, min(start + 2, 5))), matrices[start : start + 2])
    sliced = SlicedTokenVectors(folders, "documents")
    for numbers in ([0, 1, 2, 3, 4], [1, 4], [2], [3, 4]):
        found = sliced.take(np.array(numbers))
        assert found.ids == list(map(str, numbers))
        assert found.lengths.tolist() == [lengths[number] for number in numbers]
        assert found.vectors[:, 1].tolist() == [number for number in numbers for _ in range(lengths[number])]
    assert [part.lengths.tolist() for part in sliced] == [[2, 0], [3, 1], [4]]
    assert [len(part.ids) for part in sliced] == [2, 2, 1]


def test_one_slice_is_enough(tmp_path: Path) -> None:
    with VectorWriter(tmp_path, "documents") as writer:
        writer.write("ab", [np.ones((1, 2), np.float32), np.zeros((2, 2), np.float32)])
    assert SlicedTokenVectors([tmp_path], "documents").take(np.array([1])).lengths.tolist() == [2]


def test_nothing_more_is_written_where_there_is_no_text(tmp_path: Path) -> None:
    with VectorWriter(tmp_path, "some") as writer:
        writer.write(["a"], [np.ones((1, 2), np.float32)])
        writer.write([], [])
    assert (writer.ids, writer.lengths, writer.dimensions) == (["a"], [1], 2)
