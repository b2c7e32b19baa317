"""PLAID: built and searched as PyLate and fast-plaid do by default."""

from __future__ import annotations

from inspect import signature

import pytest
import torch
from fast_plaid.search import FastPlaid
from fast_plaid.search.fast_plaid import compute_kmeans

from colbert_zero.graph.draws import draw
from colbert_zero.retrieval import plaid_index, plaid_search


@pytest.mark.parametrize("distances", [(7, 3), (10**6, 10**6)])
def test_centroids_are_fast_plaids_whatever_is_in_memory_at_once(
    distances: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(4)
    matrices = [
        torch.nn.functional.normalize(torch.randn(5 + number % 7, 16, generator=generator), dim=1).half()
        for number in range(300)
    ]
    torch.manual_seed(draw(3, "plaid"))
    theirs = compute_kmeans(
        matrices, 16, "cpu", plaid_index.KMEANS_ITERATIONS, plaid_index.VECTORS_PER_CENTROID, 3, use_triton_kmeans=False
    )
    monkeypatch.setitem(plaid_index.DISTANCES, "cpu", distances)
    assert torch.equal(plaid_index.compute_centroids(matrices, 3, "cpu"), theirs)


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
