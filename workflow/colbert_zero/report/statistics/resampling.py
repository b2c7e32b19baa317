"""Means under random signs, random orders of rows, and resampled queries and seeds.

All draws are raw 64-bit words of PCG64, which NumPy promises never to change; the seed is a digest of the study's seed,
the purpose and the collection. Values are whole numbers (multiples of `QUANTUM`) held in float64, so a sum of up to
2**17 of them is exact: neither the order of queries, nor a BLAS, nor the number of threads changes a digit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colbert_zero.graph.draws import draw

Array = NDArray[np.float64]

QUANTUM = 2.0**-36
"""The unit of the whole numbers that stand for values between -1 and 1: 1.5e-11."""
FLIPS = 100_000
"""How often signs are drawn where there are too many for all of them."""
QUERIES_OF_ALL_FLIPS = 15
"""Up to so many queries, all 2**n signs are tried instead."""
RESAMPLES = 10_000
"""How often queries and seeds are resampled."""
MOST_ORDERS, FEWEST_ORDERS = 9_999, 999
"""How often orders of rows are drawn where there are too many for all of them: as often as `ORDERED_VALUES` allows."""
ORDERED_VALUES = 20_000_000
"""How many values are put into random orders, in all draws together."""
BLOCK = 2**20
"""How many values a block of draws has: 8 MB, which a processor's cache nearly holds."""


@dataclass(frozen=True)
class Sample:
    """Values on one collection.

    Attributes:
        collection: The collection's name, which is part of its draws' seed.
        whole: (queries, rows), multiples of `QUANTUM` as whole numbers.
        weight: The weight of its mean in the mean over several collections; their sum is 1.
    """

    collection: str
    whole: Array
    weight: float = 1.0

    @property
    def queries(self) -> int:
        """How many queries there are."""
        return len(self.whole)

    @property
    def means(self) -> Array:
        """(rows): the mean over queries."""
        means: Array = self.whole.sum(axis=0) * (QUANTUM / self.queries)
        return means


def whole(values: Array) -> Array:
    """Values between -1 and 1 as whole multiples of `QUANTUM`."""
    return np.rint(values / QUANTUM)


def mean_of(samples: Sequence[Sample]) -> Array:
    """(rows): the weighted mean of the collections' means."""
    return _weighted((sample.means for sample in samples), samples)


def root_square_of(samples: Sequence[Sample]) -> Array:
    """(rows): the standard deviation of the weighted mean over all signs of the differences."""
    scaled = (sample.whole * (sample.weight * QUANTUM / sample.queries) for sample in samples)
    root: Array = np.sqrt(np.sum([(values**2).sum(axis=0) for values in scaled], axis=0))
    return root


def _weighted(means: Iterable[Array], samples: Sequence[Sample]) -> Array:
    """The weighted mean of arrays, of which only one is there at a time."""
    total: Array | None = None
    for mean, sample in zip(means, samples, strict=True):
        mean *= sample.weight
        total = mean if total is None else np.add(total, mean, out=total)
    assert total is not None, "there is a collection"
    return total


# Signs


def flipped_means(samples: Sequence[Sample], seed: int) -> Array:
    """The mean of differences under `FLIPS` random draws of signs, one sign for each query, the same for all rows.

    Args:
        samples: Differences, by collection.
        seed: The study's seed.

    Returns:
        (rows, draws) means over all samples, in the unit of the values.
    """
    return _weighted((_flipped(sample, seed) for sample in samples), samples)


def _flipped(sample: Sample, seed: int) -> Array:
    source = np.random.PCG64(draw(seed, "signs of queries", sample.collection))
    size = max(1, BLOCK // sample.queries)
    signs = np.empty((size, sample.queries))
    sums = np.empty((sample.whole.shape[1], FLIPS))
    for begin in range(0, FLIPS, size):
        count = min(size, FLIPS - begin)
        words = source.random_raw(-(-count * sample.queries // 64))
        bits = np.unpackbits(words.view(np.uint8), count=count * sample.queries)
        np.copyto(signs[:count], bits.reshape(count, -1))
        np.matmul(sample.whole.T, signs[:count].T, out=sums[:, begin : begin + count])
    # Bits are 0 and 1; of signs -1 and 1 the sum is twice theirs minus that of all.
    sums *= 2
    sums -= sample.whole.sum(axis=0)[:, None]
    sums *= QUANTUM / sample.queries
    return sums


def all_flipped_means(samples: Sequence[Sample]) -> Array | None:
    """The mean of differences under all signs, (rows, 2**queries); None if there are too many queries."""
    queries = sum(sample.queries for sample in samples)
    if queries > QUERIES_OF_ALL_FLIPS:
        return None
    numbers = np.arange(2**queries)
    total = np.zeros((samples[0].whole.shape[1], len(numbers)))
    position = 0
    for sample in samples:
        signs = 2.0 * (numbers[:, None] >> np.arange(position, position + sample.queries) & 1) - 1
        total += sample.weight * ((sample.whole.T @ signs.T) * (QUANTUM / sample.queries))
        position += sample.queries
    return total


# Queries and seeds


def resampled_means(samples: Sequence[Sample], seed: int) -> Array:
    """(rows, `RESAMPLES`): the mean over samples, in each of as many queries, drawn with replacement.

    The same queries are drawn for all rows.
    """
    return _weighted((_resampled(sample, seed) for sample in samples), samples)


def _resampled(sample: Sample, seed: int) -> Array:
    source = np.random.PCG64(draw(seed, "resampled queries", sample.collection))
    queries = sample.queries
    size = max(2, BLOCK // queries // 2 * 2)
    counts = np.empty((size, queries))
    sums = np.empty((sample.whole.shape[1], RESAMPLES))
    for begin in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - begin)
        chosen = _below(queries, count * queries, source).reshape(count, queries)
        chosen += np.arange(count)[:, None] * queries
        np.copyto(counts[:count], np.bincount(chosen.ravel(), minlength=count * queries).reshape(count, queries))
        np.matmul(sample.whole.T, counts[:count].T, out=sums[:, begin : begin + count])
    sums *= QUANTUM / queries
    return sums


def resampled_seeds(seeds: int, row: str, seed: int) -> Array:
    """(seeds, `RESAMPLES`): the weight of each of a row's seeds where as many are drawn with replacement.

    A seed gives one model for all collections, so one draw holds for all of them.
    """
    source = np.random.PCG64(draw(seed, "resampled seeds", row))
    chosen = _below(seeds, RESAMPLES * seeds, source).reshape(RESAMPLES, seeds)
    weights: Array = (chosen[:, :, None] == np.arange(seeds)).mean(axis=1).T
    return weights


def _below(limit: int, count: int, source: np.random.PCG64) -> NDArray[np.int64]:
    """`count` random whole numbers below `limit`, which is far below 2**32: no number is preferred noticeably."""
    words = source.random_raw(-(-count // 2)).view(np.uint32)[:count].astype(np.uint64)
    return (words * np.uint64(limit) >> np.uint64(32)).astype(np.int64)


# Orders of rows


def reordered_means(samples: Sequence[Sample], seed: int) -> tuple[Array, bool]:
    """The means of rows where each query's values are put in random order, (rows, draws); and whether all orders are.

    Args:
        samples: The values of all rows, by collection.
        seed: The study's seed.
    """
    rows, queries = samples[0].whole.shape[1], sum(sample.queries for sample in samples)
    if math.factorial(rows) ** queries <= MOST_ORDERS:
        return _all_reordered_means(samples), True
    draws = min(MOST_ORDERS, max(FEWEST_ORDERS, ORDERED_VALUES // (rows * queries)))
    return _weighted((_reordered(sample, draws, seed) for sample in samples), samples), False


def _reordered(sample: Sample, draws: int, seed: int) -> Array:
    source = np.random.PCG64(draw(seed, "orders of rows", sample.collection))
    queries, rows = sample.whole.shape
    size = max(1, BLOCK // (queries * rows))
    means = np.empty((rows, draws))
    for begin in range(0, draws, size):
        count = min(size, draws - begin)
        shape = (count, queries, rows)
        order = np.argsort(source.random_raw(count * queries * rows).reshape(shape), axis=2)
        values = np.take_along_axis(np.broadcast_to(sample.whole, shape), order, axis=2)
        means[:, begin : begin + count] = values.sum(axis=1).T
    means *= QUANTUM / queries
    return means


def _all_reordered_means(samples: Sequence[Sample]) -> Array:
    orders = [list(order) for order in itertools.permutations(range(samples[0].whole.shape[1]))]

    def of_queries() -> Iterator[list[Array]]:
        for sample in samples:
            for values in sample.whole:
                yield [values[order] * (sample.weight * QUANTUM / sample.queries) for order in orders]

    return np.array([np.sum(chosen, axis=0) for chosen in itertools.product(*of_queries())]).T
