"""A released folder is the model, says what is known of it, and gives its numbers again; it can be checked alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_page
import yaml
from huggingface_hub import ModelCard as HubCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from test_page import MEASURE

import finished_study as steps
import loading_recipes
from colbert_zero.audit import related
from colbert_zero.audit.findings import Check, Finding, Note
from colbert_zero.audit.verify import Audit
from colbert_zero.cli import main
from colbert_zero.evaluation.values import VALUES_FILE, read_values
from colbert_zero.graph.artifact import (
    MANIFEST_FILE,
    SPEC_FILE,
    Artifact,
    Spec,
    file_digests,
    run_step,
)
from colbert_zero.graph.code import PARTS
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.study import Study
from colbert_zero.report import release as release_step
from colbert_zero.report.markdown import code, plain
from colbert_zero.report.model_card import ModelCard, card_numbers
from colbert_zero.report.text_tables import markdown_table
from publishing import publish

ROOT = Path(__file__).parents[3]
PEERS, VALIDATORS = (Path(sys.prefix) / name for name in ("peers", "validators"))
SAID = "release: { license: apache-2.0, language: [en] }\naudit: true\n"
TEXTS = {side: ["fox", "a model, scored again", "The Fox: (the same) again!"] for side in ("queries", "documents")}
MARKDOWN = MarkdownIt().enable("table")
SWEPT = "swept *recipe*"


def planned() -> Study:
    """The study in the current folder."""
    return Study(read_config(Path(CONFIG_FILE)), Path())


def make(study: Study, spec: Spec) -> None:
    """Make an artifact and those of its inputs that are not there."""
    for source in study.inputs_of(spec):
        if not (source.folder / SPEC_FILE).is_file():
            make(study, source)
    steps.make(study, spec)


@pytest.fixture(scope="module")
def released(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study that ends with an audit, and its releases: to be copied, and never changed."""
    folder = tmp_path_factory.mktemp("released") / "study"
    shutil.copytree(finished_study, folder)
    with chdir(folder):
        with Path(CONFIG_FILE).open("a") as file:
            file.write(SAID)
        for kind in ("reports", "releases"):
            shutil.rmtree(f"results/{kind}", ignore_errors=True)
        study = planned()
        for release in study.releases.values():
            make(study, release)
    return folder


@pytest.fixture
def study(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A copy of it, in the current folder."""
    monkeypatch.chdir(shutil.copytree(released, tmp_path / "study"))
    return planned()


@pytest.fixture(scope="module")
def folder(released: Path) -> Path:
    """The release of the recipe with all stages."""
    with chdir(released):
        return released / planned().releases["all"].folder


@pytest.fixture(scope="module")
def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def cells(markdown: str) -> list[list[str]]:
    """The rows of all tables, each cell as it is read: the text of its code, or its plain text."""
    rows: list[list[str]] = []
    tokens = MARKDOWN.parse(markdown)
    for token, following in pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("td_open", "th_open"):
            children = following.children or []
            assert "html_inline" not in {child.type for child in children}
            rows[-1].append("".join(child.content for child in children))
    return rows


def row_of(markdown: str, first: str) -> list[str]:
    """The only row of a table that begins with these words."""
    (row,) = [row for row in cells(markdown) if row[0] == first]
    return row


# The folder


def test_the_model_is_the_one_that_was_trained_without_a_copy_of_its_weights(folder: Path, released: Path) -> None:
    with chdir(released):
        model = Artifact.open(planned().releases["all"].inputs["model"][0])
        assert {"model.safetensors", "1_Dense/model.safetensors", "config_sentence_transformers.json"} <= set(
            model.files()
        )
        for name in model.files():
            assert (folder / name).samefile(model.folder / name)


def test_the_sums_are_those_of_all_files(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    listed = {line.partition("  ")[2] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == file_digests(folder).keys() - {"SHA256SUMS"}


def test_the_key_follows_from_the_specs_that_are_released(folder: Path) -> None:
    specs = list((folder / "provenance").rglob(SPEC_FILE))
    assert {path.parent.parent.name for path in specs} >= {"reports", "measures", "models", "sources", "collections"}
    for path in specs:
        assert path.parent.name.endswith("-" + hashlib.sha256(path.read_bytes()).hexdigest()[:12])


def test_the_manifests_lead_from_the_report_to_the_weights(folder: Path, released: Path) -> None:
    """Each is the one that the manifest above it names, and the last has the digests of the model's files."""
    with chdir(released):
        name = planned().report.name
        wanted = planned().releases["all"].inputs["model"][0]
    found: set[str] = set()
    pending = [name]
    while pending:
        name = pending.pop()
        found.add(name)
        manifest = json.loads((folder / "provenance" / name / MANIFEST_FILE).read_bytes())
        for source, record in manifest["inputs"].items():
            path = folder / "provenance" / source / MANIFEST_FILE
            if path.is_file():
                assert hashlib.sha256(path.read_bytes()).hexdigest() == record["manifest"]
                pending.append(source)
    assert wanted in found
    outputs = json.loads((folder / "provenance" / wanted / MANIFEST_FILE).read_bytes())["outputs"]
    assert all(hashlib.sha256((folder / file).read_bytes()).hexdigest() == outputs[file]["sha256"] for file in outputs)


def test_a_second_time_nothing_is_made(study: Study) -> None:
    def state() -> dict[Path, tuple[int, int]]:
        # A step that finds its artifact writes the spec again, which Snakemake may have deleted.
        files = (path for path in Path("results/releases").rglob("*") if path.is_file() and path.name != SPEC_FILE)
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}

    before = state()
    for release in study.releases.values():
        steps.make(study, release)
    assert state() == before


def test_releases_are_none_of_the_reports_artifacts(study: Study) -> None:
    assert set(study.releases) == {"all", "distillation-only"}
    keys = {release.key for release in study.releases.values()}
    assert keys <= study.known.keys() and not keys & study.specs.keys()


# The card


def test_the_front_matter_is_what_the_hub_reads(card: str) -> None:
    data = HubCard(card).data
    assert data.library_name == "PyLate"
    assert data.pipeline_tag == "sentence-similarity"
    assert {"ColBERT", "PyLate", "sentence-transformers"} <= set(data.tags)
    assert (data.license, data.language) == ("apache-2.0", ["en"])
    assert data.model_name == "all"
    assert {(result.dataset_name, result.metric_type) for result in data.eval_results} == {
        ("dev", "nDCG@10"),
        ("mean", "nDCG@10"),
    }


def test_the_numbers_are_the_reports(card: str, released: Path) -> None:
    exact, printed = card_numbers(card)
    with chdir(released):
        means = Artifact.open(planned().report.name).facts["means"]
    assert exact["mean"] == pytest.approx(means["all"], abs=1e-15)
    assert printed == {name: pytest.approx(100 * value, abs=0.005) for name, value in exact.items()}
    (row,) = [row for row in cells(card) if row[0] == "dev" and len(row) == 7]
    value, interval = row[-2:]
    low, high = map(float, interval.split(" to "))
    assert low < float(value) < high


def test_prompts_keep_the_space_at_their_end(card: str) -> None:
    for name, prompt in (("query prompt", "search_query: "), ("document prompt", "search_document: ")):
        rows = [row for row in cells(card) if row[0] == name]
        assert [len(row) for row in rows] == [2, 4], "of the model, and of each of its three stages"
        assert {json.loads(cell) for row in rows for cell in row[1:]} == {prompt}


def test_it_says_what_it_was_trained_on_and_how(card: str) -> None:
    assert row_of(card, "stages")[1] == "unsupervised → supervised → distillation"
    assert row_of(card, "learning rate")[1:] == ["0.003", "0.001", "0.001"]
    assert row_of(card, "steps")[1:] == ["72", "3", "7"]
    data = [row for row in cells(card) if row[0] == "unsupervised" and len(row) == 7]
    assert [(row[1], row[3], row[4], row[6]) for row in data] == [
        ("lines", "60", "60", "50.0 %"),
        ("table", "60", "60", "50.0 %"),
    ]
    assert [row[2].partition(",")[0] for row in data] == ["lines.jsonl", "table.parquet"]


def test_it_says_what_the_audit_found(card: str, released: Path) -> None:
    with chdir(released):
        audit = planned().audit
        assert audit is not None
        artifacts = Artifact.open(audit.name).facts["artifacts"]
    assert row_of(card, "audit")[1] == f"{audit.name}: {artifacts} artifacts verified, 0 findings"
    # Of 20 queries and 20 documents; see the section of the report.
    (found,) = [row for row in cells(card) if row[0] == "dev" and len(row) == 10]
    assert found[1] == found[4] == found[7] == "20"


def test_it_names_no_host_user_or_path_of_this_machine(folder: Path, card: str, released: Path) -> None:
    hosts = {
        attempt["host"]
        for path in released.rglob(MANIFEST_FILE)
        for attempt in json.loads(path.read_bytes())["attempts"]
    }
    assert socket.gethostname() in hosts
    words = hosts | {Path.home().name, str(Path.home()), str(released), str(ROOT), "/tmp", sys.prefix}
    for word in words - {"all", "dev", "root"}:
        assert not re.search(rf"(?<![\w/]){re.escape(word)}(?![\w])", card), word
    for path in (folder / "provenance").rglob("*.json"):
        assert str(released) not in path.read_text() and str(Path.home()) + "/" not in path.read_text()


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1).map(str.strip).filter(bool))
def test_any_name_stands_as_it_is(text: str) -> None:
    if not text.isprintable():
        return
    lines = markdown_table([["name", "code"], [plain(text), code(text)]], range(2))
    name, as_code = cells("\n".join(lines))[1]
    assert name == text
    assert as_code == text


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """The card of a row of a study whose names mean something to Markdown, and one of whose stages was swept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("toy"))
        patch.setattr(socket, "gethostname", lambda: "secret-host-17")
        patch.setattr(test_page, "STAGES", {"zero | full": test_page.STAGES["zero | full"]})
        patch.setitem(test_page.VALUES, SWEPT, (0.5, 0.4, 0.2, 0.48))
        study: Any = test_page.Study()
        models = [study.model("supervised", study.base, prompt) for prompt in ("*", "**")]
        selection = Spec(
            "selections",
            "supervised",
            {"stage": "supervised", "values": [{"learning_rate": 1e-5}, {"learning_rate": 2e-5}], "measure": MEASURE},
            {"models": models, "measures": []},
        )
        facts = {"means": [0.25, 0.5], "selected": {"learning_rate": 2e-5}, "collections": ["dev_*"], "seconds": 80.5}
        publish(selection, None, {**facts, "values": selection.settings["values"], "model": models[1]})
        study.row(SWEPT, "recipe", [selection.name], selection.name)
        report = study.spec()
        publish(report)

        def card_of(row: str) -> str:
            inputs = {"model": report.settings["rows"][row]["stages"][-1:], "report": [report.name]}
            return ModelCard.open(Spec("releases", row, {"row": row}, inputs)).text

        yield card_of


def test_names_mean_nothing_to_markdown(toy: Callable[[str], str]) -> None:
    text = toy("zero | full")
    assert {"<sympy>", "numpy", "cqadupstack", "mean"} <= {row[0] for row in cells(text)}
    assert not [token for token in MARKDOWN.parse(text) if token.type == "html_block"]
    assert set(card_numbers(text)[0]) == set(card_numbers(text)[1]) == {"<sympy>", "numpy", "cqadupstack", "mean"}
    headings = [after for token, after in pairwise(MARKDOWN.parse(text)) if token.type == "heading_open"]
    assert "".join(child.content for child in headings[0].children or []) == "zero | full"
    assert HubCard(text).data.model_name == "zero | full"


def test_a_group_is_averaged_first(toy: Callable[[str], str]) -> None:
    exact, printed = card_numbers(toy("zero | full"))
    assert exact["cqadupstack"] == pytest.approx(0.30)
    assert exact["mean"] == pytest.approx((0.50 + 0.30 + 0.48) / 3)
    assert printed["mean"] == 42.67


def test_without_an_audit_or_a_license_it_says_so(toy: Callable[[str], str]) -> None:
    text = toy("zero | full")
    assert "Not counted: the study ended without an audit." in text
    assert row_of(text, "license")[1].startswith("not given")
    assert HubCard(text).data.license is None


def test_hosts_are_left_out(toy: Callable[[str], str]) -> None:
    assert any("secret-host-17" in path.read_text() for path in Path("results").rglob(MANIFEST_FILE))
    assert "secret-host-17" not in toy("zero | full")


def test_of_a_sweep_it_describes_the_selected_model_and_says_what_is_not_held_out(toy: Callable[[str], str]) -> None:
    text = toy(SWEPT)
    assert row_of(text, "stages")[1] == "supervised"
    assert {json.loads(row[1]) for row in cells(text) if row[0] == "query prompt"} == {"**"}
    paragraph = next(
        token.content for token in MARKDOWN.parse(text) if token.type == "inline" and "Not held out" in token.content
    )
    assert paragraph.startswith(
        r"**Not held out:** dev\_\*. By its nDCG@10 there, the model of the stage supervised was"
    )
    assert paragraph.endswith(r"selected (learning\_rate 2e-05) among 2: 1e-05: 25.00; 2e-05: 50.00.")
    assert "supervised, 2 trainings to select from" in {row[0] for row in cells(text)}
    assert "Not held out" not in toy("zero | full")


# Loading


@pytest.fixture(scope="module")
def trained(released: Path) -> loading_recipes.Embeddings:
    """What PyLate makes of some texts with the model that was trained."""
    with chdir(released):
        model = Artifact.open(planned().releases["all"].inputs["model"][0]).folder.resolve()
    return loading_recipes.run("PyLate", model, TEXTS)


def test_the_cards_code_is_that_of_the_recipes_for_loading(card: str) -> None:
    blocks = dict(re.findall(r"^### ([^\n]*)\n\n```python\n(.*?)^```$", card, re.MULTILINE | re.DOTALL))
    recipes = loading_recipes.recipes()
    assert blocks == {library: recipes[library].replace(loading_recipes.FOLDER, "FOLDER") for library in blocks}
    assert set(blocks) == {"PyLate", "sentence-transformers 6"}


def test_pylate_loads_it(folder: Path, trained: loading_recipes.Embeddings) -> None:
    loaded = loading_recipes.run("PyLate", folder, TEXTS)
    assert trained.keys() == loaded.keys()
    assert all(np.array_equal(trained[key], loaded[key]) for key in trained)


def test_sentence_transformers_6_loads_it(folder: Path, trained: loading_recipes.Embeddings, tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    program = [sys.executable, loading_recipes.__file__, "sentence-transformers 6", tmp_path / "texts.json", tmp_path]
    environment = os.environ | {"PYTHONPATH": str(PEERS), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*program, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / f"{folder.name}.npz") as loaded:
        assert trained.keys() == set(loaded.files)
        assert all(np.array_equal(trained[key], loaded[key]) for key in trained)


# The numbers again


def test_the_folder_alone_gives_the_numbers_of_the_row(released: Path, folder: Path, tmp_path: Path) -> None:
    """By the config in docs/release.md, in a study that has nothing of the first one but its data and this folder."""
    text = (ROOT / "docs" / "release.md").read_text(encoding="utf-8")
    (part,) = re.findall(r"^```text\n(models: .*?)^```$", text, re.MULTILINE | re.DOTALL)
    config = yaml.safe_load((released / CONFIG_FILE).read_text())
    for section, entries in yaml.safe_load(part).items():
        config[section] = {**config[section], **entries}
    place = config["models"]["released"]["folder"]
    shutil.copytree(folder, tmp_path / place)
    shutil.copytree(released / "data", tmp_path / "data")
    (tmp_path / CONFIG_FILE).write_text(yaml.safe_dump(config))
    with chdir(released):
        (row,) = [row for row in planned().rows if row.name == "all"]
        values = {name: read_values(Artifact.open(spec.name).file(VALUES_FILE)) for name, spec in row.measures.items()}
    with chdir(tmp_path):
        study = planned()
        (row,) = [row for row in study.rows if row.name == "released"]
        for name, spec in row.measures.items():
            make(study, spec)
            assert read_values(Artifact.open(spec.name).file(VALUES_FILE)) == values[name]


# The audit


def audit() -> tuple[Audit, list[Finding], list[str]]:
    """A pass over the study in the current folder: its findings, and the texts of its notes."""
    passed = Audit(threads=1)
    told = list(passed.check())
    found = [each for each in told if isinstance(each, Finding)]
    return passed, found, [each.text for each in told if isinstance(each, Note)]


def test_a_study_with_releases_has_no_findings_and_none_is_of_another_config(study: Study) -> None:
    passed, found, notes = audit()
    assert found == []
    assert passed.status == 0
    assert not [note for note in notes if "another config" in note]


def refit(release: Path) -> None:
    """Make the sums and the manifest of a release those of the files that are there."""
    sums = release / "SHA256SUMS"
    names = [line.partition("  ")[2] for line in sums.read_text().splitlines()]
    sums.write_text("".join(f"{hashlib.sha256((release / name).read_bytes()).hexdigest()}  {name}\n" for name in names))
    manifest = json.loads((release / MANIFEST_FILE).read_bytes())
    manifest["outputs"] = file_digests(release)
    (release / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def replace(path: Path, pattern: str, by: str) -> None:
    """Write a file anew, not through its other links."""
    text = re.sub(pattern, by, path.read_text(encoding="utf-8"), count=1)
    assert text != path.read_text(encoding="utf-8")
    path.unlink()
    path.write_text(text, encoding="utf-8")


FORGERIES: dict[str, tuple[str, str, str]] = {
    "a number of the table of results": ("README.md", r"(\| +)\d\d(\.\d\d \| [\d.]+ to )", r"\g<1>99\2"),
    "a number of the front matter": ("README.md", r"value: 0\.\d", "value: 0.9"),
    "a collection of the table of results": ("README.md", r"\n\| dev ", "\n| div "),
    "a setting of the model": ("config_sentence_transformers.json", r"search_query: ", "search_query:"),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_release_is_found_by_what_it_rests_on(
    study: Study, monkeypatch: pytest.MonkeyPatch, forgery: str
) -> None:
    # Today's code is not what made it: then its card is not rendered again, and the numbers alone are compared.
    monkeypatch.setattr(related, "part_digests", lambda: dict.fromkeys(PARTS))
    release = study.releases["all"]
    name, pattern, by = FORGERIES[forgery]
    replace(release.folder / name, pattern, by)
    refit(release.folder)
    _, found, _ = audit()
    assert [(finding.artifact, finding.check) for finding in found] == [(release.name, Check.NUMBERS)]


def test_any_other_word_of_a_card_is_found_where_todays_code_made_it(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = study.releases["all"]
    parts = Artifact.open(release.name).manifest["code"]["parts"]
    monkeypatch.setattr(related, "part_digests", lambda: parts)
    replace(release.folder / "README.md", "trained by the recipe", "trained by hand, not by the recipe")
    refit(release.folder)
    _, found, _ = audit()
    assert {(finding.artifact, finding.check) for finding in found} == {(release.name, Check.NUMBERS)}


def test_sums_that_are_not_the_files_are_found(study: Study) -> None:
    release = study.releases["all"]
    replace(release.folder / "SHA256SUMS", r"^[0-9a-f]{64}", "0" * 64)
    manifest = json.loads((release.folder / MANIFEST_FILE).read_bytes())
    manifest["outputs"] = file_digests(release.folder)
    (release.folder / MANIFEST_FILE).write_text(
        json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    )
    _, found, _ = audit()
    assert {(finding.artifact, finding.check) for finding in found} == {(release.name, Check.NUMBERS)}


def test_the_other_commands_know_it(study: Study) -> None:
    name = study.releases["all"].name
    for words in (["trace", name], ["diff", name, name]):
        assert main([*words, "--directory", "."]) == 0
    assert main(["drift", "--directory", "."]) < 2, "it can be told whether today's code is what made it"


def test_its_own_command_makes_the_same_bytes_again(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    name = study.releases["distillation-only"].name
    assert main(["replay", name, "--directory", "."]) == 0
    assert f"identical: {name}" in capsys.readouterr().out


# Signatures


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SSH key, and beside it `signers`, who are allowed."""
    path = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    (path.parent / "signers").write_text(f"me@example.org {path.with_suffix('.pub').read_text()}")
    return path


def test_a_release_carries_the_signature_of_its_report_and_the_card_says_how_to_check_it(
    study: Study, key: Path
) -> None:
    assert main(["sign", "--key", str(key), "--directory", "."]) == 0
    signed = planned()
    assert signed.report == study.report
    release = signed.releases["all"]
    assert release.key != study.releases["all"].key
    steps.make(signed, release)
    text = (release.folder / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ssh-keygen -Y verify .*$", text, re.MULTILINE)
    words = command.replace("SIGNERS", str(key.parent / "signers")).replace("NAME", "me@example.org")
    checked = subprocess.run(["bash", "-c", words], cwd=release.folder, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    statement = json.loads((release.folder / command.split(" < ")[1]).read_bytes())
    manifest = release.folder / "provenance" / statement["report"] / MANIFEST_FILE
    assert statement["manifest"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    shutil.rmtree(study.releases["all"].folder)
    assert audit()[1] == []


def test_a_signature_of_another_record_of_the_report_is_refused(
    study: Study, key: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sign", "--key", str(key), "--directory", "."]) == 0
    (statement,) = (path for path in Path("signatures").iterdir() if path.suffix == ".json")
    said = json.loads(statement.read_bytes())
    statement.write_text(json.dumps(said | {"manifest": "0" * 64}))
    signed = planned()
    assert run_step(release_step.make, None, ["--spec", signed.releases["all"].text]) == 1
    told = capsys.readouterr().err + caplog.text
    assert f"{statement} is not of the report as it is: sign it again" in told
    statement.unlink()
    assert planned().releases == study.releases, "half a signature is none"


def test_a_signed_folder_is_one_that_model_signing_accepts(study: Study, tmp_path: Path) -> None:
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    assert main(["sign", "--key", str(key), "--release", "all", "--directory", "."]) == 0
    (bundle,) = Path("signatures").glob("*.sigstore.json")
    folder = study.releases["all"].folder
    words = ["model_signing", "verify", "key", folder, "--signature", bundle, "--public_key", public]
    environment = os.environ | {"PYTHONPATH": str(VALIDATORS)}

    def accepted() -> bool:
        return subprocess.run([sys.executable, "-m", *words], env=environment, capture_output=True).returncode == 0

    assert accepted()
    replace(folder / "README.md", "trained by the recipe", "trained by another recipe")
    assert not accepted()


@pytest.mark.parametrize(("row", "words"), [("none", "no row called none is trained here"), ("all", "is not there")])
def test_what_is_not_released_is_not_signed(
    study: Study, key: Path, capsys: pytest.CaptureFixture[str], row: str, words: str
) -> None:
    shutil.rmtree(study.releases["all"].folder)
    assert main(["sign", "--key", str(key), "--release", row, "--directory", "."]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
