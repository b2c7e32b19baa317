"""`snakemake release` makes a folder for each recipe's row, once, and none that is there a second time."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from test_partial_reruns import EMBEDDED, ROOT, complete

from colbert_zero.graph.study import Study

RECIPE = next(iter(EMBEDDED["recipes"]))
CONFIG = EMBEDDED | {"recipes": {RECIPE: EMBEDDED["recipes"][RECIPE] | {"seeds": [1, 2]}}}


def planned(folder, *targets):
    """Names of the artifacts that a target would have made."""
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--profile", "local", "--directory", str(folder), "--dry-run", *targets],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert ("Nothing to be done" in output) == ("Missing output files" not in output)
    return set(re.findall(r"Missing output files: (?:results|resources)/(\S+)/spec\.json", output))


@pytest.fixture
def finished(tmp_path):
    """The folder of a study in which everything has been made but its releases."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    complete(Study(CONFIG, tmp_path), tmp_path)
    return tmp_path


def test_each_seed_of_each_recipe_is_released_once(finished):
    releases = Study(CONFIG, finished).releases
    assert set(releases) == {f"{RECIPE}@1", f"{RECIPE}@2"}
    assert planned(finished, "release") == {spec.name for spec in releases.values()}
    for spec in releases.values():
        (finished / spec.folder).mkdir(parents=True)
        (finished / spec.folder / "spec.json").write_text(spec.text)
    assert planned(finished, "release") == set()
