"""Models when planning: a local folder has the weights that are meant, and what a model was saved with is read."""

import hashlib
import json

import pytest

from colbert_zero.graph.config import validate
from colbert_zero.graph.console import UserError
from colbert_zero.graph.planners import bases
from colbert_zero.graph.planners.bases import BasePlanner
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.sources import SourcePlanner
from own_study import CONFIG, write_data

WEIGHTS = b"weights"
SAVED = {"prompts": {"query": "q: ", "document": "d: "}}


@pytest.fixture
def folder(tmp_path):
    write_data(tmp_path / "data")
    return tmp_path


def write_model(path, part=""):
    (path / part).mkdir(parents=True)
    (path / part / "model.safetensors").write_bytes(WEIGHTS)
    (path / "config_sentence_transformers.json").write_text(json.dumps(SAVED))
    if part:
        modules = [{"type": "sentence_transformers.models.Transformer", "path": part}]
        (path / "modules.json").write_text(json.dumps(modules))
    return path


def plan(folder, model):
    """The base that an entry of `models` stands for, and its planner."""
    draft = Draft(validate(CONFIG | {"models": {"small": model}}), folder, remember=False, resolve=lambda *_: "0" * 40)
    planner = BasePlanner(draft, SourcePlanner(draft))
    return planner.base("small", "here"), planner


@pytest.mark.parametrize("part", ["", "0_Transformer"])
def test_the_weights_of_a_folder_are_those_that_the_config_means(folder, part):
    write_model(folder / "model", part)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    with_digest, _ = plan(folder, {"folder": "model", "sha256": digest})
    assert with_digest == plan(folder, {"folder": "model"})[0]
    with pytest.raises(
        UserError, match=rf"models.small.sha256: .*{part}/model.safetensors has the digest {digest}, so"
    ):
        plan(folder, {"folder": "model", "sha256": "0" * 64})


def test_a_model_that_is_not_installed_is_one_line_and_an_installed_one_is_a_folder(folder, monkeypatch):
    monkeypatch.setattr(bases, "PRETRAINED", folder / "pretrained")
    with pytest.raises(UserError, match=r"models.small.folder: .*/pretrained/model is not installed: make demo-pre"):
        plan(folder, {"folder": "pretrained/model"})
    with pytest.raises(UserError, match=r"models.small.folder: .*/mine/model does not exist"):
        plan(folder, {"folder": "mine/model"})
    write_model(folder / "pretrained" / "model")
    assert plan(folder, {"folder": "pretrained/model"})[0].label == "folder.small"


def test_installed_is_what_the_installer_installs():
    assert bases.PRETRAINED == bases.REPOSITORY / ".venv" / "pretrained"


def test_what_a_model_was_saved_with_is_known_once_it_is_there(folder):
    write_model(folder / "model")
    saved = {"query_prompt": "q: ", "document_prompt": "d: "}
    local, planner = plan(folder, {"folder": "model"})
    assert planner.saved_encoding(local) == saved
    fetched, planner = plan(folder, {"hub": "someone/model"})
    assert planner.saved_encoding(fetched) == {}
    write_model(folder / fetched.folder)
    assert planner.saved_encoding(fetched) == {}, "a folder without its spec is not finished"
    (folder / fetched.folder / "spec.json").write_text(fetched.text)
    assert planner.saved_encoding(fetched) == saved


def test_what_a_model_that_is_there_cannot_take_is_refused(folder):
    write_model(folder / "model")
    (folder / "model" / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": 16}')
    local, planner = plan(folder, {"folder": "model"})
    planner.check(local, "here", {"query_length": 16})
    with pytest.raises(UserError, match=r"^here: .*model takes at most 16 tokens, but query_length is 17"):
        planner.check(local, "here", {"query_length": 17})
    fetched, planner = plan(folder, {"hub": "someone/model"})
    planner.check(fetched, "here", {"query_length": 17})
