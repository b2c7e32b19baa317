"""How long the tests of a report's differences take, and how much memory, on random values of the paper's size.

    make bench-statistics
    python tests/benchmarks/bench_statistics.py [--rows N] [--seeds N]

The collections are those of `workflow/registry/collections.yaml`, with as many queries: 26 in 15 columns. One thread.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from threadpoolctl import threadpool_limits

from colbert_zero.graph.config import read_yaml
from colbert_zero.graph.registry import REGISTRY
from colbert_zero.report.results import Column, Replicate, Row
from colbert_zero.report.statistics.comparison import compare
from colbert_zero.report.statistics.record import record
from measured import table


def make_row(name: str, seeds: int, hard: dict[str, np.ndarray]) -> Row:
    """A row whose values are as those of all others, but for chance."""
    replicates = []
    for seed in range(seeds):
        replicate = Replicate(f"{name}@{seed}", [], {}, "nDCG@10")
        generator = np.random.default_rng([seed, *name.encode()])
        values = {
            collection: np.clip(of + generator.normal(0, 0.15, len(of)), 0, 1).tolist()
            for collection, of in hard.items()
        }
        replicate.__dict__["values_per_query"] = {
            collection: dict(zip(map(str, range(len(of))), of, strict=True)) for collection, of in values.items()
        }
        replicates.append(replicate)
    return Row(name, "recipe", replicates)


def main() -> None:
    """Compare the rows, and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=1, help="of each row")
    options = parser.parse_args()
    registry = read_yaml(REGISTRY / "collections.yaml")
    forums = registry["groups"]["cqadupstack"]
    single = [name for name, entry in registry["collections"].items() if entry.get("queries") and name not in forums]
    columns = [*(Column(name, (name,)) for name in single), Column("cqadupstack", tuple(forums))]
    sizes = {name: registry["collections"][name]["queries"] for column in columns for name in column.collections}
    hard = {name: np.random.default_rng(size).uniform(0, 1, size) for name, size in sizes.items()}
    rows = [make_row(f"row{number}", options.seeds, hard) for number in range(options.rows)]

    before, begun, begun_cpu = peak_mb(), time.perf_counter(), time.process_time()
    with threadpool_limits(1):
        statistics = compare(rows, rows[1:], rows[0], columns, 42)
    size = len(record(statistics, "bench", "nDCG@10", 42))
    wall, cpu = time.perf_counter() - begun, time.process_time() - begun_cpu
    claims = sum(comparison.verdict is not None for comparison in statistics.comparisons.values())
    results = {
        "values": f"{options.rows * options.seeds * sum(sizes.values()):,}",
        "seconds": f"{wall:.0f}",
        "seconds of CPU": f"{cpu:.0f}",
        "peak memory, MB": f"{peak_mb():.0f}",
        "of it the values": f"{before:.0f}",
        "statistics.json, kB": f"{size / 1000:.0f}",
        "claims, where all is chance": f"{claims} of {len(statistics.comparisons)}",
    }
    print(table(["", f"{options.rows} rows, {len(sizes)} collections"], list(results.items())))


def peak_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
