"""The report: its numbers, the facts it states about the artifacts behind them, and that it is one page."""

from __future__ import annotations

import csv
import html
import json
import math
from collections.abc import Mapping
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import loading_recipes
from colbert_zero.data.rows import min_max
from colbert_zero.graph.artifact import Artifact, Spec, run_step
from colbert_zero.report import figures
from colbert_zero.report.columns import duration
from colbert_zero.report.page import LOADING, Report, make
from colbert_zero.report.sections import settings_tables
from colbert_zero.teaching.report import ScoreReport
from publishing import publish, publish_collection

Facts = Mapping[str, Any]
MEASURE = "nDCG@10"
FORUMS = ["android", "gaming"]
COLLECTIONS = ["numpy", *FORUMS, "<sympy>"]
STAGES = {
    "zero | full": ("unsupervised", "supervised", "distillation"),
    "supervised-distillation": ("supervised", "distillation"),
    "distillation-only": ("distillation",),
    "zero-noprompts": ("unsupervised", "supervised", "distillation"),
}
VALUES = {
    "bm25": (0.41, 0.30, 0.20, 0.39),
    "untrained": (0.20, 0.10, 0.10, 0.25),
    "zero | full": (0.50, 0.40, 0.20, 0.48),
    "supervised-distillation": (0.47, 0.30, 0.20, 0.475),
    "distillation-only": (0.44, 0.36, 0.24, 0.40),
    "zero-noprompts": (0.49, 0.38, 0.22, 0.46),
}
"""By row, the mean on each collection."""


EXAMPLES = [{"row": 7, "query": "what <b>", "document": "that " * 200, "negatives": ["not this", "nor  this"]}]


def scores_facts() -> Facts:
    """What a teaching step tells of scores."""
    report = ScoreReport()
    for raw in np.random.default_rng(0).normal(0, 1, (50, 16)).astype(np.float32):
        report.add(raw, min_max(raw))
    pair = {"teachers": ["scores/bm25.torch-0123456789ab", "scores/neural.torch-0123456789ab"]}
    return {**report.facts, "agreement": [{**pair, "rows": 4060, "kendall_tau": 0.4321}]}


class Study:
    """A study of artifacts of a few bytes each, with specs, facts and manifests like real ones."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        names = [f"package.{name}" for name in ("torch", "scipy")]
        sources = [publish(Spec("sources", name, {"version": "1.0"}), None, {"rows": 4100}) for name in names]
        dropped = {"duplicate": 31, "too short": 9}
        self.shards = [
            self.publish("shards", source.spec.label.split(".")[1], {"seed": 42}, {"source": [source.name]}, facts)
            for source, facts in zip(
                sources, ({"rows": 4060, "dropped": dropped}, {"rows": 4_100_000, "dropped": {}}), strict=True
            )
        ]
        self.base = self.publish(
            "bases", "random.tiny", {"hidden": 128, "seed": 42}, {"sources": [source.name for source in sources]}, {}
        )
        self.collections = {
            name: publish_collection(name.strip("<>"), {"a": "text"}, dict.fromkeys("pqrs", "text"), {"p": {"a": 1}})
            for name in COLLECTIONS
        }
        self.models: dict[tuple[str, ...], str] = {}
        for name in ("bm25", "untrained"):
            self.row(name, "baseline", [], None if name == "bm25" else self.base)
        for name, stages in STAGES.items():
            prompt = "" if "noprompts" in name else "search_query: "
            start, done = self.base, []
            for stage in stages:
                start = self.model(stage, start, prompt)
                done.append(start)
            self.row(name, "recipe", done, start)

    def publish(
        self,
        kind: str,
        label: str,
        settings: Facts,
        inputs: Mapping[str, list[str]],
        facts: Facts,
    ) -> str:
        return publish(Spec(kind, label, settings, inputs), None, facts).name

    def model(self, stage: str, start: str, prompt: str) -> str:
        rows = self.shards
        if stage == "supervised":
            candidates = self.publish("candidates", "bm25.torch", {"k1": 0.9}, {"shards": rows[:1]}, {"queries": 4060})
            facts = {
                "rows": 3900, "rows_read": 4060, "rows_kept": 3900, "candidates": 90_000, "kept": 11_700,
                "dropped": {"known positive": 4060, "too close to the positive": 74_240, "too few for the row": 0},
                "above_the_positive": {"bm25": 7, "fused": 3},
                "score_histograms": {"bm25": {"low": -0.5, "width": 0.5, "positives": [0, 3], "negatives": [7, 1]}},
            }  # fmt: skip
            inputs = {"shards": rows[:1], "candidates": [candidates]}
            spec = Spec("negatives", "torch", {"p": 0.95}, inputs)
            rows = [
                publish(spec, lambda folder: (folder / "examples.json").write_text(json.dumps(EXAMPLES)), facts).name
            ]
        if stage == "distillation":
            facts = {"rows": 4060, "documents": 16, "mean_positive_score": 0.9234, **scores_facts()}
            rows = [self.publish("scores", "bm25.torch", {"documents": 16}, {"shards": rows[:1]}, facts)]
        facts = {"steps": 60, "steps_by_source": {"torch": 60}}
        batches = self.publish("batches", stage, {"batch_size": 64}, {"rows": rows}, facts)
        settings = {"stage": stage, "seed": 42, "query_prompt": prompt, "learning_rate": 5e-4, "batch_size": 64}
        spec = Spec("models", stage, settings, {"start": [start], "rows": rows, "batches": [batches]})
        seconds = {"unsupervised": 65.5, "supervised": 40.25, "distillation": 20.0}[stage]
        losses = [{"step": step, "loss": (1 if prompt else 1.1) + 3 / math.sqrt(step)} for step in range(1, 700)]
        facts = {"seconds": seconds, "steps": 699, "device": "cpu", "parameters": 2_012_345}
        lines = "".join(json.dumps(line) + "\n" for line in losses)
        return publish(spec, lambda folder: (folder / "losses.jsonl").write_text(lines), facts).name

    def row(self, name: str, kind: str, stages: list[str], model: str | None) -> None:
        measures = {}
        for collection, mean in zip(COLLECTIONS, VALUES[name], strict=True):
            inputs = {"collection": [self.collections[collection].name]}
            if model:
                index = self.publish(
                    "indexes", collection, {"seed": 1}, {"model": [model], **inputs}, {"kind": "exact"}
                )
                inputs = {"index": [index], **inputs}
            run = self.publish("runs", f"{'colbert' if model else 'bm25'}.{collection}", {"depth": 100}, inputs, {})
            measures[collection] = self.measures(collection, mean, {"run": [run], **inputs})
        self.rows.append({"name": name, "kind": kind, "stages": stages, "measures": measures})

    def measures(self, collection: str, mean: float, inputs: Mapping[str, list[str]]) -> str:
        values = {"p": mean - 0.1, "q": mean + 0.1, "r": mean - 0.02, "s": mean + 0.02}
        spec = Spec("measures", collection, {"measures": [MEASURE]}, inputs)
        table = pa.table({"query_id": list(values), "measure": [MEASURE] * 4, "value": list(values.values())})
        publish(spec, lambda folder: pq.write_table(table, folder / "measures.parquet"), {"means": {MEASURE: mean}})
        return spec.name

    def spec(self, **changes: Any) -> Spec:
        settings = {
            "study": "Toy & <script>alert(1)</script>",
            "seed": 42,
            "measure": MEASURE,
            "groups": {"cqadupstack": FORUMS},
        } | changes
        rows = settings.pop("rows", self.rows)
        settings["rows"] = {row["name"]: {"kind": row["kind"], "stages": row["stages"]} for row in rows}
        return Spec("reports", "toy", settings, {row["name"]: list(row["measures"].values()) for row in rows})


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield Study()


def publish_report(spec: Spec) -> Artifact:
    assert run_step(make, None, ["--spec", spec.text]) == 0
    return Artifact.open(spec.name)


@pytest.fixture(scope="module")
def published(study: Study) -> Artifact:
    return publish_report(study.spec())


@pytest.fixture(scope="module")
def page(published: Artifact) -> str:
    return published.file("report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table(published: Artifact) -> dict[str, dict[str, str]]:
    with published.file("table.csv").open(encoding="utf-8", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_a_group_is_averaged_first_and_counts_once_in_the_mean(table: dict[str, dict[str, str]]) -> None:
    row = table["zero | full"]
    assert list(row)[3:7] == ["<sympy>", "cqadupstack", "numpy", "mean"]
    assert float(row["cqadupstack"]) == pytest.approx(0.30)
    assert float(row["mean"]) == pytest.approx((0.50 + 0.30 + 0.48) / 3)


def test_training_time_is_the_sum_over_a_rows_stages_shared_ones_in_full(table: dict[str, dict[str, str]]) -> None:
    assert float(table["zero | full"]["training_seconds"]) == pytest.approx(65.5 + 40.25 + 20)
    assert float(table["supervised-distillation"]["training_seconds"]) == pytest.approx(40.25 + 20)
    assert float(table["bm25"]["training_seconds"]) == 0


def test_markdown_has_two_decimals_and_the_best_recipe_of_each_column_in_bold(published: Artifact) -> None:
    lines = published.file("table.md").read_text(encoding="utf-8").splitlines()
    cells = {line.split(" | ")[0].strip("| "): [cell.strip() for cell in line.split(" | ")] for line in lines[2:8]}
    best_first = ["zero \\| full", "zero-noprompts", "supervised-distillation", "distillation-only"]
    assert list(cells) == ["bm25", "untrained", *best_first], "baselines first, each kind from the best to the worst"
    assert cells["zero \\| full"][1:] == [
        "unsupervised → supervised → distillation", "**48.00**", "**30.00**", "**50.00**", "**42.67**", "2 min 06 s |",
    ]  # fmt: skip
    assert cells["distillation-only"][3] == "**30.00**", "equal as printed, so both are the best"
    assert cells["bm25"][2] == "39.00", "a baseline is never in bold"
    assert len({len(line) for line in lines[:8]}) == 1, "columns are aligned"


def test_differences_are_to_the_highest_baseline_and_paired_by_query(study: Study) -> None:
    spec = study.spec()
    report = Report.open(spec)
    assert report.reference.name == "bm25"
    of_row = [of_column[0] for of_column in report._differences()]
    assert report.compared[0].name == "zero | full"
    assert [difference.value for difference in of_row] == pytest.approx([9, 5, 9, 23 / 3])
    # Every query differs by the same amount, so paired differences have no uncertainty.
    ends = [end for difference in of_row for end in (difference.low, difference.high)]
    assert ends == pytest.approx([9, 9, 5, 5, 9, 9, 23 / 3, 23 / 3])


def test_the_reference_is_the_row_that_the_config_names(study: Study) -> None:
    report = Report.open(study.spec(reference="distillation-only"))
    assert report.reference.name == "distillation-only"
    assert len(report.compared) == 3
    assert "nDCG@10 x 100 minus that of distillation-only, paired" in report.html()


def test_a_study_without_baselines_or_with_one_collection_has_a_report(study: Study) -> None:
    for rows in ([study.rows[0]], study.rows[2:3], study.rows[2:]):
        assert "<svg" in publish_report(study.spec(rows=rows)).file("report.html").read_text(encoding="utf-8")
    rows = [row | {"measures": {"numpy": row["measures"]["numpy"]}} for row in study.rows]
    assert publish_report(study.spec(rows=rows, groups={})).facts["means"]["bm25"] == pytest.approx(0.41)


def test_the_page_is_well_formed_and_asks_for_nothing_from_elsewhere(page: str) -> None:
    class Checker(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "img", "link", "iframe", "object")
            assert tag != "style" or "head" in self.tags
            for name, value in attrs:
                assert name not in ("src", "srcset")
                leads_on = name in ("href", "xlink:href") and value != "negatives.html"
                assert not leads_on or (value or "").startswith("#")
            if tag not in ("meta", "use", "path", "br"):
                self.tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag not in ("use", "path"):
                assert self.tags.pop() == tag

    checker = Checker()
    checker.feed(page)
    assert checker.tags == []
    assert "http" not in page
    assert "url(" not in page.replace("url(#", "")
    assert page.count("<svg") == 6 + len(VALUES), "six figures, and the chain of each row"


def test_the_best_recipes_last_model_is_loaded_by_the_recipes_of_the_docs(study: Study, page: str) -> None:
    (spec,) = (row for row in study.rows if row["name"] == "zero | full")
    folder = Artifact.open(spec["stages"][-1]).spec.folder.as_posix()
    assert folder.startswith("results/models/distillation-")
    assert "The last model of zero | full, the recipe with the highest mean" in page
    for library, code in LOADING.items():
        assert code == loading_recipes.recipes()[library]
        assert html.escape(code.replace(loading_recipes.FOLDER, folder)).replace("&quot;", "&#34;") in page


def test_a_study_that_trains_nothing_says_nothing_of_recipes_their_cost_and_loading(study: Study) -> None:
    report = publish_report(study.spec(rows=study.rows[:2]))
    page = report.file("report.html").read_text(encoding="utf-8")
    assert "2 rows, not trained here, compared on 4 collections" in page
    assert "Differences by collection" in page
    for absent in ("Loading a model", "Quality against cost", 'href="#cost"', "recipes trained"):
        assert absent not in page
    assert not any(word in report.file("table.md").read_text(encoding="utf-8") for word in ("Bold", "Training is"))


def test_a_corpus_that_is_mined_in_is_no_collection_that_rows_are_compared_on(study: Study) -> None:
    corpus = publish_collection("mined", {"a": "text", "b": "more"}, {"p": "text"}, {"p": {"a": 1}})
    inputs = {"collection": [study.collections["numpy"].name]}
    run = study.publish("runs", "bm25.numpy", {}, {**inputs, "corpus": [corpus.name]}, {})
    row = {"name": "r", "kind": "baseline", "stages": [], "measures": {}}
    row["measures"] = {"numpy": study.measures("numpy", 0.3, {"run": [run], **inputs})}
    page = publish_report(study.spec(rows=[row], groups={})).file("report.html").read_text(encoding="utf-8")
    assert "1 row, not trained here, compared on 1 collection with 1 documents and 1 queries." in page


def test_a_row_alone_differs_from_none(study: Study) -> None:
    page = publish_report(study.spec(rows=study.rows[:1])).file("report.html").read_text(encoding="utf-8")
    assert "Differences by collection" not in page and 'href="#differences"' not in page


def test_names_are_escaped(page: str) -> None:
    assert "<script>" not in page
    assert "Toy &amp; &lt;script&gt;" in page
    assert "&lt;sympy&gt;" in page
    assert "<sympy>" not in page


def test_the_page_states_sizes_drops_seeds_times_and_keys(page: str, study: Study) -> None:
    text = page.replace("\u202f", " ")
    drops = ("duplicate 31 · too short 9", "known positive 4060 · too close to the positive 74 240")
    above = ("<th>above the positive</th>", "bm25 7 · fused 3")
    for stated in ("4 100 000", *drops, *above, "0.9234", "2 012 345", "Seed 42"):
        assert stated in text, stated
    for name in (study.base, *study.shards, *study.rows[2]["stages"]):
        assert name in page
    assert "&#34;search_query: &#34;" in page, "a prompt's last space is seen"
    assert Artifact.open(study.base).manifest["code"]["digest"][:12] in page


def test_the_page_says_what_a_teachers_scores_are_like(page: str) -> None:
    facts = scores_facts()
    stated = [
        f"{100 * facts['positive_first'] / 4060:.1f} %",
        f">{math.log(16):.3f}<",
        *(f">{math.log(16) * share:.3f}<" for share in facts["entropy"].values()),
        f"{facts['raw']['own']['mean']:.2f} ± {facts['raw']['own']['sd']:.2f}",
        "neural.torch-0123456789ab",
        ">0.432<",
        "The distribution of normalised scores of each teacher",
    ]
    for text in stated:
        assert text in page, text


def test_the_page_states_what_became_of_candidates_and_their_scores(page: str) -> None:
    text = page.replace("\u202f", " ")
    start = text.index('<h2 id="negatives">')
    section = text[start : text.index("<h2", start + 1)]
    header = ("candidates", "known positive", "too close to the positive", "kept", "rows read", "rows kept")
    cells = (90_000, 4060, 74_240, 11_700, 4060, 3900)
    assert "".join(f'<th class="n">{name}</th>' for name in header) in section
    grouped = [f"{cell:,}".replace(",", " ") if cell >= 10_000 else str(cell) for cell in cells]
    assert "".join(f'<td class="n">{cell}</td>' for cell in grouped) in section
    assert "torch, bm25" in section and "score histograms" not in text


def test_rows_are_on_a_page_beside_the_report_which_has_the_text_of_none(study: Study) -> None:
    files = dict(Report.open(study.spec()).files())
    assert '<a href="negatives.html">' in files["report.html"]
    for shown in ("what &lt;b&gt;", "that that …</td>", ">not this<", ">nor this<"):
        assert shown in files["negatives.html"] and shown not in files["report.html"], shown
    page = dict(Report.open(study.spec(rows=study.rows[:2])).files())
    assert "negatives.html" not in page and "negatives.html" not in page["report.html"]


def test_settings_in_which_models_of_a_stage_differ_are_marked(study: Study) -> None:
    spec = study.spec()
    report = Report.open(spec)
    tables = {table.title: table for table in settings_tables(report.models, report.rows_using)}
    assert [cell.text for cell in tables["settings of unsupervised"].header[1:]] == ["zero | full", "zero-noprompts"]
    css_classes = {row.name: row.css_class for row in tables["settings of unsupervised"].rows}
    assert css_classes["query prompt"] == "differs"
    assert css_classes["learning rate"] == ""


def test_a_model_that_recipes_share_is_named_with_all_of_them(study: Study) -> None:
    rows = [study.rows[2], study.rows[2] | {"name": "twin"}, study.rows[0]]
    spec = study.spec(rows=rows)
    report = Report.open(spec)
    assert report.rows_using[study.rows[2]["stages"][0]] == "twin, zero | full"
    assert report.rows_using[study.collections["numpy"].name] == "all"


def test_the_same_inputs_give_the_same_page(published: Artifact, study: Study) -> None:
    spec = study.spec()
    report = Report.open(spec)
    assert report.html() == published.file("report.html").read_text(encoding="utf-8")


def test_long_loss_histories_are_averaged_without_losing_a_step() -> None:
    losses = [float(step) for step in range(1, 1001)]
    steps, values = figures._downsample(losses)
    assert len(steps) == figures.POINTS_PER_CURVE
    assert steps == pytest.approx(values)
    assert figures._downsample([3.0, 1.0]) == ([1.0, 2.0], [3.0, 1.0])


def test_names_beside_the_cost_figure_do_not_overlap() -> None:
    values = [44.0, 44.05, 44.1, 44.12, 30.0]
    points = [figures.Point(f"name{number}", 10.0 + number, value, "#000000") for number, value in enumerate(values)]
    svg = figures.quality_against_cost(points, "nDCG@10")
    heights = sorted(float(part.split('y="')[1].split('"')[0]) for part in svg.split("<text")[1:] if ">name" in part)
    assert min(after - before for before, after in pairwise(heights)) > 9


def test_a_matplotlibrc_of_the_study_changes_no_figure() -> None:
    """Matplotlib reads one from the folder that it starts in; with usetex it would run programs."""
    points = [figures.Point("name", 10.0, 50.0, "#000000")]
    figure = figures.quality_against_cost(points, "nDCG@10")
    with mpl.rc_context({"text.usetex": True, "font.size": 30, "lines.linewidth": 9}):
        assert figures.quality_against_cost(points, "nDCG@10") == figure


def test_durations_are_in_the_unit_a_person_would_use() -> None:
    assert [duration(seconds) for seconds in (0.4, 45, 99.6, 605, 4000, 28_800, 1_468_800)] == [
        "0.4 s", "45 s", "1 min 40 s", "10 min 05 s", "1 h 07 min", "8 h 00 min", "408 h",
    ]  # fmt: skip
