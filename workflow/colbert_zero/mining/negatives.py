"""Choose each row's negatives among its candidates, except those too close to the positive.

    python -m colbert_zero.mining.negatives --spec JSON --threads 2

Candidates are dropped that are known to answer the query, that score nearly as much as the positive (`filters`), also
by a teacher that judges them (`judge`), or whose text is nearly that of a positive (`resemblance`); of the others, as
many as are asked for are chosen (`sampler`).

A slice of the rows is a piece of the work (see `machine.pieces`), for `--threads` processes or for several jobs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.data.rows import MINED_SCHEMA, ROWS_PER_GROUP, RowWriter, shard_file_name
from colbert_zero.graph.artifact import Artifact, Job, Spec, step_main
from colbert_zero.graph.console import UserError
from colbert_zero.graph.limits import CORPUS_ROLE
from colbert_zero.machine.pieces import Part
from colbert_zero.mining.candidates import CANDIDATES_FILE, read_lists
from colbert_zero.mining.corpus import TrainingCorpus
from colbert_zero.mining.examples import EXAMPLES_FILE, Examples
from colbert_zero.mining.filters import Miner
from colbert_zero.mining.judge import JUDGE, NO_JUDGEMENT, Judge, judgements
from colbert_zero.mining.sampler import NegativeSampler

ROWS_PER_PIECE = 16_384


@dataclass(frozen=True)
class RowFilter:
    """Chooses the negatives of slices of a source's rows, in whichever process.

    Attributes:
        spec: What is made.
        shards: The source's rows.
        collections: The collection that is mined in, if any.
        candidates: Those of each miner.
        scores: What a judge says of them, if there is one.
        rows_per_piece: The size of a slice.
    """

    spec: Spec
    shards: Artifact
    collections: Sequence[Artifact]
    candidates: Sequence[Artifact]
    scores: Artifact | None
    rows_per_piece: int

    @classmethod
    def of(cls, job: Job) -> RowFilter:
        """That of a job, with its candidates verified: once, and not by each process.

        Raises:
            UserError: A file of the candidates is missing, truncated or edited.
        """
        candidates = job.inputs("candidates")
        for artifact in candidates:
            artifact.file(CANDIDATES_FILE)
        scores = job.input("scores") if JUDGE in job.settings else None
        return cls(job.spec, job.input("shards"), job.inputs(CORPUS_ROLE), candidates, scores, ROWS_PER_PIECE)

    def corpus(self) -> TrainingCorpus:
        """The documents and queries."""
        return TrainingCorpus.open(self.shards, self.collections, self.spec.state)

    def sampler(self, texts: Sequence[str] = ()) -> NegativeSampler:
        """What chooses among documents with these texts, or only counts."""
        settings = {
            name: value for name, value in self.spec.settings.items() if name not in ("filter", "margins", JUDGE)
        }
        judge = Judge(**self.spec.settings[JUDGE]) if JUDGE in self.spec.settings else None
        return NegativeSampler(**settings, label=self.spec.label, miners=self._miners(), judge=judge, texts=texts)

    def __call__(self, number: int, folder: Path) -> Mapping[str, Any]:
        """Write the rows of the slice with a number that have enough negatives; return what was counted."""
        corpus = self.corpus()
        sampler = self.sampler(corpus.texts)
        examples = Examples(sampler.seed, sampler.label)
        rows = range(len(corpus.queries))[number * self.rows_per_piece :][: self.rows_per_piece]
        with RowWriter(folder, MINED_SCHEMA, self.rows_per_piece) as writer:
            writer.write_records(examples.drawn_from(self._mined_rows(corpus, sampler, rows)))
        return {"examples": examples.drawn, "report": sampler.report}

    def _miners(self) -> list[Miner]:
        """The miners of the candidates.

        The setting `filter` has the positions of those that filter, of several; `margins` has the margin of each, or
        null.
        """
        settings = self.spec.settings
        filters = settings.get("filter", range(len(self.candidates)))
        margins = settings.get("margins", [None] * len(self.candidates))
        names = [artifact.spec.label.partition(".")[0] for artifact in self.candidates]
        return [
            Miner(
                name if names.count(name) == 1 else f"{name}-{artifact.spec.key}",
                artifact.spec.settings["depth"],
                at in filters,
                margin,
            )
            for at, (name, artifact, margin) in enumerate(zip(names, self.candidates, margins, strict=True))
        ]

    def _mined_rows(self, corpus: TrainingCorpus, sampler: NegativeSampler, rows: range) -> Iterator[dict[str, Any]]:
        lists = read_lists(self.candidates, rows)
        of_judge = repeat(NO_JUDGEMENT, len(rows)) if self.scores is None else judgements(self.scores, rows)
        for row, of_row, judgement in zip(rows, lists, of_judge, strict=True):
            negatives = sampler.sample(row, of_row, corpus.known_positives(row), judgement)
            if negatives is not None:
                yield {
                    "row": row,
                    "query": corpus.queries[row],
                    "document": corpus.texts[corpus.positives[row]],
                    "negatives": [corpus.texts[number] for number in negatives],
                }


def _rows(job: Job) -> Part:
    write = RowFilter.of(job)
    count = -(-len(write.corpus().queries) // ROWS_PER_PIECE)
    return Part(job.state / "rows", count, f"slices of {ROWS_PER_PIECE} rows filtered", write, job.threads)


PARTS = {"rows": _rows}
"""The part of the work that jobs can share."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `rows-*.parquet`, `report.json` and `examples.json`, which has some of the rows, drawn by the seed.

    Raises:
        UserError: No row has enough negatives.
    """
    rows = _rows(job)
    rows.make()
    sampler = RowFilter.of(job).sampler()
    examples = Examples(sampler.seed, sampler.label)
    for facts in rows.facts():
        sampler.include(facts["report"])
        examples.include(facts["examples"])
    with RowWriter(job.folder, MINED_SCHEMA, job.input("shards").spec.settings["rows_per_shard"]) as writer:
        for number in range(rows.count):
            with pq.ParquetFile(rows.piece(number) / shard_file_name(0)) as piece:
                for batch in piece.iter_batches(ROWS_PER_GROUP):
                    writer.write(pa.Table.from_batches([batch]))
    if not writer.rows:
        raise UserError(
            f"{job.spec.label}: no row has {sampler.negatives} negatives left ({sampler.report['dropped']}): "
            "ask for fewer negatives, mine deeper, or filter less"
        )
    (job.folder / EXAMPLES_FILE).write_text(json.dumps(examples.rows, indent=1) + "\n", encoding="utf-8")
    (job.folder / "report.json").write_text(json.dumps(sampler.report, indent=1) + "\n", encoding="utf-8")
    return {**writer.facts, **sampler.report}


if __name__ == "__main__":
    step_main(make, __doc__, PARTS)
