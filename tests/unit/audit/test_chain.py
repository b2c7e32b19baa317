"""Where a consumer and its input disagree, the one at fault is named, once."""

from dataclasses import replace

import pytest

from colbert_zero.audit.alone import Summary
from colbert_zero.audit.chain import check_chain
from colbert_zero.audit.findings import Check

HOUR = 3600.0


def record_of(summary):
    return {"spec": summary.spec, "files": summary.files, "manifest": summary.manifest}


def made(number, **inputs):
    """An artifact made at an hour, from others."""
    records = {name: record_of(summary) for name, summary in inputs.items()}
    return Summary(f"s{number}", f"f{number}", f"m{number}", 2, records, number * HOUR, number * HOUR + 1, 0.0)


@pytest.fixture
def study():
    """Two consumers of one input, and what is made from both of them."""
    names = ("shards/a", "candidates/b", "candidates/c", "negatives/d")
    a = made(1)
    b, c = made(2, **{names[0]: a}), made(3, **{names[0]: a})
    d = made(4, **{names[1]: b, names[2]: c})
    return dict(zip(names, (a, b, c, d), strict=True))


def attributed(study):
    return [(finding.artifact, finding.check) for finding in check_chain(study)]


def test_an_intact_chain_has_no_finding(study):
    assert attributed(study) == []


def test_an_input_with_another_record_than_all_consumers_say_is_at_fault(study):
    study["shards/a"] = replace(study["shards/a"], manifest="other")
    assert attributed(study) == [("shards/a", Check.CHAIN)]


def test_an_input_with_other_files_than_all_consumers_say_is_at_fault(study):
    study["shards/a"] = replace(study["shards/a"], manifest="other", files="other")
    assert attributed(study) == [("shards/a", Check.CONSUMERS)]


def test_a_consumer_whose_record_was_edited_is_at_fault_as_its_own_consumers_say(study):
    edited = {"shards/a": record_of(study["shards/a"]) | {"manifest": "other"}}
    study["candidates/b"] = replace(study["candidates/b"], manifest="edited", inputs=edited)
    assert attributed(study) == [("candidates/b", Check.CHAIN)]


def test_a_consumer_made_from_an_earlier_input_is_named_where_others_are_of_the_one_that_is_there(study):
    again = replace(study["shards/a"], manifest="again")
    study["shards/a"] = again
    study["candidates/b"] = replace(study["candidates/b"], inputs={"shards/a": record_of(again)})
    assert attributed(study) == [("candidates/c", Check.CHAIN)]


def test_at_the_end_of_the_chain_the_one_that_was_written_later_is_at_fault(study):
    last = study["negatives/d"]
    edited = dict(last.inputs) | {"candidates/b": dict(last.inputs["candidates/b"]) | {"manifest": "other"}}
    study["negatives/d"] = replace(last, manifest="edited", inputs=edited, edited=HOUR)
    assert attributed(study) == [("negatives/d", Check.CHAIN)]
    study["negatives/d"] = replace(last, manifest="edited", inputs=edited, edited=0.0)
    assert attributed(study) == [("candidates/b", Check.CHAIN)]


def test_a_record_that_contradicts_itself_was_edited(study):
    last = study["negatives/d"]
    for part in ("spec", "files"):
        edited = dict(last.inputs) | {"candidates/b": dict(last.inputs["candidates/b"]) | {part: "other"}}
        study["negatives/d"] = replace(last, inputs=edited)
        assert attributed(study) == [("negatives/d", Check.CHAIN)]


def test_an_input_that_is_not_there_is_named_once_with_all_its_consumers(study):
    del study["shards/a"]
    assert attributed(study) == [("shards/a", Check.CONSUMERS)]


def test_an_input_that_cannot_be_read_is_told_elsewhere(study):
    study["shards/a"] = None
    assert attributed(study) == []


def test_what_was_made_before_its_input_has_a_time_that_is_not_its_own(study):
    study["candidates/b"] = replace(study["candidates/b"], started=0.0)
    assert attributed(study) == [("candidates/b", Check.CONSUMERS)]
    study["candidates/b"] = replace(study["candidates/b"], started=HOUR - 100)
    assert attributed(study) == [], "clocks of nodes differ"


def test_an_older_record_has_of_its_inputs_the_files_alone(study):
    study["candidates/b"] = replace(study["candidates/b"], record=1, inputs={"shards/a": "f1"})
    study["shards/a"] = replace(study["shards/a"], manifest="other")
    study["candidates/c"] = replace(study["candidates/c"], record=1, inputs={"shards/a": "f1"}, started=0.0)
    assert attributed(study) == []
    study["shards/a"] = replace(study["shards/a"], files="other")
    assert attributed(study) == [("shards/a", Check.CONSUMERS)]
