"""A study: recipes share equal first stages, keys depend on what decides an artifact, mistakes are one line."""

import copy
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
import yaml

from colbert_zero.graph.console import UserError
from colbert_zero.graph.study import Study

ROOT = Path(__file__).parents[3]
EMBEDDED = yaml.safe_load((ROOT / "local" / "config.yaml").read_text())


@pytest.fixture
def config():
    return copy.deepcopy(EMBEDDED)


def row(study, name):
    (match,) = [row for row in study.rows if row.name == name]
    return match


def test_recipes_share_equal_first_stages(config):
    study = Study(config, ROOT / "local")
    full, mismatched = row(study, "colbert-zero"), row(study, "colbert-zero-mismatched")
    assert full.stages[0] == mismatched.stages[0]
    assert full.stages[1] != mismatched.stages[1]


def test_every_input_of_a_spec_is_planned(config):
    study = Study(config, ROOT / "local")
    names = {spec.name for spec in study.specs.values()}
    for spec in study.specs.values():
        for inputs in spec.inputs.values():
            assert set(inputs) <= names


def test_prompt_text_decides_and_its_name_does_not(config):
    before = Study(config, ROOT / "local")
    config["prompts"]["renamed"] = config["prompts"].pop("search")
    text = yaml.safe_dump(config).replace("prompts: search", "prompts: renamed")
    assert Study(yaml.safe_load(text), ROOT / "local").report.key == before.report.key
    config["prompts"]["renamed"]["query"] = "search_query:"
    text = yaml.safe_dump(config).replace("prompts: search", "prompts: renamed")
    assert Study(yaml.safe_load(text), ROOT / "local").report.key != before.report.key


def test_candidates_are_shared_by_mining_and_teaching(config):
    config["teachers"]["bm25"]["miners"] = ["lsa", "bm25"]
    config["stages"]["distillation"]["sources"] = config["stages"]["supervised"]["sources"] = ["scipy", "pandas"]
    kinds = [spec.kind for spec in Study(config, ROOT / "local").specs.values()]
    assert kinds.count("candidates") == 2 * 2


def test_an_approximate_search_decides_candidates_and_an_exact_one_is_left_out(config):
    def settings(**search):
        config["miners"]["lsa"]["lsa"] = {"dimensions": 128, **search}
        specs = Study(config, ROOT / "local").specs.values()
        (found,) = {spec.key: spec.settings for spec in specs if spec.label.startswith("dense.scipy")}.values()
        return found

    exact = settings()
    assert settings(search="exact") == exact and exact.keys() == {"encoder", "depth"}
    assert settings(search="approximate") == {**exact, "approximate": {"recall": 0.95, "seed": 42}}
    assert settings(search="approximate", recall=0.8) == {**exact, "approximate": {"recall": 0.8, "seed": 42}}


def test_the_miners_that_filter_decide_negatives_of_several_miners_alone(config):
    def negatives(**entry):
        config["mining"]["fused"] = {"p": 0.95, "negatives": 3, **entry}
        return [spec for spec in Study(config, ROOT / "local").specs.values() if spec.kind == "negatives"]

    both = negatives(miners=["bm25", "lsa"])
    assert [spec.settings["filter"] for spec in both] == [[0, 1]]
    assert both == negatives(miners=["bm25", "lsa"], filter=["lsa", "bm25"])
    assert [spec.settings["filter"] for spec in negatives(miners=["bm25", "lsa"], filter=["lsa"])] == [[1]]
    assert both == negatives(miners=["bm25", "lsa"], fusion="normalised")
    by_rank = negatives(miners=["bm25", "lsa"], fusion="reciprocal-rank")
    assert [spec.settings for spec in by_rank] == [{**both[0].settings, "fusion": "reciprocal-rank"}]
    with_margin = negatives(miners=["bm25", "lsa"], margin={"lsa": 0.05}, near_duplicates=0.8)
    changes = {"margins": [None, 0.05], "near_duplicates": 0.8}
    assert [spec.settings for spec in with_margin] == [{**both[0].settings, **changes}]
    judged = negatives(miners=["bm25", "lsa"], judge={"teacher": "bm25", "margin": 2.0})
    assert [spec.settings for spec in judged] == [{**both[0].settings, "judge": {"margin": 2.0}}]
    (scores,) = judged[0].inputs["scores"]
    assert scores.startswith("scores/bm25.") and "scores" not in both[0].inputs
    # The specs of version 0.1.0.
    single = negatives(miners=["lsa"])
    assert single == negatives(miners=["lsa"], filter=["lsa"])
    assert [spec.settings for spec in single] == [{"p": 0.95, "negatives": 3, "skip": 0, "choose": "top", "seed": 42}]


@pytest.mark.parametrize("folder", [ROOT, ROOT / "local"])
def test_planning_imports_nothing_heavy(folder):
    code = (
        "import sys, yaml; from pathlib import Path; from colbert_zero.graph.study import Study;"
        "Study(yaml.safe_load(open('config.yaml')), Path('.'), resolve=lambda *_: None);"
        "print(*{'torch', 'numpy', 'pyarrow', 'transformers', 'huggingface_hub', 'pandas'} & set(sys.modules))"
    )
    environment = {"PYTHONPATH": str(ROOT / "workflow")}
    process = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stdout.strip()) == (0, ""), process.stderr


def change(path, value):
    def apply(config):
        *steps, last = path
        for step in steps:
            config = config[step]
        if value is None:
            del config[last]
        else:
            config[last] = value

    return apply


MISTAKES = {
    "mistyped key": (change(["stages", "unsupervised", "learning_rte"], 0.1), "did you mean learning_rate?"),
    "unknown section": (change(["recepies"], {}), "did you mean recipes?"),
    "no base": (change(["recipes", "colbert-zero", "base"], None), "base is missing"),
    "unknown base": (change(["recipes", "colbert-zero", "base"], "tinny"), "did you mean tiny?"),
    "wrong order": (change(["recipes", "colbert-zero", "stages"], ["distillation", "supervised"]), "in the order"),
    "twice": (change(["recipes", "colbert-zero", "stages"], ["supervised", "supervised"]), "at most once"),
    "unknown stage": (change(["recipes", "colbert-zero", "stages"], ["unsupervized"]), "unsupervized"),
    "unknown prompts": (change(["stages", "supervised", "prompts"], "serch"), "did you mean search?"),
    "no data": (change(["stages", "distillation", "sources"], []), "no data"),
    "unset": (change(["stages", "supervised", "temperature"], None), "temperature is not set"),
    "unknown source": (change(["stages", "supervised", "sources"], ["torsh"]), "did you mean torch?"),
    "unknown miner": (change(["mining", "fused", "miners"], ["bm52"]), "did you mean bm25?"),
    "a filter that mines not": (
        change(["mining", "fused", "filter"], ["lsaa"]),
        "config.yaml: mining.fused.filter: lsaa is not in mining.fused.miners; did you mean lsa?",
    ),
    "a margin of what mines not": (
        change(["mining", "fused", "margin"], {"lsaa": 0.1}),
        "config.yaml: mining.fused.margin: lsaa is not in mining.fused.miners; did you mean lsa?",
    ),
    "no margin": (change(["mining", "fused", "margin"], {}), "mining.fused.margin: there is nothing in it"),
    "a margin of nothing": (change(["mining", "fused", "margin"], {"lsa": 0}), "mining.fused.margin.lsa"),
    "no filter": (change(["mining", "fused", "filter"], []), "mining.fused.filter: there is nothing in it"),
    "unknown teacher": (change(["stages", "distillation", "teacher"], "bm52"), "did you mean bm25?"),
    "text for a number": (change(["stages", "supervised", "learning_rate"], "1e-3"), "write 1.0e-3"),
    "two origins": (change(["sources", "torch"], {"package": "torch", "file": "x"}), "exactly one of"),
    "no origin": (change(["sources", "torch"], {}), "exactly one of"),
    "two kinds": (
        change(["miners", "x"], {"depth": 3, "bm25": {}, "lsa": {}}),
        "give exactly one of bm25, lsa, encoder",
    ),
    "no kind": (change(["models", "x"], {}), "give exactly one of registry, hub, folder"),
    "not a number": (change(["stages", "supervised", "batch_size"], 1.5), "batch_size: 1.5 is not a whole number"),
    "not a name": (change(["study"], "a b"), 'study: "a b" is not of the form'),
    "a date": (change(["study"], date(2024, 1, 1)), 'study: "2024-01-01" is not text'),
    "a date for a key": (change(["recepies"], {date(2024, 1, 1): {}}), "did you mean recipes?"),
    "nothing": (
        lambda config: config.update(recipes={}, baselines={}),
        "config.yaml: recipes: there is nothing in it, nor in baselines; give the table a row at least",
    ),
    "twice the same": (
        change(["mining", "fused", "miners"], ["bm25", "bm25"]),
        'miners: ["bm25", "bm25"] has something twice',
    ),
    "no such file": (change(["sources", "torch"], {"file": "nowhere.parquet"}), "does not exist"),
    "package not locked": (change(["sources", "torch"], {"package": "leftpad"}), "is not in"),
    "misspelt measure": (change(["evaluation"], {"measures": ["ndcg@10"]}), "did you mean nDCG@10?"),
    "measure below the depth": (
        change(["evaluation"], {"measures": ["R@10"], "depth": 2}),
        "config.yaml: evaluation.measures: 'R@10' looks at more documents than a run has (2)",
    ),
    "unknown reference": (
        change(["evaluation"], {"reference": "bm52"}),
        "config.yaml: evaluation.reference: bm52 is not in baselines or recipes; did you mean bm25?",
    ),
    "p above one": (change(["mining", "fused", "p"], 1.5), "mining.fused.p"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_that_says_where(config, name):
    apply, words = MISTAKES[name]
    apply(config)
    with pytest.raises(UserError) as caught:
        Study(config, ROOT / "local")
    message = str(caught.value)
    assert words in message
    assert "\n" not in message


def test_the_first_measure_is_the_tables(config):
    config["evaluation"] = {"measures": ["R@10", "nDCG@10"]}
    assert Study(config, ROOT / "local").report.settings["measure"] == "R@10"


def test_a_reference_is_in_the_reports_settings_alone(config):
    before = Study(copy.deepcopy(config), ROOT / "local")
    config["evaluation"] = {"reference": "colbert-zero"}
    study = Study(config, ROOT / "local")
    assert study.report.settings["reference"] == "colbert-zero"
    assert "reference" not in study.released.settings, "a report of other rows"
    assert before.specs.keys() - study.specs.keys() == {before.report.key}


def test_a_step_of_which_the_config_says_nothing_asks_for_little(config):
    study = Study(config | {"resources": {}}, ROOT / "local")
    asked = {"threads": 1, "mem_mb": 2000, "runtime": 60, "gpu": 0, "nodes": 1, "checkpoint_seconds": 600, "jobs": 1}
    assert {name: study.resource("plan_batches", name) for name in asked} == asked
    assert study.resource("plan_batches", "device") is None


@pytest.mark.parametrize(
    ("rows", "words"),
    [(0, ""), (1, "r0"), (8, "r0, r1, r2, r3, r4, r5, r6, r7"), (9, "r0, r1, r2, r3, r4, r5, r6, r7 and 1 more")],
)
def test_a_message_names_the_first_rows_that_need_an_artifact(config, rows, words):
    study = Study(config, ROOT / "local")
    study.used_by = {"key": {f"r{number}" for number in range(rows)}}
    assert study.rows_using("key") == words
    assert study.rows_using("another") == ""


def test_the_config_itself_is_not_changed(config):
    Study(config, ROOT / "local")
    assert config == EMBEDDED


def test_own_file_is_known_by_its_bytes_not_its_date_or_place(config, tmp_path):
    rows = '{"query": "q", "document": "d"}\n'
    config["sources"]["torch"] = {"file": "own.jsonl"}
    keys = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.jsonl").write_text(rows)
        keys.append(Study(config, tmp_path / folder).report.key)
    (tmp_path / "two" / "own.jsonl").write_text(rows)
    keys.append(Study(config, tmp_path / "two").report.key)
    assert len(set(keys)) == 1
    (tmp_path / "two" / "own.jsonl").write_text(rows * 2)
    assert Study(config, tmp_path / "two").report.key != keys[0]


def test_evaluations_during_training_change_no_key_and_are_merged(config):
    before = Study(config, ROOT / "local")
    full = config["recipes"]["colbert-zero"]
    full["stages"] = [{"unsupervised": {"evaluate": {"steps": [8, 2], "collections": ["numpy"]}}}, *full["stages"][1:]]
    config["recipes"]["colbert-zero-mismatched"]["stages"][0] = {
        "unsupervised": {"evaluate": {"steps": [2, 4], "collections": ["networkx"]}}
    }
    after = Study(config, ROOT / "local")
    assert after.report.key == before.report.key
    key = row(after, "colbert-zero").stages[0].key
    planned = after.evaluations[key]
    assert planned["steps"] == [2, 4, 8]
    names = {spec.name for spec in after.specs.values() if spec.kind == "collections"}
    assert planned["collections"].keys() <= names
    labels = {name.split("/")[1].split("-")[0] for name in planned["collections"]}
    assert labels == {"package.networkx", "package.numpy"}
    assert not before.evaluations


def test_an_unknown_collection_to_evaluate_on_is_one_line(config):
    config["stages"]["unsupervised"]["evaluate"] = {"steps": [1], "collections": ["numpi"]}
    with pytest.raises(UserError, match=r"stage unsupervised, evaluate: numpi is not in collections; did you mean"):
        Study(config, ROOT / "local")


def test_the_papers_study_uses_the_reference_gradient():
    study = Study(yaml.safe_load((ROOT / "config.yaml").read_text()), ROOT, resolve=lambda *_: None)
    assert row(study, "colbert-zero").stages[0].settings["gradient"] == "reference"
    assert "gradient" not in row(study, "colbert-zero").stages[1].settings
