"""PyTerrier's t tests and corrections of BM25 runs are ours."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from colbert_zero.evaluation.measure import measure
from colbert_zero.report.statistics.resampling import Sample, whole
from colbert_zero.report.statistics.significance import holm, spreads

PEERS = Path(sys.prefix) / "peers"
LOCK = Path(__file__).parents[3] / "envs" / "peers.txt"
PROGRAM = Path(__file__).parents[2] / "compare_pyterrier.py"
PARAMETERS = {"bm25": (0.9, 0.4), "b 0.75": (1.2, 0.75), "k1 3": (3.0, 0.4), "b 1": (0.9, 1.0)}
"""k1 and b of each run; others are compared with the first."""

Run = dict[str, dict[str, float]]


def bm25(documents: Mapping[str, str], queries: Mapping[str, str], k1: float, b: float) -> Run:
    """The scores of the 100 best documents that have a word of the query."""
    counts = {name: Counter(text.split()) for name, text in documents.items()}
    frequencies = Counter(word for count in counts.values() for word in count)
    mean_length = sum(count.total() for count in counts.values()) / len(counts)
    run: Run = {}
    for query, text in queries.items():
        scores: Counter[str] = Counter()
        for word in set(text.split()) & frequencies.keys():
            weight = math.log(1 + (len(counts) - frequencies[word] + 0.5) / (frequencies[word] + 0.5))
            for name, count in counts.items():
                if count[word]:
                    norm = k1 * (1 - b + b * count.total() / mean_length)
                    scores[name] += weight * count[word] * (k1 + 1) / (count[word] + norm)
        run[query] = dict(scores.most_common(100))
    return run


def collection() -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """Documents of random words around topics of their own, and queries of a document's words."""
    generator = np.random.default_rng(11)
    words = [f"w{number}" for number in range(400)]
    shares = 1 / np.arange(1, 401)
    documents, queries, qrels = {}, {}, {}
    for number in range(300):
        favourites = generator.permutation(400)[:12]
        weights = shares + 0.15 * np.isin(np.arange(400), favourites)
        length = int(generator.integers(8, 120))
        documents[f"d{number}"] = " ".join(generator.choice(words, length, p=weights / weights.sum()))
        if number < 60:
            queries[f"q{number}"] = " ".join(words[each] for each in favourites[:3])
            qrels[f"q{number}"] = {f"d{number}": 1}
    return documents, queries, qrels


def theirs(qrels: Mapping[str, Mapping[str, int]], runs: Mapping[str, Run], folder: Path) -> dict[str, list[float]]:
    """By run, PyTerrier's mean, p value and corrected p value."""
    (version,) = re.findall(r"^pyterrier==(\S+)", LOCK.read_text(), re.MULTILINE)
    if not (PEERS / f"pyterrier-{version}.dist-info").is_dir():
        pytest.fail(f"no pyterrier {version} in {PEERS}: `make test` installs it", pytrace=False)
    (folder / "runs.json").write_text(json.dumps({"qrels": qrels, "runs": runs}), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(PEERS), "HOME": str(folder)}
    command = [sys.executable, PROGRAM, folder / "runs.json"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def ours(qrels: Mapping[str, Mapping[str, int]], runs: Mapping[str, Run]) -> dict[str, list[float]]:
    values = {
        name: measure(["nDCG@10"], qrels, {query: list(of.items()) for query, of in run.items()})
        for name, run in runs.items()
    }
    by_run = np.array([[of[query, "nDCG@10"] for query in qrels] for of in values.values()]).T
    tests = spreads([Sample("dev", whole(by_run[:, 1:] - by_run[:, :1]))])
    p = [float(test.p or 1.0) for test in tests]
    return {
        name: [float(mean), *of_test]
        for name, mean, of_test in zip(
            list(runs)[1:], by_run.mean(axis=0)[1:], zip(p, holm(p), strict=True), strict=True
        )
    }


def test_pyterriers_p_values_and_corrections_are_ours(tmp_path: Path) -> None:
    documents, queries, qrels = collection()
    runs = {name: bm25(documents, queries, *parameters) for name, parameters in PARAMETERS.items()}
    expected = theirs(qrels, runs, tmp_path)
    found = ours(qrels, runs)
    assert min(p for _, p, _ in found.values()) < 0.05 < max(p for _, p, _ in found.values())
    for name, values in found.items():
        assert values == pytest.approx(expected[name], abs=1e-6), name
