"""PLAID: built and searched as PyLate and fast-plaid do by default."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from inspect import signature
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from fast_plaid.search import FastPlaid
from fast_plaid.search.fast_plaid import compute_kmeans

from colbert_zero.graph.artifact import file_digests
from colbert_zero.graph.draws import draw
from colbert_zero.retrieval import plaid_index, plaid_search
from colbert_zero.retrieval.vectors import VectorWriter


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two that wait for each other after each of thousands of small products take long where others compute as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def matrices_of(documents: int, tokens: Sequence[int], dimensions: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [
        torch.nn.functional.normalize(
            torch.randn(tokens[number % len(tokens)], dimensions, generator=generator), dim=1
        ).half()
        for number in range(documents)
    ]


@pytest.mark.parametrize("distances", [(70, 30), (10**6, 10**6)])
@pytest.mark.parametrize(("documents", "tokens"), [(300, range(5, 12)), (1, [3])])
def test_centroids_are_fast_plaids_whatever_is_in_memory_at_once(
    distances: tuple[int, int], documents: int, tokens: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(plaid_index.DISTANCES, "cpu", distances)
    check_centroids(matrices_of(documents, tokens))


def check_centroids(matrices: list[torch.Tensor]) -> None:
    torch.manual_seed(draw(3, "plaid"))
    theirs = compute_kmeans(
        matrices,
        matrices[0].shape[1],
        "cpu",
        plaid_index.KMEANS_ITERATIONS,
        plaid_index.VECTORS_PER_CENTROID,
        3,
        use_triton_kmeans=False,
    )
    assert torch.equal(plaid_index.compute_centroids(matrices, 3, "cpu"), theirs)


def test_centroids_of_many_documents_are_of_a_sample() -> None:
    """Of 31,000 documents, 30,860."""
    check_centroids(matrices_of(31_000, [1], dimensions=2))


def test_a_plaid_index_is_what_fast_plaids_own_class_writes(tmp_path: Path) -> None:
    matrices = matrices_of(61, [4, 1, 9])
    pieces = []
    for at, (start, stop) in enumerate([(0, 20), (20, 61)]):
        pieces.append(tmp_path / f"piece-{at}")
        pieces[-1].mkdir()
        with VectorWriter(pieces[-1], "documents") as writer:
            writer.write(map(str, range(start, stop)), [matrix.numpy() for matrix in matrices[start:stop]])
    ours = tmp_path / "ours"
    ours.mkdir()
    plaid_index.build_plaid(pieces, "documents", ours, 1, "cpu")
    assert pq.read_table(ours / "documents.parquet")["id"].to_pylist() == list(map(str, range(61)))
    torch.manual_seed(draw(1, "plaid"))
    theirs = FastPlaid(index=str(tmp_path / "theirs"), device="cpu")
    theirs.create(
        matrices, kmeans_niters=plaid_index.KMEANS_ITERATIONS, nbits=plaid_index.RESIDUAL_BITS, seed=1,
        use_triton_kmeans=False, start_from_scratch=0,
    )  # fmt: skip
    expected = {name: path for name, path in file_digests(tmp_path / "theirs").items() if "merged" not in name}
    expected.pop("plaid.lock", None)
    assert file_digests(ours / "plaid") == expected


def test_a_plaid_index_is_built_as_pylate_does_by_default() -> None:
    from pylate.indexes import PLAID

    defaults = {name: parameter.default for name, parameter in signature(PLAID.__init__).parameters.items()}
    assert (defaults["nbits"], defaults["kmeans_niters"]) == (plaid_index.RESIDUAL_BITS, plaid_index.KMEANS_ITERATIONS)
    defaults = {name: parameter.default for name, parameter in signature(FastPlaid.create).parameters.items()}
    assert (defaults["max_points_per_centroid"], defaults["batch_size"]) == (
        plaid_index.VECTORS_PER_CENTROID,
        plaid_index.DOCUMENTS_PER_FILE,
    )


def test_plaid_is_searched_as_pylate_does_by_default() -> None:
    from pylate.indexes import PLAID

    defaults = {name: parameter.default for name, parameter in signature(PLAID.__init__).parameters.items()}
    assert (defaults["n_ivf_probe"], defaults["n_full_scores"]) == (plaid_search.PROBES, plaid_search.FULL_SCORES)
