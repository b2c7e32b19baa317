"""The profiles and mistakes in a config, as users meet them: through Snakemake itself."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def snakemake(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    return done.returncode, done.stdout + done.stderr


def jobs(output):
    table = re.findall(r"^(\w+) +(\d+)$", output.split("Job stats:")[-1], re.MULTILINE)
    return {rule: int(count) for rule, count in table}


@pytest.fixture(scope="module")
def paper():
    return snakemake("--profile", "slurm", "--dry-run")


def test_slurm_profile_plans_the_whole_paper(paper):
    status, output = paper
    assert status == 0, output
    counts = jobs(output)
    assert counts["fetch_source"] == counts["build_shards"] == 29 + 10 + 1
    assert counts["fetch_collection"] == counts["search_bm25"] == 26
    # Seven recipes have 13 stages; the five prefixes they share are trained once.
    assert counts["train_stage"] == 8
    assert counts["build_index"] == counts["search_index"] == 7 * 26
    assert counts["measure_run"] == 8 * 26
    assert counts["teach_neural"] == 1


def test_prompts_reach_the_shell_with_their_trailing_space(paper):
    _, output = paper
    (command,) = [
        line for line in output.splitlines() if "colbert_zero.machine.launch" in line and "16384" not in line
    ][:1]
    assert '"query_prompt":"search_query: "' in command


def test_only_fetches_use_the_network(paper):
    _, output = paper
    commands = [line for line in output.splitlines() if line.startswith("Shell command: ") and "python" in line]
    online = [line for line in commands if "HF_HUB_OFFLINE=0" in line]
    assert len(online) == 40 + 26 + 5
    assert all("colbert_zero.data.fetch" in line for line in online)


@pytest.mark.parametrize(
    ("section", "value", "words"),
    [
        ("recepies", {}, "did you mean recipes?"),
        ("stages", {"unsupervised": {"learning_rte": 1.0}}, "did you mean learning_rate?"),
        ("recipes", {"x": {"stages": ["supervised"]}}, "base is missing"),
    ],
)
def test_bad_config_is_one_line_before_anything_runs(tmp_path, section, value, words):
    config = yaml.safe_load((ROOT / "local" / "config.yaml").read_text())
    config[section] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    status, output = snakemake("--profile", "local", "--directory", str(tmp_path))
    lines = [line for line in output.splitlines() if not line.startswith("Using profile")]
    assert status != 0
    assert len(lines) == 1
    assert lines[0].startswith("colbert-zero: config.yaml: ")
    assert words in lines[0]
    assert {path.name for path in tmp_path.iterdir()} <= {"config.yaml", ".snakemake"}


def test_a_forced_rule_deletes_nothing(tmp_path):
    """Snakemake deletes a forced rule's outputs; an artifact's only declared output can be written again."""
    plan = ROOT / "local" / "config.yaml"
    shutil.copy(plan, tmp_path)
    target = _target(tmp_path, "sources/package.matplotlib")
    assert snakemake("--profile", "local", "--directory", str(tmp_path), target)[0] == 0
    pairs = (tmp_path / target).parent / "pairs.parquet"
    before = pairs.stat()
    status, output = snakemake("--profile", "local", "--directory", str(tmp_path), "--forcerun", target, "--", target)
    assert status == 0, output
    assert "read_docstrings_source" in output
    assert (pairs.stat().st_mtime_ns, pairs.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert (tmp_path / target).is_file()


def _target(folder, start):
    from colbert_zero.graph.config import read_config
    from colbert_zero.graph.study import Study

    study = Study(read_config(folder / "config.yaml"), folder)
    (spec,) = [spec for spec in study.specs.values() if spec.name.startswith(start)]
    return str(spec.folder / "spec.json")
