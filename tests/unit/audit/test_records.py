"""A manifest has the form that steps write, and times and attempts that can have been."""

import hashlib
import json

import pytest

from colbert_zero.audit.records import problem_with_form, problems_with_history, problems_with_training

NAME = "models/supervised-0123456789ab"
CODE, OTHER = "a" * 64, "b" * 64


def attempt(began, done, /, **more):
    minutes = {"started": f"2026-01-01T10:{began:02}:00+00:00", "ended": f"2026-01-01T10:{done:02}:00+00:00"}
    return {**minutes, "end": "published", "host": "node", "name": NAME, "code": CODE} | more


def killed(start, **more):
    return {key: value for key, value in attempt(start, start, **more).items() if key != "ended"} | {"end": "killed"}


def history(*attempts, seconds=60.0):
    code = {"digest": CODE, "parts": {"package": CODE}, "commit": None, "changed": []}
    manifest = {"record": 2, "seconds": seconds, "code": code, "attempts": list(attempts)}
    return " ".join(problems_with_history(manifest, NAME))


@pytest.mark.parametrize(
    "attempts",
    [
        [attempt(1, 2)],
        [killed(0), attempt(1, 2)],
        [attempt(0, 1, end="MemoryError: "), attempt(1, 2)],
        [{"end": "its record cannot be read"}, attempt(1, 2)],
        [attempt(2, 3, end="stopped", host="ahead"), attempt(2, 3)],
        [killed(0, code=OTHER), attempt(1, 2)],
    ],
    ids=["one", "killed before", "failed before", "damaged before", "a clock ahead", "other code before"],
)
def test_attempts_that_can_have_been_are_no_problem(attempts):
    assert history(*attempts) == ""


@pytest.mark.parametrize(
    ("attempts", "words"),
    [
        ([attempt(1, 2), killed(3)], "has no ended"),
        ([attempt(1, 2, end="killed")], "otherwise than published"),
        ([attempt(2, 1)], "ended before it started"),
        ([attempt(9, 10, end="failed"), attempt(1, 2)], "earlier than the one before"),
        ([attempt(0, 1), attempt(1, 2)], "after it was published"),
        ([attempt(1, 2, name=NAME.replace("0", "1"))], "has an attempt at"),
        ([attempt(1, 2, code=OTHER)], "other code"),
        ([attempt(1, 2, started="2026-01-01T10:01:00")], "no time zone"),
        ([attempt(1, 2, started="then")], "a time that is none"),
        ([attempt(1, 2, started="2999-01-01T10:01:00+00:00", ended="2999-01-01T10:02:00+00:00")], "in the future"),
        ([attempt(1, 40)], "says that it took"),
    ],
)
def test_attempts_that_cannot_have_been_are_told(attempts, words):
    assert words in history(*attempts)


def test_layout_and_order_are_those_of_the_steps():
    manifest = {
        "name": NAME,
        "inputs": {},
        "outputs": {},
        "facts": {"a": "line\n  and \ttab", "b": 1.0e-7},
        "seconds": 1.0,
        "code": {"digest": CODE},
        "packages": {},
        "python": "3.11",
        "platform": "Linux",
        "attempts": [{"end": "published"}],
    }
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert problem_with_form(manifest, text) is None
    for other in (text[:-1], text.replace('"b"', '"a": 1,\n  "b"'), json.dumps(manifest, indent=1), text.upper()):
        assert problem_with_form(manifest, other) is not None
    assert "attempts" in problem_with_form(manifest | {"attempts": []}, text)


LINES = [f'{{"step": {step}}}\n'.encode() for step in range(1, 11)]


def trained(tmp_path, *attempts):
    losses = tmp_path / "losses.jsonl"
    losses.write_bytes(b"".join(LINES))
    records = [
        {"name": NAME, "start_step": start, "end_step": end, "history": digest or upto(end)}
        for start, end, digest in attempts
    ]
    return " ".join(problems_with_training({"record": 2, "attempts": records}, losses))


def upto(step):
    return hashlib.sha256(b"".join(LINES[:step])).hexdigest()


def test_attempts_of_a_training_follow_each_other(tmp_path):
    assert trained(tmp_path, (0, 10, None)) == ""
    assert trained(tmp_path, (0, 4, None), (4, 7, None), (7, 10, None)) == ""
    assert trained(tmp_path, (0, 4, OTHER), (2, 10, None)) == "", "a damaged checkpoint: steps were trained again"
    assert "after other losses" in trained(tmp_path, (0, 4, OTHER), (4, 10, None))
    assert "after other losses" in trained(tmp_path, (0, 10, OTHER))
    assert "none had come further" in trained(tmp_path, (0, 4, None), (5, 10, None))
    assert "has 10 steps" in trained(tmp_path, (0, 9, None))
    assert "started at step 11" in trained(tmp_path, (11, 10, None))
