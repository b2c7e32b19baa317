"""Which code made an artifact: what counts as a change of it, and which steps a change reaches."""

import shutil
import subprocess
import sys
from functools import partial

import pytest

from colbert_zero.evaluation import measure
from colbert_zero.graph import code

MODULE = '''"""A module."""
import json
from colbert_zero.graph import digests


def first(values: list[int], limit: int = 3) -> int:
    """The first."""
    # why
    return values[0] if len(values) < limit else f"{limit}"


class Thing:
    """A thing."""

    size = 1
'''


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A copy of this repository's code, which is the one that is looked at."""
    for pattern in code.PARTS.values():
        for path in code.REPOSITORY.glob(pattern):
            copy = tmp_path / path.relative_to(code.REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    monkeypatch.setattr(code, "REPOSITORY", tmp_path)
    monkeypatch.setattr(code, "WORKFLOW", tmp_path / "workflow")
    return tmp_path


def module_digest(path, text):
    path.write_text(text)
    code._read_module.cache_clear()
    return code._read_module(path)[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# why", "# why not"),
        ("    # why\n", ""),
        ('"""The first."""', '"""The very first."""'),
        ('    """The first."""\n', ""),
        ('"""A module."""\n', ""),
        ('    """A thing."""\n', ""),
        ("import json\n", "\n\nimport  json # all of it\n"),
        ("values[0] if", "(values[0]) if"),
        ("values: list[int], limit: int = 3", "\n    values: list[int],\n    limit: int = 3,\n"),
        ('f"{limit}"', "f'{limit}'"),
    ],
)
def test_comments_docstrings_and_form_are_no_change(tmp_path, old, new):
    assert MODULE.count(old)
    path = tmp_path / "module.py"
    assert module_digest(path, MODULE) == module_digest(path, MODULE.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("limit: int = 3", "limit: int = 4"),
        ("limit: int = 3", "limit: int"),
        ("<", "<="),
        ("values[0]", "values[-0]"),
        ("values[0]", "values[1]"),
        ("values[0]", "values[False]"),
        ("size = 1", "size = 1.0"),
        ("size = 1", "size = None"),
        ("size = 1", "size = ...\n"),
        ("size = 1", "size = b'1'"),
        ("import json", "import json as j"),
        ("first(", "last("),
        ("class Thing", "class Thing(list)"),
        ('f"{limit}"', '"{limit}"'),
        ("return", "yield"),
    ],
)
def test_what_runs_otherwise_is_a_change(tmp_path, old, new):
    assert MODULE.count(old)
    path = tmp_path / "module.py"
    assert module_digest(path, MODULE) != module_digest(path, MODULE.replace(old, new, 1))


def test_a_step_has_the_digests_of_the_modules_that_it_imports_and_of_no_others(repository):
    modules = code.module_digests("colbert_zero.evaluation.measure")
    assert {"colbert_zero.evaluation.trec", "colbert_zero.data.qrels", "colbert_zero.graph.artifact"} <= set(modules)
    assert not {"colbert_zero.evaluation.search", "colbert_zero.training.train"} & set(modules)
    # A process is started by its module's name.
    assert "colbert_zero.training.train" in code.module_digests("colbert_zero.machine.launch")


def test_the_static_imports_are_all_that_a_step_really_imports():
    for step in ("evaluation.measure", "data.batches", "mining.negatives", "report.page"):
        program = f"import sys, colbert_zero.{step}; print(*sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(code.WORKFLOW)},
            check=True,
        )
        imported = {name for name in done.stdout.split() if name.split(".")[0] == code.PACKAGE}
        assert imported <= set(code.module_digests(f"colbert_zero.{step}"))


def test_a_change_in_any_part_changes_its_digest_alone(repository):
    before = code.part_digests()
    assert None not in before.values()
    for part, pattern in code.PARTS.items():
        path = sorted(repository.glob(pattern))[-1]
        kept = path.read_bytes()
        path.write_bytes(kept + b"\n")
        changed = {name for name, value in code.part_digests().items() if value != before[name]}
        assert changed == {part}
        path.write_bytes(kept)


def test_the_package_is_the_modules_of_every_room(repository):
    package = repository / "workflow/colbert_zero"
    digests = [code.code_identity()["digest"]]
    rooms = sorted(path for path in package.iterdir() if (path / "__init__.py").is_file())
    for room in rooms:
        module = next(path for path in sorted(room.glob("*.py")) if path.name != "__init__.py")
        module.write_text(module.read_text() + "\n")
        digests.append(code.code_identity()["digest"])
    assert len(set(digests)) == len(digests) == len(rooms) + 1


def test_a_part_that_cannot_be_seen_has_no_digest(repository):
    """An image shows the workflow alone to its steps."""
    shutil.rmtree(repository / "envs")
    assert code.part_digests()["locks"] is None


def test_the_commit_is_that_of_the_package_and_says_whether_it_has_changed(repository):
    assert code.source_commit() is None

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *identity, *words], cwd=repository, capture_output=True, text=True, check=True)

    git("init")
    # Without a commit there is nothing to name.
    assert code.source_commit() is None
    git("add", ".")
    git("commit", "-m", "one")
    head = git("rev-parse", "HEAD").stdout.strip()
    assert code.source_commit() == head and len(head) == 40
    (repository / "beside").write_text("not of the package")
    assert code.source_commit() == head
    (repository / "workflow/colbert_zero/new.py").write_text("")
    assert code.source_commit() == f"{head}, changed"


def test_the_module_of_a_program_is_the_one_that_it_was_started_by(tmp_path):
    (tmp_path / "steps.py").write_text(
        "from colbert_zero.graph.code import step_module\n\n\n"
        "def make():\n    pass\n\n\n"
        "print(make.__module__, step_module(make))\n"
    )
    for words, said in ((["-m", "steps"], "__main__ steps"), (["steps.py"], "__main__ __main__")):
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": f"{code.WORKFLOW}"},
            check=True,
        )
        assert done.stdout.strip() == said


def test_the_module_of_a_step_is_that_of_its_make():
    assert (
        code.step_module(measure.make) == code.step_module(partial(measure.make)) == "colbert_zero.evaluation.measure"
    )
    identity = code.code_identity(code.step_module(measure.make))
    assert identity["module"] in identity["modules"]
    assert "module" not in code.code_identity("tests.publishing")


def test_every_module_has_a_digest():
    """Some have literals that UTF-8 cannot hold, as a range of surrogates."""
    for path in code.WORKFLOW.glob("colbert_zero/*/*.py"):
        name = ".".join(path.relative_to(code.WORKFLOW).with_suffix("").parts)
        assert name in code.module_digests(name)
