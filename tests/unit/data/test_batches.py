"""Laws of the batch plan, and the numbers of steps that the paper's data give."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import MonkeyPatch

from colbert_zero.data.batches import make, plan_batches
from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, Spec, artifact_folder, run_step
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


def test_the_artifact_holds_plan_and_counts(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = []
    for label, rows in (("a", 23), ("b", 40)):
        spec = Spec("shards", label, {})
        spec.folder.mkdir(parents=True)
        (spec.folder / SPEC_FILE).write_text(spec.text)
        (spec.folder / MANIFEST_FILE).write_text(json.dumps({"outputs": {}, "facts": {"rows": rows}}))
        names.append(spec.name)
    spec = Spec("batches", "unsupervised", {"batch_size": 10, "epochs": 2, "seed": 1}, {"rows": names})
    assert run_step(make, None, ["--spec", spec.text]) == 0
    assert pq.read_table(spec.folder / "plan.parquet").equals(plan_batches([23, 40], ["a", "b"], 10, 2, 1))
    facts = json.loads((artifact_folder(spec.name) / MANIFEST_FILE).read_text())["facts"]
    assert facts == {"steps": 12, "steps_by_source": {"a": 4, "b": 8}, "dropped_rows": {"a": 3, "b": 0}}
