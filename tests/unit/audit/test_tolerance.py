"""Two files that should be the same: what rounding may do, what it may not, and where they differ first."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from colbert_zero.audit.tolerance import (
    LOSSES,
    Verdict,
    compare_facts,
    compare_files,
    compare_losses,
    exit_status,
    worst,
)

RUN = [("q1", "d1", 20.0), ("q1", "d2", 10.0), ("q2", "d3", 7.5)]


def compare(tmp_path, name, stored, made, kind="runs"):
    for folder, content in (("stored", stored), ("made", made)):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        match path.suffix:
            case ".safetensors":
                save_file(content, path)
            case ".parquet":
                pq.write_table(pa.table(content), path)
            case _:
                path.write_text(content)
    return compare_files(tmp_path / "stored" / name, tmp_path / "made" / name, name, kind)


def run_text(hits, tag="model"):
    return "".join(
        f"{query} Q0 {document} {rank} {score} {tag}\n" for rank, (query, document, score) in enumerate(hits)
    )


def changed(hits, position, **values):
    hits = [dict(zip(("query", "document", "score"), hit, strict=True)) for hit in hits]
    hits[position] |= values
    return [tuple(hit.values()) for hit in hits]


def test_equal_bytes_are_identical(tmp_path):
    assert compare(tmp_path, "run.trec", run_text(RUN), run_text(RUN)).verdict == Verdict.IDENTICAL


def test_scores_that_are_close_are_within_the_tolerance(tmp_path):
    comparison = compare(tmp_path, "run.trec", run_text(RUN), run_text(changed(RUN, 1, score=10.001)))
    assert comparison.verdict == Verdict.WITHIN
    assert "0.0001" in comparison.detail


@pytest.mark.parametrize(
    ("made", "where"),
    [
        (run_text(changed(RUN, 1, score=10.5)), "query q1, document d2: 10.0 is stored, 10.5 was made"),
        (run_text(changed(RUN, 2, document="d9")), "query q2: 1 documents are stored, 1 made, 0 in both"),
        (run_text(RUN[:2]), "line 3"),
        (run_text(RUN, tag="another"), "line 1"),
        ("no run\n", "cannot be read"),
    ],
)
def test_a_run_that_differs_is_told_by_its_first_difference(tmp_path, made, where):
    comparison = compare(tmp_path, "run.trec", run_text(RUN), made)
    assert comparison.verdict == Verdict.DIFFERENT
    assert where in comparison.detail


def test_tensors_are_compared_by_their_greatest_value(tmp_path):
    weights = np.linspace(-1, 1, 20000, dtype=np.float32).reshape(10000, 2)
    close, far, nan = weights.copy(), weights.copy(), weights.copy()
    close[9000, 1] += 1e-4
    far[9000, 1] += 1e-2
    nan[3, 0] = np.nan
    first = {"a": weights, "b": np.zeros(3, np.float16), "c": np.array(1.5, np.float32)}
    within = compare(tmp_path, "x.safetensors", first, first | {"a": close})
    assert within.verdict == Verdict.WITHIN and "in a (0.002 allowed)" in within.detail
    different = compare(tmp_path, "x.safetensors", first, first | {"a": far})
    assert different.verdict == Verdict.DIFFERENT and different.detail.startswith("a[9000, 1]: 0.80")
    assert compare(tmp_path, "x.safetensors", first, first | {"a": nan}).verdict == Verdict.DIFFERENT
    assert compare(tmp_path, "x.safetensors", first, {"a": weights}).verdict == Verdict.DIFFERENT
    assert (
        compare(tmp_path, "x.safetensors", first, first | {"b": np.zeros(4, np.float16)}).verdict == Verdict.DIFFERENT
    )
    scalar = compare(tmp_path, "x.safetensors", first, first | {"c": np.array(1.6, np.float32)})
    assert scalar.detail.startswith("c: 1.5 is stored")


def test_parquet_is_compared_by_values(tmp_path):
    table = {"id": ["a", "b"], "scores": [[1.0, 2.0], [3.0]]}
    within = compare(tmp_path, "x.parquet", table, table | {"scores": [[1.0, 2.0], [3.001]]}, "scores")
    assert within.verdict == Verdict.WITHIN
    for column, values, where in (
        ("scores", [[1.0, 2.5], [3.0]], "scores, row 0[1]: 2.0 is stored, 2.5 was made"),
        ("scores", [[1.0, 2.0], [3.0, 4.0]], "scores, row 1: [3.0] is stored, [3.0, 4.0] was made"),
        ("id", ["a", "c"], "id, row 1: b is stored, c was made"),
        ("id", ["a", None], "id, row 1: b is stored, None was made"),
    ):
        different = compare(tmp_path, "x.parquet", table, table | {column: values}, "scores")
        assert (different.verdict, different.detail) == (Verdict.DIFFERENT, where)
    longer = compare(tmp_path, "x.parquet", table, {"id": ["a", "b", "c"], "scores": [[1.0, 2.0], [3.0], []]}, "scores")
    assert longer.detail == "number of rows: 2 is stored, 3 was made"
    assert compare(tmp_path, "x.parquet", table, {"id": ["a", "b"]}).detail.startswith("columns")
    measures = {"value": [0.5]}
    assert compare(tmp_path, "m.parquet", measures, {"value": [0.50001]}, "measures").verdict == Verdict.DIFFERENT


def test_json_and_tables_are_compared_by_numbers(tmp_path):
    stored = {"a": {"b": [1.0, True]}, "c": "x"}
    assert compare(tmp_path, "x.json", json.dumps(stored), json.dumps(stored, indent=1)).verdict == Verdict.WITHIN
    for made, where in (
        ({"a": {"b": [1.1, True]}, "c": "x"}, "a, b[0]: 1.0 is stored, 1.1 was made"),
        ({"a": {"b": [1.0, 1]}, "c": "x"}, "a, b[1]: True is stored, 1 was made"),
        ({"a": {"b": [1.0, True]}}, "names: ['c'] is stored, [] was made"),
    ):
        different = compare(tmp_path, "x.json", json.dumps(stored), json.dumps(made))
        assert (different.verdict, different.detail) == (Verdict.DIFFERENT, where)
    assert compare(tmp_path, "t.csv", "a,b\nx,0.5\n", "a,b\nx,0.50000001\n").verdict == Verdict.WITHIN
    assert compare(tmp_path, "t.csv", "a,b\nx,0.5\n", "a,b\nx,0.6\n").detail == (
        "line 2[1]: 0.5 is stored, 0.6 was made"
    )


def test_what_no_rule_knows_is_the_same_or_different(tmp_path):
    different = compare(tmp_path, "page.html", "<p>\n<b>40.72</b>\n", "<p>\n<b>45.72</b>\n")
    assert different.detail == "line 2: '<b>40.72</b>\\n' is stored, '<b>45.72</b>\\n' was made"


def test_a_stored_file_that_cannot_be_read_is_different(tmp_path):
    table = {"id": ["a"]}
    compare(tmp_path, "x.parquet", table, table)
    (tmp_path / "stored" / "x.parquet").write_bytes(b"PAR1")
    comparison = compare_files(tmp_path / "stored/x.parquet", tmp_path / "made/x.parquet", "x.parquet", "scores")
    assert comparison.verdict == Verdict.DIFFERENT and "cannot be read" in comparison.detail
    (tmp_path / "stored" / "x.parquet").unlink()
    comparison = compare_files(tmp_path / "stored/x.parquet", tmp_path / "made/x.parquet", "x.parquet", "scores")
    assert comparison.verdict == Verdict.DIFFERENT and "not there" in comparison.detail


def test_times_are_not_compared_and_counts_are():
    stored = {"rows": 3, "seconds": 1.0, "encoding_seconds": 2.0, "gpu_peak_memory_mb": 5, "means": {"a": 0.5}}
    assert compare_facts(stored, stored | {"seconds": 9.0, "encoding_seconds": 1.0}).verdict == Verdict.IDENTICAL
    assert compare_facts(stored, stored | {"means": {"a": 0.55}}).detail == "means, a: 0.5 is stored, 0.55 was made"
    assert compare_facts(stored, {"rows": 3}).verdict == Verdict.DIFFERENT
    # An earlier version counted less.
    assert compare_facts({"rows": 3}, {"rows": 3, "new": 1}).verdict == Verdict.WITHIN


def test_losses_are_compared_step_by_step():
    stored = [json.dumps({"step": step, "source": "a", "loss": 2.0 / step}) for step in (1, 2, 3)]
    made = [*stored[:2], json.dumps({"step": 3, "source": "a", "loss": 0.6667})]
    assert compare_losses(stored, stored, LOSSES).verdict == Verdict.IDENTICAL
    assert compare_losses(stored, made, LOSSES).verdict == Verdict.WITHIN
    forged = [stored[0], stored[1].replace("1.0", "0.9"), stored[2]]
    assert compare_losses(forged, made, LOSSES).detail == "line 2, loss: 0.9 is stored, 1.0 was made"
    assert compare_losses(stored[:2], made, LOSSES).verdict == Verdict.DIFFERENT
    assert compare_losses(["{"], made, LOSSES).verdict == Verdict.DIFFERENT


def test_the_worst_verdict_counts():
    assert worst([]) == Verdict.IDENTICAL
    assert exit_status([Verdict.IDENTICAL, Verdict.WITHIN]) == 0
    assert exit_status([Verdict.UNKNOWN, Verdict.WITHIN]) == 2
    assert exit_status([Verdict.UNKNOWN, Verdict.DIFFERENT]) == 1
