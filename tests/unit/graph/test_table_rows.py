"""Rows of the table: seeds, a sweep and its selection, prompts that go with the model's, a share of the rows."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from colbert_zero.graph.console import UserError
from colbert_zero.graph.planners.relations import check_alignment
from colbert_zero.graph.study import Study

ROOT = Path(__file__).parents[3]
EMBEDDED = yaml.safe_load((ROOT / "local" / "config.yaml").read_text())
ONE_RECIPE = EMBEDDED | {"recipes": {"zero": EMBEDDED["recipes"]["colbert-zero"]}}


@pytest.fixture
def config():
    return copy.deepcopy(ONE_RECIPE)


def plan(config):
    return Study(config, ROOT / "local")


def models(study):
    return {spec.name for spec in study.specs.values() if spec.kind == "models"}


# Seeds


def test_each_seed_is_trained_once_and_the_studys_own_is_shared(config):
    alone = models(plan(config))
    config["recipes"]["seeded"] = {**config["recipes"]["zero"], "seeds": [42, 43, 44]}
    study = plan(config)
    assert study.seeds == {"seeded": ["seeded@42", "seeded@43", "seeded@44"]}
    assert len(models(study)) == 3 * 3
    assert alone < models(study)
    stages = {row.name: row.stages for row in study.rows}
    assert stages["seeded@42"] == stages["zero"]
    assert {spec.settings["seed"] for spec in stages["seeded@43"]} == {43}


def test_seeds_share_all_that_is_not_training(config):
    single = {kind: count(plan(config), kind) for kind in ("shards", "bases", "candidates", "negatives", "scores")}
    config["recipes"]["zero"]["seeds"] = [1, 2, 3]
    assert {kind: count(plan(config), kind) for kind in single} == single
    assert count(plan(config), "batches") == 3 * 3


def count(study, kind):
    return sum(spec.kind == kind for spec in study.specs.values())


def test_the_order_of_seeds_and_one_more_seed_move_no_model(config):
    config["recipes"]["zero"]["seeds"] = [7, 8]
    two = models(plan(config))
    config["recipes"]["zero"]["seeds"] = [9, 8, 7]
    assert two < models(plan(config))


def test_a_report_names_the_seeds_of_a_row_and_an_unseeded_one_none(config):
    assert "seeds" not in plan(config).report.settings
    config["recipes"]["zero"]["seeds"] = [7, 8]
    report = plan(config).report
    assert report.settings["seeds"] == {"zero": ["zero@7", "zero@8"]}
    assert {"zero@7", "zero@8"} <= set(report.settings["rows"]) == set(report.inputs) - {"+audit"}


# Sweeps


def swept(config, **values):
    values = values or {"learning_rate": [1e-4, 2e-4, 4e-4]}
    config["recipes"]["zero"]["stages"][1] = {"supervised": {"sweep": {"collections": ["numpy"], **values}}}
    return plan(config)


def test_a_sweep_trains_each_value_and_goes_on_with_one_model(config):
    study = swept(config)
    (row,) = [row for row in study.rows if row.name == "zero"]
    assert [spec.kind for spec in row.stages] == ["models", "selections", "models"]
    selection = row.stages[1]
    candidates = [spec for spec in study.inputs_of(selection) if spec.kind == "models"]
    assert [spec.settings["learning_rate"] for spec in candidates] == [1e-4, 2e-4, 4e-4]
    assert selection.settings["values"] == [{"learning_rate": rate} for rate in (1e-4, 2e-4, 4e-4)]
    assert row.stages[2].inputs["start"] == [selection.name]
    # They are measured on the collections that they are selected on, and on no other.
    measured = [spec.label for spec in study.inputs_of(selection) if spec.kind == "measures"]
    assert measured == ["numpy"] * 3


def test_models_may_be_selected_on_a_collection_that_no_row_is_evaluated_on(config):
    config["collections"]["numpy"]["evaluate"] = False
    study = swept(config)
    assert [spec.label for spec in study.specs.values() if spec.kind == "measures"].count("numpy") == 3
    assert not any("numpy" in row.measures for row in study.rows)


def test_two_values_are_enough_to_select_from_by_the_measure_that_is_named_first(config):
    config["evaluation"] = {"measures": ["R@10", "nDCG@10"]}
    selection = next(
        spec for spec in swept(config, learning_rate=[1e-4, 2e-4]).specs.values() if spec.kind == "selections"
    )
    assert len(selection.inputs["models"]) == 2
    assert selection.settings["measure"] == "R@10"


def test_a_candidate_of_a_sweep_is_the_model_that_a_recipe_with_its_value_trains(config):
    config["recipes"]["plain"] = copy.deepcopy(config["recipes"]["zero"])
    config["recipes"]["plain"]["stages"][1] = {"supervised": {"learning_rate": 2e-4}}
    study = swept(config)
    plain = next(row for row in study.rows if row.name == "plain")
    selection = next(row for row in study.rows if row.name == "zero").stages[1]
    assert plain.stages[1].name in selection.inputs["models"]


def test_two_settings_are_swept_together(config):
    values = {"learning_rate": [1e-4, 2e-4], "temperature": [0.1, 0.2, 0.3]}
    selection = next(spec for spec in swept(config, **values).specs.values() if spec.kind == "selections")
    assert [(of["learning_rate"], of["temperature"]) for of in selection.settings["values"]] == [
        (rate, temperature) for rate in values["learning_rate"] for temperature in values["temperature"]
    ]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"learning_rate": [1e-4]}, "sweep has one value only"),
        ({"learning_rate": [1e-4, 1e-4]}, "has something twice"),
        ({"learning_rate": [1e-4, 0]}, "0 is not above 0"),
        ({"learning_rate": [1e-4, 2e-4], "collections": ["nunpy"]}, "did you mean numpy?"),
        ({"batch_size": [16, 32]}, "batch_size is not a setting"),
    ],
)
def test_a_sweep_that_cannot_work_is_one_line(config, sweep, message):
    with pytest.raises(UserError, match=re.escape(message)):
        swept(config, **sweep)


def test_a_distillation_has_no_temperature_to_sweep(config):
    config["recipes"]["zero"]["stages"][2] = {
        "distillation": {"sweep": {"temperature": [0.1, 0.2], "collections": ["numpy"]}}
    }
    with pytest.raises(UserError, match="the distillation stage does not use temperature"):
        plan(config)


# Alignment


@pytest.mark.parametrize("stages", [[1, 2], [1], [2]])
@pytest.mark.parametrize("change", [{"prompts": "none"}, {"query_length": 32}])
def test_other_prompts_or_query_lengths_than_the_start_had_are_refused_unless_allowed(config, stages, change):
    names = ["unsupervised", "supervised", "distillation"]
    for stage in stages:
        config["recipes"]["zero"]["stages"][stage] = {names[stage]: change}
    with pytest.raises(UserError, match=r"1\.26 points .* 0\.43 .* mismatch: allowed"):
        plan(config)
    config["recipes"]["zero"]["mismatch"] = "allowed"
    plan(config)


def test_to_allow_a_mismatch_moves_no_key(config):
    before = plan(config).specs.keys()
    config["recipes"]["zero"]["mismatch"] = "allowed"
    assert plan(config).specs.keys() == before


def test_an_evaluation_with_other_prompts_is_refused_unless_allowed(config):
    config["recipes"]["zero"]["evaluate_with"] = {"prompts": "none"}
    with pytest.raises(UserError, match=r"recipes\.zero\.evaluate_with: query_prompt is ''"):
        plan(config)
    config["recipes"]["zero"]["mismatch"] = "allowed"
    plan(config)


def test_documents_may_be_longer_than_those_that_the_start_was_trained_with():
    trained = {"query_prompt": "q", "document_prompt": "d", "query_length": 39, "document_length": 187}
    check_alignment({**trained, "document_length": 519}, trained, "the stage unsupervised", "here")


@pytest.mark.parametrize(
    ("saved", "refused"),
    [
        ({"prompts": {"query": "search_query: ", "document": "search_document: "}}, False),
        ({"prompts": {"query": "query: ", "document": "passage: "}}, True),
        ({"prompts": {"query": "", "document": ""}}, False),
        ({"prompts": {}, "query_length": 39, "document_length": 300}, False),
        ({"prompts": {}, "query_length": 32, "document_length": 300}, True),
    ],
)
def test_what_a_base_was_saved_with_is_compared(config, saved, refused, tmp_path, modernbert):
    folder = tmp_path / "base"
    shutil.copytree(modernbert, folder)
    (folder / "config_sentence_transformers.json").write_text(json.dumps(saved))
    config["models"]["mine"] = {"folder": str(folder)}
    config["recipes"]["zero"]["base"] = "mine"
    if refused:
        with pytest.raises(UserError, match=r"in models\.mine, which it goes on from"):
            plan(config)
    else:
        plan(config)


# Settings of stages


def stages(study, row_name="zero"):
    """The models of a row's stages, by stage."""
    (row,) = [row for row in study.rows if row.name == row_name]
    return {model.label: model for model in row.stages}


def batches(study, model):
    (spec,) = [spec for spec in study.inputs_of(model) if spec.kind == "batches"]
    return spec


def test_what_every_stage_is_given_is_used_by_the_stages_that_have_it(config):
    before = stages(plan(config))
    assert not any("gradient_scale" in model.settings for model in before.values())
    every_stage = {"mining": "fused", "negatives": 2, "teacher": "bm25", "gradient_scale": 2}
    config["recipes"]["zero"]["every_stage"] = every_stage
    study = plan(config)
    models = stages(study)
    rows = {stage: {name.partition("/")[0] for name in model.inputs["rows"]} for stage, model in models.items()}
    assert rows == {"unsupervised": {"shards"}, "supervised": {"negatives"}, "distillation": {"scores"}}
    assert {stage for stage, model in models.items() if "gradient_scale" in model.settings} == {"supervised"}
    assert models["supervised"].settings["gradient_scale"] == 2
    assert models["unsupervised"] == before["unsupervised"]
    assert [set(batches(study, model).settings) for model in models.values()] == [{"batch_size", "epochs", "seed"}] * 3


def test_the_rows_own_negatives_are_drawn_with_the_batches(config):
    config["sources"]["own"] = {"registry": "nomic-supervised/fever_hn_mine"}
    config["stages"]["supervised"] |= {"sources": ["own"], "mining": None}
    config["recipes"]["zero"]["stages"] = ["supervised"]
    study = plan(config)
    model = stages(study)["supervised"]
    assert [name.partition("-")[0] for name in model.inputs["rows"]] == ["shards/fever_hn_mine"]
    assert batches(study, model).settings == {"batch_size": 16, "epochs": 1, "seed": 42, "negatives": 3}


# Shares


def test_a_share_is_a_setting_of_shards_alone_and_all_is_as_before(config):
    whole = plan(config)
    config["shards"]["share"] = 1
    assert plan(config).report.key == whole.report.key
    config["shards"]["share"] = 0.1
    tenth = [spec for spec in plan(config).specs.values() if spec.kind == "shards"]
    assert {spec.settings["share"] for spec in tenth} == {0.1}


# The models that are not trained here


def test_the_released_report_has_the_baselines_and_needs_no_training(config):
    study = plan(config)
    assert set(study.released.settings["rows"]) == {"bm25", "untrained"}
    pending, kinds = [study.released], set()
    while pending:
        spec = pending.pop()
        kinds.add(spec.kind)
        pending += study.inputs_of(spec)
    assert "models" not in kinds
    assert "batches" not in kinds
