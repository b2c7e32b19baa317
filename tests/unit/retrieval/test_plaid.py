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
from colbert_zero.graph.console import UserError
from colbert_zero.graph.draws import draw
from colbert_zero.retrieval import plaid_index, plaid_search
from colbert_zero.retrieval.vectors import TokenVectors, VectorWriter


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
@pytest.mark.parametrize(("documents", "tokens"), [(300, range(5, 12)), (244, [1]), (1, [3])])
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


def write_both(folder: Path, matrices: list[torch.Tensor], cut: int) -> tuple[Path, Path]:
    """Our index of the vectors in two pieces, or in one, and fast-plaid's own."""
    pieces = []
    for start, stop in [(0, cut), (cut, len(matrices))]:
        if start < stop:
            pieces.append(folder / f"piece-{start}")
            pieces[-1].mkdir()
            with VectorWriter(pieces[-1], "documents") as writer:
                writer.write(map(str, range(start, stop)), [matrix.numpy() for matrix in matrices[start:stop]])
    (folder / "ours").mkdir()
    plaid_index.build_plaid(pieces, "documents", folder / "ours", 1, "cpu")
    torch.manual_seed(draw(1, "plaid"))
    FastPlaid(index=str(folder / "theirs"), device="cpu").create(
        matrices, kmeans_niters=plaid_index.KMEANS_ITERATIONS, nbits=plaid_index.RESIDUAL_BITS, seed=1,
        use_triton_kmeans=False, start_from_scratch=0,
    )  # fmt: skip
    return folder / "ours", folder / "theirs"


@pytest.mark.parametrize(("documents", "cut"), [(61, 20), (3, 3)])
def test_a_plaid_index_is_what_fast_plaids_own_class_writes(tmp_path: Path, documents: int, cut: int) -> None:
    ours, theirs = write_both(tmp_path, matrices_of(documents, [4, 1, 9]), cut)
    assert pq.read_table(ours / "documents.parquet")["id"].to_pylist() == list(map(str, range(documents)))
    expected = {name: path for name, path in file_digests(theirs).items() if "merged" not in name}
    expected.pop("plaid.lock", None)
    assert file_digests(ours / "plaid") == expected


def test_a_plaid_index_of_one_document_has_ten_vectors_at_least(tmp_path: Path) -> None:
    (tmp_path / "fine").mkdir()
    ours, _ = write_both(tmp_path / "fine", matrices_of(1, [10]), 1)
    assert (ours / "plaid" / "metadata.json").is_file()
    with pytest.raises(UserError, match=r"^PLAID needs 10 vectors, and the documents have 9; search exactly$"):
        write_both(tmp_path, matrices_of(3, [3]), 3)


def test_plaid_finds_what_fast_plaids_own_class_finds_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = write_both(tmp_path, matrices_of(61, [4, 1, 9]), 20)
    queries = TokenVectors.of(
        ["a", "b", "c"], [matrix.numpy() for matrix in matrices_of(100, [3, 5], dimensions=16)[70:73]]
    )
    each = [part.float() for part in torch.split(queries.vectors, queries.lengths.tolist())]
    files = sorted((ours / "plaid").iterdir())
    before = file_digests(ours)
    capfd.readouterr()
    for full_scores, probes, depth, told in ((8192, 8, 7, 8192), (4, 256, 30, 120)):
        monkeypatch.setattr(plaid_search, "FULL_SCORES", full_scores)
        monkeypatch.setattr(plaid_search, "PROBES", probes)
        plaid = plaid_search.PlaidSearch(files, "cpu", tmp_path, "make room")
        found = list(plaid.search(queries, depth, range(1, 3)))
        own = FastPlaid(index=str(theirs), device="cpu")
        arguments = {"n_ivf_probe": probes, "n_full_scores": told}
        assert found == own.search(each[1:], top_k=depth, show_progress=False, n_processes=1, **arguments)
        assert [len(hits) for hits in found] == [depth] * 2
    assert file_digests(ours) == before, "nothing is written into the index"
    assert capfd.readouterr().err == ""
    del plaid
    assert not list(tmp_path.glob("colbert-zero-*")), "what was merged is gone"


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
