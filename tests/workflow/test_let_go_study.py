"""A study that lets its indexes go, for real: what runs, what stays, and what is made again."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from colbert_zero.cli import main
from colbert_zero.graph.artifact import LET_GO_FILE, MANIFEST_FILE, SPEC_FILE
from finished_study import make_in_another_process
from own_study import CONFIG, LENGTHS, write_data

ROOT = Path(__file__).parents[2]
SMALL = {
    **{name: CONFIG[name] for name in ("study", "seed", "prompts", "sources", "shards", "models", "collections")},
    "stages": {"unsupervised": {"batch_size": 16, "epochs": 1, "learning_rate": 3.0e-3, "temperature": 0.2}},
    "recipes": {
        "one": {
            "base": "small",
            "every_stage": {"sources": ["lines"], "prompts": "search", **LENGTHS},
            "stages": ["unsupervised"],
        }
    },
    "evaluation": {"keep_indexes": False, "measures": ["nDCG@10"]},
}
RECORDS = [LET_GO_FILE, MANIFEST_FILE, SPEC_FILE]


def write_config(folder, **evaluation):
    config = copy.deepcopy(SMALL)
    config["evaluation"] |= evaluation
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def run(folder, **evaluation):
    """Run a study with these settings of its evaluation; return how many jobs each rule had."""
    write_config(folder, **evaluation)
    command = [sys.executable, "-m", "snakemake", "--profile", "local", "--directory", str(folder), "--cores", "2"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    stats = re.search(r"^job +count\n[- ]+\n((?:\w+ +\d+\n)+)", output, re.MULTILINE)
    counts = dict(line.split() for line in stats[1].splitlines()) if stats else {}
    return {rule: int(count) for rule, count in counts.items() if rule not in ("all", "total")}


def index_files(folder):
    (index,) = (folder / "results" / "indexes").iterdir()
    return sorted(path.name for path in index.rglob("*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letting") / "study"
    (folder / "data").mkdir(parents=True)
    write_data(folder / "data")
    write_config(folder)
    make_in_another_process(folder)
    return folder


def test_an_index_is_there_no_longer_than_it_is_needed(folder, capsys):
    assert "documents.safetensors" in index_files(folder), "without Snakemake nothing is let go"
    assert run(folder, measures=["R@10"]) == {"measure_run": 1, "write_report": 1}
    assert index_files(folder) == RECORDS, "nor is it needed for other measures"
    (index,) = (folder / "results" / "indexes").iterdir()
    manifest = (index / MANIFEST_FILE).read_bytes()
    deeper = run(folder, depth=200)
    assert deeper == {"make_again": 1, "search_index": 1, "measure_run": 1, "write_report": 1}
    assert index_files(folder) == RECORDS
    assert (index / MANIFEST_FILE).read_bytes() == manifest, "the same bytes were made again"
    assert not list((folder / "results" / "state").glob("indexes/*.again"))
    assert run(folder, depth=200) == {}, "a second run does nothing"
    assert main(["verify", "--directory", str(folder)]) == 0
    assert " 0 findings" in capsys.readouterr().out
    assert main(["trace", "one/mine", "--directory", str(folder)]) == 0
