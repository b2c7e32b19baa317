"""Laws of the audit that a study ends with: what it plans, what it moves, and that its result stands in the report."""

import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import yaml

from colbert_zero.cli import main
from colbert_zero.graph.artifact import Artifact, Spec, file_digests
from colbert_zero.graph.config import read_config
from colbert_zero.graph.paths import WORKFLOW
from colbert_zero.graph.planners.audit import AUDIT_ROLE
from colbert_zero.graph.study import Study
from colbert_zero.report.audit_section import AUDIT_FILE
from finished_study import make

CONFIG = Path("config.yaml")


def planned(audit: bool = True, change: Any = None) -> Study:
    config = yaml.safe_load(CONFIG.read_text()) | {"audit": audit}
    if change:
        change(config)
    return Study(config, Path())


def names(study: Study) -> set[str]:
    return {spec.name for spec in study.specs.values()}


def finish() -> Study:
    """Turn the audit on, and make what is missing."""
    CONFIG.write_text(CONFIG.read_text() + "audit: true\n")
    study = Study(read_config(CONFIG), Path())
    assert study.audit is not None
    for spec in [*_once(study), study.audit, study.report]:
        make(study, spec)
    return study


def _once(study: Study) -> list[Spec]:
    return list({spec.name: spec for specs in study.contamination.values() for spec in specs}.values())


def sections(study: Study) -> dict[str, str]:
    """The texts of a report's sections, by title."""
    page = Artifact.open(study.report.name).file("report.html").read_text(encoding="utf-8")
    parts = re.split(r'<h2 id="[^"]*">([^<]*)</h2>', page)
    texts = (" ".join(unescape(re.sub(r"<[^>]+>", " ", text)).split()) for text in parts[2::2])
    return dict(zip(parts[1::2], texts, strict=True))


# The plan


@pytest.mark.usefixtures("study")
def test_an_audit_moves_the_reports_key_alone() -> None:
    without, with_audit = planned(False), planned(True)
    assert names(without) - names(with_audit) == {without.report.name}
    new = names(with_audit) - names(without)
    assert {name.partition("/")[0] for name in new} == {"contamination", "audits", "reports"}
    assert without.audit is None and without.contamination == {}
    assert yaml.safe_load(CONFIG.read_text()).get("audit") is None
    assert Study(read_config(CONFIG), Path()).report == without.report


@pytest.mark.usefixtures("study")
def test_an_audit_rests_on_all_measures_and_sources_and_the_report_on_it() -> None:
    study = planned()
    assert study.audit is not None
    assert study.report.inputs[AUDIT_ROLE] == [study.audit.name]
    kinds = {kind: {name for name in names(study) if name.startswith(f"{kind}/")} for kind in ("measures", "shards")}
    assert set(study.audit.inputs["measures"]) == kinds["measures"]
    shards = {shards for spec in _once(study) for shards in spec.inputs["shards"]}
    assert shards == kinds["shards"]
    assert {row: sorted(spec.label for spec in specs) for row, specs in study.contamination.items()} == {
        "all": ["lines", "table"],
        "distillation-only": ["table"],
    }


@pytest.mark.usefixtures("study")
def test_the_order_of_a_config_decides_nothing() -> None:
    def reorder(config: Any) -> None:
        for section in ("sources", "recipes", "baselines", "collections"):
            config[section] = dict(reversed(config[section].items()))

    assert planned().audit == planned(change=reorder).audit


@pytest.mark.usefixtures("study")
def test_where_texts_were_looked_for_stays_found_when_a_training_changes() -> None:
    def other_rate(config: Any) -> None:
        config["stages"]["unsupervised"]["learning_rate"] = 0.5

    before, after = planned(), planned(change=other_rate)
    assert before.audit != after.audit
    assert before.contamination == after.contamination


@pytest.mark.usefixtures("study")
def test_a_row_may_be_called_audit() -> None:
    def rename(config: Any) -> None:
        config["recipes"]["audit"] = config["recipes"].pop("all")

    study = planned(change=rename)
    assert study.report.inputs["audit"] and study.report.inputs[AUDIT_ROLE]


# The step and the report


@pytest.mark.usefixtures("study")
def test_the_result_stands_in_the_report_and_verifies(capsys: pytest.CaptureFixture[str]) -> None:
    study = finish()
    assert study.audit is not None
    audit = json.loads(Artifact.open(study.audit.name).file(AUDIT_FILE).read_bytes())
    below = names(study) - {study.audit.name, study.report.name}
    assert (audit["artifacts"], audit["findings"], audit["found"]) == (len(below), 0, [])
    assert audit["prompts"]["all"] == {"places": 8, "meant": 0, "differ": []}
    text = sections(study)
    assert f"artifacts verified {len(below)} " in text["Audit"]
    assert "is as it was made" in text["Audit"] and "colbert-zero ladder" in text["Audit"]
    assert "Brown et al. 2020" in text["Contamination"]
    assert "dev 20 0 0 20 0 0 20 0 0" in text["Contamination"]
    assert main(["verify"]) == 0
    assert main(["table"]) == 0
    capsys.readouterr()


ON_A_LOGIN_NODE = """
import re, sys
from importlib.metadata import packages_distributions
from pathlib import Path

locked = set(re.findall("^([a-z0-9.-]+)==", Path(sys.argv[1]).read_text(), re.MULTILINE))
known = {
    name: {re.sub("[-_.]+", "-", distribution).lower() for distribution in distributions}
    for name, distributions in packages_distributions().items()
}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in known and not known[top] & (locked | {"colbert-zero"}):
            raise ImportError(f"a login node has no {name}")

sys.meta_path.insert(0, Refuse())
from colbert_zero.audit import study_audit
from colbert_zero.graph.artifact import run_step
sys.exit(run_step(study_audit.make, None, ["--spec", sys.argv[2]]))
"""


@pytest.mark.usefixtures("study")
def test_an_audit_needs_no_package_that_a_login_node_lacks() -> None:
    study = planned()
    assert study.audit is not None
    for spec in _once(study):
        make(study, spec)
    lock = WORKFLOW.parent / "envs" / "host.txt"
    command = [sys.executable, "-c", ON_A_LOGIN_NODE, str(lock), study.audit.text]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(WORKFLOW)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Artifact.open(study.audit.name).facts["findings"] == 0


@pytest.mark.usefixtures("study")
def test_a_report_without_an_audit_has_no_sections_of_it() -> None:
    assert not {"Audit", "Contamination"} & sections(planned(False)).keys()


@pytest.mark.usefixtures("study")
def test_damage_and_other_prompts_are_told_in_the_report() -> None:
    study = planned()
    (model,) = [row.stages[-1] for row in study.rows if row.name == "all"]
    path = model.folder / "config_sentence_transformers.json"
    saved = json.loads(path.read_text())
    saved["prompts"]["document"] = "search_document:"
    path.write_text(json.dumps(saved))
    manifest = json.loads((model.folder / "manifest.json").read_text())
    manifest["outputs"] = file_digests(model.folder)
    (model.folder / "manifest.json").write_text(json.dumps(manifest))
    (batches,) = [spec for spec in study.inputs_of(model) if spec.kind == "batches"]
    (file,) = [path for path in batches.folder.iterdir() if path.suffix not in (".json",)][:1]
    file.write_bytes(file.read_bytes() + b" ")
    study = finish()
    assert study.audit is not None
    audit = json.loads(Artifact.open(study.audit.name).file(AUDIT_FILE).read_bytes())
    assert {model.name, batches.name} <= {finding["artifact"] for finding in audit["found"]}
    assert audit["prompts"]["all"]["differ"] == [f"stage distillation: saved model ({model.name})"]
    text = sections(study)["Audit"]
    assert "do not believe this table" in text and str(file) in text
    assert "prompts differ: all: stage distillation: saved model" in text


@pytest.mark.usefixtures("study")
def test_other_artifacts_of_the_study_are_not_the_audits_affair() -> None:
    other = Path("results/models/other-0123456789ab")
    other.mkdir()
    (other / "file").write_text("not of this study")
    study = finish()
    assert study.audit is not None
    assert Artifact.open(study.audit.name).facts["findings"] == 0


@pytest.mark.usefixtures("study")
def test_an_audit_with_an_edited_verdict_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    study = finish()
    assert study.audit is not None
    path = study.audit.folder / AUDIT_FILE
    path.write_text(path.read_text().replace('"findings": 0', '"findings": 1'))
    assert main(["verify"]) == 1
    manifest = json.loads((study.audit.folder / "manifest.json").read_text())
    manifest["outputs"] = file_digests(study.audit.folder)
    (study.audit.folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    capsys.readouterr()
    assert main(["verify"]) == 1
    assert study.audit.name.partition("/")[2] in capsys.readouterr().out
