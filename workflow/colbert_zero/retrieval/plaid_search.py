"""Search a PLAID index, whose files are merged once, in a scratch folder, for as many batches of queries as there are.

This calls fast-plaid itself: PyLate's wrapper reads the ids from pickles, and writes into the folder that it searches.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

from colbert_zero.machine.disk_space import check_space
from colbert_zero.retrieval.vectors import TokenVectors

PROBES, FULL_SCORES, PRUNED = 8, 8192, 4
"""Centroids looked up for each query token, and documents scored by all their centroids (PyLate's defaults); and of how
many of these fast-plaid scores one in full."""
MERGED = (".codes.npy", ".residuals.npy")
"""How the names of the files end that are merged."""


class PlaidSearch:
    """A PLAID index that is open for searches."""

    def __init__(self, files: Sequence[Path], device: str, scratch: Path, remedy: str) -> None:
        """Merge the index's files; what is merged goes away with this object, or with the process.

        Args:
            files: The index's files.
            device: Where to compute.
            scratch: A folder to merge in.
            remedy: What to do where it has too little room, for the message.

        Raises:
            UserError: `scratch` has too little room.
        """
        from fast_plaid.search import FastPlaid

        needed = sum(file.stat().st_size for file in files if file.name.endswith(MERGED))
        check_space(scratch, needed, "the merged files of PLAID", remedy)
        folder = tempfile.mkdtemp(prefix="colbert-zero-", dir=scratch)
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        # fast-plaid writes into the folder that it searches: give it a folder of links instead of the index's own.
        for file in files:
            (Path(folder) / file.name).symlink_to(file.resolve())
        self._plaid = FastPlaid(index=folder, device=device)

    def search(self, queries: TokenVectors, depth: int, batch: range) -> Iterator[list[tuple[int, float]]]:
        """Search for the queries at the positions of `batch`.

        Yields:
            Of each query, the numbers of its `depth` best documents, or of fewer, and their scores, best first.
        """
        starts, ends = queries.offsets, queries.offsets + queries.lengths
        yield from self._plaid.search(
            [queries.vectors[starts[position] : ends[position]].float() for position in batch],
            top_k=depth,
            n_ivf_probe=PROBES,
            n_full_scores=max(FULL_SCORES, PRUNED * depth),
            show_progress=False,
            n_processes=1,
        )
