"""`colbert-zero trace`: every artifact behind a number, each once, the same as text, as JSON and as a page."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from colbert_zero.audit import trace as trace_module
from colbert_zero.audit.names import Names
from colbert_zero.audit.trace import Trace
from colbert_zero.cli import main
from colbert_zero.graph.artifact import MANIFEST_FILE, Artifact, Spec
from colbert_zero.graph.config import read_config
from colbert_zero.graph.paths import WORKFLOW
from colbert_zero.graph.study import Study
from colbert_zero.report.chain import group, kind_of
from colbert_zero.report.chain_figure import draw_chain

KEPT = Path(__file__).parents[2] / "fixtures" / "study-0.1.0"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(WORKFLOW)}
NAME = re.compile(r"\b[a-z]+/[\w.-]+-[0-9a-f]{12}\b")


def trace(capsys, *arguments):
    capsys.readouterr()
    status = main(["trace", *arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


def trace_json(capsys, target):
    status, out, _ = trace(capsys, target, "--json")
    return status, json.loads(out)


def behind(names):
    """These artifacts and all that they are made from, by their specs."""
    found, pending = set(), list(names)
    while pending:
        name = pending.pop()
        found.add(name)
        pending += Artifact.open(name).spec.input_names
    return found


def cells():
    planned = Study(read_config(Path("config.yaml")), Path())
    return {f"{row.name}/{column}": spec.name for row in planned.rows for column, spec in row.measures.items()}


def test_the_trace_of_every_cell_names_every_artifact_behind_it_once(study, capsys):
    assert len(cells()) == 4
    for cell, measures in cells().items():
        status, out, _ = trace(capsys, cell)
        assert status == 0
        headings = [name for line in out.splitlines() if line.startswith("[") for name in NAME.findall(line)]
        assert sorted(headings) == sorted(behind([measures]))
        assert headings[0] == measures, "from the number"
        assert kind_of(headings[-1]) == "collections"
        assert not set(headings) & set(NAME.findall("".join(line for line in out.splitlines() if line[:1] == " ")))


def test_text_and_json_say_the_same(study, capsys):
    _, text, _ = trace(capsys, "all/dev")
    words = " ".join(text.split())
    _, answer = trace_json(capsys, "all/dev")
    assert answer["format"] == 1
    assert f"nDCG@10 = {answer['cell']['value']} " in words
    for artifact in answer["artifacts"]:
        made = artifact["made"]
        spec = Artifact.open(artifact["name"]).spec
        assert (artifact["settings"], artifact["inputs"]) == (spec.settings, spec.inputs)
        assert f"[{artifact['number']}] " in words
        for stated in (made["files"]["digest"], made["manifest"], made["code"]["digest"], made["code"]["module"]):
            assert stated in words
        for attempt in made["attempts"]:
            assert f"{attempt['started']} to {attempt['ended']} host {attempt['host']}" in words
        assert all(f"{package} {version}" in words for package, version in made["packages"].items())
    assert '"search_query: "' in words, "a prompt's last space is seen"


def test_the_keys_of_the_json_are_those_that_help_names(study, capsys):
    _, answer = trace_json(capsys, "all/dev")
    named = set(re.findall(r"\w+", trace_module.__doc__.partition("JSON has")[2]))
    artifact = answer["artifacts"][0]
    assert {*answer, *answer["cell"], *artifact, *artifact["made"]} <= named


def test_the_number_is_computed_from_the_values_and_the_record_is_compared(study, capsys):
    _, answer = trace_json(capsys, "all/dev")
    measures = Artifact.open(cells()["all/dev"])
    values = pq.read_table(measures.folder / "measures.parquet").to_pylist()
    mean = sum(row["value"] for row in values if row["measure"] == "nDCG@10") / 20
    assert answer["cell"]["value"] == pytest.approx(mean)
    assert answer["cell"]["agrees"] and answer["holds"]
    path = measures.folder / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    manifest["facts"]["means"]["nDCG@10"] += 0.05
    path.write_text(json.dumps(manifest))
    status, out, _ = trace(capsys, "all/dev")
    assert status == 1
    assert "THE RECORD DISAGREES" in out
    assert trace_json(capsys, "all/dev")[1]["cell"]["value"] == pytest.approx(mean)


def test_a_number_that_the_table_shows_otherwise_is_told(study, capsys):
    path = next(study.glob("results/reports/*/table.csv"))
    text = path.read_text()
    value = text.splitlines()[3].split(",")[3]
    path.write_text(text.replace(value, "0.9"))
    status, out, _ = trace(capsys, "all/dev")
    assert status == 1
    assert "the report's table says 0.9" in out


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("no table")])
def test_values_that_cannot_be_read_are_told_and_the_rest_of_the_chain_as_well(study, capsys, damage):
    damage(next((study / "results").glob(f"{cells()['all/dev']}/measures.parquet")))
    status, out, _ = trace(capsys, "all/dev")
    assert status == 1
    assert "cannot be computed" in out
    assert "collections/folder.dev-" in out


@pytest.mark.parametrize("target", ["all/mean", "all/dev"])
def test_the_mean_over_one_column_is_that_column(study, capsys, target):
    assert trace_json(capsys, target)[1]["cell"]["printed"] == pytest.approx(0.7048, abs=0.2)


def test_an_artifact_is_found_by_name_path_and_the_first_digits_of_its_key(study, capsys):
    name = cells()["all/dev"]
    key = name[-12:]
    asked = [name, f"results/{name}", f"results/{name}/", key, key[:6]]
    answers = [trace_json(capsys, text)[1]["artifacts"] for text in asked]
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == len(behind([name]))


@pytest.mark.parametrize(
    "unknown", ["all/dex", "al/dev", "zzz", "", "../../etc/passwd", "5e56", "runs/colbert.dev", "a\nb"]
)
def test_an_unknown_name_is_one_line_with_near_names(study, capsys, unknown):
    status, out, err = trace(capsys, unknown)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("colbert-zero: ")
    assert any(cell in err for cell in [*cells(), "runs/colbert.dev-"])


@pytest.mark.parametrize(
    "file", ["measures/dev-*/measures.parquet", "shards/lines-*/manifest.json", "runs/*/spec.json"]
)
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: os.symlink(path.name, path)])
def test_what_is_no_file_is_told_and_not_waited_for(study, capsys, file, put):
    path = next(path for path in study.glob(f"results/{file}") if path.parent.name in str(behind([cells()["all/dev"]])))
    path.unlink()
    put(path)
    status, out, err = trace(capsys, "all/dev")
    assert (status, err) == (1, "")
    assert path.parent.name in out


def test_a_missing_or_damaged_artifact_is_told_in_its_place(study, capsys):
    shards = next((study / "results/shards").glob("lines-*"))
    shutil.rmtree(shards)
    model = next((study / "results/models").glob("unsupervised-*"))
    (model / MANIFEST_FILE).write_text("[]")
    status, out, _ = trace(capsys, "all/dev")
    assert status == 1
    assert f"shards/{shards.name}" in out
    assert out.count("problem  ") == 2
    assert "Traceback" not in out


WRONG = (None, True, 1e400, float("nan"), 10**400, "", [1], [{"a": None}], {"a": {"b": 1}})


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        '{"outputs": {}, "facts": {}}',
        '{"outputs": {"a": 1}, "facts": {"means": 3}}',
        *(json.dumps(dict.fromkeys(("code", "packages", "image", "attempts", "seconds"), wrong)) for wrong in WRONG),
        *(json.dumps({"outputs": {}, "facts": {"means": wrong}, "code": {"changed": wrong}}) for wrong in WRONG),
    ],
)
def test_any_manifest_is_read_as_far_as_it_goes(study, capsys, text):
    for path in study.glob("re*/*/*/manifest.json"):
        path.write_text(text)
    for form in ([], ["--json"]):
        status, out, err = trace(capsys, "measures/" + next((study / "results/measures").iterdir()).name, *form)
        assert (status, err) == (1, "")
        assert "collections/folder.dev-" in out or "problem" in out


def test_a_study_of_the_older_record_is_traced(tmp_path, monkeypatch, capsys):
    shutil.copytree(KEPT, tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")
    status, out, _ = trace(capsys, "all/dev")
    assert status == 0
    assert "which is not that of today's config" in out
    assert "parts     not recorded" in out
    assert "step      not recorded" in out
    _, answer = trace_json(capsys, "all/dev")
    assert {artifact["made"]["record"] for artifact in answer["artifacts"]} == {1}
    assert {artifact["made"]["code"]["parts"] for artifact in answer["artifacts"]} == {None}


def test_a_study_without_config_or_data_is_traced_by_its_report(study, capsys):
    (study / "config.yaml").unlink()
    shutil.rmtree(study / "data")
    status, answer = trace_json(capsys, "all/dev")
    assert status == 0
    assert answer["cell"]["planned"] is False


def test_an_empty_folder_is_one_line(tmp_path, capsys):
    status, out, err = trace(capsys, "all/dev", "--directory", str(tmp_path))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "--directory" in err


class Page(HTMLParser):
    """A page's tags, and the texts of its figure."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.titles, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        assert all(name not in ("src", "onload", "onclick") for name, _ in attrs)
        assert all(value.startswith("#") for name, value in attrs if name == "href")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open[-1:] == ["title"]:
            self.titles.append(data)


def test_the_page_has_a_box_for_each_artifact_and_asks_for_nothing(study, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, _ = trace(capsys, "all/dev", "--html", "chain.html", "--directory", str(study))
    assert status == 0
    page = (tmp_path / "chain.html").read_text()
    assert "http" not in page
    parsed = Page(page)
    assert "script" not in parsed.tags and "link" not in parsed.tags
    monkeypatch.chdir(study)
    boxes = {NAME.match(title)[0] for title in parsed.titles if NAME.match(title) and "→" not in title}
    assert boxes == behind([cells()["all/dev"]])
    assert parsed.tags.count("rect") == len(boxes) + 1
    for name in boxes:
        assert Trace.of(name).records[name]["files"]["digest"] in page


def test_labels_with_markup_inject_nothing(study, capsys, tmp_path):
    """A report of a forged study: its names are shown as they are."""
    evil = '<script>alert(1)</script>&"'
    spec = Spec("shards", "x", {"prompt": evil, "note": "\x1b[31mred\u202e", "name": evil})
    forged = Spec("shards", "<b>x", {"prompt": evil})
    for made in (spec, forged):
        made.folder.mkdir(parents=True)
        (made.folder / "spec.json").write_text(made.text)
        facts = {"outputs": {}, "facts": {evil: evil}, "code": {"digest": evil}, "attempts": [{"host": evil}]}
        (made.folder / MANIFEST_FILE).write_text(json.dumps(facts))
        status, out, _ = trace(capsys, made.name, "--html", str(tmp_path / "page.html"))
        assert status == 0
        assert "\x1b" not in out and "\u202e" not in out
        page = (tmp_path / "page.html").read_text()
        assert "<script>" not in page and "<b>" not in page
        assert set(Page(page).tags).isdisjoint({"script", "b"})


def test_the_same_study_gives_the_same_answer(study, capsys, tmp_path):
    answers = []
    for folder in (study, tmp_path / "copied"):
        if folder != study:
            shutil.copytree(study, folder)
        _, out, _ = trace(capsys, "all/dev", "--directory", str(folder))
        _, answer, _ = trace(capsys, "all/dev", "--json", "--directory", str(folder))
        answers.append((out, answer))
    assert answers[0] == answers[1]


def test_a_trace_changes_nothing(study, capsys):
    def state():
        return {path: path.stat().st_mtime_ns for path in study.rglob("*") if path.is_file() and path.name[0] != "."}

    before = state()
    trace(capsys, "all/dev")
    assert state() == before


def test_many_attempts_are_shortened_and_each_of_a_few_is_told(study, capsys):
    path = next((study / "results/models").glob("unsupervised-*")) / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    killed = {"started": "2026-01-01T00:00:00+00:00", "end": "killed", "host": "n1", "job": "77", "node": "gpu[1-2]"}
    for count, told in ((2, 2), (40, 6)):
        path.write_text(json.dumps(manifest | {"attempts": [killed] * count}))
        _, out, _ = trace(capsys, "all/dev")
        assert out.count("node gpu[1-2] job 77 killed") == told
    assert "and 34 more" in out


def test_what_most_were_made_with_is_told_once_and_others_where_they_are(study, capsys):
    path = next((study / "results/models").glob("unsupervised-*")) / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"image": {"colbert-zero.image": "torch-abc"}}))
    _, out, _ = trace(capsys, "all/dev")
    assert out.count("none: it ran outside an image") == 1
    assert out.count("colbert-zero.image torch-abc") == 1


def test_forty_sources_that_are_used_alike_are_one_box_and_one_list():
    names = [f"sources/hub.s{number:02}-{number:012x}" for number in range(40)]
    shards = [name.replace("sources/hub.", "shards/") for name in names]
    model = "models/unsupervised-aaaaaaaaaaaa"
    inputs = {model: shards, **{shard: [name] for shard, name in zip(shards, names, strict=True)}}
    groups = group([model], inputs)
    assert [(of.kind, len(of.names)) for of in groups] == [("models", 1), ("shards", 40), ("sources", 40)]
    svg = draw_chain("nDCG@10 1.00", [model], inputs, {})
    assert svg.count("<rect") == 4
    assert all(name in svg for name in names)


def test_boxes_of_a_layer_do_not_overlap_and_each_input_has_an_arrow(study):
    links = Trace.of("all/dev").links
    inputs = {name: link.inputs for name, link in links.items()}
    svg = draw_chain("1", [cells()["all/dev"]], inputs, {})
    boxes = [
        (float(x), float(y), float(width))
        for x, y, width in re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)"', svg)
    ]
    for x, y, width in boxes:
        assert not [other for other in boxes if other[1] == y and 0 < other[0] - x < width]
    for name, sources in inputs.items():
        assert all(f"{source} → {name}<" in svg for source in sources)


def test_of_a_group_what_is_common_is_told_once_and_each_artifact_as_well(study, capsys):
    report = next((study / "results/reports").iterdir())
    _, out, _ = trace(capsys, f"reports/{report.name}")
    lines = out.splitlines()
    assert "[2] to [5] measure: 4 of them, with in common" in lines
    headings = [name for line in lines if line.lstrip().startswith("[") for name in NAME.findall(line)]
    assert sorted(headings) == sorted(behind([f"reports/{report.name}"]))
    assert out.count('["nDCG@10", "AP@100", "R@100"]') == 1


def test_a_reader_that_has_seen_enough_gets_no_traceback(study):
    command = [sys.executable, "-m", "colbert_zero.cli", "trace", "all/dev", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""


def test_the_names_of_a_study_are_read_from_its_config_and_its_reports(study):
    tables = Names().tables
    assert [table.planned for table in tables] == [True]
    assert tables[0].rows == ["all", "bm25", "distillation-only", "untrained"]


def test_an_audit_among_the_inputs_of_a_report_is_no_row(study, capsys):
    before = trace_json(capsys, "all/dev")[1]["artifacts"]
    (study / "config.yaml").write_text((study / "config.yaml").read_text() + "audit: true\n")
    assert Names().tables[0].rows == ["all", "bm25", "distillation-only", "untrained"]
    assert trace_json(capsys, "all/dev")[1]["artifacts"] == before


def test_each_number_of_the_report_leads_to_its_chain(study):
    page = next(study.glob("results/reports/*/report.html")).read_text()
    leads = re.findall(r'<td class="n(?: mean)?"><a href="#([\w-]+)">', page)
    assert len(leads) == len(set(leads)) == 4 * 2, "a column and the mean, of four rows"
    for anchor in leads:
        assert page.count(f'id="{anchor}"') == 1
    for measures in cells().values():
        assert f"<td>{measures}</td>" in page
