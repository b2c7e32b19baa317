"""Laws of the batch plan, and the numbers of steps that the paper's data give."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import CaptureFixture, MonkeyPatch

from colbert_zero.data import orders
from colbert_zero.data.batches import BatchPlan, count_negatives, make, negatives_per_row, plan_batches
from colbert_zero.data.rows import PAIR_SCHEMA, TRIPLE_SCHEMA, RowWriter
from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, Artifact, Spec, file_digests, run_step
from colbert_zero.graph.console import UserError

UNSUPERVISED = """
    66204599 53874545 39357860 36051582 10087503 7722225 7639890 6550431 6198049 1281138 864023 420288 365075 353670
    293521 276726 226137 213320 173604 143477 110708 106781 97717 96029 80695 73210 65689 44885 25117
"""
SUPERVISED = "485721 275595 200000 177639 170000 140085 100591 70002 51186 25000"

sizes_of = st.lists(st.integers(0, 60), min_size=1, max_size=5)
batch_sizes = st.integers(1, 12)
seeds = st.integers(0, 2**32)


def steps_of(sizes: list[int], batch_size: int, epochs: int = 1, seed: int = 0) -> list[tuple[int, int, int]]:
    labels = [f"source-{number}" for number in range(len(sizes))]
    table = plan_batches(sizes, labels, batch_size, epochs, seed).to_pydict()
    return list(zip(table["step"], table["rows"], table["start"], strict=True))


@pytest.mark.parametrize(
    ("sizes", "batch_size", "steps"), [(UNSUPERVISED, 16_384, 14_571), (SUPERVISED, 64, 26_492), ("640000", 128, 5_000)]
)
def test_the_papers_data_give_the_papers_steps(sizes: str, batch_size: int, steps: int) -> None:
    assert len(steps_of([int(size) for size in sizes.split()], batch_size)) == steps


@given(sizes=sizes_of, batch_size=batch_sizes, epochs=st.integers(1, 3), seed=seeds)
def test_an_epoch_has_each_row_at_most_once_and_all_whole_batches(
    sizes: list[int], batch_size: int, epochs: int, seed: int
) -> None:
    if max(sizes) < batch_size:
        return
    whole = {source: size // batch_size for source, size in enumerate(sizes)}
    steps = steps_of(sizes, batch_size, epochs, seed)
    assert [step for step, _, _ in steps] == list(range(epochs * sum(whole.values())))
    for epoch in range(epochs):
        of_epoch = steps[epoch * sum(whole.values()) : (epoch + 1) * sum(whole.values())]
        assert Counter(source for _, source, _ in of_epoch) == Counter(whole)
        rows = [(source, row) for _, source, start in of_epoch for row in range(start, start + batch_size)]
        assert len(set(rows)) == len(rows)
        assert all(0 <= row < sizes[source] for source, row in rows)


@given(sizes=sizes_of, batch_size=batch_sizes, seed=seeds)
def test_a_plan_depends_only_on_its_arguments_and_an_epoch_on_its_number(
    sizes: list[int], batch_size: int, seed: int
) -> None:
    if max(sizes) < batch_size:
        return
    once, twice = steps_of(sizes, batch_size, 1, seed), steps_of(sizes, batch_size, 2, seed)
    assert once == steps_of(sizes, batch_size, 1, seed)
    assert twice[: len(once)] == once


def test_seed_and_epoch_change_the_order_and_which_rows_are_left_out() -> None:
    steps = steps_of([1000, 515], 10, epochs=3)
    epochs = [[step[1:] for step in steps[start : start + 151]] for start in (0, 151, 302)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len({min(start for source, start in epoch if source == 1) for epoch in epochs}) > 1
    assert steps != steps_of([1000, 515], 10, epochs=3, seed=1)


def test_sources_are_mixed_all_along() -> None:
    sources = [source for _, source, _ in steps_of([6000, 3000], 10)]
    thirds = [sources[start : start + 300].count(1) for start in (0, 300, 600)]
    assert all(60 < count < 140 for count in thirds)


def test_the_order_of_a_sources_batches_is_its_own_whatever_others_there_are() -> None:
    alone = plan_batches([200], ["mine"], 10, 1, 0).to_pydict()["start"]
    table = plan_batches([500, 200], ["other", "mine"], 10, 1, 0).to_pydict()
    assert [start for source, start in zip(table["rows"], table["start"], strict=True) if source == 1] == alone


@pytest.mark.parametrize("hash_seed", ["0", "1", "4711"])
def test_python_hashing_does_not_matter(hash_seed: str) -> None:
    call = "plan_batches([95, 40], ['b', 'a'], 8, 2, 7)"
    code = f"from colbert_zero.data.batches import plan_batches; print({call}.to_pydict())"
    workflow = Path(__file__).parents[3] / "workflow"
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(workflow)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(plan_batches([95, 40], ["b", "a"], 8, 2, 7).to_pydict())


def test_sources_smaller_than_a_batch_are_left_out_unless_all_are() -> None:
    assert {source for _, source, _ in steps_of([3, 20], 5)} == {1}
    with pytest.raises(UserError, match=r"no source has the 5 rows of one batch \(source-0 has 3, source-1 has 4\)"):
        steps_of([3, 4], 5)


def test_two_sources_that_share_a_name_are_refused() -> None:
    with pytest.raises(UserError, match="share a name: a, a"):
        plan_batches([10, 10], ["a", "a"], 5, 1, 0)


def shards_of(label: str, rows: int, negatives: Sequence[int] | None = None, size: int = 9) -> Spec:
    """Publish shards: `rows` pairs, or rows with so many negatives."""
    spec = Spec("shards", label, {"of": list(negatives or [])})
    spec.folder.mkdir(parents=True)
    records = [{"query": f"q{row}", "document": f"d{row}"} for row in range(rows)]
    for row, count in enumerate(negatives or []):
        records[row]["negatives"] = [f"n{row}-{number}" for number in range(count)]  # type: ignore[assignment]
    with RowWriter(spec.folder, TRIPLE_SCHEMA if negatives else PAIR_SCHEMA, size) as writer:
        writer.write(records)
    (spec.folder / SPEC_FILE).write_text(spec.text)
    manifest = {"outputs": file_digests(spec.folder), "facts": writer.facts}
    (spec.folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    return spec


def planned(shards: list[Spec], stage: str = "unsupervised", **settings: int) -> tuple[Artifact, BatchPlan]:
    spec = Spec("batches", stage, {"seed": 1, **settings}, {"rows": [one.name for one in shards]})
    assert run_step(make, None, ["--spec", spec.text]) == 0
    return Artifact.open(spec.name), opened(spec.name, shards)


def opened(name: str, shards: list[Spec]) -> BatchPlan:
    inputs = {"batches": [Artifact.open(name)], "rows": [Artifact.open(one.name) for one in shards]}
    return BatchPlan(SimpleNamespace(input=lambda role: inputs[role][0], inputs=inputs.get))  # type: ignore[arg-type]


@pytest.fixture
def study(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(orders, "BLOCK_ROWS", 4)


@pytest.mark.usefixtures("study")
def test_the_artifact_holds_plan_and_counts() -> None:
    artifact, plan = planned([shards_of("a", 23), shards_of("b", 40)], batch_size=10, epochs=1)
    table = pq.read_table(artifact.file("plan.parquet"))
    assert table.schema.names == ["step", "rows", "start"]
    assert table.equals(plan_batches([23, 40], ["a", "b"], 10, 1, 1))
    assert artifact.facts == {"steps": 6, "steps_by_source": {"a": 2, "b": 4}, "dropped_rows": {"a": 3, "b": 0}}
    for step, source, start in zip(*table.to_pydict().values(), strict=True):
        assert plan.read(step)["query"].to_pylist() == [f"q{row}" for row in range(start, start + 10)]
        assert plan.source(step).spec.label == "ab"[source]
        assert plan.negatives(step) is None


@pytest.mark.usefixtures("study")
def test_epochs_have_the_same_rows_in_other_company_and_any_step_can_be_read_first() -> None:
    shards = [shards_of("a", 230, size=50), shards_of("b", 95, size=50)]
    artifact, plan = planned(shards, batch_size=10, epochs=3)
    once, _ = planned(shards, batch_size=10, epochs=1)
    first = pq.read_table(once.file("plan.parquet"))
    assert pq.read_table(artifact.file("plan.parquet")).slice(0, len(first)).drop_columns(["epoch"]).equals(first)
    steps = [(plan.source(step).spec.label, plan.read(step)["query"].to_pylist()) for step in range(len(plan))]
    per_epoch = len(first)
    assert len(steps) == 3 * per_epoch
    together: list[set[frozenset[tuple[str, str]]]] = []
    for epoch in range(3):
        of_epoch = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        rows = [(label, query) for label, queries in of_epoch for query in queries]
        assert len(set(rows)) == len(rows) == 320
        assert Counter(label for label, _ in rows) == {"a": 230, "b": 90}
        together.append(
            {frozenset([(label, x), (label, y)]) for label, queries in of_epoch for x, y in combinations(queries, 2)}
        )
    # 32 batches have 1440 pairs. By chance one in 25 meets again in the larger source, one in 10 in the other.
    assert all(len(one & other) < 140 for one, other in combinations(together, 2))
    backwards = opened(artifact.name, shards)
    for step in reversed(range(len(plan))):
        assert backwards.read(step)["query"].to_pylist() == steps[step][1]


def test_a_sources_batches_are_in_a_drawn_order_at_first_and_in_the_order_of_its_windows_later() -> None:
    steps = steps_of([200, 100], 10, epochs=3)
    for source in (0, 1):
        first, *later = (
            [start for _, of, start in steps[30 * epoch : 30 * epoch + 30] if of == source] for epoch in range(3)
        )
        assert first != sorted(first)
        assert all(starts == sorted(starts) for starts in later)


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_plan_of_more_than_one_epoch_says_each_steps_epoch_and_the_windows(epochs: int) -> None:
    artifact, plan = planned([shards_of("a", 40)], batch_size=10, epochs=epochs)
    several = epochs > 1
    assert ("epoch" in pq.read_table(artifact.file("plan.parquet")).schema.names) == several
    assert ("window_blocks" in artifact.facts) == several
    assert plan.describe_step(0).endswith(" of epoch 1") == several
    assert plan.describe_step(len(plan) - 1).endswith(" of epoch 2") == several


def test_a_row_whose_negatives_are_null_has_none() -> None:
    batch = pa.RecordBatch.from_pydict({"negatives": [["x"], None, ["y", "z"]]})
    reader: Any = SimpleNamespace(schema=batch.schema, scan=lambda _columns: [batch])
    assert count_negatives(reader).tolist() == [1, 0, 2]


@pytest.mark.usefixtures("study")
def test_a_plan_of_several_epochs_without_orders_is_read_as_ranges() -> None:
    shards = [shards_of("a", 40)]
    spec = Spec("batches", "unsupervised", {"seed": 1, "batch_size": 10, "epochs": 2}, {"rows": [shards[0].name]})
    spec.folder.mkdir(parents=True)
    table = plan_batches([40], ["a"], 10, 2, 1)
    pq.write_table(table, spec.folder / "plan.parquet")
    (spec.folder / SPEC_FILE).write_text(spec.text)
    (spec.folder / MANIFEST_FILE).write_text(
        json.dumps({"outputs": file_digests(spec.folder), "facts": {"steps": len(table)}})
    )
    plan = opened(spec.name, shards)
    for step, start in enumerate(table["start"].to_pylist()):
        assert plan.read(step)["query"].to_pylist() == [f"q{row}" for row in range(start, start + 10)]
        assert plan.negatives(step) is None


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [
        ([1, 10, 10, 10], 10, 10),
        ([1, 2, 3, 4], 10, 3),
        ([1, 2, 3], 10, 2),
        ([50, 50, 7], 10, 10),
        ([0, 0, 0, 4], 10, 1),
        ([5], 3, 3),
    ],
)
def test_a_source_gives_as_many_negatives_as_half_of_its_rows_have(counts: list[int], most: int, expected: int) -> None:
    assert negatives_per_row(np.array(counts), most) == expected


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize("epochs", [1, 3])
def test_rows_with_fewer_negatives_are_left_out_counted_and_never_read(epochs: int) -> None:
    counts = [4 if row % 5 else row % 3 for row in range(43)]
    shards = [shards_of("a", 43, counts), shards_of("b", 12, [9] * 12)]
    artifact, plan = planned(shards, "supervised", batch_size=4, epochs=epochs, negatives=7)
    assert artifact.facts["negatives"] == {"a": 4, "b": 7}
    assert artifact.facts["rows_with_fewer_negatives"] == {"a": 9, "b": 0}
    assert artifact.facts["dropped_rows"] == {"a": 2, "b": 0}
    assert artifact.facts["steps_by_source"] == {"a": 8 * epochs, "b": 3 * epochs}
    seen: Counter[tuple[str, str]] = Counter()
    for step in range(len(plan)):
        rows, label = plan.read(step), plan.source(step).spec.label
        assert plan.negatives(step) == {"a": 4, "b": 7}[label]
        assert all(len(texts) >= plan.negatives(step) for texts in rows["negatives"].to_pylist())
        seen.update((label, query) for query in rows["query"].to_pylist())
    assert max(seen.values()) <= epochs
    assert seen.total() == epochs * (32 + 12)


@pytest.mark.usefixtures("study")
def test_a_plan_of_equal_lists_has_the_bytes_of_one_that_does_not_count_negatives() -> None:
    shards = [shards_of("a", 43, [5] * 43)]
    counted, _ = planned(shards, "supervised", batch_size=4, epochs=1, negatives=3)
    plain, _ = planned(shards, "supervised", batch_size=4, epochs=1)
    assert counted.manifest["outputs"] == plain.manifest["outputs"]


@pytest.mark.usefixtures("study")
@pytest.mark.parametrize("negatives", [None, [0] * 20])
def test_a_source_without_any_negative_is_refused(capsys: CaptureFixture[str], negatives: list[int] | None) -> None:
    shards = [shards_of("a", 20, [2] * 20), shards_of("b", 20, negatives)]
    settings = {"seed": 1, "batch_size": 4, "epochs": 1, "negatives": 2}
    spec = Spec("batches", "supervised", settings, {"rows": [one.name for one in shards]})
    assert run_step(make, None, ["--spec", spec.text]) == 1
    assert "colbert-zero: b: no row has negatives, and a supervised stage needs them; name" in capsys.readouterr().err
