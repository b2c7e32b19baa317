"""Whether a manifest can be what a step wrote: its form, its times, its attempts."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import fastjsonschema

from colbert_zero.graph.artifact import RECORD
from colbert_zero.graph.config import read_yaml
from colbert_zero.graph.paths import WORKFLOW

Json = Mapping[str, Any]

SCHEMA_FILE = WORKFLOW / "schemas" / "manifest.schema.yaml"
OLDER = 1
"""The format of manifests that name none."""
CLOCK_SKEW_SECONDS = 120.0
"""How much the clocks of two nodes may differ."""
UNTIMED_SECONDS = 60.0
"""How much of an attempt its `seconds` may leave out: what is written before and after them, on a slow file system."""
WHITE_SPACE = re.compile(r"\n *")


def record_of(manifest: Json) -> Any:
    """The format of a manifest."""
    return manifest.get("record", OLDER)


@cache
def _validator(definition: str) -> Callable[[Any], Any]:
    schema = dict(read_yaml(SCHEMA_FILE))
    validate: Callable[[Any], Any] = fastjsonschema.compile(schema | {"$ref": f"#/definitions/{definition}"})
    return validate


def problem_with_form(manifest: Json, text: str) -> str | None:
    """What is wrong with the form of a manifest whose file holds `text`, in words; None if nothing is."""
    older = record_of(manifest) == OLDER
    try:
        _validator("older" if older else "record")(manifest)
    except fastjsonschema.JsonSchemaException as error:
        return f"is not as steps write it: {str(error)[:300]}"
    # A line end within a text is escaped, so what is taken away here is layout. (json indents in Python, four times
    # slower than it writes a line.)
    try:
        line = json.dumps(manifest, sort_keys=True, ensure_ascii=False, separators=(",", ": "), allow_nan=False)
    except ValueError:
        return "holds a number that is none"
    if not text.endswith("\n") or WHITE_SPACE.sub("", text) != line:
        return "is not written as steps write it: it was edited"
    return None


def problems_with_history(manifest: Json, name: str) -> Iterator[str]:
    """What cannot be in the times and attempts of the manifest of the artifact `name`, which has the right form."""
    attempts: Sequence[Json] = manifest["attempts"]
    last = attempts[-1]
    current = record_of(manifest) == RECORD
    required = ("started", "ended", "host", *(("name", "code") if current else ()))
    if missing := [field for field in required if field not in last]:
        yield f"has a last attempt that has no {', '.join(missing)}"
        return
    if last["end"] != "published":
        yield f"has a last attempt that ended otherwise than published: {last['end'][:100]}"
    shares: Sequence[Json] = manifest.get("shares", ())
    if others := sorted({attempt["name"] for attempt in [*shares, *attempts] if attempt.get("name", name) != name}):
        yield f"has an attempt at {others[0]}"
    try:
        of_shares, spans = (
            [tuple(map(_seconds, (attempt.get("started"), attempt.get("ended")))) for attempt in records]
            for records in (shares, attempts)
        )
    except ValueError as error:
        yield f"has a time that is none: {error}"
        return
    yield from _problems_with_times(spans, manifest["seconds"])
    published = spans[-1][1]
    if published is not None and any(
        (moment or 0) > published + CLOCK_SKEW_SECONDS for span in of_shares for moment in span
    ):
        yield "has a share of the work that was done after it was published"
    if any(attempt["end"] == "published" for attempt in attempts[:-1]):
        yield "has an attempt after it was published"
    if current:
        yield from _problems_with_code(manifest["code"], last)


def _problems_with_times(spans: Sequence[Sequence[float | None]], seconds: float) -> Iterator[str]:
    latest = None
    for number, (started, ended) in enumerate(spans, start=1):
        if started is not None and ended is not None and ended < started:
            yield f"has an attempt, number {number}, that ended before it started"
        for moment in (started, ended):
            if moment is not None:
                if latest is not None and moment < latest - CLOCK_SKEW_SECONDS:
                    yield f"has an attempt, number {number}, that is earlier than the one before it"
                    return
                latest = moment
    if latest is not None and latest > time.time() + CLOCK_SKEW_SECONDS:
        yield "says that it was made in the future"
    started, ended = spans[-1]
    if started is not None and ended is not None and abs(ended - started - seconds) > UNTIMED_SECONDS:
        yield f"says that it took {seconds} s, and that its last attempt took {ended - started:.0f} s"


def _problems_with_code(code: Json, last: Json) -> Iterator[str]:
    if code["parts"]["package"] != code["digest"]:
        yield "has two digests of the package's code"
    if last["code"] != code["digest"]:
        yield "has a last attempt that ran other code than it names"
    module, modules = code.get("module"), code.get("modules", {})
    if module is not None and module not in modules:
        yield f"has no digest of {module}, which made it"


def problems_with_training(manifest: Json, losses: Path) -> Iterator[str]:
    """What cannot be in the attempts of a model, given its losses step by step.

    Of each attempt the digest of all steps until its end is on record, so the losses are those of the attempts.
    """
    attempts = [attempt for attempt in manifest["attempts"] if "end_step" in attempt]
    steps = 0
    digest, digests = hashlib.sha256(), {0: hashlib.sha256().hexdigest()}
    ends = {attempt["end_step"] for attempt in attempts}
    with losses.open("rb") as file:
        for line in file:
            digest.update(line)
            steps += 1
            if steps in ends:
                digests[steps] = digest.hexdigest()
    if record_of(manifest) == OLDER:
        return
    for number, attempt in enumerate(attempts):
        # What follows an earlier checkpoint was trained again, on a GPU with other rounding.
        end = attempt["end_step"]
        kept = all(later.get("start_step", 0) >= end for later in attempts[number + 1 :])
        if kept and attempt.get("history", digests.get(end)) != digests.get(end):
            yield f"has an attempt that ended at step {end} after other losses than those in {losses.name}"
    yield from _problems_with_steps(attempts, any("name" not in attempt for attempt in manifest["attempts"]))
    last = manifest["attempts"][-1]
    if "history" not in last or last.get("end_step") != steps:
        yield f"has a last attempt that ended at step {last.get('end_step')}, but {losses.name} has {steps} steps"


def _problems_with_steps(attempts: Sequence[Json], incomplete: bool) -> Iterator[str]:
    """What cannot be in the steps of attempts; `incomplete` if earlier code did not record the steps of each."""
    furthest = 0
    for attempt in attempts:
        start, end = attempt.get("start_step", 0), attempt["end_step"]
        if start > furthest and not incomplete:
            yield f"has an attempt that started at step {start}, but none had come further than step {furthest}"
        if end < start:
            yield f"has an attempt that started at step {start} and ended at step {end}"
        furthest = max(furthest, end)


def span(manifest: Json) -> tuple[float | None, float | None]:
    """When the last attempt of a manifest started and ended, in seconds since 1970; None where it does not say."""
    last = manifest["attempts"][-1]
    try:
        return _seconds(last.get("started")), _seconds(last.get("ended"))
    except ValueError:
        return None, None


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no time zone")
    return moment.timestamp()
