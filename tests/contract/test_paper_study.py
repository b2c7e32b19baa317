"""The paper's study: `config.yaml` has each model of the paper's tables, and trains each distinct stage once."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from colbert_zero.graph.config import read_config
from colbert_zero.graph.study import Study

ROOT = Path(__file__).parents[2]
PAPER = yaml.safe_load((ROOT / "workflow" / "registry" / "paper.yaml").read_text(encoding="utf-8"))
CONFIG = read_config(ROOT / "config.yaml")
SHORT, LONG = (32, 512), (39, 519)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    return Study(CONFIG, folder, resolve=lambda *_: None)


@pytest.fixture(scope="module")
def rows_by_published(study):
    """The trained rows, by the row of the paper that they are compared with."""
    published = {entry["published"]: name for name, entry in CONFIG["recipes"].items() if "published" in entry}
    rows = {row.name: row for row in study.rows}
    return {paper_row: rows[name] for paper_row, name in published.items()}


def models_of(table):
    return [row["model"] for block in PAPER["tables"][table]["blocks"] for row in block["rows"]]


def test_every_model_of_the_tables_is_a_row(rows_by_published):
    trained = {name for name, model in PAPER["models"].items() if "stages" in model}
    assert trained == rows_by_published.keys()
    baselines = {entry.get("published") for entry in CONFIG["baselines"].values()}
    assert PAPER["models"].keys() - trained < baselines
    assert {name for table in PAPER["tables"] for name in models_of(table)} <= trained | baselines


@pytest.mark.parametrize(("table", "rows", "stages"), [("table2", 10, 6), ("table3", 9, 14), ("table4", 25, 26)])
def test_each_distinct_stage_of_a_table_is_trained_once(rows_by_published, table, rows, stages):
    names = models_of(table)
    assert len(names) == rows
    trained = {spec.key for name in names if name in rows_by_published for spec in rows_by_published[name].stages}
    assert len(trained) == stages


def test_the_whole_study_trains_each_distinct_stage_once(study):
    stages = Counter(spec.label for spec in study.specs.values() if spec.kind == "models")
    # Those of the paper, and the two whose negatives and teacher scores are made here.
    assert stages == {"unsupervised": 2, "supervised": 10 + 1, "distillation": 14 + 1}


def test_a_rows_stages_prompts_and_lengths_are_the_papers(rows_by_published):
    for name, row in rows_by_published.items():
        paper = PAPER["models"][name]
        assert [spec.label for spec in row.stages] == paper["stages"], name
        last = row.stages[-1].settings
        assert bool(last["query_prompt"]) == paper["prompts"], name
        query, document = LONG if paper["length"] == "plus_7" else SHORT
        if last["stage"] == "unsupervised":
            document = {512: 180, 519: 187}[document]
        assert (last["query_length"], last["document_length"]) == (query, document), name
        first = row.stages[0].settings
        if paper["block"] in "CD":
            assert bool(first["query_prompt"]) == (paper["block"] == "C"), name


def test_lengths_at_evaluation_alone_share_the_model(rows_by_published):
    plain, longer = (rows_by_published[name] for name in ("d-distilled", "d-distilled-longer-evaluation"))
    assert plain.stages == longer.stages
    assert not {spec.key for spec in plain.measures.values()} & {spec.key for spec in longer.measures.values()}


def test_the_released_models_are_rows_that_need_no_training(study):
    released = study.released.settings["rows"]
    assert len(released) == 1 + 9 + 1 + 3  # BM25, the authors' checkpoints, their peer, the dense models
    kinds = Counter(row.kind for row in study.rows)
    assert kinds == {"baseline": 14, "recipe": 28}


def test_a_row_needs_its_mismatch_only_where_the_paper_has_one(study):
    """Each `mismatch: allowed` is a row of the paper whose prompts or lengths are others than those before them."""
    paper_rows = {entry["published"] for entry in CONFIG["recipes"].values() if "mismatch" in entry}
    assert paper_rows == {
        *("a-distilled-noprompts", "a-distilled-noprompts-longer"),
        *(f"b-{stage}-{what}" for stage in ("supervised", "distilled") for what in ("noprompts", "noprompts-longer")),
        *(
            f"c-{stage}-{what}"
            for stage in ("supervised", "distilled")
            for what in ("noprompts", "shorter", "noprompts-longer")
        ),
        *("d-distilled-longer-evaluation", "d-distilled-prompts", "d-supervised-prompts"),
    }
