"""Compare the files of two artifacts that should be the same: identical, within a tolerance, or different and where.

Bytes decide first. Where they differ, a file's kind decides what rounding may do: another processor or GPU adds in
another order. `TOLERANCES` says how far numbers may be apart; whatever is no number must be equal.
"""

from __future__ import annotations

import csv
import filecmp
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from colbert_zero.graph.artifact import Artifact, is_let_go
from colbert_zero.graph.console import UserError
from colbert_zero.graph.json_values import parse_json, read_json

ROWS_AT_ONCE = 8192
"""Rows of a Parquet file or of a tensor that are in memory at once."""
RANKS = 10
"""The ranks of a run whose documents are compared."""


class Verdict(StrEnum):
    """How two things compare, from best to worst."""

    IDENTICAL = "identical"
    WITHIN = "within tolerance"
    UNKNOWN = "could not tell"
    DIFFERENT = "different"


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of some verdicts; identical if there is none."""
    return max(verdicts, key=list(Verdict).index, default=Verdict.IDENTICAL)


def exit_status(verdicts: Iterable[Verdict]) -> int:
    """The status of a command: 0 if all is identical or within tolerance, 1 if something differs, else 2."""
    return {Verdict.DIFFERENT: 1, Verdict.UNKNOWN: 2}.get(worst(verdicts), 0)


@dataclass(frozen=True)
class Tolerance:
    """How far two numbers may be apart: by `absolute`, or by this part of the greater one."""

    absolute: float
    relative: float

    def allows(self, first: float, second: float) -> bool:
        """Whether two numbers are this close; NaN is close to itself alone."""
        if math.isnan(first) or math.isnan(second):
            return math.isnan(first) and math.isnan(second)
        return first == second or abs(first - second) <= max(
            self.absolute, self.relative * max(abs(first), abs(second))
        )

    def __str__(self) -> str:
        """For people."""
        parts = [f"{self.absolute:g}"] * bool(self.absolute) + [f"{self.relative:g} of the value"] * bool(self.relative)
        return " or ".join(parts)


TENSORS = Tolerance(0.0, 2e-3)
"""Of a tensor's greatest absolute value; of an index's vectors, two units in the last place of the greatest, near 1."""
SCORES = Tolerance(1e-5, 1e-3)
"""Of MaxSim, BM25, dense and teacher scores."""
OVERLAP = 0.9
"""The least share of the first `RANKS` documents of a run, over all queries, that two runs have in common."""
LOSSES = Tolerance(1e-6, 1e-2)
"""Of losses and gradient norms of a training."""
LOSSES_ON_SAME_MACHINE = Tolerance(1e-6, 1e-4)
"""The same, by the same code and libraries on a processor of the same name: nearly always all digits agree."""
NUMBERS = Tolerance(1e-6, 1e-6)
"""Of measures, means and all other numbers."""
TOLERANCES = {"scores": SCORES, "candidates": SCORES}
"""Of the numbers in the Parquet files of some kinds of artifacts; `NUMBERS` for the others."""
NOT_COMPARED = re.compile(
    r"(.*_)?seconds|.*_per_second|.*memory.*|gpu_watt_hours|device|threads|processes|nodes|tokens_per_chunk"
    r"|tokens_in_memory|maxsim|evaluations|given_documents"
)
"""Facts that say how fast, where and with what flags an artifact was made; they decide no file of it."""


@dataclass(frozen=True)
class Comparison:
    """How one file compares, and where it differs first or how far it is off."""

    file: str
    verdict: Verdict
    detail: str = ""


class Differ(Exception):
    """Two things differ: where, and the values there."""


class Untold(Exception):
    """Whether two things differ cannot be told: why."""


@dataclass
class Closeness:
    """How far apart numbers are that a tolerance allows; the first that it does not allow is raised.

    Attributes:
        tolerance: How far they may be.
        largest: The largest difference so far.
    """

    tolerance: Tolerance
    largest: float = 0.0

    def compare(self, stored: Any, made: Any, where: str) -> None:
        """Compare two JSON values, number by number.

        Raises:
            Differ: They differ by more than the tolerance.
        """
        if isinstance(stored, dict) and isinstance(made, dict):
            if stored.keys() != made.keys():
                raise Differ(_values(f"{where}: names" if where else "names", *_only_in_one(stored, made)))
            for name in stored:
                self.compare(stored[name], made[name], f"{where}, {name}" if where else str(name))
        elif isinstance(stored, list) and isinstance(made, list) and len(stored) == len(made):
            for position, (first, second) in enumerate(zip(stored, made, strict=True)):
                self.compare(first, second, f"{where}[{position}]")
        elif _is_number(stored) and _is_number(made):
            if not self.tolerance.allows(stored, made):
                raise Differ(_values(where, stored, made))
            self.largest = max(self.largest, abs(stored - made) if stored != made else 0.0)
        elif stored != made or isinstance(stored, bool) != isinstance(made, bool):
            raise Differ(_values(where, stored, made))

    def __str__(self) -> str:
        """For people."""
        return f"numbers differ by at most {self.largest:.3g} ({self.tolerance} allowed)"


def _only_in_one(stored: Mapping[str, Any], made: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    return sorted(stored.keys() - made.keys()), sorted(made.keys() - stored.keys())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _values(where: str, stored: Any, made: Any) -> str:
    first, second = (text if len(text := str(value)) <= 80 else text[:80] + "..." for value in (stored, made))
    return f"{where}: {first!s} is stored, {second!s} was made"


def compare_artifacts(stored: Artifact, made: Artifact) -> list[Comparison]:
    """Compare all files of two artifacts of one spec, and the facts of their manifests."""
    comparisons = []
    for name in sorted({*stored.files(), *made.files()}):
        if name not in made.files():
            comparisons.append(Comparison(name, Verdict.DIFFERENT, "is stored, and was not made"))
        elif name not in stored.files():
            comparisons.append(Comparison(name, Verdict.DIFFERENT, "was made, and is not stored"))
        elif is_let_go(stored.folder):
            comparisons.append(_compare_digests(name, stored, made))
        else:
            comparisons.append(compare_files(stored.folder / name, made.folder / name, name, stored.spec.kind))
    return [*comparisons, compare_facts(stored.facts, made.facts)]


def _compare_digests(name: str, stored: Artifact, made: Artifact) -> Comparison:
    """Compare a file that was let go with one that was made again."""
    if stored.manifest["outputs"][name]["sha256"] == made.manifest["outputs"][name]["sha256"]:
        return Comparison(name, Verdict.IDENTICAL)
    return Comparison(name, Verdict.UNKNOWN, "it has other bytes than the one that was let go; replay its run")


def compare_facts(stored: Mapping[str, Any], made: Mapping[str, Any]) -> Comparison:
    """Compare what two manifests count; times, memory and devices are left out.

    A fact that is not stored is no difference: code of an earlier version counted less.
    """
    first, second = (
        {name: value for name, value in facts.items() if not NOT_COMPARED.fullmatch(name)} for facts in (stored, made)
    )
    if first == second:
        return Comparison("facts", Verdict.IDENTICAL)
    details = []
    for name in sorted(first.keys() | second.keys()):
        closeness = Closeness(LOSSES if name == "final_loss" else NUMBERS)
        if name not in first:
            details.append(f"{name} is not stored")
            continue
        try:
            closeness.compare(first[name], second.get(name), name)
        except Differ as difference:
            return Comparison("facts", Verdict.DIFFERENT, str(difference))
        details += [f"{name}: {closeness}"] * bool(closeness.largest)
    return Comparison("facts", Verdict.WITHIN, "; ".join(details))


def compare_files(stored: Path, made: Path, name: str, kind: str) -> Comparison:
    """Compare a stored file of an artifact with one that was made again.

    Args:
        stored: The stored file.
        made: The other file.
        name: Its path in the artifact.
        kind: The kind of the artifact.
    """
    if not stored.is_file():
        return Comparison(name, Verdict.DIFFERENT, "its manifest names it, and it is not there")
    if filecmp.cmp(stored, made, shallow=False):
        return Comparison(name, Verdict.IDENTICAL)
    compare = COMPARERS.get(Path(name).suffix, _compare_lines)
    try:
        return Comparison(name, Verdict.WITHIN, compare(stored, made, kind))
    except Differ as difference:
        return Comparison(name, Verdict.DIFFERENT, str(difference))
    except Untold as reason:
        return Comparison(name, Verdict.UNKNOWN, str(reason))
    except (UserError, ValueError, KeyError, TypeError, OSError) as error:
        return Comparison(name, Verdict.DIFFERENT, f"it cannot be read: {error}")


def _compare_tensors(stored: Path, made: Path, _kind: str) -> str:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(stored, framework="pt") as first, safe_open(made, framework="pt") as second:
            if sorted(first.keys()) != sorted(second.keys()):
                raise Differ(_values("names of tensors", sorted(first.keys()), sorted(second.keys())))
            largest = [
                (_compare_tensor(name, first.get_slice(name), second.get_slice(name)), name)
                for name in sorted(first.keys())
            ]
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    share, name = max(largest, default=(0.0, ""))
    return f"tensors differ by at most {share:.3g} of their greatest value, in {name} ({TENSORS.relative:g} allowed)"


def _compare_tensor(name: str, first: Any, second: Any) -> float:
    """The greatest difference of two tensors, as a share of the greatest absolute value."""
    import torch

    shape, dtype = first.get_shape(), first.get_dtype()
    if (shape, dtype) != (second.get_shape(), second.get_dtype()):
        raise Differ(_values(name, f"{dtype} {shape}", f"{second.get_dtype()} {second.get_shape()}"))
    blocks = range(0, shape[0], ROWS_AT_ONCE) if shape else [0]
    pairs = (
        (
            start,
            *((tensor[start : start + ROWS_AT_ONCE] if shape else tensor[...]).double() for tensor in (first, second)),
        )
        for start in blocks
    )
    greatest = difference = 0.0
    worst_place = ""
    for start, one, other in pairs:
        if not one.numel():
            continue
        same = (one == other) | (one.isnan() & other.isnan())
        gap = torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=math.inf)
        greatest = max(greatest, *(tensor.abs().nan_to_num(nan=0.0).max().item() for tensor in (one, other)))
        if (here := gap.max().item()) > difference:
            place = [int(index) for index in torch.unravel_index(gap.argmax(), gap.shape)]
            values = one[tuple(place)].item(), other[tuple(place)].item()
            difference, worst_place = here, _values(f"{name}{[start + place[0], *place[1:]] if place else ''}", *values)
    if difference > TENSORS.relative * greatest or not math.isfinite(difference):
        raise Differ(worst_place)
    return difference / greatest if greatest else 0.0


class _MappedArray:
    """An array in a file of NumPy's format, read as a tensor of safetensors is."""

    def __init__(self, path: Path) -> None:
        """Map the file into memory."""
        import numpy as np

        self._array = np.lib.format.open_memmap(path, mode="r")

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self._array.shape)

    def get_dtype(self) -> str:
        """The name of its type, such as `float32`."""
        return str(self._array.dtype)

    def __getitem__(self, rows: Any) -> Any:
        """Some of its rows, as a tensor."""
        import torch

        return torch.from_numpy(self._array[rows].copy())


def _compare_arrays(stored: Path, made: Path, kind: str) -> str:
    first, second = _MappedArray(stored), _MappedArray(made)
    if not first.get_dtype().startswith("float"):
        return _compare_lines(stored, made, kind)
    share = _compare_tensor(Path(stored).name, first, second)
    return f"numbers differ by at most {share:.3g} of the greatest value ({TENSORS.relative:g} allowed)"


def _compare_inverted_files(stored: Path, made: Path, kind: str) -> str:
    vectors, others = (path.with_suffix(".npy") for path in (stored, made))
    if vectors.is_file() and others.is_file() and not filecmp.cmp(vectors, others, shallow=False):
        raise Untold("it is made from vectors that were rounded otherwise, which makes other lists; replay its runs")
    return _compare_lines(stored, made, kind)


def _compare_parquet(stored: Path, made: Path, kind: str) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tolerance = TOLERANCES.get(kind, NUMBERS)
    closeness = Closeness(tolerance)
    try:
        with pq.ParquetFile(stored) as first, pq.ParquetFile(made) as second:
            if not first.schema_arrow.equals(second.schema_arrow):
                raise Differ(_values("columns", first.schema_arrow.names, second.schema_arrow.names))
            rows = first.metadata.num_rows, second.metadata.num_rows
            batches = zip(*(file.iter_batches(batch_size=ROWS_AT_ONCE) for file in (first, second)), strict=False)
            _compare_batches(batches, closeness)
            if rows[0] != rows[1]:
                raise Differ(_values("number of rows", *rows))
    except pa.ArrowInvalid as error:
        raise ValueError(str(error)) from None
    return str(closeness) if closeness.largest else "the same values in all columns, in other bytes"


def _compare_batches(batches: Iterable[tuple[Any, Any]], closeness: Closeness) -> None:
    start = 0
    for one, other in batches:
        if not one.equals(other):
            for column in one.schema.names:
                pairs = zip(one[column].to_pylist(), other[column].to_pylist(), strict=False)
                for row, (stored, made) in enumerate(pairs, start):
                    closeness.compare(stored, made, f"{column}, row {row}")
        start += one.num_rows


def _compare_runs(stored: Path, made: Path, _kind: str) -> str:
    agreement = Agreement.of_runs(stored, made)
    if agreement.verdict == Verdict.DIFFERENT:
        raise Differ(f"{agreement.first_difference} ({agreement})")
    return str(agreement)


@dataclass(frozen=True)
class Agreement:
    """How far two runs agree.

    Attributes:
        overlap: The share of the first `RANKS` documents of the stored run that are among those of the other, over all
            queries.
        largest: The largest difference of the scores of documents that both retrieved, as a share of the score.
        beyond: Whether a score differs by more than the tolerance.
        first_difference: The first lines that differ.
    """

    overlap: float
    largest: float
    beyond: str
    first_difference: str

    @property
    def verdict(self) -> Verdict:
        """Whether the runs agree within the tolerance."""
        return Verdict.DIFFERENT if self.beyond or self.overlap < OVERLAP else Verdict.WITHIN

    def __str__(self) -> str:
        """For people."""
        return (
            f"scores differ by at most {self.largest:.3g} of the score ({SCORES.relative:g} allowed), "
            f"{100 * self.overlap:.1f} % of the first {RANKS} documents are the same ({100 * OVERLAP:g} % needed)"
        )

    @classmethod
    def of_runs(cls, stored: Path, made: Path) -> Agreement:
        """Compare two files in TREC format.

        Raises:
            UserError: A file is no run.
            Differ: A query is in one run alone, or both have the same hits and otherwise differ.
        """
        from colbert_zero.evaluation.trec import read_run

        first, second = read_run(stored), read_run(made)
        if first == second or list(first) != list(second):
            raise Differ(_first_line(stored, made))
        common = total = 0
        largest, beyond = 0.0, ""
        for query in first:
            top = {document for document, _ in first[query][:RANKS]}
            common += len(top & {document for document, _ in second[query][:RANKS]})
            total += len(top)
            scores = dict(second[query])
            shared = len(scores.keys() & {document for document, _ in first[query]})
            if not beyond and shared < OVERLAP * max(len(scores), len(first[query])):
                beyond = (
                    f"query {query}: {len(first[query])} documents are stored, {len(scores)} made, {shared} in both"
                )
            for document, score in first[query]:
                other = scores.get(document, score)
                share = abs(score - other) / max(abs(score), abs(other), 1e-9)
                largest = max(largest, share) if math.isfinite(share) else math.inf
                if not beyond and not SCORES.allows(score, other):
                    beyond = f"query {query}, document {document}: {score} is stored, {other} was made"
        return cls(common / total if total else 1.0, largest, beyond, beyond or _first_line(stored, made))


def _compare_json(stored: Path, made: Path, _kind: str) -> str:
    closeness = Closeness(NUMBERS)
    closeness.compare(read_json(stored), read_json(made), "")
    return str(closeness)


def _compare_json_lines(stored: Path, made: Path, kind: str) -> str:
    closeness = Closeness(LOSSES if kind == "models" else NUMBERS)
    compare_json_lines(_lines(stored), _lines(made), closeness)
    return str(closeness)


def compare_json_lines(stored: list[str], made: list[str], closeness: Closeness) -> None:
    """Compare two files of a JSON value per line.

    Raises:
        Differ: They differ by more than is allowed.
    """
    for number, (one, other) in enumerate(zip(stored, made, strict=False), start=1):
        closeness.compare(parse_json(one), parse_json(other), f"line {number}")
    if len(stored) != len(made):
        raise Differ(_values("number of lines", len(stored), len(made)))


def compare_losses(stored: list[str], made: list[str], tolerance: Tolerance) -> Comparison:
    """Compare the records of some steps of a training, each a line of JSON."""
    if stored == made:
        return Comparison("losses.jsonl", Verdict.IDENTICAL)
    closeness = Closeness(tolerance)
    try:
        compare_json_lines(stored, made, closeness)
    except Differ as difference:
        return Comparison("losses.jsonl", Verdict.DIFFERENT, str(difference))
    except ValueError as error:
        return Comparison("losses.jsonl", Verdict.DIFFERENT, f"it cannot be read: {error}")
    return Comparison("losses.jsonl", Verdict.WITHIN, str(closeness))


def _compare_csv(stored: Path, made: Path, _kind: str) -> str:
    closeness = Closeness(NUMBERS)
    rows = itertools.zip_longest(csv.reader(_lines(stored)), csv.reader(_lines(made)), fillvalue=())
    for number, (one, other) in enumerate(rows, start=1):
        closeness.compare(list(map(_as_number, one)), list(map(_as_number, other)), f"line {number}")
    return str(closeness)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _as_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _compare_lines(stored: Path, made: Path, _kind: str) -> str:
    raise Differ(_first_line(stored, made))


def _first_line(stored: Path, made: Path) -> str:
    """The first line in which two files differ, from where in it they do, and both texts there."""
    with stored.open("rb") as first, made.open("rb") as second:
        for number, (one, other) in enumerate(itertools.zip_longest(first, second, fillvalue=b""), start=1):
            if one != other:
                same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
                texts = (repr(line[max(0, same - 30) :][:70].decode("utf-8", "replace")) for line in (one, other))
                return _values(f"line {number}", *texts)
    return "no line differs"


COMPARERS: dict[str, Callable[[Path, Path, str], str]] = {
    ".safetensors": _compare_tensors,
    ".npy": _compare_arrays,
    ".faiss": _compare_inverted_files,
    ".parquet": _compare_parquet,
    ".trec": _compare_runs,
    ".json": _compare_json,
    ".jsonl": _compare_json_lines,
    ".csv": _compare_csv,
}
"""By the end of a file's name, what compares two files whose bytes differ: it returns how far they are apart, or raises
where they are too far. Other files are the same, or different."""
