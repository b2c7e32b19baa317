"""Numbers in manifests, counted again from the artifacts' own files, and settings that can be seen in the files.

Files are streamed, so memory does not grow with them. What older code called otherwise, or did not record, is not
compared: only a fact that is there can be wrong. Libraries that read the files are imported for the kinds that need
them.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from colbert_zero.audit.expected import left_out
from colbert_zero.audit.records import problems_with_training, record_of
from colbert_zero.graph.artifact import KEY_DIGITS, RECORD, Spec, is_let_go
from colbert_zero.graph.console import UserError
from colbert_zero.graph.json_values import parse_json, read_json
from colbert_zero.graph.model_folder import tensor_shapes
from colbert_zero.graph.planners.evaluation import DENSE_PREFIX

Facts = Mapping[str, Any]

SMALL_BYTES = 2**24
"""Files up to this size are read as a whole where a count needs all of their texts."""
NO_PARAMETERS = re.compile(r"position_ids|token_type_ids|inv_freq|running_(mean|var)|num_batches_tracked")
"""Names of saved tensors that no training changes, and no count of parameters has."""

INVERTED_FILE_HEADER = struct.Struct("<4xiq16x1x4xQ")
"""How faiss begins an inverted file: dimensions, documents and lists. Reading the whole file is left to searches."""


class Recorded:
    """An artifact whose numbers are counted again.

    Attributes:
        spec: Its spec.
        folder: Its folder.
        manifest: Its manifest, of the right form.
        facts: The manifest's facts; those that older code put one level deeper among them.
        current: Whether the manifest has today's format.
    """

    def __init__(self, spec: Spec, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Take the parts."""
        self.spec, self.folder, self.manifest = spec, folder, manifest
        deeper = manifest["facts"].get("mining", {})
        self.facts: Facts = manifest["facts"] | (deeper if isinstance(deeper, dict) else {})
        self.current = record_of(manifest) == RECORD

    def files(self, pattern: str) -> list[Path]:
        """Its files whose paths match a pattern as a whole, sorted by name; none if they were let go."""
        if is_let_go(self.folder):
            return []
        return [self.folder / name for name in sorted(self.manifest["outputs"]) if re.fullmatch(pattern, name)]

    def wrong(self, counted: Mapping[str, Any]) -> Iterator[str]:
        """Facts that are otherwise than `counted`, in words."""
        for name, value in counted.items():
            if name in self.facts and not same(self.facts[name], value):
                yield f"says {name.replace('_', ' ')} {_shown(self.facts[name])}, but its files say {_shown(value)}"


def same(recorded: Any, counted: Any) -> bool:
    """Whether two JSON values are equal, numbers up to rounding."""
    match recorded, counted:
        case dict(), dict():
            return recorded.keys() == counted.keys() and all(same(recorded[name], counted[name]) for name in recorded)
        case list(), list() | tuple():
            return len(recorded) == len(counted) and all(map(same, recorded, counted))
        case bool(), _:
            return recorded is counted
        case int() | float(), int() | float():
            return math.isclose(recorded, counted, rel_tol=1e-9, abs_tol=1e-12)
    return bool(recorded == counted)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."


def recount(recorded: Recorded) -> Iterator[str]:
    """What the manifest and spec of an artifact say otherwise than its own files, in words; the files are intact."""
    if recorded.current and "module" in recorded.manifest["code"]:
        yield from left_out(recorded.spec.kind, recorded.spec.label, recorded.facts, recorded.manifest["outputs"])
    count = COUNTS.get(recorded.spec.kind)
    if count is not None:
        yield from guarded(count, recorded)


def guarded(count: Callable[[Recorded], Iterator[str]], recorded: Recorded) -> Iterator[str]:
    """What `count` finds, and one line more if it cannot go on: the files are not such as a step writes."""
    try:
        yield from count(recorded)
    except UserError as error:
        yield f"cannot be counted again: {error}"
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        # pyarrow's errors are ValueErrors and KeyErrors.
        yield f"cannot be counted again: {type(error).__name__}: {error}"


# Rows


def _sources(recorded: Recorded) -> Iterator[str]:
    yield from _other_files(recorded)
    files = recorded.facts.get("files")
    rows = {path: _rows_of_file(path) for path in recorded.files(r".*\.(parquet|jsonl|jsonl\.gz)")}
    if isinstance(files, dict):
        by_role = {role: sum(rows[recorded.folder / name] for name in names) for role, names in files.items()}
        yield from recorded.wrong({"rows_by_role": by_role})
        if "rows_by_role" in recorded.facts and recorded.facts.get("rows") not in by_role.values():
            yield f"says rows {recorded.facts.get('rows')}, which none of its roles has"
        return
    names = [recorded.folder / name for name in files] if isinstance(files, list) else list(rows)
    if "rows" in recorded.facts:
        yield from recorded.wrong({"rows": sum(rows[name] for name in names)})


def _other_files(recorded: Recorded) -> Iterator[str]:
    """Files of a source that are not the user's own, whose digests its spec has."""
    settings, outputs = recorded.spec.settings, recorded.manifest["outputs"]
    own = settings.get("files", [{"name": settings.get("file"), "sha256": settings.get("sha256")}])
    if recorded.spec.label.startswith(("file.", "folder.")):
        for file in own:
            if outputs.get(file["name"], {}).get("sha256") != file["sha256"]:
                yield f"lists {file['name']} with another digest than its spec has of the user's own file"


def _rows_of_file(path: Path) -> int:
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def _parquet_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _shards(recorded: Recorded) -> Iterator[str]:
    yield from _rows_by_shard(recorded)
    facts = recorded.facts
    if recorded.current and {"read", "rows", "dropped"} <= facts.keys():
        rows = facts["read"] + facts.get("further_documents", 0) - sum(facts["dropped"].values())
        yield from recorded.wrong({"rows": rows})
    files = recorded.files(r"rows-\d+\.parquet")
    if "characters" in facts and sum(path.stat().st_size for path in files) <= SMALL_BYTES:
        yield from recorded.wrong({"characters": sum(map(_characters, files))})


def _rows_by_shard(recorded: Recorded) -> Iterator[str]:
    if "rows_by_shard" in recorded.facts:
        by_shard = [_parquet_rows(path) for path in recorded.files(r"rows-\d+\.parquet")]
        yield from recorded.wrong({"rows_by_shard": by_shard, "rows": sum(by_shard)})


def _characters(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    total = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for column in batch.columns:
                values = column.flatten() if pa.types.is_list(column.type) else column
                if pa.types.is_string(values.type):
                    total += pc.sum(pc.utf8_length(values)).as_py() or 0
    return total


def _numpy(array: Any, dtype: str) -> Any:
    """The values of an Arrow array without nulls; its own `to_numpy` would import pandas."""
    import numpy as np

    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]


def _list_lengths(paths: Iterable[Path], column: str) -> Iterator[Any]:
    """The lengths of the lists in a column, as arrays, batch by batch."""
    import numpy as np
    import pyarrow.parquet as pq

    for path in paths:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=[column]):
                yield np.diff(_numpy(batch.column(column).offsets, "int32"))


def _candidates(recorded: Recorded) -> Iterator[str]:
    counts: Counter[str] = Counter(rows=0, candidates=0, rows_without_candidates=0)
    longest = 0
    for lengths in _list_lengths(recorded.files(r"candidates\.parquet"), "documents"):
        counts["rows"] += len(lengths)
        counts["candidates"] += int(lengths.sum())
        counts["rows_without_candidates"] += int((lengths == 0).sum())
        longest = max(longest, int(lengths.max(initial=0)))
    yield from recorded.wrong(counts)
    if longest > recorded.spec.settings.get("depth", longest):
        yield f"has {longest} candidates of a row, but its depth is {recorded.spec.settings['depth']}"
    if recorded.facts.get("positives_found", 0) > counts["rows"]:
        yield f"found {recorded.facts['positives_found']} positives of {counts['rows']} rows"


def _negatives(recorded: Recorded) -> Iterator[str]:
    yield from _rows_by_shard(recorded)
    for path in recorded.files(r"report\.json"):
        yield from recorded.wrong(read_json(path))
    facts, settings = recorded.facts, recorded.spec.settings
    if "kept" in facts:
        lengths = list(_list_lengths(recorded.files(r"rows-\d+\.parquet"), "negatives"))
        yield from recorded.wrong(
            {
                "kept": int(sum(array.sum() for array in lengths)),
                "rows_kept": sum(map(len, lengths)),
                "candidates": facts["kept"] + sum(facts["dropped"].values()),
                "rows_read": facts["rows_kept"] + facts["rows_dropped"],
            }
        )
        sizes = sorted({int(length) for array in lengths for length in set(array.tolist())})
        if sizes != [settings["negatives"]]:
            yield f"has {sizes} negatives in its rows, but the setting is {settings['negatives']}"


def _scores(recorded: Recorded) -> Iterator[str]:
    import pyarrow.parquet as pq

    yield from _rows_by_shard(recorded)
    documents, first = recorded.spec.settings.get("documents"), 0
    for path in recorded.files(r"rows-\d+\.parquet"):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["raw"]):
                raw = _numpy(batch.column("raw").flatten(), "float32")
                if len(raw) != batch.num_rows * documents:
                    yield f"{path.name} has rows with other than {documents} documents, as the setting says"
                    return
                first += int((raw.reshape(-1, documents).argmax(axis=1) == 0).sum())
    yield from recorded.wrong({"positive_first": first})


def _read_parquet(path: Path, columns: list[str] | None = None) -> Any:
    """A table; pyarrow's `read_table` would import pandas, which takes longer than most files."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read(columns=columns)


def _batches(recorded: Recorded) -> Iterator[str]:
    labels = [name.partition("/")[2][: -KEY_DIGITS - 1] for name in recorded.spec.inputs.get("rows", ())]
    for path in recorded.files(r"plan\.parquet"):
        table = _read_parquet(path)
        steps = Counter(labels[index] for index in table["rows"].to_pylist())
        by_source = {label: steps[label] for label in labels}
        yield from recorded.wrong({"steps": table.num_rows, "steps_by_source": by_source})
        if table["step"].to_pylist() != list(range(table.num_rows)):
            yield f"{path.name} has steps that are not 0, 1, 2 ..."
        epochs = max(table["epoch"].to_pylist()) + 1 if "epoch" in table.column_names else 1
        if epochs > recorded.spec.settings["epochs"]:
            yield f"{path.name} has {epochs} epochs, but the setting is {recorded.spec.settings['epochs']}"
    for path in recorded.files(r"left-out\.parquet"):
        left_out = Counter(labels[index] for index in _read_parquet(path)["rows"].to_pylist())
        yield from recorded.wrong({"rows_with_fewer_negatives": {label: left_out[label] for label in labels}})


# Models


def _parameters(recorded: Recorded) -> int:
    return sum(
        math.prod(shape)
        for path in recorded.files(r".*\.safetensors")
        for name, shape in tensor_shapes(path).items()
        if not NO_PARAMETERS.search(name)
    )


def _bases(recorded: Recorded) -> Iterator[str]:
    if "parameters" in recorded.facts:
        yield from recorded.wrong({"parameters": _parameters(recorded)})
    for path in recorded.files(r"tokenizer\.json"):
        tokenizer = read_json(path)
        vocabulary = tokenizer["model"].get("vocab", {})
        if isinstance(vocabulary, dict):
            added = {token["content"] for token in tokenizer.get("added_tokens", ())}
            yield from recorded.wrong({"vocabulary": len(vocabulary.keys() | added)})


def _models(recorded: Recorded) -> Iterator[str]:
    from colbert_zero.graph.saved_encoding import read_saved_encoding

    facts, settings = recorded.facts, recorded.spec.settings
    for path in recorded.files(r"losses\.jsonl"):
        yield from problems_with_training(recorded.manifest, path)
        last: dict[str, Any] = {}
        steps, highest = 0, 0.0
        with path.open("rb") as file:
            for steps, line in enumerate(file, start=1):
                last = parse_json(line)
                highest = max(highest, last.get("learning_rate", 0.0))
                if last["step"] != steps:
                    yield f"{path.name} has step {last['step']} in line {steps}"
                    return
        yield from recorded.wrong({"steps": steps, "final_loss": last.get("loss")})
        if recorded.current and highest > settings["learning_rate"] * (1 + 1e-9):
            yield f"{path.name} has the learning rate {highest}, but the setting is {settings['learning_rate']}"
    if "parameters" in facts:
        yield from recorded.wrong({"parameters": _parameters(recorded)})
    if "steps" in facts and "batch_size" in facts:
        yield from recorded.wrong({"samples": facts["steps"] * facts["batch_size"]})
    yield from _wrong_rate(facts, "samples_per_second", "samples", "seconds")
    if recorded.current and "stage" in facts:
        yield from recorded.wrong({"stage": settings["stage"]})
        saved = read_saved_encoding(recorded.folder) or {}
        for name, value in saved.items():
            if name in settings and settings[name] != value:
                yield f"was saved with {name} {_shown(value)}, but its spec says {_shown(settings[name])}"


def _wrong_rate(facts: Facts, rate: str, count: str, seconds: str) -> Iterator[str]:
    """A rate that is not its count by its seconds, which were rounded to milliseconds."""
    if all(isinstance(facts.get(name), int | float) for name in (rate, count, seconds)) and facts[seconds] > 0:
        low, high = (facts[count] / max(facts[seconds] + change, 1e-9) for change in (0.0006, -0.0006))
        if not low - 0.1 <= facts[rate] <= high + 0.1:
            yield f"says {rate.replace('_', ' ')} {facts[rate]}, but {facts[count]} in {facts[seconds]} s are others"


# Evaluation


def _collections(recorded: Recorded) -> Iterator[str]:
    from colbert_zero.data.beir import check_collection
    from colbert_zero.data.qrels import read_judgements

    if "documents" not in recorded.facts:
        return
    split = recorded.spec.settings.get("split") or "test"
    corpus, queries = (recorded.files(rf"{name}\.jsonl(\.gz)?") for name in ("corpus", "queries"))
    if sum(path.stat().st_size for path in (*corpus, *queries)) <= SMALL_BYTES:
        yield from recorded.wrong(check_collection(recorded.folder, split))
        return
    (qrels_file,) = recorded.files(rf"qrels/{re.escape(split)}\.tsv")
    qrels = read_judgements(qrels_file)
    grades = [grade for row in qrels.values() for grade in row.values()]
    yield from recorded.wrong(
        {
            "documents": sum(map(_rows_of_file, corpus)),
            "judgements": len(grades),
            "positive_judgements": sum(grade > 0 for grade in grades),
        }
    )


def _indexes(recorded: Recorded) -> Iterator[str]:
    facts, settings, outputs = recorded.facts, recorded.spec.settings, recorded.manifest["outputs"]
    if recorded.spec.label.startswith(DENSE_PREFIX):
        yield from _text_vectors(recorded)
        kind = "faiss" if "documents.faiss" in outputs else "exact"
    else:
        yield from _token_vectors(recorded)
        kind = "exact" if "documents.safetensors" in outputs else "plaid"
    yield from recorded.wrong({"bytes": sum(entry["bytes"] for entry in outputs.values())})
    if outputs:
        yield from recorded.wrong({"kind": kind})
    if settings.get("index", {}).get("kind", "auto") not in ("auto", kind):
        yield f"is an index of kind {kind}, but its spec says {settings['index']['kind']}"
    yield from _wrong_rate(facts, "documents_per_second", "documents", "encoding_seconds")
    if "given_documents" in facts and not 0 < facts["given_documents"] <= facts["documents"]:
        yield f"says that others encoded {_shown(facts['given_documents'])} of its {facts['documents']} documents"
    encoding = facts.get("encoding", {})
    for name, value in settings.get("encoding", {}).items():
        least = settings.get("minimum_lengths", {}).get(name)
        if name in encoding and encoding[name] != (value if least is None else max(value, least)):
            yield f"says that it encoded with {name} {_shown(encoding[name])}, but its spec says {_shown(value)}"


def _token_vectors(recorded: Recorded) -> Iterator[str]:
    """Count the texts and the token vectors of a late-interaction model."""
    import pyarrow.compute as pc

    for part, name in (("documents", "document_tokens"), ("queries", "query_tokens")):
        for path in recorded.files(rf"{part}\.parquet"):
            tokens = _read_parquet(path, ["tokens"])["tokens"]
            counted = {part: len(tokens), name: pc.sum(tokens).as_py() or 0}
            yield from recorded.wrong(counted)
            for vectors in recorded.files(rf"{part}\.safetensors"):
                shape = list(tensor_shapes(vectors).get("tokens", ()))
                yield from recorded.wrong({"dimensions": shape[-1]})
                if shape[0] != counted[name]:
                    yield f"{vectors.name} has {shape[0]} vectors, but {path.name} has {counted[name]}"


def _text_vectors(recorded: Recorded) -> Iterator[str]:
    """Count the texts of a dense model, which have a vector each."""
    import numpy as np

    for part in ("documents", "queries"):
        for path in recorded.files(rf"{part}\.parquet"):
            count = _parquet_rows(path)
            yield from recorded.wrong({part: count})
            for vectors in recorded.files(rf"{part}\.npy"):
                rows, dimensions = np.lib.format.open_memmap(vectors, mode="r").shape
                yield from recorded.wrong({"dimensions": dimensions})
                if rows != count:
                    yield f"{vectors.name} has {rows} vectors, but {path.name} has {count} texts"
    for path in recorded.files(r"documents\.faiss"):
        with path.open("rb") as file:
            header = file.read(INVERTED_FILE_HEADER.size)
        if len(header) < INVERTED_FILE_HEADER.size:
            yield f"{path.name} is no inverted file"
            return
        dimensions, count, lists = INVERTED_FILE_HEADER.unpack(header)
        yield from recorded.wrong({"documents": count, "dimensions": dimensions, "lists": lists})


def _runs(recorded: Recorded) -> Iterator[str]:
    settings, facts = recorded.spec.settings, recorded.facts
    for path in recorded.files(r"run\.trec"):
        queries, lines, deepest = 0, 0, 0
        tags: set[str] = set()
        for query, hits in _hits(path, tags):
            queries += 1
            lines += len(hits)
            deepest = max(deepest, len(hits))
            if [rank for rank, _, _ in hits] != list(range(1, len(hits) + 1)):
                yield f"{path.name} has ranks of query {query} that are not 1, 2, 3 ..."
                return
            if not all(math.isfinite(score) for _, score, _ in hits):
                yield f"{path.name} has scores of query {query} that are not finite"
                return
            if len({document for _, _, document in hits}) < len(hits):
                yield f"{path.name} has a document of query {query} twice"
                return
            if any(score < following for (_, score, _), (_, following, _) in pairwise(hits)):
                yield f"{path.name} has scores of query {query} that do not fall"
                return
        empty = facts.get("queries_without_results", facts.get("queries_without_documents", 0))
        yield from recorded.wrong({"retrieved": lines, "queries": queries + empty})
        if deepest > settings.get("depth", deepest):
            yield f"{path.name} has {deepest} documents of a query, but its depth is {settings['depth']}"
        if len(tags) > 1:
            yield f"{path.name} has lines of {len(tags)} runs"
    yield from _wrong_rate(facts, "queries_per_second", "queries", "searching_seconds")


def _hits(path: Path, tags: set[str]) -> Iterator[tuple[str, list[tuple[int, float, str]]]]:
    """Each query of a run with the rank, score and id of each document; the runs' names are added to `tags`."""
    current: str | None = None
    hits: list[tuple[int, float, str]] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            query, _, document, rank, score, tag = line.rstrip("\n").split(" ")
            if query != current:
                if current is not None:
                    yield current, hits
                current, hits = query, []
            hits.append((int(rank), float(score), document))
            tags.add(tag)
    if current is not None:
        yield current, hits


def _measures(recorded: Recorded) -> Iterator[str]:
    from colbert_zero.evaluation.values import mean_value, read_values

    for path in recorded.files(r"measures\.parquet"):
        values = read_values(path)
        if set(values) != set(recorded.spec.settings["measures"]):
            yield f"{path.name} has other measures than its spec: {', '.join(sorted(values))[:200]}"
        yield from recorded.wrong({"means": {name: mean_value(by_query) for name, by_query in values.items()}})
        for name, by_query in values.items():
            yield from recorded.wrong({"queries": len(by_query)})
            if not all(0 <= value <= 1 for value in by_query.values()):
                yield f"{path.name} has a value of {name} that is not between 0 and 1"


def _contamination(recorded: Recorded) -> Iterator[str]:
    import pyarrow.parquet as pq

    judged = recorded.facts["judged"]
    for path in recorded.files(r"contamination\.parquet"):
        rows = pq.read_table(path, columns=["collection", "kind", "id", "match"]).to_pylist()
        matches = Counter(row["match"] for row in rows)
        yield from recorded.wrong({"matches": {match: matches[match] for match in recorded.facts["matches"]}})
        found = Counter(
            (collection, kind) for collection, kind, _ in {(r["collection"], r["kind"], r["id"]) for r in rows}
        )
        for (collection, kind), number in sorted(found.items()):
            most = judged[collection]["queries" if kind == "query" else "documents"]
            if number > most:
                yield f"says {most} judged texts of {collection}, but {path.name} has {number} of kind {kind}"


def _audits(recorded: Recorded) -> Iterator[str]:
    for path in recorded.files(r"audit\.json"):
        audit = read_json(path)
        yield from recorded.wrong({name: audit[name] for name in recorded.facts})
        yield from recorded.wrong({"findings": len(audit["found"]), "artifacts": sum(audit["kinds"].values())})


def _releases(recorded: Recorded) -> Iterator[str]:
    for path in recorded.files(r"SHA256SUMS"):
        listed = {file: sha256 for sha256, _, file in (line.partition("  ") for line in path.read_text().splitlines())}
        there = {file: entry["sha256"] for file, entry in recorded.manifest["outputs"].items() if file != path.name}
        for file in sorted(listed.keys() ^ there.keys()):
            yield f"has a {path.name} that {'lists' if file in listed else 'does not list'} {file}"
        for file in sorted(file for file in listed.keys() & there.keys() if listed[file] != there[file]):
            yield f"has a {path.name} with another digest of {file} than the file's"


COUNTS: Mapping[str, Callable[[Recorded], Iterator[str]]] = {
    "sources": _sources,
    "collections": _collections,
    "bases": _bases,
    "shards": _shards,
    "candidates": _candidates,
    "negatives": _negatives,
    "scores": _scores,
    "batches": _batches,
    "models": _models,
    "indexes": _indexes,
    "runs": _runs,
    "measures": _measures,
    "contamination": _contamination,
    "audits": _audits,
    "releases": _releases,
}
"""What counts the artifacts of a kind again."""
