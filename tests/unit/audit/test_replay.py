"""An artifact made again by its own command: what a replay finds, and what it leaves alone."""

import json
import os
import shutil
import sys

import pytest

from colbert_zero.audit import replay, sandbox
from colbert_zero.audit.replay import default_seed, draw_sample
from colbert_zero.audit.sandbox import Sandbox, module_of
from colbert_zero.audit.selection import open_artifacts, seconds_of, select
from colbert_zero.cli import main
from colbert_zero.graph import provenance
from colbert_zero.graph.artifact import Artifact, Spec, file_digests
from colbert_zero.graph.console import UserError
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.paths import REPOSITORY


@pytest.fixture
def replayed(study, capsys):
    """Call `colbert-zero replay`: status, and the lines of its output."""

    def call(*words):
        status = main(["replay", "--directory", str(study), *words])
        return status, capsys.readouterr().out.splitlines()

    return call


def pick(study, pattern):
    return sorted(study.glob(pattern))[0]


def change_manifest(folder, **values):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def forge(folder):
    """Make the manifest say that the files are as they are now."""
    change_manifest(folder, outputs=file_digests(folder))


def tree(folder):
    """All that is in a folder: what a file is and when it was changed."""
    return {
        path.relative_to(folder): (path.lstat().st_mtime_ns, file_digest(path) if path.is_file() else "")
        for path in folder.rglob("*")
    }


def test_an_untouched_artifact_is_identical_and_the_study_stays_as_it_is(study, replayed, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    before = tree(study)
    measures, source, report = (
        pick(study, pattern) for pattern in ("results/measures/*", "resources/sources/file.table*", "results/reports/*")
    )
    names = [f"{folder.parent.name}/{folder.name}" for folder in (measures, source, report)]
    status, lines = replayed(names[0], names[1][-12:], names[2], "--keep", str(tmp_path / "kept"))
    assert (status, [line.split(", ")[0] for line in lines[:3]]) == (0, [f"identical: {name}" for name in names])
    assert lines[3] == "3 artifacts replayed: 3 identical"
    assert tree(study) == before
    assert not list((tmp_path / "tmp").iterdir())
    assert file_digests(tmp_path / "kept" / names[0]) == file_digests(measures)
    status, _ = replayed(names[0], "--keep", str(tmp_path / "kept"))
    assert status == 2, "what was kept is not overwritten"
    assert replayed(names[0], "--keep", str(study / "kept"))[0] == 2


def test_a_forged_score_is_different_and_told_where(study, replayed, monkeypatch):
    monkeypatch.setattr(replay, "code_changes", lambda *_: [])
    run = pick(study, "results/runs/colbert*")
    path = run / "run.trec"
    lines = path.read_text().splitlines(keepends=True)
    query, _, document, _, score, _ = lines[2].split()
    lines[2] = lines[2].replace(score, str(float(score) + 0.2))
    path.write_text("".join(lines))
    forge(run)
    status, output = replayed(run.name[-12:])
    assert status == 1
    assert output[0].startswith(f"different: runs/{run.name}")
    assert f"run.trec: different: query {query}, document {document}: {float(score) + 0.2}" in output[1]
    assert "the same code on the same kind of processor should give the same bytes" in output[2]


def test_a_forged_mean_in_a_manifest_is_different(study, replayed):
    measures = pick(study, "results/measures/*")
    facts = json.loads((measures / "manifest.json").read_text())["facts"]
    change_manifest(measures, facts=facts | {"means": facts["means"] | {"nDCG@10": 0.9}})
    status, output = replayed(measures.name[-12:])
    assert status == 1
    assert output[1].startswith("  facts: different: means, nDCG@10: 0.9 is stored, 0.")


def test_an_extra_file_and_a_missing_one_are_different(study, replayed):
    batches = pick(study, "results/batches/*")
    (batches / "extra.txt").write_text("more")
    forge(batches)
    status, output = replayed(batches.name[-12:])
    assert (status, output[1]) == (1, "  extra.txt: different: is stored, and was not made")
    (batches / "extra.txt").unlink()
    (batches / "plan.parquet").rename(batches / "other.parquet")
    status, output = replayed(batches.name[-12:])
    assert status == 1 and "  plan.parquet: different: its manifest names it, and it is not there" in output


def test_inputs_that_are_not_the_recorded_ones_cannot_be_told(study, replayed):
    measures = pick(study, "results/measures/*")
    run = study / "results" / json.loads((measures / "spec.json").read_text())["inputs"]["run"][0]
    with (run / "run.trec").open("a") as file:
        file.write("q0 Q0 d0 99 0.1 more\n")
    status, output = replayed(measures.name[-12:])
    assert status == 2 and "run.trec" in output[1]  # the step refuses a file that is not as its manifest says
    forge(run)
    status, output = replayed(measures.name[-12:])
    assert status == 2 and "is not the one it was made from" in output[1]
    shutil.rmtree(run)
    assert replayed(measures.name[-12:])[0] == 2


def test_an_older_record_is_replayed_by_its_kind(study, replayed):
    for folder in (pick(study, "results/measures/*"), pick(study, "resources/sources/file.lines*")):
        manifest = json.loads((folder / "manifest.json").read_text())
        old = {name: value for name, value in manifest.items() if name not in ("arguments", "record", "spec")}
        old["code"] = {"digest": manifest["code"]["digest"]}
        old["inputs"] = {name: record["files"] for name, record in manifest["inputs"].items()}
        (folder / "manifest.json").write_text(json.dumps(old))
        status, output = replayed(folder.name[-12:])
        assert status == 0 and output[0].startswith("identical")
        assert output[1] == "  an older record, without the command: this is the command of today"


def test_a_cell_of_the_table_is_its_measures(study, replayed):
    status, output = replayed("bm25/dev")
    artifacts, _ = open_artifacts()
    (report,) = (artifact for artifact in artifacts if artifact.spec.kind == "reports")
    assert status == 0 and report.spec.inputs["bm25"][0] in output[0]


@pytest.mark.parametrize("text", ["nosuch/dev", "bm25/nosuch", "zzz", "", "measures/dev-000000000000"])
def test_what_is_no_artifact_is_one_line(study, replayed, capsys, text):
    assert main(["replay", "--directory", ".", text]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_key_may_be_abbreviated_while_it_names_one(study):
    artifacts, _ = open_artifacts()
    assert select(artifacts[3].name[-12:-4], artifacts, {}) is artifacts[3]
    with pytest.raises(UserError, match="begins the keys of"):
        first = [artifact.name[-12] for artifact in artifacts]
        select(next(letter for letter in first if first.count(letter) > 1), artifacts, {})


def test_a_sample_is_of_many_kinds_and_always_the_same(study):
    artifacts, _ = open_artifacts()
    chosen, left_out = draw_sample(artifacts, 10, 7, 1e9)
    assert (len(chosen), left_out) == (10, [])
    assert len({artifact.spec.kind for artifact in chosen}) == 10
    assert [artifact.name for artifact in draw_sample(artifacts[::-1], 10, 7, 1e9)[0]] == [
        artifact.name for artifact in chosen
    ]
    assert draw_sample(artifacts, 10, 8, 1e9)[0] != chosen
    assert default_seed(artifacts) == default_seed(artifacts[::-1])
    some, left_out = draw_sample(artifacts, 99, 7, 4.0)
    assert sum(map(seconds_of, some)) <= 4.0 and len(some) + len(left_out) == len(artifacts)
    everything, _ = draw_sample(artifacts, 99, 7, 1e9)
    assert len(everything) == len(artifacts)


def test_a_sample_leaves_out_long_trainings_and_fetches_from_the_hub(study):
    artifacts, _ = open_artifacts()
    (model, *_) = (artifact for artifact in artifacts if artifact.spec.kind == "models")
    change_manifest(model.folder, facts=dict(model.facts) | {"seconds": 36000})
    source = next(artifact for artifact in artifacts if artifact.spec.kind == "sources")
    hub = type(source.spec)("sources", "hub.some", source.spec.settings)
    artifacts = [*open_artifacts()[0], Artifact(hub, source.manifest, source.folder)]
    chosen, left_out = draw_sample(artifacts, 99, 7, 600)
    assert not {model.name, hub.name} & {artifact.name for artifact in chosen}
    assert {artifact.name: why.split(",")[0] for artifact, why in left_out} == {
        model.name: "made in more than --budget 600 s",
        hub.name: "fetched from the Hub",
    }


def test_a_module_that_makes_no_artifact_is_never_started(study):
    folder = pick(study, "results/measures/*")
    manifest = json.loads((folder / "manifest.json").read_text())
    for module in ("colbert_zero.machine.images", "os", "colbert_zero.evaluation.measure.x", 3, None):
        change_manifest(folder, code=manifest["code"] | {"module": module})
        assert module_of(Artifact.open(f"measures/{folder.name}")) == "colbert_zero.evaluation.measure"


def test_a_training_is_replayed_with_the_recorded_threads_and_budget(study, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "gpus_here", lambda: ())
    folder = pick(study, "results/models/distillation*")
    facts = json.loads((folder / "manifest.json").read_text())["facts"]
    words = ["--threads", "3", "--device", "cuda", "--maxsim=fused", "--evaluate", "x.json", "--tensorboard"]
    change_manifest(folder, arguments=words, facts=facts | {"device": "NVIDIA Z80", "processes": 4})
    place = Sandbox(study, tmp_path)
    command, environment = place.command(Artifact.open(f"models/{folder.name}"))
    tail = ["--threads", "3", "--device", "cpu", "--tokens-per-chunk", "2048", "--tokens-in-memory", "65536"]
    assert command[:3] == [sys.executable, "-m", "colbert_zero.training.train"]
    assert command[-8:] == tail and "x.json" not in command
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert place.notes == ["made on NVIDIA Z80, and here on the CPU", "trained by 4 processes, and here by 1"]
    monkeypatch.setattr(sandbox, "gpus_here", lambda: ("NVIDIA Z80",) * 4)
    command, _ = Sandbox(study, tmp_path).command(Artifact.open(f"models/{folder.name}"))
    assert "--nproc-per-node=4" in command and "--maxsim=fused" in command
    assert command[command.index("--device") + 1] == "cuda"


@pytest.mark.parametrize("scratch", [["--scratch="], ["--scratch=/tmp/x"], ["--scratch", "/tmp/x"], []])
def test_where_a_search_wrote_meanwhile_is_not_repeated(study, tmp_path, scratch):
    folder = pick(study, "results/runs/colbert*")
    change_manifest(folder, arguments=["--threads", "1", *scratch, "--device", "cpu"])
    words = Sandbox(study, tmp_path).arguments(Artifact.open(f"runs/{folder.name}"))
    assert words == ["--threads", "1", "--device", "cpu"]


def test_an_artifact_is_made_in_its_image_where_that_is_here(study, replayed, tmp_path, monkeypatch):
    """A program called apptainer writes down how it is called, and runs this Python instead."""
    folder = pick(study, "results/measures/*")
    labels = {"colbert-zero.image": "torch", "colbert-zero.contents": "0123456789ab"}
    change_manifest(folder, image=labels)
    status, output = replayed(folder.name[-12:])
    assert status == 0
    assert output[1] == (
        "  made in the image torch (0123456789ab), which is not here: by this machine's Python instead"
    )
    images, programs = tmp_path / "images", tmp_path / "bin"
    images.mkdir()
    programs.mkdir()
    (images / "torch-000000000000.sif").write_text("another")
    (images / "torch-111111111111.sif").write_text("0123456789ab")
    program = programs / "apptainer"
    program.write_text(
        f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "inspect":
    labels = {{"colbert-zero.contents": open(sys.argv[-1]).read()}}
    print(json.dumps({{"data": {{"attributes": {{"labels": labels}}}}}}))
else:
    open({str(tmp_path / "called")!r}, "w").write(os.environ["APPTAINER_BIND"] + "\\n" + " ".join(sys.argv[1:5]))
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[6:]])
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    config = study / "config.yaml"
    config.write_text(config.read_text() + f"\nimages: {{ folder: {images} }}\n")
    status, output = replayed(folder.name[-12:])
    binds, words = (tmp_path / "called").read_text().splitlines()
    assert status == 0 and len(output) == 2
    assert f"{study}:{study}:ro" in binds.split(",")
    assert words.startswith("exec --home /") and words.endswith(f"{images}/torch-111111111111.sif")


def test_temporary_files_in_the_study_are_refused(study, monkeypatch, capsys):
    (study / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(study / "tmp"))
    assert main(["replay", "--directory", ".", "bm25/dev"]) == 2
    assert "TMPDIR is in the study" in capsys.readouterr().err


def test_without_a_target_or_artifacts_nothing_is_replayed(study, replayed, tmp_path):
    assert replayed()[0] == 2
    (tmp_path / "empty").mkdir()
    assert main(["replay", "--directory", str(tmp_path / "empty"), "--sample", "3"]) == 2


def test_an_audit_is_not_replayed(study):
    audit = pick(study, "results/measures/*")
    spec = json.loads((audit / "spec.json").read_text()) | {"kind": "audits"}
    artifact = Artifact(Spec.parse(json.dumps(spec)), {"facts": {}, "outputs": {}}, audit)
    with pytest.raises(UserError, match="which colbert-zero verify makes again"):
        module_of(artifact)
    assert draw_sample([artifact], 1, 7, 600) == ([], [(artifact, "an audit, which colbert-zero verify makes again")])


@pytest.mark.parametrize("values", [{"inputs": {}}, {"arguments": ["--path"]}])
def test_a_damaged_record_cannot_be_told(study, replayed, values):
    folder = pick(study, "results/measures/*")
    change_manifest(folder, **values)
    status, output = replayed(folder.name[-12:])
    assert status == 2 and output[0].startswith("could not tell")


@pytest.mark.parametrize("values", [{"inputs": 3}, {"threads": "x", "arguments": None}, {"outputs": []}])
def test_what_cannot_be_opened_cannot_be_told(study, replayed, capsys, values):
    folder = pick(study, "results/measures/*")
    change_manifest(folder, **values)
    damaged = f"results/measures/{folder.name} cannot be opened (results/measures/{folder.name}/manifest.json is no man"
    for target in (folder.name[-12:], f"results/measures/{folder.name}/"):
        assert main(["replay", "--directory", str(study), target]) == 2
        assert capsys.readouterr().err.startswith(f"colbert-zero: {damaged}")
    # A source follows from the user's own file alone, and is what it was.
    source = pick(study, "resources/sources/file.table*")
    for artifact in study.glob("re*/*/*"):
        if artifact not in (folder, source):
            shutil.rmtree(artifact, ignore_errors=True)
    status, output = replayed("--all")
    assert output[0].startswith("identical: sources/") and "1 artifact replayed: 1 identical" in output
    assert status == 2 and output[-1].startswith(damaged)


def test_another_processor_or_c_library_is_a_reason_for_other_bytes():
    here = provenance.machine()
    manifest = {"facts": {}, "code": {}, "packages": provenance.package_versions(), **here}
    for changed, reason in (
        ({"processor": "Z80"}, "made on another processor (Z80)"),
        ({"platform": "CP/M-with-glibc9.9"}, "made with another C library (glibc9.9, here "),
    ):
        artifact = Artifact(Spec("models", "x", {}), manifest | changed, REPOSITORY)
        assert any(text.startswith(reason) for text in replay.reasons(artifact, []))
        assert replay.SAME_MACHINE not in replay.reasons(artifact, [])
    known = [text for text in replay.reasons(Artifact(Spec("models", "x", {}), manifest, REPOSITORY), [])]
    assert not [text for text in known if "processor" in text or "C library" in text]
