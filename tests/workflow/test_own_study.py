"""One's own study, whole and for real: two files, a BEIR folder, every stage; twice, by two ways, byte for byte."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from colbert_zero.cli import main
from colbert_zero.graph.study import Study
from finished_study import make_in_another_process
from own_study import CONFIG, write_data

ROOT = Path(__file__).parents[2]
NOT_DATA = {"spec.json", "manifest.json"}


def command(folder):
    profile = ["--profile", "local", "--directory", str(folder), "--cores", "2"]
    return [sys.executable, "-m", "snakemake", *profile]


def run(folder):
    done = subprocess.run(command(folder), cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def kill_while_training(folder):
    """Start a run; when a training has begun, kill Snakemake and its jobs as a power cut would."""
    process = subprocess.Popen(
        command(folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    models = folder / "results" / "state" / "models"
    for _ in range(18_000):
        if list(models.glob("*/attempts.jsonl")) or process.poll() is not None:
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(models.glob("*/attempts.jsonl")), "no training began, in a quarter of an hour at most"


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """The same study in two folders: one made in one process; one by Snakemake, killed in a training and resumed."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one-process", "snakemake")]
    for folder in folders:
        (folder / "data").mkdir()
        write_data(folder / "data")
        # Several jobs make the other one's shards.
        resources = {} if folder == folders[0] else {"build_shards": {"jobs": 2}}
        (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"resources": resources}))
    make_in_another_process(folders[0])
    kill_while_training(folders[1])
    status, output = run(folders[1])
    assert status == 0, output
    return folders


def contents(folder):
    files = (path for top in ("resources", "results") for path in (folder / top).rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if path.name not in NOT_DATA and not path.name.startswith(".") and path.suffix != ".lock"
    }


def test_two_runs_give_the_same_bytes(studies):
    """Of everything but the report, which states times; whatever the hash seed, the processes, and a kill."""
    one, other = (contents(folder) for folder in studies)
    assert one.keys() == other.keys()
    different = [name for name in one if one[name] != other[name] and not name.startswith("results/reports/")]
    assert different == []
    kinds = {name.split("/")[1] for name in one}
    assert kinds >= {"shards", "negatives", "scores", "batches", "models", "indexes", "runs", "measures", "reports"}


def test_the_killed_attempt_is_in_a_manifest(studies):
    manifests = [json.loads(path.read_text()) for path in (studies[1] / "results" / "models").glob("*/manifest.json")]
    ends = [attempt["end"] for manifest in manifests for attempt in manifest["attempts"]]
    assert ends.count("published") == 3
    assert "killed" in ends


def test_a_second_run_does_nothing(studies):
    status, output = run(studies[1])
    assert status == 0
    assert "Nothing to be done" in output


def test_every_artifact_is_intact(studies, monkeypatch, capsys):
    monkeypatch.chdir(studies[1])
    assert main(["verify"]) == 0, capsys.readouterr().out
    assert main(["status"]) == 0
    assert "missing" not in capsys.readouterr().out


def test_the_model_loads_with_its_prompts_and_lengths(studies):
    from pylate import models

    study = Study(CONFIG, studies[0])
    (recipe,) = [row for row in study.rows if row.name == "all"]
    model = models.ColBERT(str(studies[0] / recipe.stages[-1].folder), device="cpu")
    assert model.prompts["query"] == "search_query: "
    assert model.prompts["document"] == "search_document: "
    assert (model.query_length, model.document_length) == (32, 64)
    assert model.do_query_expansion is False


def test_training_beats_chance(studies):
    """Forty documents, one relevant: chance is an nDCG@10 of about 0.11."""
    study = Study(CONFIG, studies[0])
    for row in study.rows:
        manifest = json.loads((studies[0] / row.measures["mine"].folder / "manifest.json").read_text())
        mean = manifest["facts"]["means"]["nDCG@10"]
        assert mean > 0.2, (row.name, mean)


def test_a_shard_edited_by_hand_is_found_when_read(studies, tmp_path):
    folder = shutil.copytree(studies[1], tmp_path / "study")
    shard = next((folder / "results" / "shards").glob("lines-*/rows-00000.parquet"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    config["stages"]["unsupervised"]["learning_rate"] = 2.0e-3
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    # Nothing runs while a log would be written to another file.
    (tmp_path / "mine").write_text("mine")
    link = folder / "logs" / "measures" / "next.log"
    link.symlink_to(tmp_path / "mine")
    status, output = run(folder)
    assert status != 0
    assert "colbert-zero: logs/measures/next.log is a link to " in output
    assert not list((folder / "results" / "state").rglob("attempts.jsonl"))
    link.unlink()
    status, output = run(folder)
    assert status != 0
    assert "rows-00000.parquet was changed: its digest is not the manifest's" in output
    assert "Traceback" not in output


def test_a_learning_rate_that_breaks_the_loss_is_one_line(studies, tmp_path):
    folder = shutil.copytree(studies[1], tmp_path / "study")
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    config["stages"]["unsupervised"]["learning_rate"] = 2.0e9
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    status, output = run(folder)
    assert status != 0
    assert "Traceback" not in output
    # Once where it was written, the job's log, and once at the end, where it says whose.
    log, end = dict.fromkeys(line.strip() for line in output.splitlines() if "learning rate" in line)
    assert log.startswith("colbert-zero: unsupervised: loss")
    assert end.startswith("colbert-zero: models/unsupervised-")
    assert end.endswith(log.removeprefix("colbert-zero: "))
    assert len(list((folder / "results" / "models").glob("[!.]*"))) == 3
