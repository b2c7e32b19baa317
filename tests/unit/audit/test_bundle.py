"""A bundle holds what a report rests on, says how it was made, and is the same for the same study."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.audit import bundle as bundling
from colbert_zero.audit.bundle import workflow_files
from colbert_zero.audit.checklist import UNKNOWN, checklist
from colbert_zero.audit.crate import Contents, describe, without_folders
from colbert_zero.cli import main
from colbert_zero.graph.artifact import Artifact
from colbert_zero.graph.config import LOCK_FILE

TESTS = Path(__file__).parents[2]
VALIDATORS = TESTS.parent / ".venv" / "validators"
METADATA = "ro-crate-metadata.json"


@pytest.fixture
def study(study, tmp_path, monkeypatch):
    """A copy of the finished study, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return study


@pytest.fixture(scope="module")
def crate(finished_study, tmp_path_factory):
    """A bundle of the study as a folder, to be copied."""
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(finished_study, folder / "study")
    assert bundle(folder / "study", folder / "crate") == 0
    return folder / "crate"


def bundle(study, output, *options):
    here = Path.cwd()
    try:
        return main(["bundle", "--directory", str(study), "--output", str(output), *options])
    finally:
        os.chdir(here)


def entities(crate):
    """What a bundle says, by @id."""
    return {entity["@id"]: entity for entity in json.loads((crate / METADATA).read_text())["@graph"]}


def ids(value):
    values = value if isinstance(value, list) else [value]
    return [entry["@id"] for entry in values]


def manifests(study):
    return {path.parent: json.loads(path.read_text()) for path in study.glob("re*/*/*/manifest.json")}


def contents(study, monkeypatch, **changes):
    """What a bundle of the study would be made of, with a manifest changed: a record that says more than ours do."""
    monkeypatch.chdir(study)
    names = [f"{path.parent.name}/{path.name}" for path in manifests(study)]
    artifacts = {name: Artifact.open(name) for name in sorted(names)}
    (model,) = (name for name in names if name.startswith("models/unsupervised"))
    changed = dataclasses.replace(artifacts[model], manifest={**artifacts[model].manifest, **changes})
    artifacts[model] = changed
    (report,) = (artifact for name, artifact in artifacts.items() if name.startswith("reports/"))
    readme = {"README.md": study / "config.yaml"}
    files = {**workflow_files(), "config.yaml": study / "config.yaml", **readme}
    return Contents("kept", report, artifacts, dict(sorted(files.items()))), changed


def test_the_same_study_gives_the_same_bytes(finished_study, study, tmp_path, monkeypatch):
    """Wherever it is, whenever its files were written, and whatever the umask."""
    other = tmp_path / "elsewhere" / "copy"
    shutil.copytree(finished_study, other)
    for path in other.rglob("*"):
        os.utime(path, (10**9, 10**9))
    assert bundle(study, tmp_path / "one.zip") == 0
    umask = os.umask(0o077)
    assert bundle(other, tmp_path / "two.zip") == 0
    os.umask(umask)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_a_folder_holds_what_a_zip_holds(study, tmp_path):
    crate = tmp_path / "crate"
    assert bundle(study, tmp_path / "one.zip") == bundle(study, crate) == 0
    with zipfile.ZipFile(tmp_path / "one.zip") as file:
        assert file.testzip() is None
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        held = {name: file.read(name) for name in file.namelist()}
    there = {path.relative_to(crate).as_posix(): path.read_bytes() for path in crate.rglob("*") if path.is_file()}
    assert held == there


def test_every_artifact_is_an_action_with_its_inputs_and_files(finished_study, crate):
    said, all_manifests = entities(crate), manifests(finished_study)
    actions = {
        name for name, entity in said.items() if name.startswith("#action/") and entity["@type"] == "CreateAction"
    }
    assert actions == {f"#action/{manifest['name']}" for manifest in all_manifests.values()}
    for folder, manifest in all_manifests.items():
        action = said[f"#action/{manifest['name']}"]
        place = folder.relative_to(finished_study).as_posix()
        files = {f"{place}/{file}" for file in [*manifest["outputs"], "spec.json", "manifest.json"]}
        assert set(ids(action["result"])) == {f"{place}/"} | files
        inputs = {said[name]["name"] for name in ids(action["object"]) if said[name]["@type"] == "Dataset"}
        assert inputs == set(manifest["inputs"])
        assert action["startTime"] == manifest["attempts"][0]["started"]
        assert action["endTime"] == manifest["attempts"][-1]["ended"]
        assert said[ids(action["instrument"])[0]]["name"] == manifest["code"]["module"]


def test_every_file_has_the_digest_of_its_manifest_and_these_bytes(finished_study, crate):
    said, count = entities(crate), 0
    for folder, manifest in manifests(finished_study).items():
        for file, entry in manifest["outputs"].items():
            path = f"{folder.relative_to(finished_study).as_posix()}/{file}"
            assert said[path]["sha256"] == entry["sha256"]
            assert said[path]["contentSize"] == str(entry["bytes"])
            assert hashlib.sha256((crate / path).read_bytes()).hexdigest() == entry["sha256"]
            count += 1
    assert count > 80
    files = {path.relative_to(crate).as_posix() for path in crate.rglob("*") if path.is_file()}
    assert files - {METADATA} <= {unquote(name) for name in said}


def test_every_setting_of_a_spec_is_a_value_of_its_action(finished_study, crate):
    said = entities(crate)
    for folder in manifests(finished_study):
        spec = json.loads((folder / "spec.json").read_text())
        action = said[f"#action/{spec['kind']}/{folder.name}"]
        values = [said[name] for name in ids(action["object"]) if said[name]["@type"] == "PropertyValue"]
        assert {value["name"] for value in values} == set(spec["settings"])
        for value in values:
            setting = spec["settings"][value["name"]]
            assert value["value"] == setting or json.loads(value["value"]) == setting
            (parameter,) = ids(value["exampleOfWork"])
            assert said[parameter]["@type"] == "FormalParameter"


def test_a_large_file_is_there_by_digest_alone(study, tmp_path):
    assert bundle(study, tmp_path / "crate", "--max-file-mb", "0") == 0
    said = entities(tmp_path / "crate")
    outside = [entity for name, entity in said.items() if name.startswith("arcp://")]
    all_manifests = manifests(study)
    expected = sum(
        len(manifest["outputs"]) for folder, manifest in all_manifests.items() if "reports" not in folder.parts
    )
    assert sum(entity["@type"] == "File" for entity in outside) == expected
    assert all(len(entity["sha256"]) == 64 for entity in outside if entity["@type"] == "File")
    for folder in all_manifests:
        held = {path.name for path in (tmp_path / "crate" / folder.relative_to(study)).iterdir()}
        assert held >= {"spec.json", "manifest.json"}
        assert len(held) == 2 or folder.parent.name == "reports"


def validator_says(crate, severity):
    done = subprocess.run(
        [sys.executable, TESTS / "validate_crate.py", severity, crate],
        env=os.environ | {"PYTHONPATH": str(VALIDATORS)},
        capture_output=True,
        text=True,
        check=True,
    )
    (issues,) = json.loads(done.stdout.splitlines()[0]).values()
    return issues


def test_the_validator_accepts_a_bundle(crate):
    """Of the Provenance Run Crate profile, all that is required; without a network."""
    assert validator_says(crate, "required") == []


def test_the_validator_misses_what_is_taken_out(crate, tmp_path):
    """So it sees what it accepts: of three actions, a file, the instrument and the result."""
    broken = tmp_path / "crate"
    shutil.copytree(crate, broken)
    text = json.loads((broken / METADATA).read_text())
    first, second, third, *_ = (entity for entity in text["@graph"] if entity["@id"].startswith("#action/models/"))
    (broken / ids(first["result"])[1]).unlink()
    del second["instrument"], third["result"]
    (broken / METADATA).write_text(json.dumps(text))
    issues = validator_says(broken, "recommended")
    assert sum("does not include the Data Entity" in line for line in issues) == 1
    assert any("REQUIRED" in line and "MUST have an instrument" in line for line in issues)
    assert any("RECOMMENDED" in line and "SHOULD have a result" in line for line in issues)


def test_a_study_with_findings_is_not_bundled(study, tmp_path, capsys):
    path = next(study.glob("resources/sources/*/lines.jsonl"))
    path.write_bytes(path.read_bytes() + b"\n")
    assert bundle(study, tmp_path / "one.zip") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not bundled" in line and "lines.jsonl" in line
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_a_file_that_changes_meanwhile_is_not_bundled(study, tmp_path, monkeypatch, capsys):
    """What is said of a file holds for what is put in."""

    def slow(contents):
        text = describe(contents)
        with (study / "config.yaml").open("a") as file:
            file.write("\n")
        return text

    monkeypatch.setattr("colbert_zero.audit.bundle.describe", slow)
    for output in (tmp_path / "one.zip", tmp_path / "folder"):
        assert bundle(study, output) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "config.yaml changed while it was bundled" in line
    assert [path.name for path in tmp_path.iterdir()] == ["study"]


def test_an_unfinished_study_is_one_line(study, tmp_path, capsys):
    shutil.rmtree(study / "results" / "reports")
    assert bundle(study, tmp_path / "one.zip") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "run snakemake to make it" in line


def test_what_is_in_the_way_of_the_output_is_one_line_and_stays(study, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    (tmp_path / "folder.zip").mkdir()
    for output in (tmp_path / "full", tmp_path / "folder.zip", tmp_path / "absent" / "one.zip", study / "config.yaml"):
        assert bundle(study, output) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert (tmp_path / "full" / "file").read_text() == "kept"
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_files_that_others_may_not_read_are_there_by_digest_alone(study, tmp_path, capsys):
    # The page of rows quotes the sources.
    (rows,) = (path.relative_to(study) for path in study.glob("results/reports/*/negatives.html"))
    assert bundle(study, tmp_path / "public") == 0 and (tmp_path / "public" / rows).is_file()
    private = next((study / "resources" / "sources").iterdir())
    private.chmod(0o700)
    capsys.readouterr()
    assert bundle(study, tmp_path / "crate") == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("may not be read by others" in line and private.name in line for line in lines) == 1
    held = sorted(path.name for path in (tmp_path / "crate" / private.relative_to(study)).iterdir())
    assert held == ["manifest.json", "spec.json"]
    assert (tmp_path / "crate" / rows).with_name("report.html").is_file()
    assert not (tmp_path / "crate" / rows).exists()


def test_a_config_that_names_folders_of_this_machine_is_told(study, tmp_path, capsys):
    with (study / "config.yaml").open("a") as file:
        file.write("# as it was on /scratch/somebody/study\n")
    assert bundle(study, tmp_path / "crate") == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "folders of this machine" in line)
    assert "such as config.yaml" in line
    assert "/scratch/somebody" not in (tmp_path / "crate" / METADATA).read_text()


def test_the_signatures_of_the_report_are_in_the_bundle(study, tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    assert main(["sign", "--key", str(key), "--directory", str(study)]) == 0
    assert bundle(study, tmp_path / "crate") == 0
    signed = {path.name: path.read_bytes() for path in (study / "signatures").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "crate" / "signatures").iterdir()} == signed
    assert len(signed) == 2


def test_the_commits_of_names_are_in_the_bundle_with_the_config(study, tmp_path):
    (study / LOCK_FILE).write_text(f"model:\n  someone/model:\n    main: {'0123456789' * 4}\n")
    assert bundle(study, tmp_path / "crate") == 0
    assert (tmp_path / "crate" / LOCK_FILE).read_bytes() == (study / LOCK_FILE).read_bytes()
    said = entities(tmp_path / "crate")
    assert {"config.yaml", LOCK_FILE} <= set(ids(said["#workflow-run"]["object"]))
    assert {"#workflow/config", "#workflow/lock"} <= set(ids(said["Snakefile"]["input"]))
    assert said[LOCK_FILE]["sha256"] == hashlib.sha256((study / LOCK_FILE).read_bytes()).hexdigest()


def test_who_ran_the_study_is_said_only_if_it_is_told(study, crate, tmp_path):
    assert not any(entity["@type"] == "Person" for entity in entities(crate).values())
    assert bundle(study, tmp_path / "crate", "--agent", "https://orcid.org/0000-0002-1825-0097") == 0
    said = entities(tmp_path / "crate")
    assert said["https://orcid.org/0000-0002-1825-0097"]["@type"] == "Person"
    assert ids(said["#organize"]["agent"]) == ["https://orcid.org/0000-0002-1825-0097"]


def test_an_attempt_that_failed_is_an_action_that_failed(study, monkeypatch):
    failed = {"end": "OSError: /scratch/me/secret/rows.parquet is gone", "started": "2026-01-01T00:00:00+00:00"}
    found, model = contents(
        study, monkeypatch, attempts=[failed, {"end": "published", "ended": "2026-01-02T00:00:00+00:00"}]
    )
    text = describe(found)
    said = {entity["@id"]: entity for entity in json.loads(text)["@graph"]}
    attempt = said[f"#attempt/{model.name}/1"]
    assert attempt["actionStatus"] == "http://schema.org/FailedActionStatus"
    assert attempt["error"] == "OSError: rows.parquet is gone"
    assert {"@id": attempt["@id"]} in said["./"]["mentions"]
    assert "scratch" not in text
    assert said[f"#action/{model.name}"]["actionStatus"] == "http://schema.org/CompletedActionStatus"


def test_an_image_is_named_by_its_contents_and_its_file_which_is_read_once(study, monkeypatch, tmp_path):
    labels = {"colbert-zero.image": "torch", "colbert-zero.contents": "0123456789ab"}
    found, model = contents(study, monkeypatch, image=labels)
    file = tmp_path / "torch.sif"
    file.write_bytes(b"an image")
    here = SimpleNamespace(contents_digest="0123456789ab", address=str(file))
    gone = SimpleNamespace(contents_digest="ba9876543210", address="docker://elsewhere")
    for planned in ([gone], [gone, here]):
        monkeypatch.setattr(bundling, "planned_images", lambda *_, planned=planned: dict(enumerate(planned)))
        images = bundling._images(SimpleNamespace(config={"images": {}}))
        text = describe(dataclasses.replace(found, images=images))
        said = {entity["@id"]: entity for entity in json.loads(text)["@graph"]}
        (image,) = ids(said[f"#action/{model.name}"]["containerImage"])
        assert ids(said[image]["additionalType"]) == ["https://w3id.org/ro/terms/workflow-run#SIFImage"]
        assert said[image]["tag"] == "0123456789ab"
        assert said[image].get("sha256") == (hashlib.sha256(b"an image").hexdigest() if images else None)


def test_a_record_without_module_attempts_and_machine_is_described(study, monkeypatch):
    """As the first versions wrote them."""
    old = {
        "code": {"digest": "0" * 64, "commit": None},
        "attempts": [],
        "packages": {},
        "python": None,
        "seconds": None,
    }
    found, model = contents(study, monkeypatch, **old)
    said = {entity["@id"]: entity for entity in json.loads(describe(found))["@graph"]}
    action = said[f"#action/{model.name}"]
    assert "startTime" not in action
    assert said[ids(action["instrument"])[0]]["name"] == "models"
    assert checklist(found, 0)


@given(st.text())
def test_a_text_without_folders_stays_without(text):
    assert without_folders(without_folders(text)) == without_folders(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--path=/home/me/data/rows.jsonl", "--path=rows.jsonl"),
        ("~/data/rows.jsonl is gone", "rows.jsonl is gone"),
        ("~me/data/rows.jsonl", "rows.jsonl"),
        ("'/a/b', \"/c/d\"", "'b', \"d\""),
        ("results/models/x", "results/models/x"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("12 rows/s", "12 rows/s"),
        ("nDCG@10 / AP", "nDCG@10 / AP"),
    ],
)
def test_absolute_paths_lose_their_folders(text, expected):
    assert without_folders(text) == expected


def test_a_checklist_says_facts_or_that_it_does_not_know(crate, finished_study):
    lines = (crate / "checklist.md").read_text().splitlines()
    answers = [line for line in lines if line.startswith("- ")]
    questions = [line for line in lines if line.startswith("### ")]
    assert len(questions) == 5 + 16
    assert all(line.endswith(".") for line in answers)
    for subject in ("archive with a persistent identifier", "others than the authors", "a paper claims", "approval"):
        assert all(UNKNOWN in line for line in answers if subject in line) and any(subject in line for line in answers)
    sources = [folder for folder in manifests(finished_study) if folder.parent.name == "sources"]
    for folder in sources:
        assert f"- sources/{folder.name}: {UNKNOWN}: under which licence it is." in answers
    models = {folder: made for folder, made in manifests(finished_study).items() if folder.parent.name == "models"}
    for folder, made in models.items():
        assert f"- models/{folder.name}: {made['facts']['parameters']} parameters." in answers


def test_a_value_of_a_record_is_no_line_of_the_checklist(study, monkeypatch):
    found, _ = contents(study, monkeypatch, processor="fast\n## Results Reproduced\n\n- by all <script>")
    text = checklist(found, 0)
    assert "\n## Results Reproduced" not in text and "<script>" not in text
