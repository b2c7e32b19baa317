"""The names of measures: each is what ir_measures computes under that name, and a mistake is one line."""

import itertools
import random

import ir_measures
import pytest

from colbert_zero.evaluation.measure import measure
from colbert_zero.graph.console import UserError
from colbert_zero.graph.measures import ALIASES, FAMILIES, VALUES, canonical_name, check_measures

DEPTH = 100
GIVEN = {"rel": "rel=2", "judged_only": "judged_only=True"}


def names_of(family):
    """The family's names with each subset of its parameters, and its aliases."""
    cutoff, parameters = FAMILIES[family]
    subsets = itertools.chain.from_iterable(
        itertools.combinations(parameters, size) for size in range(len(parameters) + 1)
    )
    inner = ["" if not subset else f"({','.join(GIVEN[name] for name in subset)})" for subset in subsets]
    spellings = [family, *(alias for alias, meant in ALIASES.items() if meant == family)]
    return [f"{spelling}{text}{'@5' if cutoff else ''}" for spelling in spellings for text in inner]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_is_computed_and_has_the_value_that_ir_measures_gives_it_alone(family):
    rng = random.Random(0)
    documents = [f"d{number}" for number in range(30)]
    qrels = {f"q{n}": {name: rng.randint(0, 3) for name in rng.sample(documents, 12)} for n in range(20)}
    run = {
        f"q{n}": [(name, 30.0 - rank) for rank, name in enumerate(rng.sample(documents, rng.randint(1, 15)))]
        for n in range(18)
    }
    names = names_of(family)
    values = measure(names, qrels, run)
    scores = {query: dict(hits) for query, hits in run.items()}
    for name in names:
        alone = {m.query_id: m.value for m in ir_measures.iter_calc([ir_measures.parse_measure(name)], qrels, scores)}
        assert {query: values[query, name] for query in qrels} == alone, name
        assert all(0 <= value <= 1 for value in alone.values()), name
        assert str(ir_measures.parse_measure(canonical_name(name))) == canonical_name(name), name
    distinct = {tuple(values[query, name] for query in qrels) for name in names}
    assert len(distinct) > 1 or not FAMILIES[family].parameters


def test_the_other_names_of_families_are_those_of_ir_measures():
    registry = ir_measures.measures.registry
    known = {name: measure.__name__ for name, measure in registry.items() if measure.__name__ in FAMILIES}
    assert {name: family for name, family in known.items() if name != family} == ALIASES
    for family, (_, parameters) in FAMILIES.items():
        assert set(parameters) <= set(registry[family].SUPPORTED_PARAMS) & set(VALUES)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ndcg@10", "did you mean nDCG@10?"),
        ("ndcg_cut_10", "did you mean nDCG@10?"),
        ("recall_100", "did you mean R@100?"),
        ("nDCG @10", "did you mean nDCG@10?"),
        ("nDGC@10", "did you mean nDCG@10?"),
        ("recip_rank", "did you mean RR@10?"),
        ("ERR@20", "there are nDCG@k, AP@k"),
        ("alpha_nDCG@10", "is not a measure"),
        ("RBP(p=0.8)", "is not a measure"),
        ("Accuracy@10", "is not a measure"),
        ("NumRet", "is not a measure"),
        ("P", "write P@10"),
        ("AP", "it would be AP@100"),
        ("R@1000", "it would be R@100; write that, or set evaluation.depth to 1000 or more"),
        ("nDCG@10.5", "the cutoff is a number of documents"),
        ("nDCG@0", "the cutoff is a number of documents"),
        ("R@0", "the cutoff is a number of documents"),
        ("R@-1", "the cutoff is a number of documents"),
        ("R@010", "the cutoff is a number of documents"),
        ("R@1e1", "the cutoff is a number of documents"),
        ("R@True", "the cutoff is a number of documents"),
        ("R@99999999999999999999", "the cutoff is a number of documents"),
        ("nDCG@10\n", "the cutoff is a number of documents"),
        ("Rprec@10", "no cutoff; write Rprec"),
        ("P(rel=0)@10", "a grade from 1 on"),
        ("P(rel=1)@10", "write P@10"),
        ("P(cutoff=10)", "'cutoff=10' is not a parameter"),
        ("P(rel=2,rel=3)@10", "'rel=3' is not a parameter"),
        ("RR(judged_only=True)@10", "'judged_only=True' is not a parameter of it; its parameters are: rel"),
        ("Judged(rel=2)@10", "its parameters are: none"),
        ("AP(rel=2,judged_only=True)@10", "write AP(judged_only=True,rel=2)@10"),
        ("nDCG(dcg='exp-log2')@10", "is not a parameter"),
        ("", "is not a measure"),
        ("__import__('os')", "is not a measure"),
        ("x" * 10_000, "longer than the name of any measure"),
    ],
)
def test_a_mistaken_name_is_one_line(name, words):
    with pytest.raises(UserError, match=r"^evaluation.measures: ") as caught:
        check_measures(["nDCG@10", name], DEPTH)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["MRR@10", "RR@10"], "MRR@10 and RR@10 are one measure"),
        (["AP@100", "R@10", "MAP@100"], "AP@100 and MAP@100 are one measure"),
        (["R@10", "R@10"], "R@10 is twice"),
    ],
)
def test_a_measure_under_two_names_is_refused(names, words):
    with pytest.raises(UserError, match=words):
        check_measures(names, DEPTH)


def test_measures_that_differ_in_cutoff_or_parameter_are_different():
    check_measures(["nDCG@10", "nDCG@100", "P@5", "P(rel=2)@5", "MRR@10", "Bpref", "Rprec"], DEPTH)


def test_every_name_of_the_documents_is_one():
    check_measures(["nDCG@10", "AP@100", "RR@10", "P@5", "R@100", "Success@5", "Judged@10", "Rprec"], DEPTH)
