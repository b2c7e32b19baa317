"""Names of the Hub in a config: a name is looked up once, its commit is kept, and a key rests on the commit alone."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.graph import registry, revisions
from colbert_zero.graph.config import LOCK_FILE, read_config, validate
from colbert_zero.graph.console import UserError
from colbert_zero.graph.planners.bases import BasePlanner
from colbert_zero.graph.planners.collections import CollectionPlanner
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.sources import SourcePlanner
from colbert_zero.graph.revisions import HEADER, UNKNOWN_COMMIT, LockedRevisions
from colbert_zero.graph.strict_yaml import dump, parse
from colbert_zero.graph.study import Study

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "study": "named",
    "prompts": {"none": {"query": "", "document": ""}},
    "sources": {"pairs": {"hub": "someone/pairs", "files": "data/*.parquet"}},
    "models": {"base": {"hub": "someone/model"}},
    "stages": {
        "unsupervised": {
            "sources": ["pairs"],
            "prompts": "none",
            "query_length": 32,
            "document_length": 64,
            "batch_size": 4,
            "learning_rate": 1.0e-3,
            "temperature": 0.2,
        }
    },
    "recipes": {"mine": {"base": "base", "stages": ["unsupervised"]}},
    "collections": {"dev": {"hub": "someone/collection", "qrels": {"hub": "someone/collection-qrels"}}},
}
NAMES = [
    ("dataset", "someone/collection", "main"),
    ("dataset", "someone/collection-qrels", "main"),
    ("dataset", "someone/pairs", "main"),
    ("model", "someone/model", "main"),
]


class Hub:
    """Answers what a name stands for: another commit after each push."""

    def __init__(self):
        self.pushes, self.asked = 0, []

    def commit(self, *name):
        return hashlib.sha1(f"{name} {self.pushes}".encode()).hexdigest()

    def __call__(self, *name):
        self.asked.append(name)
        return self.commit(*name)


def unreachable(*name):
    raise UserError(f"{name} is asked for")


def keys(folder, config=CONFIG, resolve=None):
    return {spec.label: spec.key for spec in Study(config, folder, resolve=resolve).specs.values()}


def locked(folder):
    return parse((folder / LOCK_FILE).read_bytes())


def with_settings(section, name, **settings):
    return CONFIG | {section: CONFIG[section] | {name: CONFIG[section][name] | settings}}


def refused(folder, config, resolve=None):
    """The one line that a config is refused with."""
    with pytest.raises(UserError) as caught:
        Study(config, folder, resolve=resolve)
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_a_name_is_looked_up_once(tmp_path):
    hub = Hub()
    first = keys(tmp_path, resolve=hub)
    assert sorted(hub.asked) == NAMES
    text = (tmp_path / LOCK_FILE).read_text()
    assert text.startswith(HEADER)
    hub.pushes = 1
    assert keys(tmp_path, resolve=hub) == keys(tmp_path, resolve=unreachable) == keys(tmp_path) == first
    assert len(hub.asked) == len(NAMES)
    assert (tmp_path / LOCK_FILE).read_text() == text


def test_a_spec_has_the_commit_and_no_name(tmp_path):
    hub = Hub()
    specs = {spec.label: spec for spec in Study(CONFIG, tmp_path, resolve=hub).specs.values()}
    assert specs["hub.base"].settings == {"hub": "someone/model", "revision": hub.commit(*NAMES[3])}
    assert specs["hub.pairs"].settings["revision"] == hub.commit(*NAMES[2])
    settings = specs["hub.dev"].settings
    assert settings["revision"] == hub.commit(*NAMES[0])
    assert settings["qrels"] == {"hub": "someone/collection-qrels", "revision": hub.commit(*NAMES[1])}


def test_a_commit_needs_neither_a_look_up_nor_a_lock_file(tmp_path):
    config = with_settings("models", "base", revision=COMMIT)
    config |= {
        "sources": {"pairs": CONFIG["sources"]["pairs"] | {"revision": COMMIT}},
        "collections": {"dev": {"hub": "someone/collection", "revision": COMMIT}},
    }
    planned = keys(tmp_path, config, unreachable)
    assert not list(tmp_path.glob("*.yaml"))
    config["models"]["base"]["revision"] = COMMIT.upper()
    assert keys(tmp_path, config) == planned
    # A name of the same commit is the same artifact.
    assert keys(tmp_path, config | {"models": CONFIG["models"]}, lambda *name: COMMIT) == planned


def test_each_revision_that_is_asked_for_is_kept(tmp_path):
    hub = Hub()
    main = keys(tmp_path, resolve=hub)
    tagged = keys(tmp_path, with_settings("models", "base", revision="v1.0"), hub)
    assert tagged["hub.base"] != main["hub.base"]
    assert locked(tmp_path)["model"] == {
        "someone/model": {name: hub.commit("model", "someone/model", name) for name in ("main", "v1.0")}
    }
    # What no config asks for any more stays, and no revision is main.
    assert keys(tmp_path, with_settings("models", "base", revision="main")) == keys(tmp_path) == main


def test_a_repository_of_another_kind_is_another_one(tmp_path):
    hub = Hub()
    keys(tmp_path, with_settings("models", "base", hub="someone/pairs"), hub)
    assert locked(tmp_path)["model"]["someone/pairs"] != locked(tmp_path)["dataset"]["someone/pairs"]


def test_a_commit_that_was_written_by_hand_is_used(tmp_path):
    before, path = keys(tmp_path, resolve=Hub()), tmp_path / LOCK_FILE
    commit = locked(tmp_path)["model"]["someone/model"]["main"]
    path.write_text(path.read_text().replace(commit, COMMIT))
    after = keys(tmp_path, resolve=unreachable)
    assert after["hub.base"] != before["hub.base"]
    assert {name for name in before if before[name] == after[name]} >= {"hub.pairs", "hub.dev", "pairs"}
    pinned = with_settings("models", "base", revision=COMMIT)
    assert keys(tmp_path, pinned) == after


def test_a_setting_of_the_command_line_is_looked_up_too(tmp_path):
    hub = Hub()
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG))
    config = read_config(tmp_path / "config.yaml", {"models": {"base": {"revision": "v2"}}})
    planned = keys(tmp_path, config, hub)
    assert ("model", "someone/model", "v2") in hub.asked
    assert keys(tmp_path, config) == planned


def test_what_another_plan_wrote_meanwhile_stays_and_counts(tmp_path):
    def meanwhile(*name):
        entries = {"model": {"someone/model": {"main": COMMIT}, "else/where": {"main": COMMIT}}}
        if not (tmp_path / LOCK_FILE).exists():
            (tmp_path / LOCK_FILE).write_text(dump(entries))
        return "f" * 40

    revisions = LockedRevisions(tmp_path, meanwhile)
    assert revisions.commit("model", "someone/model", None) == COMMIT
    assert revisions.commit("model", "else/where", None) == COMMIT
    assert revisions.commit("model", "new/one", None) == "f" * 40
    assert set(locked(tmp_path)["model"]) == {"else/where", "new/one", "someone/model"}


def test_a_commit_that_is_left_open_is_planned_with_and_not_written(tmp_path):
    planned = Study(CONFIG, tmp_path, resolve=lambda *name: None).specs.values()
    assert {spec.settings["revision"] for spec in planned if "hub" in spec.settings} == {UNKNOWN_COMMIT}
    assert not list(tmp_path.iterdir())
    # Nor is it with those that are known, and it is asked for once.
    asked = []
    revisions = LockedRevisions(tmp_path, lambda kind, *_: asked.append(kind) or (COMMIT if kind == "model" else None))
    for kind in ("dataset", "model"):
        revisions.commit(kind, "someone/thing", None)
    assert revisions.commit("dataset", "someone/thing", None) == UNKNOWN_COMMIT == "0" * 40
    assert asked == ["dataset", "model"]
    assert locked(tmp_path) == {"model": {"someone/thing": {"main": COMMIT}}}


def test_a_name_that_nobody_has_looked_up_is_one_line(tmp_path):
    message = refused(tmp_path, CONFIG)
    assert message.startswith(f"config.yaml: sources.pairs: {LOCK_FILE} does not say yet which commit main of someone")
    assert "snakemake -n once with the network" in message
    assert not list(tmp_path.iterdir())


def test_what_the_look_up_fails_with_has_its_place(tmp_path):
    message = refused(tmp_path, CONFIG, unreachable)
    assert message.startswith("config.yaml: sources.pairs: (")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", "line 2, column 1: not YAML"),
        ("- model", "the file is not a group of names"),
        ("model: someone/model", "model is not a group of names"),
        ("model: {someone/model: [main]}", "model.someone/model is not a group of names"),
        ("model: {someone/model: {main: main}}", "model.someone/model.main is 'main', no commit of 40 hex digits"),
        (f"model: {{someone/model: {{main: {COMMIT[1:]}}}}}", "no commit of 40 hex digits"),
        ("model: {someone/model: {main: 1234}}", "is 1234, no commit"),
        (f'model: {{"a/b": {{main: "{COMMIT}\\n"}}}}', "no commit of 40 hex digits"),
        ("model: {someone/model: {main: !!python/name:os.system x}}", "the tag"),
        ("model: {}\nmodel: {}", "model is there twice"),
        ("model:\n\x1b[2J: {}", "cannot be in YAML"),
        ("x" * 1_000_001, "longer than"),
    ],
)
def test_a_damaged_lock_file_is_one_line(tmp_path, text, words):
    (tmp_path / LOCK_FILE).write_text(text)
    message = refused(tmp_path, CONFIG, unreachable)
    assert message.startswith(f"{LOCK_FILE}: ")
    assert words in message
    assert (tmp_path / LOCK_FILE).read_text() == text


def test_an_empty_lock_file_is_one_without_names(tmp_path):
    for text in ("", "# nothing\n", "model:\ndataset: {}\n"):
        (tmp_path / LOCK_FILE).write_text(text)
        keys(tmp_path, resolve=Hub())
        assert set(locked(tmp_path)) == {"dataset", "model"}


@pytest.mark.parametrize("what", ["folder", "link"])
def test_what_is_no_lock_file_is_one_line(tmp_path, what):
    path = tmp_path / LOCK_FILE
    path.mkdir() if what == "folder" else path.symlink_to("nowhere")
    assert refused(tmp_path, CONFIG, unreachable).startswith(f"{LOCK_FILE}: {path} is a {what}")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    def refuse(path, text):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(revisions, "replace_text", refuse)
    message = refused(tmp_path, CONFIG, Hub())
    assert message.startswith(f"{LOCK_FILE}: it cannot be written in {tmp_path} (Read-only file system): ")


names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
asked = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,12}", fullmatch=True) | st.sampled_from(
    ["no", "null", "1e5", "0x1f", "2024-01-01", "1_000", "~", "=", "1:30", "<<"]
)
commits = st.text("0123456789abcdef", min_size=40, max_size=40) | st.sampled_from(["1" * 40, f"1e{'0' * 37}5"])


@given(entries=st.dictionaries(st.tuples(st.sampled_from(["model", "dataset"]), names, asked), commits, max_size=6))
def test_every_name_and_commit_is_read_as_it_was_written(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("study")
    written = LockedRevisions(folder, lambda *name: entries[name])
    for name, commit in entries.items():
        assert written.commit(*name) == commit
    text = (folder / LOCK_FILE).read_text() if entries else ""
    read = LockedRevisions(folder)
    assert {name: read.commit(*name) for name in entries} == entries
    # The order of asking decides nothing.
    (folder / LOCK_FILE).unlink(missing_ok=True)
    backwards = LockedRevisions(folder, lambda *name: entries[name])
    for name in reversed(entries):
        backwards.commit(*name)
    assert text == ((folder / LOCK_FILE).read_text() if entries else "")


@pytest.mark.parametrize(
    "hub",
    ["../../etc", "/etc/passwd", "a/../b", "owner", "a/b/c", "a b/c", "a/b\n", "a/", "", "\x1b[2J/x", "a/b?c", "ä/b"],
)
def test_a_name_that_is_no_owner_and_name_is_one_line(tmp_path, hub):
    for section, name in (("models", "base"), ("sources", "pairs"), ("collections", "dev")):
        message = refused(tmp_path, with_settings(section, name, hub=hub), unreachable)
        assert message.startswith(f"config.yaml: {section}.{name}.hub: ")
        assert "is not of the form" in message


@pytest.mark.parametrize("revision", ["../main", "/main", "a b", "", "-x", "main\n", 7, "v1?x=y"])
def test_a_revision_that_is_no_name_is_one_line(tmp_path, revision):
    message = refused(tmp_path, with_settings("models", "base", revision=revision), unreachable)
    assert message.startswith("config.yaml: models.base.revision: ")


@pytest.mark.parametrize(
    ("section", "entry", "words"),
    [
        ("models", {"hub": "a/b", "folder": "models/x"}, "models.x: give exactly one of registry, hub, "),
        ("models", {}, "models.x: give exactly one of registry, hub, "),
        ("models", {"registry": "gte-base", "revision": "main"}, "models.x: revision means nothing beside registry"),
        ("sources", {"file": "x.jsonl", "rows": 5}, "sources.x: rows means nothing beside file"),
        ("sources", {"hub": "a/b"}, "sources.x: files is missing: which of a/b hold the rows"),
        ("sources", {"hub": "a/b", "files": "*", "documents": 4}, "sources.x: documents means nothing"),
        ("sources", {"hub": "a/b", "files": {"train": "*"}}, "sources.x.files: queries is missing"),
        ("collections", {"registry": "fiqa", "documents": 5}, "collections.x: documents means nothing beside registry"),
        ("collections", {"folder": "dev", "qrels": {"hub": "a/b"}}, "collections.x: qrels means nothing beside folder"),
    ],
)
def test_a_setting_that_a_kind_does_not_have_is_one_line(tmp_path, section, entry, words):
    config = CONFIG | {section: CONFIG[section] | {"x": entry}}
    assert refused(tmp_path, config, Hub()).startswith(f"config.yaml: {words}")


ROLES = {"train": "scores-*.parquet", "queries": "queries.parquet", "documents": ["a.parquet", "b.parquet"]}


@pytest.mark.parametrize(
    ("entry", "words"), [({"files": ROLES}, "documents is missing"), ({"files": ROLES, "columns": {}}, "columns means")]
)
def test_scores_say_how_many_documents_they_have(tmp_path, entry, words):
    config = CONFIG | {"sources": {"pairs": {"hub": "a/b", **entry}}}
    assert f"sources.pairs: {words}" in refused(tmp_path, config, Hub())


# A registry's entry and the config's own


def draft(folder, resolve=None, **sections):
    return Draft(validate(CONFIG | sections), folder, remember=False, resolve=resolve)


def source_specs(folder, name, entry):
    planner = SourcePlanner(draft(folder, sources={name: entry}, resolve=lambda *name: COMMIT))
    return dict(planner.named([name], "here"))


@pytest.mark.parametrize("group", ["nomic-unsupervised", "nomic-supervised", "lightonai-bge-gemma"])
def test_a_source_is_the_same_by_the_registry_and_by_its_name(tmp_path, group):
    for label, spec in source_specs(tmp_path, "group", {"registry": group}).items():
        settings = dict(spec.settings)
        by_name = {key: settings[key] for key in ("hub", "revision", "files", "rows")}
        if settings["format"] == "scored":
            by_name["documents"] = settings["documents"]
        else:
            by_name["columns"] = {"negatives": None} | settings["columns"]
        (named,) = source_specs(tmp_path, label, by_name).values()
        if settings["revision"] == "main":  # The key of what was fetched so stays; a name's is that of its commit.
            assert (named.label, named.settings) == (spec.label, settings | {"revision": COMMIT})
        else:
            assert named == spec


def test_a_collection_is_the_same_by_the_registry_and_by_its_name(tmp_path):
    entries = registry.read_yaml(registry.REGISTRY / "collections.yaml")["collections"]
    fields = ("hub", "revision", "split", "documents", "queries", "positive_judgements")
    by_registry = {name: {"registry": name} for name in entries}
    by_name = {name: {field: entries[name][field] for field in fields} for name in entries}
    one, other = (CollectionPlanner(draft(tmp_path, collections=entry)).by_name for entry in (by_registry, by_name))
    assert len(one) == 26
    for name in one:
        assert (one[name].spec.key, one[name].drop_self) == (other[name].spec.key, other[name].drop_self)


def test_a_model_is_the_same_by_the_registry_and_by_its_name(tmp_path):
    entries = registry.read_yaml(registry.REGISTRY / "models.yaml")["models"]
    by_registry = {name: {"registry": name} for name in entries}
    specs = []
    for models in (by_registry, entries):
        planned = draft(tmp_path, models=models, resolve=Hub())
        bases = BasePlanner(planned, SourcePlanner(planned))
        specs.append({name: bases.base(name, "here") for name in entries})
    assert specs[0] == specs[1]
    unpinned = {entry["hub"] for entry in entries.values() if entry["revision"] == "main"}
    assert set(locked(tmp_path)["model"]) == unpinned != set()
    assert not any(spec.settings["revision"] == "main" for spec in specs[0].values())
