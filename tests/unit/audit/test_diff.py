"""`colbert-zero diff`: the leaves that decide, what they reach, and how the making differed; 0, 1 or 2 as diff(1)."""

import json
import re
import shutil
from pathlib import Path

import pytest

from colbert_zero.audit import diff as diff_module
from colbert_zero.cli import main
from colbert_zero.graph.artifact import MANIFEST_FILE, Artifact
from colbert_zero.graph.config import read_config
from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.graph.study import Study

KEPT = Path(__file__).parents[2] / "fixtures" / "study-0.1.0"


@pytest.fixture
def other(study, tmp_path):
    """A copy of the study, to be changed."""
    folder = tmp_path / "other"
    shutil.copytree(study, folder)
    return folder


def diff(capsys, *arguments):
    capsys.readouterr()
    status = main(["diff", *map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out, output.err


def diff_json(capsys, *arguments):
    status, out, _ = diff(capsys, *arguments, "--json")
    return status, json.loads(out)


def edit_config(folder, before, after):
    path = folder / "config.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def edit_manifest(path, **changes):
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | changes))


def plan(folder):
    return Study(read_config(folder / "config.yaml"), folder)


def test_anything_compared_with_itself_is_the_same(study, other, capsys):
    names = [f"{path.parent.name}/{path.name}" for path in study.glob("re*/*/*-*") if path.parent.name != "state"]
    things = ["all/dev", "bm25/mean", *names[::6], study, f"{study}:all/dev", f"{study}:"]
    for thing in things:
        status, out, _ = diff(capsys, thing, thing)
        assert (status, out.splitlines()[-1]) == (0, "nothing differs"), thing
        answer = diff_json(capsys, thing, thing)[1]
        assert answer["same"] is True
        assert not any(answer.get(part) for part in ("config", "causes", "made", "other_files", "same_files", "parts"))
    assert diff(capsys, study, other)[0] == 0
    assert diff(capsys, f"{study}:all/dev", f"{other}:all/dev")[0] == 0


def test_the_keys_of_the_json_are_those_that_help_names(study, clones, capsys):
    named = set(re.findall(r"\w+", diff_module.__doc__.partition("JSON has")[2]))
    for one, two in (("all/dev", "untrained/dev"), clones):
        answer = diff_json(capsys, one, two)[1]
        assert set(answer) <= named
        assert all(set(entry) <= named for part in ("causes", "made", "config") for entry in answer.get(part, ()))


LEAVES = {
    "stages.unsupervised.learning_rate": ("learning_rate: 3.0e-3", "learning_rate: 4.0e-3", "learning_rate"),
    "stages.unsupervised.epochs": ("epochs: 12", "epochs: 13", "epochs"),
    "miners.lsa.lsa.dimensions": ("lsa: { dimensions: 4 }", "lsa: { dimensions: 5 }", "encoder.dimensions"),
    "prompts.search.query": ('query: "search_query: "', 'query: "search_query:"', "query_prompt"),
    "shards.rows_per_shard": ("rows_per_shard: 40", "rows_per_shard: 41", "rows_per_shard"),
    "teachers.bm25.documents": ("miners: [bm25, lsa], documents: 4", "miners: [bm25, lsa], documents: 5", "documents"),
    "seed": ("seed: 7", "seed: 8", "seed"),
}


@pytest.mark.parametrize("leaf", LEAVES)
def test_one_changed_leaf_of_a_config_is_the_only_root_and_reaches_what_gets_another_key(study, other, capsys, leaf):
    before, after, in_specs = LEAVES[leaf]
    edit_config(other, before, after)
    status, answer = diff_json(capsys, study, other)
    assert status == 1
    assert [found["path"] for found in answer["config"]] == [leaf]
    assert [cause["path"] for cause in answer["causes"]] == [in_specs]
    (cause,) = answer["causes"]
    told = {pair["b"] for pair in [*cause["in"], *cause["reach"]]}
    known = {spec.name for spec in plan(study).specs.values()}
    assert told == {spec.name for spec in plan(other).specs.values()} - known
    assert set(answer["config"][0]["reach"]) == {name[:-13] for name in told}
    assert answer["only"] == {"a": [], "b": []}


def test_a_leaf_on_which_no_key_depends_reaches_nothing(study, other, capsys):
    (other / "config.yaml").write_text(
        (other / "config.yaml").read_text() + "resources: { default: { mem_mb: 3000 } }\n"
    )
    status, out, _ = diff(capsys, study, other)
    assert status == 1
    assert "reaches nothing: no key depends on it" in out
    assert diff_json(capsys, study, other)[1]["causes"] == []


def test_a_trailing_space_in_a_prompt_is_seen(study, other, capsys):
    edit_config(other, 'query: "search_query: "', 'query: "search_query:"')
    _, out, _ = diff(capsys, study, other)
    assert out.count('"search_query: " → "search_query:"') == 2, "in the config, and in the specs"


def test_changed_data_are_told_as_data_once(study, other, capsys):
    with (other / "data/lines.jsonl").open("a") as file:
        file.write('{"question": "one more", "answer": "document"}\n')
    status, answer = diff_json(capsys, study, other)
    assert status == 1
    assert answer["config"] == []
    assert [(cause["about"], cause["path"]) for cause in answer["causes"]] == [("data", "sha256")]


def test_another_recipe_is_told_by_the_rows_it_adds(study, other, capsys):
    edit_config(other, "recipes:\n", "recipes:\n  added: { base: small, stages: [unsupervised] }\n")
    _, answer = diff_json(capsys, study, other)
    assert [leaf["path"] for leaf in answer["config"]] == ["recipes.added"]
    assert "added" in [cause["path"] for cause in answer["causes"] if cause["about"] == "input"]
    assert {name.split("/")[0] for name in answer["only"]["b"]} == {"measures", "runs", "indexes"}


def test_a_study_that_ends_with_an_audit_differs_by_that_setting(study, other, capsys):
    (other / "config.yaml").write_text((other / "config.yaml").read_text() + "audit: true\n")
    _, answer = diff_json(capsys, study, other)
    assert [leaf["path"] for leaf in answer["config"]] == ["audit"]
    assert {name.split("/")[0] for name in answer["only"]["b"]} == {"audits", "contamination"}


def test_two_cells_differ_by_what_their_specs_say_and_inputs_are_told_once(study, capsys):
    status, answer = diff_json(capsys, "all/dev", "distillation-only/dev")
    assert status == 1
    (cause,) = answer["causes"]
    assert (cause["about"], cause["path"]) == ("input", "start")
    assert len(cause["in"]) == 1
    assert [pair["a"].split("/")[0] for pair in cause["reach"]] == ["measures", "runs", "indexes"]
    assert answer["only"]["b"] == []
    assert answer["values"]["a"]["value"] != answer["values"]["b"]["value"]
    status, out, _ = diff(capsys, "all/dev", "distillation-only/dev")
    assert "B minus A, x 100:" in out


def test_the_difference_is_the_same_from_the_other_side(study, capsys):
    _, one = diff_json(capsys, "all/dev", "untrained/dev")
    _, back = diff_json(capsys, "untrained/dev", "all/dev")
    assert [(cause["path"], cause["a"], cause["b"]) for cause in one["causes"]] == [
        (cause["path"], cause["b"], cause["a"]) for cause in back["causes"]
    ]
    assert one["only"]["a"] == back["only"]["b"]


def forge_outputs(folder, name, digest="0" * 64):
    """Other bytes of one file, as a record that was made again has them."""
    path = folder / Artifact.open(name).spec.folder / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    next(iter(manifest["outputs"].values()))["sha256"] = digest
    path.write_text(json.dumps(manifest))


def test_one_spec_with_other_bytes_is_told_at_its_root(study, other, capsys):
    shards = next(f"shards/{path.name}" for path in (study / "results/shards").glob("lines-*"))
    model = next(f"models/{path.name}" for path in (study / "results/models").glob("unsupervised-*"))
    for name in (shards, model):
        forge_outputs(other, name)
    status, answer = diff_json(capsys, f"{study}:all/dev", f"{other}:all/dev")
    assert status == 1
    assert [found["a"] for found in answer["other_files"]] == [shards]
    assert [found["a"] for found in answer["other_files_reached"]] == [model]
    assert answer["causes"] == []


def test_other_specs_that_made_the_same_bytes_are_told(study, capsys):
    names = [f"models/{path.name}" for path in (study / "results/models").glob("distillation-*")]
    for name in names:
        edit_manifest(study / "results" / name / MANIFEST_FILE, outputs={"a": {"sha256": "1" * 64, "bytes": 1}})
    _, answer = diff_json(capsys, "all/dev", "distillation-only/dev")
    assert [sorted(found.values()) for found in answer["same_files"]] == [sorted(names)]


MADE = {
    ("python", "version"): {"python": "3.13.1"},
    ("image", "labels"): {"image": {"colbert-zero.image": "torch-1"}},
    ("machine", "processor"): {"processor": "another one"},
    ("attempts", "how they ended"): {"attempts": [{"end": "killed"}, {"end": "published"}]},
}


@pytest.mark.parametrize("what", MADE)
def test_what_was_recorded_otherwise_is_told_of_the_artifact(study, other, capsys, what):
    model = next((other / "results/models").glob("unsupervised-*"))
    edit_manifest(model / MANIFEST_FILE, **MADE[what])
    status, answer = diff_json(capsys, f"{study}:all/dev", f"{other}:all/dev")
    assert status == 1
    assert [(made["about"], made["path"]) for made in answer["made"]] == [what]
    assert [pair["a"] for pair in answer["made"][0]["in"]] == [f"models/{model.name}"]


def test_packages_and_modules_are_told_one_by_one(study, other, capsys):
    model = next((other / "results/models").glob("unsupervised-*")) / MANIFEST_FILE
    manifest = json.loads(model.read_text())
    manifest["packages"]["torch"] = "9.9"
    manifest["code"]["modules"]["colbert_zero.training.losses"] = "0" * 16
    model.write_text(json.dumps(manifest))
    _, answer = diff_json(capsys, f"{study}:all/dev", f"{other}:all/dev")
    assert sorted((made["about"], made["path"]) for made in answer["made"]) == [
        ("code", "module colbert_zero.training.losses"), ("packages", "torch"),
    ]  # fmt: skip


def test_a_study_of_the_older_record_is_compared_by_what_it_records(study, capsys, tmp_path):
    kept = shutil.copytree(KEPT, tmp_path / "kept")
    status, answer = diff_json(capsys, f"{kept}:untrained/dev", "untrained/dev")
    assert status == 1
    assert answer["causes"] == []
    assert not [made for made in answer["made"] if "module" in made["path"]]
    status, answer = diff_json(capsys, f"{kept}:all/dev", "all/dev")
    assert [(cause["path"], cause["a"]) for cause in answer["causes"]] == [("filter", "(not there)")]


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("nothing/here", "all/dev"),
        ("all/dev", "nothing"),
        ("all/dev", "{study}"),
        (str(REPOSITORY), "all/dev"),
        ("", ""),
    ],
)
def test_what_cannot_be_told_is_one_line_and_status_2(study, capsys, one, two):
    status, out, err = diff(capsys, one.format(study=study), two.format(study=study))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("colbert-zero: ")


def test_an_artifact_that_is_missing_leaves_it_untold(study, other, capsys):
    for folder in (study, other):
        shutil.rmtree(next((folder / "results/shards").glob("lines-*")))
    status, out, _ = diff(capsys, f"{study}:all/dev", f"{other}:all/dev")
    assert status == 2
    assert "what cannot be told" in out
    assert "nothing differs" not in out


def test_a_config_that_cannot_be_planned_is_one_line(study, other, capsys):
    edit_config(other, "seed: 7", "seeds: 7")
    status, _, err = diff(capsys, study, other)
    assert (status, err.count("\n")) == (2, 1)


def test_folders_are_those_of_where_the_command_was_given(study, other, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert diff(capsys, "study:all/dev", "other:all/dev", "--directory", "other")[0] == 0
    shards = next((study / "results/shards").glob("lines-*"))
    monkeypatch.chdir(shards.parent)
    status, answer = diff_json(capsys, shards.name, f"shards/{shards.name}", "--directory", other)
    assert (status, answer["a"], answer["b"]) == (0, shards.name, f"shards/{shards.name}")


CLONE = {
    "workflow/colbert_zero/__init__.py": "",
    "workflow/colbert_zero/room/__init__.py": "",
    "workflow/colbert_zero/room/train.py": "from colbert_zero.room import losses\n",
    "workflow/colbert_zero/room/losses.py": "LEAF = 1\n",
    "workflow/colbert_zero/room/measure.py": "LEAF = 1\n",
    "workflow/rules/all.smk": "python -m colbert_zero.room.train --spec\npython -m colbert_zero.room.measure --spec\n",
    "envs/local.txt": "torch==1\n",
}


@pytest.fixture
def clones(tmp_path):
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        for name, text in CLONE.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folders


@pytest.mark.parametrize(
    ("file", "text", "parts", "modules", "reach"),
    [
        ("room/losses.py", "LEAF = 1  # a comment\n", ["package"], [], []),
        ("room/losses.py", "LEAF = 2\n", ["package"], ["room.losses"], ["room.train"]),
        ("room/measure.py", "LEAF = 2\n", ["package"], ["room.measure"], ["room.measure"]),
        ("room/new.py", "LEAF = 2\n", ["package"], ["room.new"], []),
        ("../../envs/local.txt", "torch==2\n", ["locks"], [], []),
    ],
)
def test_two_clones_differ_by_parts_and_modules_and_in_what_steps_import(
    clones, capsys, file, text, parts, modules, reach
):
    one, two = clones
    (two / "workflow/colbert_zero" / file).write_text(text)
    status, answer = diff_json(capsys, one, two)
    assert (status, answer["same"]) == (1, False)
    assert list(answer["parts"]) == parts
    assert list(answer["modules"]) == [f"colbert_zero.{name}" for name in modules]
    assert list(answer["reach"]) == [f"colbert_zero.{name}" for name in reach]


def test_equal_clones_are_the_same_and_a_broken_one_cannot_be_told(clones, capsys):
    one, two = clones
    assert diff(capsys, one, one)[0] == 0
    status, out, _ = diff(capsys, one, two)
    assert (status, out.splitlines()[-1]) == (0, "nothing differs")
    shutil.copytree(two, two.with_name("three"))
    (two.with_name("three") / "workflow/colbert_zero/room/losses.py").write_text("def broken(:\n")
    status, out, err = diff(capsys, one, two.with_name("three"))
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_nothing_that_a_study_holds_steers_the_terminal(study, other, capsys):
    edit_config(other, 'document: "search_document: "', 'document: "\\e[31mred\\u202e<b>"')
    _, out, _ = diff(capsys, study, other)
    assert "\x1b" not in out and "\u202e" not in out
    assert "<b>" in out
