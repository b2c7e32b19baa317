"""The user's own files when planning: what can be read is a source, a model or a collection; all else is one line."""

import gzip
import hashlib
import json
import os
import re
import shutil
import socket
import stat
from types import SimpleNamespace

import pytest

from colbert_zero.graph.console import UserError
from colbert_zero.graph.data_files import role_of
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.local_files import DigestCache, keep_private, new_folder, refuse_links
from colbert_zero.graph.study import Study
from own_study import CONFIG, write_data
from without_rights import without_rights_of_root

ROW = '{"query": "q", "document": "d"}\n'


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study's folder with some data in it."""
    folder = tmp_path / "study"
    write_data(folder / "data")
    parts = folder / "data" / "parts"
    (parts / "more" / ".hidden").mkdir(parents=True)
    for name in ("b.jsonl", "a.jsonl", ".c.jsonl", "more/d.jsonl", "more/.hidden/e.jsonl"):
        (parts / name).write_text(ROW)
    (parts / "README.md").write_text("rows")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "mine.jsonl").write_text(ROW)
    return folder


def with_entry(section, **entry):
    return CONFIG | {section: CONFIG[section] | {"x": entry}}


def source(study, text, **others):
    """Settings and path of the source that `text` gives."""
    config = with_entry("sources", file=str(text), **others)
    config["models"] = {"small": {"random": CONFIG["models"]["small"]["random"] | {"sources": ["x"]}}}
    planned = Study(config, study)
    (spec,) = [spec for spec in planned.specs.values() if spec.name.startswith("sources/file.x-")]
    return spec.settings, planned.paths[spec.key]


def error_of(study, section, **entry):
    with pytest.raises(UserError) as caught:
        Study(with_entry(section, **entry), study)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"config.yaml: {section}.x")
    return message


# Sources of several files

DIGEST = hashlib.sha256(ROW.encode()).hexdigest()


@pytest.mark.parametrize(
    ("text", "names", "path"),
    [
        ("data/parts", ["a.jsonl", "b.jsonl"], "data/parts"),
        ("data/parts/", ["a.jsonl", "b.jsonl"], "data/parts"),
        ("data/parts/*.jsonl", ["a.jsonl", "b.jsonl"], "data/parts"),
        ("data/parts/**/*.jsonl", ["a.jsonl", "b.jsonl", "more/d.jsonl"], "data/parts"),
        ("data/*/[ab].jsonl", ["parts/a.jsonl", "parts/b.jsonl"], "data"),
        ("data/parts/?.jsonl", ["a.jsonl", "b.jsonl"], "data/parts"),
        ("data/p*/more/d.jsonl", ["parts/more/d.jsonl"], "data"),
        ("data/parts/more", ["d.jsonl"], "data/parts/more"),
    ],
)
def test_a_folder_or_a_glob_is_the_files_in_it(study, text, names, path):
    settings, found = source(study, text)
    assert settings["files"] == [{"name": name, "sha256": DIGEST} for name in names]
    assert settings.keys() == {"files", "columns"}
    assert found == study / path


def test_a_folder_is_known_by_its_files_and_not_by_its_place(study):
    shutil.copytree(study / "data" / "parts", study / "moved")
    before, _ = source(study, "data/parts")
    assert source(study, "moved")[0] == source(study, study / "moved" / "*.jsonl")[0] == before
    (study / "moved" / "a.jsonl").write_text(ROW * 2)
    assert source(study, "moved")[0] != before


def test_a_path_that_is_there_is_no_glob(study):
    (study / "data" / "p {a} [b].jsonl").write_text(ROW)
    (study / "data" / "p {a} b.jsonl").write_text(ROW * 2)
    settings, path = source(study, "data/p {a} [b].jsonl")
    assert (settings["file"], settings["sha256"]) == ("p {a} [b].jsonl", DIGEST)
    assert path == study / "data" / "p {a} [b].jsonl"
    (study / "data" / "[ab]").mkdir()
    (study / "data" / "[ab]" / "c.jsonl").write_text(ROW)
    assert source(study, "data/[ab]")[0]["files"] == [{"name": "c.jsonl", "sha256": DIGEST}]


def test_home_is_expanded_unless_the_study_has_a_folder_of_that_name(study):
    settings, path = source(study, "~/mine.jsonl")
    assert (settings["file"], path) == ("mine.jsonl", study.parent / "home" / "mine.jsonl")
    assert source(study, "~/*.jsonl")[0]["files"] == [{"name": "mine.jsonl", "sha256": DIGEST}]
    (study / "~").mkdir()
    (study / "~" / "mine.jsonl").write_text(ROW * 2)
    assert source(study, "~/mine.jsonl")[0]["sha256"] != DIGEST


def test_links_to_files_are_followed(study):
    (study / "data" / "linked").mkdir()
    (study / "data" / "linked" / "a.jsonl").symlink_to(study / "data" / "parts" / "b.jsonl")
    assert source(study, "data/linked")[0]["files"] == [{"name": "a.jsonl", "sha256": DIGEST}]


def prepare(study):
    """Files that are no sources, models or collections."""
    data = study / "data"
    os.mkfifo(data / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.getcwd()
        os.chdir(data)  # A socket's path has at most 108 bytes.
        bound.bind("socket.jsonl")
        os.chdir(here)
    (data / "dangling.jsonl").symlink_to("nowhere.jsonl")
    (data / "circle.jsonl").symlink_to("circle.jsonl")
    (data / "empty.jsonl").write_text("")
    (data / "rows.csv").write_text("query,document\n")
    for folder in ("nothing", "mixed", "zipped", "piped", "broken"):
        (data / folder).mkdir()
    for name in ("mixed/a.jsonl", "mixed/b.parquet", "zipped/a.jsonl", "nothing/a.csv"):
        (data / name).write_text(ROW)
    (data / "zipped" / "a.jsonl.gz").write_bytes(gzip.compress(ROW.encode()))
    os.mkfifo(data / "piped" / "a.jsonl")
    (data / "broken" / "a.jsonl").symlink_to("nowhere")
    (study / "results").mkdir()
    (study / "results" / "a.jsonl").write_text(ROW)
    shutil.copytree(data / "mine", data / "linked")
    (data / "linked" / "out.jsonl").symlink_to(data / "lines.jsonl")
    shutil.copytree(data / "mine", data / "held")
    os.mkfifo(data / "held" / "pipe")
    shutil.copytree(data / "mine", data / "dangling")
    (data / "dangling" / "x").symlink_to("nowhere")


REFUSED = {
    "data/nowhere.jsonl": "does not exist",
    "data/lines.jsonl/x": "does not exist",
    "data/pipe.jsonl": "is a pipe, not a file",
    "data/socket.jsonl": "is a socket, not a file",
    "/dev/null": "is a device",
    "data/dangling.jsonl": "is a link to nowhere.jsonl, which does not exist",
    "data/circle.jsonl": "cannot be read: Too many levels of symbolic links",
    "data/empty.jsonl": "is empty",
    "data/rows.csv": "is neither Parquet nor JSONL",
    "n" * 300 + ".jsonl": "cannot be read: File name too long",
    "a\0b.jsonl": "is not text",
    "": "there is nothing in it",
    "$HOME/mine.jsonl": "variables such as $HOME mean nothing here",
    "${HOME}/mine.jsonl": "variables such as $HOME mean nothing here",
    "~nobody-of-that-name/mine.jsonl": "does not exist",
    "data/nothing": "no .parquet or .jsonl or .jsonl.gz file is directly in",
    "data/mixed": "has files of several kinds, such as a.jsonl and b.parquet",
    "data/mixed/*": "has files of several kinds",
    "data/zipped": "has files of several kinds, such as a.jsonl and a.jsonl.gz",
    "data/piped": "is a pipe, not a file",
    "data/piped/*.jsonl": "is a pipe, not a file",
    "data/broken": "is a link to nowhere, which does not exist",
    "data/none*.jsonl": "no file matches data/none*.jsonl",
    "data/parts/*": "matches README.md too",
    "data/*/../parts/a.jsonl": ".. cannot follow",
    "data/a**/*.jsonl": "is not a glob that works",
    "**/*.jsonl": "matches what the study itself writes",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_source_is_one_line(study, text):
    prepare(study)
    assert REFUSED[text] in error_of(study, "sources", file=text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data/nowhere", "does not exist"),
        ("data/lines.jsonl", "is a file, not a folder"),
        ("data/pipe.jsonl", "is a pipe"),
        (".", "holds this study"),
        ("..", "holds this study"),
        ("data/linked", "has a link out of it, "),
        ("data/held", "is a pipe, not a file"),
        ("data/dangling", "is a link to nowhere, which does not exist"),
        ("$HOME/mine", "variables such as $HOME mean nothing here"),
        ("", "there is nothing in it"),
    ],
)
@pytest.mark.parametrize("section", ["collections", "models"])
def test_what_is_no_folder_is_one_line(study, section, text, words):
    prepare(study)
    config = with_entry(section, folder=text)
    if section == "models":
        config["recipes"] = {"all": CONFIG["recipes"]["all"] | {"base": "x"}}
    with pytest.raises(UserError) as caught:
        Study(config, study)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"config.yaml: {section}.x")


@pytest.mark.parametrize("text", ["data/parts/a.jsonl", "data/parts", "data/parts/*.jsonl"])
def test_what_may_not_be_read_is_one_line(study, text):
    path = study / text.partition("/*")[0]
    path.chmod(0)
    try:
        line = without_rights_of_root(lambda: error_of(study, "sources", file=text))
    finally:
        path.chmod(0o755)
    assert re.match(r"config\.yaml: sources\.x\.file: .* (may not|cannot) be read", line), line


@pytest.mark.parametrize("mode", [0o400, 0o100])
def test_a_folder_is_one_whose_names_and_files_can_both_be_read(study, mode):
    folder = study / "data" / "copied"
    shutil.copytree(study / "data" / "mine", folder)
    folder.chmod(mode)
    try:
        line = without_rights_of_root(lambda: error_of(study, "collections", folder="data/copied"))
    finally:
        folder.chmod(0o755)
    assert line.endswith("/data/copied cannot be read: Permission denied")


def test_a_link_within_a_folder_is_fine(study):
    shutil.copytree(study / "data" / "mine", study / "data" / "inner")
    (study / "data" / "inner" / "again.jsonl").symlink_to("corpus.jsonl")
    assert Study(with_entry("collections", folder="data/inner"), study)


def test_a_folders_documents_are_not_its_queries_unless_the_config_says_so(study):
    for entry, dropped in (({}, False), ({"drop_self": True}, True)):
        config = CONFIG | {"collections": {"mine": {"folder": "data/mine", **entry}}}
        runs = [spec for spec in Study(config, study).specs.values() if spec.kind == "runs"]
        assert {spec.settings["drop_self"] for spec in runs} == {dropped}


@pytest.mark.parametrize(
    ("mode", "same_group", "kept"),
    [
        (0o644, True, 0o755),
        (0o644, False, 0o755),
        (0o640, True, 0o750),
        (0o640, False, 0o700),
        (0o600, True, 0o700),
        (0o600, False, 0o700),
    ],
)
def test_a_copy_is_for_those_who_may_read_the_original(tmp_path, mode, same_group, kept):
    tmp_path.chmod(0o755)
    group = tmp_path.stat().st_gid + (not same_group)
    original = SimpleNamespace(stat=lambda: SimpleNamespace(st_mode=stat.S_IFREG | mode, st_gid=group))
    keep_private(tmp_path, original)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == kept


# The cache of digests


def test_a_change_that_keeps_size_and_time_is_seen(study):
    path = study / "data" / "parts" / "a.jsonl"
    before = source(study, "data/parts/a.jsonl")[0]["sha256"]
    times = path.stat()
    path.write_text(ROW.replace("q", "Q", 1).replace("Q", "q", 1).replace('"d"', '"e"'))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    after = source(study, "data/parts/a.jsonl")[0]["sha256"]
    assert after == file_digest(path) != before
    other = path.with_name("other.jsonl")
    other.write_text(ROW)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    assert source(study, "data/parts/a.jsonl")[0]["sha256"] == before


def count_digests(study, path):
    """The digest of `path`, and whether it had to be computed."""
    computed = []
    cache = DigestCache(study)
    digest = cache.get(path, lambda path: computed.append(path) or file_digest(path))
    cache.save()
    return digest, bool(computed)


def test_a_digest_is_computed_once_until_it_is_forgotten(study):
    path, other = study / "data" / "lines.jsonl", study / "data" / "table.parquet"
    assert count_digests(study, path) == (file_digest(path), True)
    assert count_digests(study, other)[1]
    assert count_digests(study, path) == (file_digest(path), False)
    DigestCache(study).forget([path])
    assert count_digests(study, path) == (file_digest(path), True)
    assert not count_digests(study, other)[1]


def test_a_cache_without_news_is_not_written_again(study):
    path, cache = study / "data" / "lines.jsonl", study / "resources" / ".digests.json"
    count_digests(study, path)
    before = cache.stat().st_ino
    count_digests(study, path)
    assert cache.stat().st_ino == before


def test_a_study_remembers_digests_unless_it_is_not_to(study):
    Study(CONFIG, study, remember=False)
    assert not (study / "resources").exists()
    Study(CONFIG, study)
    assert (study / "resources" / ".digests.json").is_file()


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"PATH": 1}', '{"PATH": {"state": 1}}', "\0\0\0"])
def test_a_damaged_cache_costs_time_only(study, content):
    path = study / "data" / "lines.jsonl"
    (study / "resources").mkdir()
    (study / "resources" / ".digests.json").write_text(content.replace("PATH", str(path)))
    assert count_digests(study, path) == (file_digest(path), True)
    assert count_digests(study, path)[1] is False


def test_without_a_place_for_the_cache_a_study_is_planned_all_the_same(study):
    (study / "resources").write_text("a file")
    assert source(study, "data/parts/a.jsonl")[0]["sha256"] == DIGEST


def test_the_key_of_a_single_file_is_what_it_was(study):
    """Of every study that was made before there were folders and globs."""
    settings, _ = source(study, "data/parts/a.jsonl", columns={"query": "question"})
    columns = {"query": "question", "document": "document", "negatives": "negatives"}
    assert json.loads(json.dumps(settings)) == {"file": "a.jsonl", "sha256": DIGEST, "columns": columns}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("train.parquet", "train"),
        ("queries-00000-of-00002.parquet", "queries"),
        ("documents.part-1.parquet", "documents"),
        ("train.jsonl", None),
        ("trains.parquet", None),
        ("corpus.train.parquet", None),
    ],
)
def test_a_file_of_scores_is_known_by_its_name(name, role):
    assert role_of(name) == role


def test_a_new_folder_is_there_when_it_is_complete(tmp_path):
    umask = os.umask(0o027)
    try:
        for path in (tmp_path / "new", tmp_path / "empty"):
            if path.name == "empty":
                path.mkdir()
            with new_folder(path) as folder:
                assert folder.parent == tmp_path and folder != path
                (folder / "file").write_text("text")
                assert path.name == "empty" or not path.exists()
            assert (path / "file").read_text() == "text"
            assert stat.S_IMODE(path.stat().st_mode) == 0o750
        assert os.umask(0o027) == 0o027, "the process keeps its own"
    finally:
        os.umask(umask)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "new"]


def test_links_are_refused_at_any_depth_whatever_they_point_to(tmp_path):
    folder = tmp_path / "logs"
    refuse_links(folder)  # not there yet
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "file").touch()
    refuse_links(folder)
    (tmp_path / "link").symlink_to(folder)
    refuse_links(tmp_path / "link")  # a study's folders may be elsewhere
    for name in ("link", "runs/link"):
        for target in ("runs", "nowhere", "/etc/passwd"):
            (folder / name).symlink_to(target)
            with pytest.raises(UserError, match=f"^{folder / name} is a link to {target}, which would be written to"):
                refuse_links(folder)
            (folder / name).unlink()


def test_a_new_folder_takes_no_name_that_is_in_use(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "zero").touch()
    for name in ("file", "full"):
        with pytest.raises(UserError, match=f"{name} is there: name a new folder"), new_folder(tmp_path / name):
            pass
    with pytest.raises(UserError, match="none is not a folder: make it first"), new_folder(tmp_path / "none" / "new"):
        pass


def test_of_a_folder_that_fails_nothing_stays(tmp_path):
    with pytest.raises(ValueError, match="half"), new_folder(tmp_path / "new") as folder:
        (folder / "file").touch()
        raise ValueError("half")
    with pytest.raises(ValueError, match="gone"), new_folder(tmp_path / "new") as folder:
        folder.rmdir()
        raise ValueError("gone")
    assert list(tmp_path.iterdir()) == []
