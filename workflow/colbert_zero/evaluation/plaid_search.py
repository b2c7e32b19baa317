"""Search a PLAID index, whose files are merged once, in a scratch folder, for as many batches of queries as there are.

This calls fast-plaid itself: PyLate's wrapper reads the ids from pickles, and writes into the folder that it searches.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from colbert_zero.evaluation.disk_space import check_space
from colbert_zero.evaluation.trec import Hits
from colbert_zero.evaluation.vectors import TokenVectors
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.console import UserError

PROBES, FULL_SCORES = 8, 8192
"""Centroids looked up for each query token, and documents scored in full (PyLate's defaults)."""


class PlaidSearch:
    """A PLAID index that is open for searches."""

    def __init__(self, index: Artifact, device: str, scratch: str | None = None) -> None:
        """Merge the index's files; what is merged goes away with this object, or with the process.

        Args:
            index: The index.
            device: Where to compute.
            scratch: Where to merge, $VARIABLES in it replaced; by default `TMPDIR`.

        Raises:
            UserError: `scratch` is no folder, or has too little room.
        """
        from fast_plaid.search import FastPlaid

        parent = Path(os.path.expandvars(scratch) if scratch else tempfile.gettempdir())
        if not parent.is_dir():
            raise UserError(f"{parent} is no folder on this machine; name one under resources.search_index.scratch")
        merged = [name for name in index.files() if name.endswith((".codes.npy", ".residuals.npy"))]
        needed = sum(index.manifest["outputs"][name]["bytes"] for name in merged)
        check_space(
            parent, needed, "the merged files of PLAID", "name a larger folder under resources.search_index.scratch"
        )
        self._ids: list[str] = pq.read_table(index.file("documents.parquet"))["id"].to_pylist()
        folder = tempfile.mkdtemp(prefix="colbert-zero-", dir=parent)
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        # fast-plaid writes into the folder that it searches: give it a folder of links instead of the published one.
        for name in index.files():
            if name.startswith("plaid/"):
                (Path(folder) / Path(name).name).symlink_to(index.file(name).resolve())
        self._plaid = FastPlaid(index=folder, device=device)

    def search(self, queries: TokenVectors, depth: int, batch: range) -> Iterator[tuple[str, Hits]]:
        """Search for the queries at the positions of `batch`; yield each one's id and its `depth` best documents."""
        starts, ends = queries.offsets, queries.offsets + queries.lengths
        results = self._plaid.search(
            [queries.vectors[starts[position] : ends[position]].float() for position in batch],
            top_k=depth,
            n_ivf_probe=PROBES,
            n_full_scores=max(FULL_SCORES, depth),
            show_progress=False,
            n_processes=1,
        )
        for position, hits in zip(batch, results, strict=True):
            yield queries.ids[position], [(self._ids[number], score) for number, score in hits]
