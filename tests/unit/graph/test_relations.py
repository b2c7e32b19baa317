"""Settings that contradict each other are one line when planning; at the limit they are not."""

import copy
import json
from pathlib import Path

import pytest
import yaml

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.console import UserError
from colbert_zero.graph.planners.relations import check_room, check_small
from colbert_zero.graph.study import Study

ROOT = Path(__file__).parents[3]
EMBEDDED = yaml.safe_load((ROOT / "local" / "config.yaml").read_text())
PAPER = yaml.safe_load((ROOT / "config.yaml").read_text())


def with_changes(config, changes):
    """A copy of a config, with the value at each dotted path set."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *steps, last = path.split("/")
        inner = config
        for step in steps:
            inner = inner.setdefault(step, {})
        inner[last] = value
    return config


def plan(changes, config=EMBEDDED, folder=ROOT / "local"):
    return Study(with_changes(config, changes), folder, resolve=lambda *_: None)


# The embedded study mines with BM25 and LSA at depth 50 each; its teacher scores the candidates of LSA.
CONTRADICTIONS = {
    "more negatives than candidates": (
        {"mining/fused/negatives": 99},
        "mining.fused: negatives is 99, but depth 50 of bm25 + depth 50 of lsa gives at most 98 candidates",
    ),
    "skipping all candidates": ({"mining/fused/skip": 96}, "negatives is 3 after skip: 96"),
    "more negatives than one miner's candidates": (
        {"mining/fused/miners": ["lsa"], "mining/fused/negatives": 50},
        "at most 49",
    ),
    "a recall of an exact search": (
        {"miners/lsa/lsa": {"recall": 0.9}},
        "miners.lsa.lsa: recall is 0.9, but the search is exact; say search: approximate",
    ),
    "a fusion of one miner": (
        {"mining/fused/miners": ["lsa"], "mining/fused/fusion": "reciprocal-rank"},
        "mining.fused: fusion is reciprocal-rank, but lsa is the only miner, so nothing is fused",
    ),
    "more negatives than candidates where a miner has a margin": (
        {"mining/fused/negatives": 99, "mining/fused/filter": ["lsa"], "mining/fused/margin": {"bm25": 1}},
        "at most 98 candidates",
    ),
    "more negatives than ranks": (
        {"mining/fused/skip": 4, "mining/fused/last_rank": 6},
        "mining.fused: negatives is 3 after skip: 4, but last_rank is 6; raise it to 7 at least",
    ),
    "more negatives than a judge scores": (
        {"mining/fused/judge": {"teacher": "bm25", "p": 0.9}, "mining/fused/negatives": 6},
        "mining.fused.judge: negatives is 6, but the teacher scores 6 documents of a row, 5 beside its own",
    ),
    "an unknown judge": (
        {"mining/fused/judge": {"teacher": "bn25"}},
        "mining.fused.judge: bn25 is not in teachers; did you mean bm25?",
    ),
    "more negatives than are mined": (
        {"stages/supervised/negatives": 4},
        "stage supervised: negatives is 4, but mining.fused makes 3",
    ),
    "more documents than candidates": (
        {"teachers/bm25/documents": 52},
        "teachers.bm25: documents is 52, but depth 50 of lsa gives at most 50 candidates beside the positive",
    ),
    "more documents than are scored": (
        {"stages/distillation/documents": 7},
        "stage distillation: documents is 7, but teachers.bm25 makes 6",
    ),
    "an ensemble of one": (
        {"teachers/both": {"ensemble": {"members": ["bm25"]}}, "stages/distillation/teacher": "both"},
        "teachers.both: bm25 is the only member, so there is nothing to average",
    ),
    "an ensemble of itself": (
        {"teachers/both": {"ensemble": {"members": ["bm25", "both"]}}, "stages/distillation/teacher": "both"},
        "teachers.both: the ensemble is a member of itself",
    ),
    "an ensemble of an ensemble": (
        {
            "teachers/inner": {"ensemble": {"members": ["bm25", "both"]}},
            "teachers/both": {"ensemble": {"members": ["bm25", "inner"]}},
            "stages/distillation/teacher": "both",
        },
        "teachers.both: member inner is an ensemble; name the members of that one",
    ),
    "an ensemble of one teacher under two names": (
        {
            "teachers/other": EMBEDDED["teachers"]["bm25"],
            "teachers/both": {"ensemble": {"members": ["bm25", "other"]}},
            "stages/distillation/teacher": "both",
        },
        "teachers.both: members bm25 and other are the same; name one of them",
    ),
    "an ensemble whose members score another number of documents": (
        {
            "teachers/other": {"bm25": {"k1": 1.5}, "miners": ["lsa"], "documents": 7},
            "teachers/both": {"ensemble": {"members": ["bm25", "other"]}},
            "stages/distillation/teacher": "both",
        },
        "teachers.both: bm25 and other score different documents: documents is 6 in the one and 7 in the other",
    ),
    "an ensemble whose members score other candidates": (
        {
            "teachers/other": {"bm25": {"k1": 1.5}, "miners": ["lsa", "bm25"], "documents": 6},
            "teachers/both": {"ensemble": {"members": ["bm25", "other"]}},
            "stages/distillation/teacher": "both",
        },
        "different documents: miners is lsa in the one and lsa, bm25 in the other; give both the same",
    ),
    "an ensemble of an unknown teacher": (
        {"teachers/both": {"ensemble": {"members": ["bm25", "bn25"]}}, "stages/distillation/teacher": "both"},
        "teachers.both: bn25 is not in teachers; did you mean bm25?",
    ),
    "a weight of no member": (
        {
            "teachers/other": {"bm25": {"k1": 1.5}, "miners": ["lsa"], "documents": 6},
            "teachers/both": {"ensemble": {"members": ["bm25", "other"], "weights": {"otter": 2}}},
            "stages/distillation/teacher": "both",
        },
        "teachers.both.ensemble.weights: otter is not in teachers.both.ensemble.members; did you mean other?",
    ),
    "an ensemble that says what it scores": (
        {
            "teachers/both": {"ensemble": {"members": ["bm25", "x"]}, "documents": 6},
            "stages/distillation/teacher": "both",
        },
        "teachers.both: documents means nothing beside ensemble",
    ),
    "a teacher that does not say what it scores": (
        {"teachers/other": {"bm25": {}}},
        "teachers.other: miners is missing",
    ),
    "more documents than an ensemble scores": (
        {
            "teachers/other": {"bm25": {"k1": 1.5}, "miners": ["lsa"], "documents": 6},
            "teachers/both": {"ensemble": {"members": ["bm25", "other"]}},
            "stages/distillation/teacher": "both",
            "stages/distillation/documents": 7,
        },
        "stage distillation: documents is 7, but teachers.both makes 6",
    ),
    "one miner under two names": (
        {"miners/other": EMBEDDED["miners"]["bm25"], "mining/fused/miners": ["bm25", "other"]},
        "mining.fused: miners bm25 and other are the same",
    ),
    "nothing asked of an entry": (
        {"mining/pairs": {"miners": ["lsa"], "negatives": 0}, "stages/unsupervised/pairs": "pairs"},
        "mining.pairs: negatives is 0, and nothing is asked of the rows; ask for negatives or consistency",
    ),
    "a place among more than are found": (
        {"mining/fused/consistency": 51},
        "mining.fused: consistency is 51, but bm25 finds 50 candidates; ask for a place among fewer, or raise",
    ),
    "negatives of an entry that makes none": (
        {"mining/fused/negatives": 0, "mining/fused/consistency": 2},
        "stage supervised: negatives is 3, but mining.fused makes 0; lower the one or raise the other",
    ),
    "negatives for a stage that uses none": (
        {"stages/unsupervised/pairs": "fused"},
        "stage unsupervised: mining.fused makes 3 negatives, which are no pairs; name an entry with negatives: 0",
    ),
    "a pool of fewer documents than the depth": (
        {"miners/lsa/lsa": {"pool": 3}, "mining/fused/miners": ["lsa"]},
        "miners.lsa.lsa: pool is 3, less than the depth (50); ask for more documents",
    ),
    "miners that search different pools": (
        {"miners/lsa/lsa": {"pool": 3000}},
        "mining.fused: miner bm25 searches all documents, and lsa a pool of 3000; give both the same pool",
    ),
    "miners that search different corpora": (
        {"miners/lsa/corpus": "numpy"},
        "mining.fused: miner bm25 searches the source's own documents, and lsa numpy; give both the same corpus",
    ),
    "a corpus that is no collection": (
        {"miners/bm25/corpus": "nunpy", "miners/lsa/corpus": "nunpy"},
        "miners.bm25.corpus: nunpy is not in collections; did you mean numpy?",
    ),
    "nothing to evaluate on": (
        {"collections": {"numpy": {"package": "numpy", "evaluate": False}}},
        "collections: each of them says evaluate: false; leave it out of one at least",
    ),
    "a corpus of several collections": (
        {
            "collections/cqadupstack": {"registry": "cqadupstack"},
            "miners/bm25/corpus": "cqadupstack",
            "miners/lsa/corpus": "cqadupstack",
        },
        "miners.bm25.corpus: cqadupstack has several corpora: name one of cqadupstack-android",
    ),
    "no scores": (
        {"stages/distillation/teacher": None},
        "stage distillation: source pandas has no scores; name an entry of teachers",
    ),
    "no negatives": (
        {"stages/supervised/mining": None},
        "stage supervised: source scipy has no negatives; name an entry of mining",
    ),
    "one source twice": (
        {"stages/supervised/sources": ["scipy", "scipy"]},
        "two sources are called scipy; name each source once",
    ),
    "nothing to contrast": ({"stages/unsupervised/batch_size": 1}, "stage unsupervised: batch_size is 1"),
    "nothing but negatives to contrast": ({"stages/supervised/batch_size": 1}, "stage supervised: batch_size is 1"),
    "a setting of another stage": (
        {"stages/supervised/documents": 6},
        "stages.supervised: the supervised stage does not use documents; remove it",
    ),
    "a setting of another stage in a recipe": (
        {"recipes": {"r": {"base": "tiny", "stages": [{"distillation": {"temperature": 0.1}}]}}},
        "recipes.r, stage distillation: the distillation stage does not use temperature",
    ),
    "a prompt that fills a query": (
        {
            "prompts/search/query": "find in all that is written here what answers: ",
            "stages/unsupervised/query_length": 9,
        },
        "stage unsupervised: query_length is 9, which the prompt",
    ),
    "a prompt that fills a document": (
        {"prompts/search/document": "word " * 70},
        "document_length is 63, which the prompt",
    ),
    "a prompt that fills a query in evaluation alone": (
        {"collections/numpy/query_length": 4, "prompts/search/query": "search query: "},
        "recipes.colbert-zero, on numpy: query_length is 4, which the prompt",
    ),
    "heads that do not share a model": (
        {"models/tiny/random/hidden": 130},
        "models.tiny.random: hidden is 130, which 4 heads do not share evenly; set it to a multiple of 8",
    ),
    "an odd head": ({"models/tiny/random/hidden": 20}, "hidden is 20, which 4 heads"),
    "texts that are both too short and too long": (
        {"shards/minimum_characters": 30, "shards/maximum_characters": 20},
        "shards: maximum_characters is 20, less than minimum_characters (30)",
    ),
    "no steps to evaluate at": (
        {"stages/unsupervised/evaluate": {"steps": [], "collections": ["numpy"]}},
        "stages.unsupervised.evaluate.steps: there is nothing in it",
    ),
    "a large collection to evaluate on in a training": (
        {
            "collections/nq": {"registry": "nq"},
            "stages/unsupervised/evaluate": {"steps": [8], "collections": ["nq"]},
        },
        "stage unsupervised, evaluate: nq has 2681468 documents, too many to evaluate on while training",
    ),
    "more processes than rows": (
        {"resources": {"distillation": {"gpu": 8, "nodes": 4}}},
        "resources.distillation: batch_size is 16, but resources give the stage 32 processes",
    ),
    "scores for a supervised stage": (
        {"sources/s": {"registry": "lightonai-bge-gemma"}, "stages/supervised/sources": ["s"]},
        "source ms-marco-en-bge-gemma has scores already, so it is for distillation without a teacher only",
    ),
    "scores for a teacher": (
        {"sources/s": {"registry": "lightonai-bge-gemma"}, "stages/distillation/sources": ["s"]},
        "source ms-marco-en-bge-gemma has scores already, so it needs no teacher",
    ),
    "scores for a vocabulary": (
        {"sources/s": {"registry": "lightonai-bge-gemma"}, "models/tiny/random/sources": ["s"]},
        "models.tiny.random: source ms-marco-en-bge-gemma has scores, not rows of texts",
    ),
    "more documents than a source has scores": (
        {
            "sources/s": {"registry": "lightonai-bge-gemma"},
            "stages/distillation/sources": ["s"],
            "stages/distillation/teacher": None,
            "stages/distillation/documents": 33,
        },
        "documents is 33, but source ms-marco-en-bge-gemma has 32 scored documents per query",
    ),
    "pairs without negatives of the registry": (
        {
            "sources/s": {"registry": "nomic-unsupervised/squad"},
            "stages/supervised/sources": ["s"],
            "stages/supervised/mining": None,
        },
        "source squad has no negatives",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_one_line_when_planning(name):
    changes, words = CONTRADICTIONS[name]
    with pytest.raises(UserError, match=r"^config.yaml: ") as caught:
        plan(changes)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"mining/fused/negatives": 98},
        {"mining/fused/negatives": 90, "mining/fused/skip": 8, "mining/fused/last_rank": 98},
        {"mining/fused/negatives": 99, "mining/fused/filter": ["lsa"]},
        {"mining/fused/consistency": 50},
        {"mining/fused/judge": {"teacher": "bm25", "p": 0.9}, "mining/fused/negatives": 5},
        {"mining/fused/judge": {"teacher": "bm25"}, "mining/fused/negatives": 6},
        {"teachers/bm25/documents": 51},
        {"stages/supervised/negatives": 1, "stages/distillation/documents": 2},
        {"stages/distillation/batch_size": 1, "stages/supervised/batch_size": 2},
        {"recipes/colbert-zero/every_stage": {"temperature": 0.3, "documents": 4}},
        {"models/tiny/random/hidden": 24},
        {"shards/minimum_characters": 30, "shards/maximum_characters": 30},
        {"resources": {"distillation": {"gpu": 8, "nodes": 2}}},
        {
            "sources/s": {"registry": "lightonai-bge-gemma"},
            "stages/distillation/sources": ["s"],
            "stages/distillation/teacher": None,
            "stages/distillation/documents": 32,
        },
        {"miners/unused": {"bm25": {}, "depth": 1}, "mining/unused": {"miners": ["unused"], "negatives": 5}},
    ],
    ids=str,
)
def test_the_limit_itself_is_fine(changes):
    assert plan(changes).specs


def test_beside_a_prompt_of_two_words_there_is_room_for_two_tokens_and_a_marker():
    check_room({"query_prompt": "a b", "query_length": 5}, "here")
    with pytest.raises(UserError, match=r"^here: query_length is 4, which the prompt 'a b' fills"):
        check_room({"query_prompt": "a b", "query_length": 4}, "here")


def test_a_collection_of_fewer_than_100000_documents_can_be_evaluated_on_in_a_training():
    check_small("x", Spec("collections", "x", {"documents": 99_999}), "here")
    with pytest.raises(UserError, match=r"^here: x has 100000 documents, .* fewer than 100000$"):
        check_small("x", Spec("collections", "x", {"documents": 100_000}), "here")


# Lengths at evaluation


def encodings(study, row_name, field="query_length"):
    """A field of the encoding with which a row is evaluated on each collection."""
    (row,) = [row for row in study.rows if row.name == row_name]
    return {
        name: study.inputs_of(_run(study, spec))[0].settings["encoding"][field] for name, spec in row.measures.items()
    }


def _run(study, measures):
    return study.inputs_of(measures)[0]


def test_the_papers_queries_have_the_lengths_of_the_authors_script_and_never_fewer_than_in_training():
    lengths = encodings(plan({}, PAPER, ROOT), "colbert-zero")
    assert len(lengths) == 26
    longer = {"arguana": 64, "climate-fever": 64, "scifact": 48, "trec-covid": 48, "scidocs": 48}
    assert lengths == dict.fromkeys(lengths, 39) | longer
    changes = {f"stages/{stage}/query_length": 256 for stage in ("unsupervised", "supervised", "distillation")}
    long = encodings(plan(changes, PAPER, ROOT), "colbert-zero")
    assert set(long.values()) == {256}


def test_a_documents_own_query_is_dropped_on_every_collection_of_the_registry_and_on_no_other():
    for config, folder, drops in ((PAPER, ROOT, {True}), (EMBEDDED, ROOT / "local", {False})):
        runs = [spec for spec in plan({}, config, folder).specs.values() if spec.kind == "runs"]
        assert {spec.settings["drop_self"] for spec in runs} == drops


def test_a_recipes_lengths_at_evaluation_go_before_the_collections_and_those_before_the_models():
    study = plan(
        {
            "recipes/longer": EMBEDDED["recipes"]["colbert-zero"] | {"evaluate_with": {"document_length": 100}},
            "collections/numpy/document_length": 50,
            "collections/numpy/query_length": 50,
        }
    )
    documents = {"networkx": 87, "numpy": 50, "sqlalchemy": 87, "fonttools": 87}
    assert encodings(study, "colbert-zero", "document_length") == documents
    assert encodings(study, "longer", "document_length") == dict.fromkeys(documents, 100)
    assert encodings(study, "longer")["numpy"] == encodings(study, "untrained")["numpy"] == 50
    by_name = {row.name: row for row in study.rows}
    assert by_name["longer"].stages == by_name["colbert-zero"].stages


def test_only_the_indexes_of_collections_with_another_length_get_another_name():
    before, after = plan({}), plan({"collections/numpy/query_length": 50})
    moved = {spec.name for spec in after.specs.values()} - {spec.name for spec in before.specs.values()}
    labels = {name.rpartition("-")[0] for name in moved}
    assert labels == {
        "indexes/numpy", "runs/colbert.numpy", "measures/numpy", "audits/embedded", "reports/embedded",
    }  # fmt: skip
    for name in moved:
        if name.startswith("indexes/"):
            assert after.specs[name[-12:]].settings["changed"] == ["query_length"]


def test_prompts_at_evaluation_can_be_others_than_in_training():
    bare = {"evaluate_with": {"prompts": "none"}, "mismatch": "allowed"}
    study = plan({"recipes/bare": EMBEDDED["recipes"]["colbert-zero"] | bare})
    assert set(encodings(study, "bare", "query_prompt").values()) == {""}
    assert encodings(study, "bare") == encodings(study, "colbert-zero")


def test_the_same_lengths_said_again_move_no_key():
    changes = {
        "collections/numpy/query_length": 39,
        "recipes/colbert-zero/evaluate_with": {"query_length": 39, "document_length": 87, "prompts": "search"},
    }
    assert plan(changes).report.key == plan({}).report.key


def test_evaluations_during_training_have_the_collections_lengths():
    study = plan(
        {
            "stages/unsupervised/evaluate": {"steps": [1], "collections": ["numpy", "networkx"]},
            "collections/numpy/query_length": 50,
        }
    )
    for planned in study.evaluations.values():
        lengths = {name.split("-")[0]: settings for name, settings in planned["collections"].items()}
        assert lengths == {
            "collections/package.numpy": {"drop_self": False, "query_length": 50, "document_length": 63},
            "collections/package.networkx": {"drop_self": False, "query_length": 39, "document_length": 63},
        }


# What a model's folder was saved with


@pytest.fixture
def saved(tmp_path):
    """A study's folder with a late-interaction model in it, and the changes that make it a baseline."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    said = {
        "query_length": 39,
        "document_length": 519,
        "do_query_expansion": True,
        "prompts": {"query": "search_query: ", "document": "search_document: "},
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    (folder / "config.json").write_text(json.dumps({"model_type": "modernbert", "max_position_embeddings": 8192}))
    (folder / "modules.json").write_text("[]")
    return lambda **given: plan(
        {
            "models/theirs": {"folder": "theirs"},
            "baselines/theirs": {"late_interaction": {"model": "theirs", **given}},
        },
        folder=tmp_path,
    )


def test_a_baseline_has_the_prompts_and_lengths_that_its_model_was_saved_with(saved):
    study = saved()
    for field, value in {
        "query_prompt": "search_query: ",
        "document_prompt": "search_document: ",
        "query_length": 39,
        "document_length": 519,
        "query_expansion": True,
    }.items():
        assert set(encodings(study, "theirs", field).values()) == {value}
    (row,) = [row for row in study.rows if row.name == "theirs"]
    index = study.inputs_of(_run(study, row.measures["numpy"]))[0]
    assert index.settings["projection"] == {"dimensions": 128, "seed": 42}
    again = saved(prompts="search", query_length=39, document_length=519, query_expansion=True)
    assert again.report.key == study.report.key


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"query_length": 32}, "query_length is 32 here, 39 there"),
        ({"document_length": 300}, "document_length is 300 here, 519 there"),
        ({"prompts": "none"}, "query_prompt is '' here, 'search_query: ' there"),
        ({"query_expansion": False}, "query_expansion is False here, True there"),
    ],
)
def test_a_baseline_with_other_settings_is_refused_unless_they_are_meant(saved, given, words):
    with pytest.raises(UserError, match="say that they are meant with override: true") as caught:
        saved(**given)
    assert words in str(caught.value)
    study = saved(**given, override=True)
    (row,) = [row for row in study.rows if row.name == "theirs"]
    index = study.inputs_of(_run(study, row.measures["numpy"]))[0]
    assert index.settings["changed"]


def test_a_baseline_whose_model_says_nothing_needs_prompts_and_lengths():
    assert set(encodings(plan({}), "untrained", "query_expansion").values()) == {False}
    for missing in ("prompts", "query_length", "document_length"):
        given = {key: value for key, value in EMBEDDED["baselines"]["untrained"]["late_interaction"].items()}
        del given[missing]
        with pytest.raises(UserError, match=rf"^config.yaml: baselines.untrained: .* does not say its {missing}"):
            plan({"baselines/untrained/late_interaction": given})


def test_what_a_baseline_of_the_hub_leaves_out_is_read_when_it_is_there():
    changes = {
        "models/theirs": {"registry": "colbert-zero"},
        "baselines/theirs": {"late_interaction": {"model": "theirs", "document_length": 300}},
        "collections": {"arguana": {"registry": "arguana"}, "nfcorpus": {"registry": "nfcorpus"}},
    }
    study = plan(changes)
    (row,) = [row for row in study.rows if row.name == "theirs"]
    arguana, nfcorpus = (study.inputs_of(_run(study, row.measures[name]))[0] for name in ("arguana", "nfcorpus"))
    assert arguana.settings["encoding"] == nfcorpus.settings["encoding"] == {"document_length": 300}
    assert arguana.settings["minimum_lengths"] == {"query_length": 64}
    assert "minimum_lengths" not in nfcorpus.settings
    assert "changed" not in nfcorpus.settings
    changes["baselines/theirs"]["late_interaction"]["override"] = True
    study = plan(changes)
    (row,) = [row for row in study.rows if row.name == "theirs"]
    assert study.inputs_of(_run(study, row.measures["nfcorpus"]))[0].settings["changed"] == ["document_length"]


def test_a_corpus_to_mine_in_is_an_input_of_all_that_is_made_of_its_documents():
    """And of nothing else: the keys of what a miner does not decide stay."""
    before, after = plan({}), plan({"miners/bm25/corpus": "numpy", "miners/lsa/corpus": "numpy"})
    (corpus,) = (spec.name for spec in after.specs.values() if spec.label == "package.numpy")
    mined = ("candidates", "negatives", "scores")
    for spec in after.specs.values():
        assert spec.inputs.get("corpus", []) == ([corpus] if spec.kind in mined else [])
    stays = ("sources", "collections", "shards", "bases")
    for kind in stays:
        assert {key for key, spec in before.specs.items() if spec.kind == kind} == {
            key for key, spec in after.specs.items() if spec.kind == kind
        }


def test_a_collection_that_is_not_evaluated_on_is_mined_in_and_no_column():
    mined = {"miners/bm25/corpus": "numpy", "miners/lsa/corpus": "numpy"}
    with_column, without = plan(mined), plan(mined | {"collections/numpy/evaluate": False})
    assert {*with_column.rows[0].measures} - {*without.rows[0].measures} == {"numpy"}
    gone = {spec.name for spec in with_column.specs.values()} - {spec.name for spec in without.specs.values()}
    kinds = {"indexes", "runs", "measures", "contamination", "audits", "reports"}
    assert {name.partition("/")[0] for name in gone} == kinds, "what is trained stays"
    for spec in without.specs.values():
        assert spec.kind not in ("indexes", "runs", "measures") or "numpy" not in spec.label
        collections = spec.inputs.get("collections", []) + spec.inputs.get("collection", [])
        assert not any(name.startswith("collections/package.numpy-") for name in collections)
    assert plan({"collections/numpy/evaluate": True}).report.key == plan({}).report.key


def test_a_group_that_is_not_evaluated_on_is_known_by_its_name():
    group = {"collections/forums": {"registry": "cqadupstack", "evaluate": False}}
    evaluate = {"stages/unsupervised/evaluate": {"steps": [1], "collections": ["forums"]}}
    study = plan(group | evaluate)
    assert study.report.key == plan({}).report.key and study.report.settings["groups"] == {}
    assert {len(planned["collections"]) for planned in study.evaluations.values()} == {12}


def test_an_unsupervised_stage_trains_on_the_pairs_that_are_consistent():
    pairs = {"miners": ["lsa"], "negatives": 0, "consistency": 2}
    study = plan({"mining/pairs": pairs, "stages/unsupervised/pairs": "pairs"})
    trained = [spec for spec in study.specs.values() if spec.kind == "models" and spec.label == "unsupervised"]
    for model in trained:
        rows = [study.spec_of(name[-12:]) for name in model.inputs["rows"]]
        assert {(spec.kind, spec.settings["negatives"], spec.settings["consistency"]) for spec in rows} == {
            ("negatives", 0, 2)
        }
    assert trained and not [spec for spec in plan({}).specs.values() if "consistency" in spec.settings]
