"""Values of measures, query by query: the file that `measure` writes, and means over queries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

VALUES_FILE = "measures.parquet"
SCHEMA = pa.schema([("query_id", pa.string()), ("measure", pa.string()), ("value", pa.float64())])

Values = dict[str, dict[str, float]]
"""The value by measure and query."""


def write_values(folder: Path, values: Iterable[tuple[str, str, float]]) -> None:
    """Write (query, measure, value) triples, sorted."""
    columns = [list(column) for column in zip(*sorted(values), strict=True)]
    pq.write_table(pa.table(columns, schema=SCHEMA), folder / VALUES_FILE, compression="zstd")


def read_values(path: Path) -> Values:
    """Read the values that `write_values` wrote to the file at `path`."""
    # `read_table` would import pandas, which takes longer than most files.
    with pq.ParquetFile(path) as file:
        table = file.read(columns=SCHEMA.names).cast(SCHEMA)
    values: Values = {}
    for query, measure, value in zip(*(table[name].to_pylist() for name in SCHEMA.names), strict=True):
        values.setdefault(measure, {})[query] = value
    return values


def mean_value(values: Mapping[str, float]) -> float:
    """The mean over queries. The sum is exact, so it does not depend on their order."""
    return math.fsum(values.values()) / len(values)
