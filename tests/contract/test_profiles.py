"""The profiles and mistakes in a config, as users meet them: through Snakemake itself."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from snakemake.cli import get_profile_dir

from colbert_zero.graph.study import Study
from own_study import CONFIG, write_data

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
    """A dry run without the network: some released checkpoints have no known commit."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--profile", "slurm", "--dry-run"],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_slurm_profile_plans_the_whole_paper(paper):
    status, output = paper
    assert status == 0, output
    counts = jobs(output)
    assert counts["fetch_source"] == counts["build_shards"] == 29 + 10 + 1
    assert counts["fetch_collection"] == counts["search_bm25"] == 26
    # The paper's, each distinct stage once (`test_paper_study.py`), and two whose data are made here.
    assert counts["train_stage"] == 26 + 2
    assert counts["build_index"] == counts["search_index"] == (28 + 10) * 26
    assert counts["embed_documents"] == counts["search_embeddings"] == 3 * 26
    assert counts["measure_run"] == (28 + 14) * 26
    assert counts["teach_neural"] == 1
    assert counts["total"] == 3461
    said = [line for line in output.splitlines() if line.startswith("colbert-zero: ")]
    assert len(said) == 1
    assert "HF_HUB_OFFLINE is set" in said[0]


def test_no_command_is_near_the_limit_of_an_argument(paper):
    """Linux allows 128 KiB: what a step makes is in a file, which a dry run names and does not write."""
    _, output = paper
    commands = [line for line in output.splitlines() if line.startswith("Shell command: ") and "--spec" in line]
    assert len(commands) > 500
    assert max(map(len, commands)) < 1000
    assert all(re.search(r" --spec results/state/[^ ]+-[0-9a-f]{12}\.spec\.json ", line) for line in commands)
    assert not list(ROOT.glob("results/state/**/*.spec.json"))


def test_only_fetches_use_the_network(paper):
    _, output = paper
    commands = [line for line in output.splitlines() if line.startswith("Shell command: ") and "python" in line]
    online = [line for line in commands if "HF_HUB_OFFLINE=0" in line]
    assert len(online) == 40 + 26 + 16
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


ATTACK = "__use_yte__: true\n__definitions__:\n  - import pathlib\n  - pathlib.Path('ran').touch()\n"


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (ATTACK, [], "config.yaml: __use_yte__ is not a setting"),
        ("study: mine\n\tseed: 1\n", [], "config.yaml: line 2, column 1: not YAML: a tab cannot indent"),
        (
            None,
            ["--configfile", str(ROOT / "local" / "config.yaml")],
            "a study has one config, its folder's config.yaml",
        ),
    ],
)
def test_snakemake_never_reads_the_config_itself(tmp_path, text, options, words):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    arguments = ["--profile", "local", "--directory", str(tmp_path), "--dry-run", *options]
    status, output = snakemake(*arguments)
    lines = [line for line in output.splitlines() if not line.startswith("Using profile")]
    assert status != 0
    assert len(lines) == 1
    assert lines[0].startswith(f"colbert-zero: {words}")
    assert {path.name for path in tmp_path.iterdir()} <= {"config.yaml", ".snakemake"}


def test_settings_of_the_command_line_are_checked_as_those_of_the_file(tmp_path):
    shutil.copy(ROOT / "local" / "config.yaml", tmp_path)
    arguments = ["--profile", "local", "--directory", str(tmp_path), "--dry-run", "--config"]
    status, output = snakemake(*arguments, "study=other", "shards={rows_per_shard: 5}")
    assert (status, output.count('config.yaml: shards.rows_per_shard: "5" is not a whole number')) == (1, 1)
    status, output = snakemake(*arguments, "study=other", "seed=7")
    assert status == 0, output
    assert "The study other is complete" in output


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_the_profile_is_the_profile_whatever_order_the_folder_is_listed_in(name, monkeypatch):
    """Of a profile.yaml and a config.yaml in one folder, Snakemake would take the first that is listed."""
    monkeypatch.chdir(ROOT)
    chosen = set()
    for names in (os.listdir(name), os.listdir(name)[::-1]):
        monkeypatch.setattr("snakemake.cli.os.listdir", lambda folder, names=names: names)
        chosen.add(get_profile_dir(name)[1].name)
        monkeypatch.undo()
        monkeypatch.chdir(ROOT)
    (profile,) = chosen
    assert profile.startswith("profile.")


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


# Real runs on this machine


EVIL = "open({mark!r}, 'a').write(__name__ + ' ')\nraise SystemExit('a module of the study was imported')\n"


@pytest.fixture
def own_study(tmp_path):
    """A study whose shards ask for more memory than any machine has."""
    study = tmp_path / "study"
    (study / "data").mkdir(parents=True)
    write_data(study / "data")
    config = CONFIG | {"resources": {"build_shards": {"mem_mb": 900_000_000}}}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    return study


def make_shards(study, *flags):
    """Make the shards of the study's two sources; returns what Snakemake writes."""
    config = yaml.safe_load((study / "config.yaml").read_text())
    targets = [spec.folder / "spec.json" for spec in Study(config, study).specs.values() if spec.kind == "shards"]
    arguments = ["--profile", "local", "--directory", str(study), "--cores", "2", *flags, "--", *map(str, targets)]
    status, output = snakemake(*arguments)
    assert status == 0, output
    assert all((study / target).is_file() for target in targets)
    assert not list(study.glob("results/state/**/*.json"))
    return output


def test_a_study_cannot_bring_modules_along(own_study):
    """Python would look for them in the folder that it starts in, before its own."""
    names = {*sys.stdlib_module_names, *packages_distributions(), "colbert_zero", "sitecustomize", "usercustomize"}
    mark = own_study / "imported"
    for name in filter(str.isidentifier, names):
        (own_study / f"{name}.py").write_text(EVIL.format(mark=str(mark)))
    subprocess.run([sys.executable, "-m", "colbert_zero"], cwd=own_study, capture_output=True)
    assert mark.exists()
    mark.unlink()
    make_shards(own_study)
    assert not mark.exists()


def test_no_more_runs_at_once_than_memory_holds(own_study):
    output = make_shards(own_study)
    assert "colbert-zero: resources.build_shards.mem_mb is 900000000, and this machine has " in output
    first, second = [match.start() for match in re.finditer("Shuffle (lines|table) into shards", output)]
    assert "(Rule: build_shards)" in output[first:second]


def test_the_users_own_limit_of_memory_counts(own_study):
    output = make_shards(own_study, "--resources", "mem_mb=2000000000")
    assert "resources.build_shards.mem_mb" not in output
    first, second = [match.start() for match in re.finditer("Shuffle (lines|table) into shards", output)]
    assert "(Rule: build_shards)" not in output[first:second]


@pytest.mark.parametrize("name", ["logs", "benchmarks", "resources", "results", ".snakemake"])
def test_a_folder_that_cannot_be_written_is_one_line_before_anything_runs(own_study, name):
    (own_study / name).symlink_to("/nowhere")
    status, output = snakemake("--profile", "local", "--directory", str(own_study))
    assert status == 1
    ours = [line for line in output.splitlines() if line.startswith("colbert-zero: ")]
    assert ours == [f"colbert-zero: {name} is in the way: move it away, then run the same command again"]
    assert "Traceback" not in output
    assert "Execute" not in output
