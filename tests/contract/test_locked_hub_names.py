"""Snakemake looks up a name of the Hub once, before any job; its jobs and colbert-zero plan with what it wrote."""

import json
import os
import re
import subprocess
import sys

import pytest

from colbert_zero.cli import main
from colbert_zero.graph.config import LOCK_FILE
from colbert_zero.graph.paths import REPOSITORY
from hub_server import serve_hub
from own_study import CONFIG, write_data

NAMED = CONFIG | {"models": {"small": {"hub": "someone/model"}}}
MISSING = (
    f"colbert-zero: config.yaml: models.small: {LOCK_FILE} does not say yet which commit main of someone/model is: run "
    "snakemake -n once with the network, which writes it there, or give a revision of 40 hex digits\n"
)


@pytest.fixture
def study(tmp_path):
    write_data(tmp_path / "data")
    (tmp_path / "config.yaml").write_text(json.dumps(NAMED))
    return tmp_path


def snakemake(study, *words, **environment):
    """The status of a dry-run, the artifacts that it names, and what it says on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--profile", "local", "--directory", str(study), "-n", *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    artifacts = set(re.findall(r"[\w./-]+-[0-9a-f]{12}/spec.json", done.stdout))
    return done.returncode, artifacts, done.stderr


def table(study, capsys):
    """What `colbert-zero table` answers: of a study that is not made yet, that it is not."""
    here = os.getcwd()
    try:
        assert main(["table", "--directory", str(study)]) == 1
    finally:
        os.chdir(here)
    return capsys.readouterr().err


def test_only_the_first_snakemake_asks_the_hub(study, bert, capsys):
    with serve_hub() as hub:
        commit = hub.add("someone/model", bert, "models")
        code, _, said = snakemake(study, "--mode", "subprocess", HF_ENDPOINT=hub.address)  # as in a job
        assert code == 1
        assert said.endswith(MISSING)
        assert table(study, capsys) == MISSING
        assert not hub.lookups
        code, planned, said = snakemake(study, HF_ENDPOINT=hub.address)
        assert code == 0, said
        assert hub.lookups == [("models", "someone/model", "main")]
    assert commit in (study / LOCK_FILE).read_text()
    assert [name for name in planned if name.startswith("resources/bases/hub.small-")]
    # The Hub is gone, and may not be asked for.
    assert snakemake(study, HF_HUB_OFFLINE="1")[:2] == (0, planned)
    assert "reports/own-" in table(study, capsys)
