"""What can be checked without the GPUs: what each level finds, and what it leaves to the next."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from colbert_zero.audit import ladder
from colbert_zero.cli import main
from colbert_zero.evaluation.values import read_values, write_values
from colbert_zero.graph.artifact import file_digests


@pytest.fixture
def study(study, monkeypatch):
    """A copy of the finished study, and nothing left of what a training sets for its process."""
    # What may have changed in the code since the study was made is no reason here.
    monkeypatch.setattr("colbert_zero.audit.replay.code_changes", lambda *_: [])
    threads = torch.get_num_threads()
    yield study
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def climb(study, capsys):
    """Call `colbert-zero ladder --only`: the status, and the lines that begin with a verdict, without names' keys."""

    def call(level, *words):
        status = main(["ladder", "--directory", str(study), "--level", str(level), "--only", *words])
        return status, [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]

    return call


def change_manifest(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def forge(study, folder):
    """Make the records of the files of an artifact, and those that its consumers have of it, fit the files."""
    from colbert_zero.graph.artifact import content_digest
    from colbert_zero.graph.digests import file_digest

    outputs, name = file_digests(folder), f"{folder.parent.name}/{folder.name}"
    change_manifest(folder, outputs=outputs)
    for path in study.glob("re*/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        if name in manifest["inputs"]:
            record = {"files": content_digest(outputs), "manifest": file_digest(folder / "manifest.json")}
            manifest["inputs"][name] |= record
            path.write_text(json.dumps(manifest))


def only(verdict, lines):
    return [line for line in lines if line.startswith(verdict)]


def test_level_0_finds_what_was_edited(study, climb):
    assert climb(0) == (0, [])
    path = next(study.glob("results/shards/*/rows-00000.parquet"))
    path.write_bytes(path.read_bytes()[:-1])
    status, lines = climb(0)
    assert status == 1 and any(path.parent.name in line for line in only("different", lines))


def test_level_1_finds_measures_that_do_not_follow_from_their_run(study, climb):
    assert climb(1) == (0, climb(1)[1]) and len(only("identical", climb(1)[1])) == 5
    folder = next(study.glob("results/measures/*"))
    values = read_values(folder / "measures.parquet")
    query = min(values["nDCG@10"])
    values["nDCG@10"][query] += 0.05
    write_values(folder, ((query, name, value) for name, row in values.items() for query, value in row.items()))
    forge(study, folder)
    status, lines = climb(1)
    different = only("different", lines)
    # The table no longer follows from the measures either.
    assert status == 1 and len(different) == 2
    assert different[0].startswith(f"different: measures/{folder.name}: nDCG@10, {query}: ")


def test_level_1_finds_means_and_tables_that_do_not_follow(study, climb):
    folder = next(study.glob("results/measures/*"))
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    change_manifest(folder, facts=facts | {"means": facts["means"] | {"nDCG@10": 0.99}})
    (report,) = study.glob("results/reports/*")
    table = report / "table.md"
    row = next(line for line in table.read_text().splitlines() if line.startswith("| bm25"))
    table.write_text(table.read_text().replace(row, row.replace("1", "9").replace("2", "9").replace("6", "9")))
    forge(study, report)
    status, lines = climb(1)
    different = only("different", lines)
    assert status == 1 and "facts, means, nDCG@10: 0.99 is stored" in different[0]
    assert "table.md, row 2: " in different[1]


def test_level_1_says_what_it_could_not_read(study, climb):
    with next(study.glob("results/runs/bm25*/run.trec")).open("a") as file:
        file.write("more\n")
    status, lines = climb(1)
    assert status == 2 and len(only("could not tell", lines)) == 1 and len(only("identical", lines)) == 4


def test_level_2_finds_a_run_that_its_model_does_not_retrieve(study, climb):
    status, lines = climb(2)
    assert status == 0 and len(only("identical", lines)) == 4
    index = json.loads((sorted(study.glob("results/runs/colbert*"))[0] / "spec.json").read_text())["inputs"]["index"][0]
    path = study / "results" / index / "documents.safetensors"
    # A forged index with the run that it gives: both fit each other, and not the model.
    vectors = load_file(path)
    save_file({"tokens": np.ascontiguousarray(vectors["tokens"][::-1])}, path)
    run = sorted(study.glob("results/runs/colbert*"))[0]
    lines = (run / "run.trec").read_text().splitlines()
    query, _, document, _, score, tag = lines[0].split()
    (run / "run.trec").write_text("\n".join([f"{query} Q0 {document} 1 {float(score) + 1} {tag}", *lines[1:]]) + "\n")
    for folder in (study / "results" / index, run):
        forge(study, folder)
    status, lines = climb(2)
    (different,) = only("different", lines)
    assert status == 1 and f"runs/{run.name}: query {query}, document {document}: " in different
    assert "nDCG@10 differs by" in different


def test_level_2_leaves_out_large_collections_and_says_so(study, climb):
    status, lines = climb(2, "--documents", "10")
    assert (
        status == 2 and len(lines) == 4 and all("has 20 documents, more than --documents 10" in line for line in lines)
    )


def test_level_3_finds_a_forged_loss_of_the_first_steps_and_none_of_later_ones(study, climb):
    status, lines = climb(3)
    assert status == 0 and len(only("identical", lines)) == 4
    assert any("3 of 3 steps" in line for line in lines) and any("5 of 72 steps" in line for line in lines)
    (model,) = study.glob("results/models/unsupervised*")
    path = model / "losses.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[2]["loss"] += 0.01
    records[50]["loss"] += 1
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    forge(study, model)
    status, lines = climb(3, "--steps", "4")
    (different,) = only("different", lines)
    assert status == 1 and f"models/{model.name}: 4 of 72 steps; line 3, loss: " in different
    assert climb(3, "--steps", "2")[0] == 0


def test_level_3_does_not_begin_what_a_cpu_cannot_do(study, climb, monkeypatch):
    monkeypatch.setattr(ladder, "gpus_here", lambda: ())
    for model in study.glob("results/models/*"):
        facts = json.loads((model / "manifest.json").read_text())["facts"]
        change_manifest(model, facts=facts | {"device": "NVIDIA Z80", "seconds": 1e6, "gpu_peak_memory_mb": 9})
    status, lines = climb(3)
    assert status == 2 and len(lines) == 4 and all("a GPU is needed" in line for line in lines)
    status, lines = climb(4)
    assert status == 2 and "1111.1 GPU-hours" in lines[0]


def test_level_4_says_what_it_takes_or_compares_with_another_study(study, climb, tmp_path, capsys):
    status, lines = climb(4)
    assert status == 2 and "0.0 GPU-hours" in lines[0] and "--against" in lines[0]
    other = tmp_path / "other"
    shutil.copytree(study, other)
    status, lines = climb(4, "--against", str(other))
    assert status == 0 and len(only("identical", lines)) == 2
    (report,) = other.glob("results/reports/*")
    table = report / "table.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    column = rows[0].index("mean")
    rows[1][column] = str(float(rows[1][column]) - 0.02)
    table.write_text("".join(",".join(row) + "\n" for row in rows))
    forge(other, report)
    status, lines = climb(4, "--against", str(other))
    assert status == 1 and "values differ by at most 2 points (1 allowed): " in lines[0]
    assert "30 of 31 artifacts of the same name have the same files" in lines[1]
    shutil.rmtree(report)
    assert climb(4, "--against", str(other))[0] == 2
    assert main(["ladder", "--directory", ".", "--level", "4", "--against", "nosuch"]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_a_level_runs_those_below_it_and_writes_nothing_into_the_study(study, capsys):
    before = {path: path.lstat().st_mtime_ns for path in study.rglob("*")}
    assert main(["ladder", "--directory", ".", "--level", "3"]) == 0
    out = capsys.readouterr().out
    assert [line.split(",")[0] for line in out.splitlines() if "does not show" in line] == [
        "level 0",
        "level 1",
        "level 2",
        "level 3",
    ]
    assert {path: path.lstat().st_mtime_ns for path in study.rglob("*")} == before


@pytest.mark.parametrize(
    ("kind", "values"), [("measures", {"inputs": {}}), ("measures", {"facts": {}}), ("reports", {"facts": {}})]
)
def test_a_damaged_record_hides_no_other_verdict(study, climb, kind, values):
    change_manifest(next(study.glob(f"results/{kind}/*")), **values)
    _, lines = climb(1)
    assert len(lines) == 5 and len(only("identical", lines)) >= 4


def test_a_record_that_cannot_be_read_hides_no_other_verdict(study, climb):
    change_manifest(next(study.glob("results/measures/*")), inputs=3)
    status, lines = climb(1)
    assert status == 2 and len(only("identical", lines)) == 3 and len(only("could not tell", lines)) == 1


def test_an_empty_folder_is_no_clean_study(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ladder", "--directory", ".", "--level", "1", "--only"]) == 2
    assert "nothing to check" in capsys.readouterr().out
