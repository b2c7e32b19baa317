"""What artifacts that are not there yet will cost: GPU-hours and bytes.

GPU-hours are those that the same kind of work took in this study, by how much of it there is; of a training that has
not been measured, the paper's. Bytes are counted by rows, documents, tokens and parameters. What is not known is None,
and a sum says how much of it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from colbert_zero.graph.artifact import KINDS, Spec
from colbert_zero.graph.let_go import LET_GO_KIND
from colbert_zero.graph.limits import CORPUS_ROLE, DEFAULT_DIMENSIONS
from colbert_zero.graph.planned_jobs import planned_gpus
from colbert_zero.graph.rules import rule_of
from colbert_zero.graph.study import Study
from colbert_zero.report.columns import number
from colbert_zero.report.costs import Entry
from colbert_zero.report.paper_costs import paper_gpu_hours
from colbert_zero.report.sizes import BYTES_PER_PARAMETER, Sizes, characters_per_token, known_size

VECTOR_BYTES = 2
"""Of a component of a token's vector: half precision."""
PLAID_BITS, PLAID_CODE_BYTES = 4, 8
"""Of a component of a residual, and of a token's centroid, as fast-plaid stores them."""
DENSE_BYTES = 4
"""Of a component of a text's vector: single precision."""
TEXT_COMPRESSION = 3
"""How many times longer texts are than the files that hold them, at most."""
CANDIDATE_BYTES = 8
"""A document's number and its score."""
RUN_LINE_BYTES = 90
"""A line of a run in TREC format, with the model's name as its tag."""
STATE_COPIES, STATE_VALUES = 3, 3
"""Checkpoints of a training that are there at once: two, and one that is being written. Values of each parameter: its
own and AdamW's two."""
SMALL_KINDS = frozenset({"batches", "measures", "selections", "contamination", "audits", "reports"})
"""Kinds of no size to speak of. The model that is selected is one of the others, by a link."""


class Source(StrEnum):
    """Where an estimate of GPU-hours comes from."""

    NONE = "no GPU"
    MEASURED = "measured here"
    PAPER = "the paper's"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Estimate:
    """GPU-hours of an artifact that is not there; None if unknown."""

    gpu_hours: float | None
    source: Source


@dataclass(frozen=True)
class Sum:
    """A sum of numbers of which some are not known.

    Attributes:
        known: The sum of those that are.
        unknown: How many are not.
    """

    known: float = 0.0
    unknown: int = 0

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Sum:
        """The sum of values, of which None is one that is not known."""
        values = list(values)
        return cls(sum(value for value in values if value is not None), values.count(None))

    def __add__(self, other: Sum) -> Sum:
        """The sum of both."""
        return Sum(self.known + other.known, self.unknown + other.unknown)

    def words(self, show: Any = number) -> str:
        """The sum in words; `show` writes a number."""
        if not self.unknown:
            return str(show(self.known))
        return f"at least {show(self.known)}" if self.known else "unknown"


class GpuHours:
    """Estimates of GPU-hours."""

    def __init__(self, study: Study, sizes: Sizes, entries: Iterable[Entry]) -> None:
        """Learn from what was measured: those of `entries` that are of artifacts that are there."""
        self._study, self._sizes = study, sizes
        measured: dict[tuple[Any, ...], list[float]] = {}
        for entry in entries:
            spec = sizes.spec(entry.name)
            is_there = spec is not None and sizes.published_bytes(spec) is not None
            kind, amount = self._work(spec) if spec is not None and is_there else (None, None)
            if kind is not None and amount and entry.cost.gpu_seconds:
                sums = measured.setdefault(kind, [0.0, 0.0])
                sums[0] += entry.cost.gpu_hours
                sums[1] += amount
        self._hours_per_unit = {kind: hours / amount for kind, (hours, amount) in measured.items()}

    def estimate(self, spec: Spec) -> Estimate:
        """The GPU-hours that making an artifact takes."""
        kind, amount = self._work(spec)
        if kind in self._hours_per_unit:
            hours = None if amount is None else self._hours_per_unit[kind] * amount
            return Estimate(hours, Source.UNKNOWN if hours is None else Source.MEASURED)
        if not planned_gpus(self._study, spec):
            return Estimate(0.0, Source.NONE)
        hours = paper_gpu_hours(spec, self._sizes) if spec.kind == "models" else None
        return Estimate(hours, Source.UNKNOWN if hours is None else Source.PAPER)

    def _work(self, spec: Spec) -> tuple[tuple[Any, ...] | None, float | None]:
        """What kind of work making an artifact is, and how much of it; hours go by the amount within a kind.

        None for a step without a GPU. A dense miner's work grows with the square of a source's rows, and with the rows:
        it is compared with itself only.
        """
        rule = rule_of(spec)
        if not rule.may_use_gpu:
            return None, None
        sizes = self._sizes
        match rule.name:
            case "train_stage":
                base = sizes.base(spec)
                alike = base and ("the paper's size" if known_size("models", base, "paper") else base.name)
                return (rule.name, spec.settings["stage"], alike), sizes.training_texts(spec)
            case "build_index":
                model = sizes.spec(spec.inputs["model"][0])
                return (rule.name, sizes.index_kind(spec), model and sizes.parameters(model)), sizes.tokens(spec)
            case "embed_documents":
                return (rule.name, spec.inputs["model"][0]), sizes.documents(spec)
            case "search_index" | "search_embeddings":
                return self._search(spec, rule.name)
            case "teach_neural":
                rows = sizes.rows(spec)
                pairs = None if rows is None else rows * spec.settings["documents"]
                return (rule.name, spec.inputs["model"][0]), pairs
            case _:
                return (rule.name, *spec.inputs["shards"]), 1.0

    def _search(self, run: Spec, rule: str) -> tuple[tuple[Any, ...], float | None]:
        """A search: of all documents for each query, unless an index spares it most of them."""
        index = self._sizes.spec(run.inputs["index"][0])
        kind = None if index is None else self._sizes.index_kind(index)
        queries, documents = self._sizes.queries(run), self._sizes.documents(run)
        if kind == "exact":
            return (rule, kind), None if queries is None or documents is None else queries * documents
        return (rule, kind), queries


class Disk:
    """Estimates of bytes on disk."""

    def __init__(self, sizes: Sizes) -> None:
        """Know the sizes of artifacts."""
        self._sizes = sizes

    def bytes(self, spec: Spec) -> float | None:
        """The bytes of an artifact: those that it has, had until it was let go, or will have; of texts uncompressed."""
        published = self._sizes.published_bytes(spec)
        if published is not None:
            return published
        if spec.kind in SMALL_KINDS:
            return 0.0
        match spec.kind:
            case "sources" | "shards" | "negatives" | "scores":
                return self.text_bytes(spec)
            case "collections":
                documents, characters = self._sizes.documents(spec), self._sizes.characters(spec)
                return None if documents is None or characters is None else documents * characters
            case "bases" | "models":
                parameters = self._sizes.parameters(spec)
                return None if parameters is None else parameters * BYTES_PER_PARAMETER
            case "candidates":
                rows = self._sizes.rows(spec)
                return None if rows is None else rows * spec.settings["depth"] * CANDIDATE_BYTES
            case "runs":
                queries = self._sizes.queries(spec)
                return None if queries is None else queries * spec.settings["depth"] * RUN_LINE_BYTES
            case _:
                return self._index(spec)

    def text_bytes(self, spec: Spec) -> float | None:
        """The bytes of a source's rows, of its shards, or of what is made of them.

        Negatives and scored documents are texts of the same source, of the length of the row's own.
        """
        published = self._sizes.published_bytes(spec)
        if published is not None:
            return published
        if spec.kind == "sources":
            return self._listed(spec)
        (name,) = spec.inputs.get("source") or spec.inputs["shards"]
        made_from = self._sizes.spec(name)
        before = None
        if made_from is not None:
            # A teacher's scores come with ids, which shards replace by the texts.
            is_scored = made_from.settings.get("format") == "scored"
            before = self._listed(made_from) if is_scored else self.text_bytes(made_from)
        match spec.kind:
            case "negatives":
                factor = 1.0 + spec.settings["negatives"]
            case "scores":
                factor = float(spec.settings["documents"])
            case _:
                factor = float(spec.settings.get("share", 1))
        return None if before is None else before * factor

    def _listed(self, source: Spec) -> float | None:
        """The bytes of a source's rows, their texts included, by what is known of its repository."""
        rows, of_row = self._sizes.rows(source), known_size("rows", source, "bytes")
        return None if rows is None or of_row is None else rows * float(of_row)

    def state(self, model: Spec) -> float | None:
        """The most bytes of a training's checkpoints."""
        parameters = self._sizes.parameters(model)
        return None if parameters is None else parameters * BYTES_PER_PARAMETER * STATE_VALUES * STATE_COPIES

    def mining(self, spec: Spec) -> float | None:
        """The most bytes in `results/state` while candidates are made, or negatives or scores of them.

        It is the corpus, uncompressed; what a miner searches; and what is made, in pieces.
        """
        corpora = [self._sizes.spec(name) for role in ("shards", CORPUS_ROLE) for name in spec.inputs.get(role, ())]
        sizes = [None if made_from is None else self.bytes(made_from) for made_from in corpora]
        texts = [None if size is None else TEXT_COMPRESSION * size for size in sizes]
        parts = [*texts, self.bytes(spec)]
        if spec.kind == "candidates" and spec.label.startswith("dense."):
            parts += [
                None if each is None else self._mined_vectors(spec, each, text)
                for each, text in zip(corpora, texts, strict=True)
            ]
        elif spec.kind == "candidates":
            parts += texts
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def _mined_vectors(self, candidates: Spec, corpus: Spec, text: float | None) -> float | None:
        """The bytes of the vectors of the documents of `corpus`, and of what is made of them to be searched.

        A pool is a copy of some of them. An inverted file has a byte for each component. PLAID's files are there twice
        while they are searched.
        """
        count = self._sizes.documents(corpus) if corpus.kind == "collections" else self._sizes.rows(corpus)
        if candidates.settings["encoder"]["kind"] == "late-interaction":
            components = None if text is None else text / characters_per_token() * DEFAULT_DIMENSIONS
            of_vector, of_index = VECTOR_BYTES, 2 * _plaid_bytes(DEFAULT_DIMENSIONS) / DEFAULT_DIMENSIONS
        else:
            dimensions = self._encoder_dimensions(candidates)
            components = None if count is None or not dimensions else float(count * dimensions)
            of_vector, of_index = DENSE_BYTES, 1.0
        if count is None or components is None:
            return None
        pool, is_approximate = candidates.settings.get("pool"), "approximate" in candidates.settings
        searched = components if pool is None else components * min(1.0, pool["documents"] / count)
        return components * of_vector + searched * (of_vector * (pool is not None) + of_index * is_approximate)

    def _encoder_dimensions(self, candidates: Spec) -> int | None:
        models = [self._sizes.spec(name) for name in candidates.inputs.get("model", ())]
        if models:
            return None if models[0] is None else self._sizes.hidden(models[0])
        dimensions: int = candidates.settings["encoder"]["dimensions"]
        return dimensions

    def vectors(self, index: Spec) -> float | None:
        """The bytes of an index's vectors, which lie in `results/state` while it is made."""
        dimensions = self._sizes.dimensions(index)
        if index.label.startswith("dense."):
            count, component = self._sizes.documents(index), DENSE_BYTES
        else:
            count, component = self._sizes.tokens(index), VECTOR_BYTES
        return None if count is None or dimensions is None else count * dimensions * component

    def _index(self, index: Spec) -> float | None:
        kind, vectors = self._sizes.index_kind(index), self.vectors(index)
        if kind is None or vectors is None:
            return None
        if kind == "plaid":
            tokens, dimensions = self._sizes.tokens(index), self._sizes.dimensions(index)
            assert tokens is not None and dimensions is not None
            return tokens * _plaid_bytes(dimensions)
        return vectors * (2 if kind == "faiss" else 1)


def _plaid_bytes(dimensions: int) -> float:
    """What PLAID's files hold of a vector."""
    return PLAID_CODE_BYTES + dimensions * PLAID_BITS / 8


@dataclass(frozen=True)
class Space:
    """What a study takes on disk.

    Attributes:
        now: The bytes of what is there.
        end: Those at the end, when all is there.
        peak: The most at any time, if all that can run at once does; without `passing`.
        passing: The bytes of the files that are there for a while alone: indexes that are let go once they are
            searched. A search begins before another index is built, so there is at most one for each job that runs at
            once.
        largest: The most bytes of one of these.
        by_kind: Those at the end, by kind, in the order in which kinds are made from each other.
        vectors: What those of the largest index take beside that, in `results/state`, while it is made.
    """

    now: Sum
    end: Sum
    peak: Sum
    passing: Sum
    largest: float
    by_kind: Mapping[str, Sum]
    vectors: Sum

    @classmethod
    def of(
        cls, specs: Mapping[str, Spec], to_make: Iterable[Spec], sizes: Sizes, let_go: Set[str], *, keep_indexes: bool
    ) -> Space:
        """The space that a study's artifacts take, of which some are still to be made.

        Args:
            specs: The study's artifacts, by name.
            to_make: Those that are to be made.
            sizes: Their sizes.
            let_go: The names of those whose files were let go.
            keep_indexes: Whether the files of indexes stay once they are searched.
        """
        disk = Disk(sizes)
        is_there = {name for name, spec in specs.items() if sizes.published_bytes(spec) is not None} - let_go
        there = [specs[name] for name in specs if name in is_there]
        added = [spec for spec in to_make if spec.name not in is_there]
        now = Sum.of(map(sizes.published_bytes, there))
        passing = [spec for spec in [*there, *added] if spec.kind == LET_GO_KIND and not keep_indexes]
        staying = [spec for spec in [*there, *added] if spec.kind != LET_GO_KIND or keep_indexes]
        by_kind = {
            kind: Sum.of(disk.bytes(spec) for spec in staying if spec.kind == kind)
            for kind in KINDS
            if kind not in SMALL_KINDS
        }
        end = Sum.of(map(disk.bytes, staying))
        # Sorted rows lie beside a source and its shards, before anything is trained.
        texts = [spec for spec in added if spec.kind in ("sources", "shards")]
        sorting = now + Sum.of(map(disk.bytes, texts))
        sorting += Sum.of(disk.text_bytes(spec) for spec in texts if spec.kind == "shards")
        mined = [spec for spec in added if "candidates" in (spec.kind, *spec.inputs)]
        mining = now + Sum.of(disk.bytes(spec) for spec in (*texts, *mined)) + Sum.of(map(disk.mining, mined))
        # Of a chain of stages one is trained at a time: so only those count that no other goes on from.
        starts = {name for spec in added if spec.kind == "models" for name in spec.inputs["start"]}
        last = [spec for spec in added if spec.kind == "models" and spec.name not in starts]
        training = end + Sum.of(map(disk.state, last))
        vectors = [disk.vectors(spec) for spec in added if spec.kind == LET_GO_KIND]
        known = [some for some in vectors if some is not None]
        return cls(
            now=now,
            end=end,
            peak=max(sorting, mining, training, key=lambda total: total.known),
            passing=Sum.of(map(disk.bytes, passing)),
            largest=max((disk.bytes(spec) or 0.0 for spec in passing), default=0.0),
            by_kind=by_kind,
            vectors=Sum(max(known, default=0.0), vectors.count(None)),
        )
