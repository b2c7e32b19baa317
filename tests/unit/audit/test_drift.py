"""What today's code, libraries or machine would make otherwise: what counts as a change, and what it reaches."""

import json
import shutil

import pytest

from colbert_zero.audit import drift
from colbert_zero.cli import main
from colbert_zero.graph import code
from colbert_zero.machine import images


@pytest.fixture(scope="module")
def copied_repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    for pattern in code.PARTS.values():
        for path in code.REPOSITORY.glob(pattern):
            copy = folder / path.relative_to(code.REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    return folder


@pytest.fixture
def repository(copied_repository, monkeypatch):
    """A copy of this repository's code, which is the one that is looked at; afterwards it is as it was."""
    monkeypatch.setattr(code, "REPOSITORY", copied_repository)
    monkeypatch.setattr(code, "WORKFLOW", copied_repository / "workflow")
    monkeypatch.setattr(images, "REPOSITORY", copied_repository)
    files = {path: path.read_bytes() for path in copied_repository.rglob("*") if path.is_file()}
    yield copied_repository
    for path, content in files.items():
        if not path.is_file() or path.read_bytes() != content:
            path.write_bytes(content)
            if path.suffix == ".py":
                code._read_module.cache_clear()


@pytest.fixture
def found(study, repository, capsys):
    """Call `colbert-zero drift --json`, as if the artifacts had been made by the repository: status and changes."""
    digests, parts = {}, code.part_digests()
    for path in study.glob("re*/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        module = manifest["code"]["module"]
        if module not in digests:
            digests[module] = code.module_digests(module)
        manifest["code"] |= {"digest": parts["package"], "parts": parts, "modules": digests[module], "changed": []}
        manifest["attempts"] = [attempt | {"code": parts["package"]} for attempt in manifest["attempts"]]
        path.write_text(json.dumps(manifest))

    def call():
        drift.planned_contents.cache_clear()
        status = main(["drift", "--directory", str(study), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return call


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def edit_manifests(study, kind, **values):
    for path in study.glob(f"re*/{kind}/*/manifest.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | values))


def kinds(names):
    return {name.partition("/")[0] for name in names}


def test_a_study_made_by_this_code_on_this_machine_has_no_drift(found, capsys):
    status, result = found()
    assert (status, result["changes"], result["drifted"], result["artifacts"]) == (0, [], [], 31)
    assert main(["drift", "--directory", "."]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "31 artifacts: 31 as today's code would make them, 0 by other means, 0 that cannot be told"
    ]


def test_a_comment_is_no_drift_of_any_artifact(found, repository):
    trec = repository / "workflow/colbert_zero/evaluation/trec.py"
    trec.write_text("# A comment.\n" + trec.read_text())
    code._read_module.cache_clear()
    status, result = found()
    assert (status, result["drifted"]) == (0, [])
    assert [(change["aspect"], change["reach"]) for change in result["changes"]] == [("code", "does not reach")]


def test_a_change_reaches_the_artifacts_whose_step_imports_the_module_and_no_others(found, repository):
    edit(repository / "workflow/colbert_zero/evaluation/trec.py", "start=1):", "start=2):")
    code._read_module.cache_clear()
    status, result = found()
    assert status == 1
    (change,) = [change for change in result["changes"] if change["reach"] == "reaches"]
    assert change["change"] == "colbert_zero.evaluation.trec has changed"
    # A training may evaluate, and the report reads values, not runs.
    assert {"runs", "measures"} <= kinds(change["artifacts"]) <= {"runs", "measures", "models"}
    assert kinds(result["again"]["artifacts"]) >= {"reports"}
    assert not kinds(result["again"]["artifacts"]) & {"shards", "batches", "sources"}


def test_a_module_that_is_gone_or_new_is_a_change(found, repository):
    (repository / "workflow/colbert_zero/data/shards.py").unlink()
    edit(
        repository / "workflow/colbert_zero/data/batches.py",
        "from colbert_zero.data.orders",
        "import colbert_zero.data.columns\nfrom colbert_zero.data.orders",
    )
    code._read_module.cache_clear()
    _, result = found()
    texts = {change["change"]: kinds(change["artifacts"]) for change in result["changes"] if change["reach"] != "no"}
    assert texts["colbert_zero.data.shards, which made it, is no more"] == {"shards"}
    assert "batches" in texts["colbert_zero.data.columns is imported now"]


@pytest.mark.parametrize(
    ("part", "reached"),
    [("rules", set()), ("schemas", set()), ("registry", set()), ("report", {"reports"})],
)
def test_of_the_other_parts_only_the_template_reaches_an_artifact(found, repository, part, reached):
    path = next(path for path in sorted((repository / "workflow" / part).iterdir()) if path.is_file())
    path.write_text(path.read_text() + "\n")
    status, result = found()
    assert (kinds(result["drifted"]), status) == (reached, int(bool(reached)))
    assert result["changes"]


def test_libraries_python_processor_c_library_and_gpu_are_compared(found, study):
    edit_manifests(study, "runs", packages={"torch": "1.0", "nosuchpackage": "2.0"}, python="3.10.1")
    edit_manifests(study, "shards", processor="Z80", platform="CP/M-with-glibc9.9")
    edit_manifests(study, "models", processor="Z80", platform="CP/M-with-glibc9.9")
    path = next(study.glob("results/indexes/*/manifest.json"))
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"facts": manifest["facts"] | {"device": "NVIDIA Z80"}}))
    status, result = found()
    reached = {(change["aspect"], change["reach"]): kinds(change["artifacts"]) for change in result["changes"]}
    assert status == 1
    assert reached[("library", "reaches")] == reached[("Python", "reaches")] == {"runs"}
    assert reached[("library", "may reach")] == {"runs"}
    # Where PyTorch does not compute, neither the processor nor the C library decides anything.
    assert reached[("processor", "reaches")] == reached[("C library", "reaches")] == {"models"}
    assert "indexes" in set().union(*(names for (aspect, _), names in reached.items() if aspect == "GPU"))
    assert result["again"]["gpu_hours"] >= 0


def test_an_image_is_compared_by_its_contents_and_its_libraries_by_its_lock(found, study, repository):
    contents = images.Image("torch", study, None, {}).contents_digest
    labels = {"colbert-zero.image": "torch", "colbert-zero.contents": contents}
    edit_manifests(study, "models", image=labels, packages={"torch": "1.0"}, python="3.13.5")
    assert found()[0] == 0
    edit(repository / "envs/torch.txt", "\ntorch==", "\ntorch==9.")
    status, result = found()
    texts = [change["change"] for change in result["changes"] if change["reach"] == "reaches"]
    assert status == 1 and kinds(result["drifted"]) == {"models"}
    assert any(text.startswith(f"torch with the contents {contents}") for text in texts)
    assert any(text.startswith("torch 1.0, in the lock 9.") for text in texts)
    edit_manifests(study, "models", image={"colbert-zero.image": "another"})
    assert found()[0] == 2


def test_an_attempt_by_other_code_and_a_change_while_it_ran_cannot_be_told(found, study):
    for path in study.glob("results/models/*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["attempts"].insert(0, manifest["attempts"][0] | {"code": "0" * 64, "end": "killed"})
        path.write_text(json.dumps(manifest))
    path = next(study.glob("results/shards/*/manifest.json"))
    manifest = json.loads(path.read_text())
    manifest["code"]["changed"] = ["package"]
    path.write_text(json.dumps(manifest))
    status, result = found()
    assert (status, result["drifted"], kinds(result["unknown"])) == (2, [], {"models", "shards"})


def test_an_older_record_cannot_be_told(study, capsys):
    for path in study.glob("re*/*/*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["code"] = {"digest": "0" * 64, "commit": None}
        path.write_text(json.dumps(manifest))
    assert main(["drift", "--directory", "."]) == 2
    out = capsys.readouterr().out
    assert "the record names no modules: may reach all 31" in out
    assert main(["drift", "--directory", ".", "--all"]) == 2
    assert "  measures/dev-" in capsys.readouterr().out


def test_damaged_records_cannot_be_told(study, found):
    folders = sorted(study.glob("results/runs/*"))
    for folder, text in zip(folders, ("[]", "{}", '{"outputs": {}, "facts": {}}', "\x1b[31m"), strict=True):
        (folder / "manifest.json").write_text(text)
    status, result = found()
    assert (status, len(result["unreadable"]), len(result["unknown"])) == (2, 3, 1)


def test_an_empty_folder_cannot_be_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["drift", "--directory", "."]) == 2
    assert "nothing to compare" in capsys.readouterr().out
