"""What changes no byte of an artifact and nothing that the config plans is no finding."""

import os
import shutil
import time
from pathlib import Path

import pytest
import yaml
from forger import Forger

import finished_study
from colbert_zero.audit.findings import Finding
from colbert_zero.audit.verify import Audit
from colbert_zero.cli import main
from colbert_zero.graph.artifact import Spec, published_folders, run_step


@pytest.fixture
def copy(finished_study, tmp_path, monkeypatch):
    """A copy of the finished study, deleted afterwards."""
    folder = shutil.copytree(finished_study, tmp_path / "study")
    monkeypatch.chdir(folder)
    yield folder
    for parent, folders, _ in os.walk(tmp_path):
        for name in folders:
            if not Path(parent, name).is_symlink():
                Path(parent, name).chmod(0o755)
    shutil.rmtree(tmp_path)


def every_path(study):
    return [Path(parent, name) for parent, folders, files in os.walk(study) for name in (*folders, *files)]


def every_file(study):
    return [path for path in every_path(study) if path.is_file() and not path.is_symlink()]


def copied_without_times(study):
    return shutil.copytree(study, study.with_name("copied"), copy_function=shutil.copyfile)


def copied_with_links_to_files(study):
    return shutil.copytree(study, study.with_name("copied"), copy_function=os.link)


def copied_sparsely(study):
    def copy(source, target):
        with open(source, "rb") as original, open(target, "wb") as file:
            os.truncate(target, os.path.getsize(source))
            while block := original.read(4096):
                if block.strip(b"\0"):
                    file.write(block)
                else:
                    file.seek(len(block), os.SEEK_CUR)

    return shutil.copytree(study, study.with_name("copied"), copy_function=copy)


def moved(study):
    return study.rename(study.with_name("a folder with spaces, ü and 'quotes'"))


def reached_through_a_link(study):
    link = study.with_name("link")
    link.symlink_to(study, target_is_directory=True)
    return link


def results_on_another_disk(study):
    scratch = (study / "results").rename(study.with_name("scratch"))
    (study / "results").symlink_to(scratch, target_is_directory=True)


def resources_on_another_disk(study):
    scratch = (study / "resources").rename(study.with_name("scratch"))
    (study / "resources").symlink_to(scratch, target_is_directory=True)


def touched(study):
    for path in every_path(study):
        os.utime(path, (1_000_000_000, 1_000_000_000))


def touched_in_the_future(study):
    for path in every_path(study):
        os.utime(path, (4_000_000_000, 4_000_000_000))


def wider_permissions(study):
    for path in every_path(study):
        path.chmod(0o777)


def read_only(study):
    for path in [*every_path(study), study]:
        path.chmod(path.stat().st_mode & ~0o222)


def private(study):
    for path in every_path(study):
        path.chmod(path.stat().st_mode & ~0o077)


def another_owner(study):
    # Only root can give files away; others give them to themselves.
    user, group = (65534, 65534) if os.getuid() == 0 else (os.getuid(), os.getgid())
    for path in every_path(study):
        os.chown(path, user, group)


def edit_config(study, edit):
    path = study / "config.yaml"
    path.write_text(edit(path.read_text()))


def config_keys_in_another_order(study):
    def reverse(value):
        return {key: reverse(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    edit_config(study, lambda text: yaml.safe_dump(reverse(yaml.safe_load(text)), sort_keys=False))


def config_comments(study):
    edit_config(study, lambda text: f"# Ours.\n\n{text}\n# The end.\n")


def config_line_ends(study):
    path = study / "config.yaml"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def config_resources(study):
    edit_config(study, lambda text: text + "resources:\n  default: { threads: 2, mem_mb: 3000 }\n")


def config_defaults_written_out(study):
    edit_config(study, lambda text: text.replace("{ bm25: {}, depth: 10 }", "{ bm25: { k1: 0.9, b: 0.4 }, depth: 10 }"))


def config_unused_source(study):
    shutil.copy(study / "data/lines.jsonl", study / "data/more.jsonl")
    edit_config(
        study,
        lambda text: text.replace(
            "sources:\n",
            "sources:\n  more: { file: data/more.jsonl, columns: { query: question, document: answer } }\n",
            1,
        ),
    )


def data_of_the_config_moved(study):
    (study / "data").rename(study.with_name("data"))
    edit_config(study, lambda text: text.replace("data/", f"{study.with_name('data')}/"))


def put(study, *paths, text="x\n"):
    for path in paths:
        file = study / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def snakemake_folder(study):
    put(study, ".snakemake/metadata/eHl6", ".snakemake/locks/0.input.lock", ".snakemake/log/1.snakemake.log")


def no_digest_cache(study):
    (study / "resources/.digests.json").unlink()


def no_state(study):
    shutil.rmtree(study / "results/state")


def logs_and_benchmarks(study):
    put(study, "results/logs/models/a.log", "results/benchmarks/models/a.tsv", "logs/a.log", "benchmarks/a.tsv")


def running_job(study):
    name = Forger(study, "running").pick("models")
    put(study, f"results/state/{name}/attempts.jsonl", text='{"started":"2026-01-01T00:00:00+00:00"}\n')
    put(study, f"results/state/{name}/checkpoint-5/model.safetensors", f"results/state/{name}.lock")
    put(study, f"results/models/.{name.partition('/')[2]}.partial/model.safetensors")


def running_job_of_a_kind_that_is_new(study):
    put(study, "results/scores/.neural.table-000000000000.partial/rows-00000.parquet")
    put(study, "results/state/scores/neural.table-000000000000/attempts.jsonl", text="{}\n")


def failed_job(study):
    spec = Spec("shards", "failed", {"rows": 1})

    def fail(job):
        (job.state / "rows").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        run_step(fail, None, ["--spec", spec.text])


def other_config(study):
    """An intact artifact that today's config does not plan."""

    def write(job):
        (job.folder / "rows.txt").write_text("rows")
        return {"rows": 1}

    assert run_step(write, None, ["--spec", Spec("shards", "other", {"seed": 3}).text]) == 0


def artifacts_of_another_seed(study):
    """Branches of a config that was changed and changed back."""
    path = study / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("rows_per_shard: 40", "rows_per_shard: 20"))
    again = Forger(study, "").plan()
    for spec in again.specs.values():
        if spec.kind == "shards":
            finished_study.make(again, spec)
    path.write_text(text)


def snapshots(study):
    shutil.copytree(study / "resources", study / ".snapshot/hourly/resources")
    for folder in published_folders(study):
        put(folder.parent, ".snapshot/hourly/old")


def version_control(study):
    put(study, ".git/HEAD", "results/.git/HEAD", "resources/.gitignore", ".gitattributes")


def lost_and_found(study):
    for parent in (study, study / "results", study / "resources"):
        (parent / "lost+found").mkdir()


def lost_and_found_of_root(study):
    for parent in (study, study / "results", study / "resources"):
        (parent / "lost+found").mkdir(mode=0)


def files_that_were_open(study):
    for folder in published_folders(study):
        put(folder, ".nfs000000000012d687000000a1")


def notes_beside(study):
    put(study, "notes.md", "README", "paper/table.tex", "core.1234")


def finder_files(study):
    put(study, ".DS_Store", "results/.DS_Store", "resources/.DS_Store")


def commands_before(study):
    for command in ("status", "table", "verify", "status"):
        assert main([command]) == 0


def spec_made_again(study):
    """Snakemake deleted a spec, and its step wrote it again."""
    forger = Forger(study, "spec")
    for name in (forger.pick("shards"), forger.report):
        (forger.folder(name) / "spec.json").unlink()
        plan = forger.plan()
        finished_study.make(plan, next(spec for spec in plan.specs.values() if spec.name == name))


def report_made_again(study):
    forger = Forger(study, "")
    forger.make_again(forger.report)


def branch_made_again(study):
    """All that rests on the measures' runs, in order."""
    forger = Forger(study, "")
    runs = forger.pick("runs")
    for name in [runs, *forger.followers(runs)]:
        forger.make_again(name)


def retried(study):
    """An artifact that was published by its second attempt."""
    forger = Forger(study, "")
    name = forger.report

    def edit(manifest):
        (attempt,) = manifest["attempts"]
        failed = attempt | {"end": "MemoryError: no", "started": attempt["ended"], "ended": attempt["ended"]}
        killed = {key: value for key, value in failed.items() if key != "ended"} | {"end": "killed"}
        manifest["attempts"] = [killed, failed, attempt | {"started": attempt["ended"]}]

    forger.edit_manifest(name, edit)


def commit_not_known(study):
    """A report made from an installed package, without git, of files that no image shows."""
    forger = Forger(study, "")

    def edit(manifest):
        manifest["code"]["commit"] = None
        manifest["code"]["parts"] |= {"locks": None, "images": None}

    forger.edit_manifest(forger.report, edit)


def two_studies_in_a_folder(study):
    """Another study's artifacts stand beside this one's, as in a folder that several configs share."""
    other = study.with_name("other")
    shutil.copytree(study, other)
    edit_config(other, lambda text: text.replace("study: kept", "study: second"))
    os.chdir(other)
    plan = Forger(other, "").plan()
    finished_study.make(plan, plan.report)
    os.chdir(study)
    shutil.copytree(other / plan.report.folder, study / plan.report.folder)


CHANGES = (
    *(copied_without_times, copied_with_links_to_files, copied_sparsely, moved, reached_through_a_link),
    *(results_on_another_disk, resources_on_another_disk, touched, touched_in_the_future),
    *(wider_permissions, read_only, private, another_owner),
    *(config_keys_in_another_order, config_comments, config_line_ends, config_resources),
    *(config_defaults_written_out, config_unused_source, data_of_the_config_moved),
    *(snakemake_folder, no_digest_cache, no_state, logs_and_benchmarks),
    *(running_job, running_job_of_a_kind_that_is_new, failed_job, other_config, artifacts_of_another_seed),
    *(snapshots, version_control, lost_and_found, lost_and_found_of_root, files_that_were_open, notes_beside),
    *(finder_files, commands_before, spec_made_again, report_made_again, branch_made_again, retried),
    *(commit_not_known, two_studies_in_a_folder),
)


def findings_and_status():
    """What is found in the study in the current folder, and whether it is clean."""
    audit = Audit()
    return [told for told in audit.check() if isinstance(told, Finding)], audit.status


def in_words(change):
    return change.__name__.replace("_", " ")


@pytest.mark.parametrize("change", CHANGES, ids=in_words)
def test_a_harmless_change_is_no_finding(copy, change, monkeypatch):
    where = change(copy)
    monkeypatch.chdir(where or copy)
    assert findings_and_status() == ([], 0)


@pytest.mark.parametrize(
    ("variable", "value"), [("TZ", "Asia/Kathmandu"), ("TZ", "America/St_Johns"), ("LC_ALL", "C"), ("LC_ALL", "tr_TR")]
)
def test_nor_are_another_time_zone_and_another_language(copy, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    time.tzset()
    try:
        assert findings_and_status() == ([], 0)
    finally:
        monkeypatch.delenv(variable)
        time.tzset()


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_nor_is_another_umask(copy, mask):
    before = os.umask(mask)
    try:
        assert findings_and_status() == ([], 0)
    finally:
        os.umask(before)


def test_nothing_is_changed_by_verifying(copy):
    before = {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in every_path(copy)}
    assert findings_and_status() == ([], 0)
    assert {path: (path.lstat().st_mtime_ns, path.lstat().st_ino) for path in every_path(copy)} == before
