"""Settings of a command line: a path into the config, and YAML."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.graph.assignments import with_assignments
from colbert_zero.graph.console import UserError
from colbert_zero.graph.strict_yaml import dump

CONFIG = {
    "study": "étude",
    "seed": 7,
    "stages": {"supervised": {"sources": ["a", "b"], "batch_size": 8}},
    "recipes": {"v1.5": {"stages": ["unsupervised", {"supervised": {"batch_size": 4}}]}, "v1": {"base": "x"}},
}


@pytest.mark.parametrize(
    ("assignment", "place", "value"),
    [
        ("seed=8", ("seed",), 8),
        ("stages.supervised.batch_size=1.5", ("stages", "supervised", "batch_size"), 1.5),
        ("stages.supervised.sources=[c]", ("stages", "supervised", "sources"), ["c"]),
        ("stages.supervised.sources.1=c", ("stages", "supervised", "sources", 1), "c"),
        ("stages.distillation.teacher=null", ("stages", "distillation", "teacher"), None),
        ("recipes.v1.5.base=y", ("recipes", "v1.5", "base"), "y"),
        ("recipes.v1.base=y", ("recipes", "v1", "base"), "y"),
        ("recipes.v1.5.stages.1.supervised=2", ("recipes", "v1.5", "stages", 1, "supervised"), 2),
        ('prompts.own={query: "q: ", document: ""}', ("prompts", "own"), {"query": "q: ", "document": ""}),
        ('study="a=b"', ("study",), "a=b"),
    ],
)  # fmt: skip
def test_a_path_leads_to_one_setting(assignment, place, value):
    before = repr(CONFIG)
    found = with_assignments(CONFIG, [assignment])
    for name in place:
        found = found[name]
    assert found == value
    assert repr(CONFIG) == before, "the config itself stays as it is"


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("seed", "write a setting and its value"),
        ("=1", "write a setting and its value"),
        ("stages..x=1", "write a setting and its value"),
        ("seed=", "there is no value"),
        ("seed.x=1", "seed is 7, which has no settings in it"),
        ("study.x=1", 'study is "étude", which has no settings in it'),
        ("stages.supervised.sources.2=c", "name an item by its number, 0 to 1"),
        ("stages.supervised.sources.x=c", "name an item by its number, 0 to 1"),
        ("seed=!!python/object:os.system x", "the tag"),
        ("seed=\ud800", "not UTF-8"),
    ],
)
def test_what_cannot_be_meant_is_refused(assignment, problem):
    with pytest.raises(UserError, match=problem):
        with_assignments(CONFIG, [assignment])


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.text("xyz: ", max_size=5), min_size=1))
def test_what_is_set_is_what_is_read(values):
    assignments = [f"prompts.{name}={dump({'query': value})}" for name, value in values.items()]
    assert with_assignments({}, assignments) == {"prompts": {name: {"query": value} for name, value in values.items()}}
