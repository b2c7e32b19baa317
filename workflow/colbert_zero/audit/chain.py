"""What artifacts say of each other: whether each is the one that others were made from.

A consumer has on record the digest of each input's spec, files and whole manifest. Where the two differ, either of them
was edited, or the input was made again. It is the input's fault where all consumers that nobody else contradicts say
the same, and the consumer's where others agree with the input as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from colbert_zero.audit.alone import Summary
from colbert_zero.audit.findings import Check, Finding
from colbert_zero.audit.records import CLOCK_SKEW_SECONDS, OLDER
from colbert_zero.graph.artifact import artifact_folder

Summaries = Mapping[str, Summary | None]
"""What was examined, by name; None for an artifact whose manifest cannot be read."""

NOTICED_SECONDS = 2.0
"""A manifest that is so much younger than the files beside it was written by hand, not by a step."""


def check_chain(summaries: Summaries) -> Iterator[Finding]:
    """Compare what each artifact has on record of its inputs with the inputs as they are."""
    consumers: dict[str, list[str]] = defaultdict(list)
    for name, summary in summaries.items():
        for input_name in summary.inputs if summary else ():
            consumers[input_name].append(name)
    faults = {
        name: {consumer: fault for consumer in using if (fault := _fault(summaries, consumer, name))}
        for name, using in consumers.items()
    }
    contradicted = {name for name, by_consumer in faults.items() if len(by_consumer) == len(consumers[name])}
    for name in sorted(consumers):
        if name not in summaries:
            yield _not_there(name, consumers[name])
        elif faults[name]:
            yield from _disagreements(name, consumers[name], faults[name], contradicted, summaries)
    for name in sorted(summaries):
        yield from _too_early(name, summaries, faults)


def _fault(summaries: Summaries, consumer: str, name: str) -> str | None:
    """In what the record that `consumer` has of the input `name` differs: spec, files, manifest; None if in nothing."""
    summary, seen = summaries[consumer], summaries.get(name)
    if summary is None or seen is None:
        return None
    record: Any = summary.inputs[name]
    if record in seen.former:
        return None
    if not isinstance(record, dict):
        return "files" if record != seen.files else None
    if seen.spec is not None and record["spec"] != seen.spec:
        return "spec"
    if record["files"] != seen.files:
        # One digest of a record may be edited; of an input with other files, both differ.
        return "record" if record["manifest"] == seen.manifest else "files"
    return "manifest" if record["manifest"] != seen.manifest else None


def before_let_go(summaries: Summaries) -> list[str]:
    """The artifacts that were made from files that were let go, where those made again have other bytes."""
    return sorted(
        name
        for name, summary in summaries.items()
        for input_name, record in (summary.inputs.items() if summary else ())
        if (made := summaries.get(input_name)) is not None and record in made.former
    )


def _disagreements(
    name: str, consumers: list[str], faults: Mapping[str, str], contradicted: set[str], summaries: Summaries
) -> Iterator[Finding]:
    """Findings for an input, or for those consumers that have something else on record."""
    for consumer, fault in sorted(faults.items()):
        if fault in ("spec", "record") and consumer not in contradicted:
            yield Finding(
                consumer, Check.CHAIN, f"{artifact_folder(consumer)}: its record of its input {name} was edited"
            )
    others = {consumer: fault for consumer, fault in faults.items() if fault in ("files", "manifest")}
    unknown = sorted(others.keys() - contradicted)
    if not unknown:
        return  # Each of the consumers is at fault, as their own consumers say.
    files = next((consumer for consumer in unknown if others[consumer] == "files"), None)
    agreeing = [consumer for consumer in consumers if consumer not in faults and not _is_older(summaries[consumer])]
    if agreeing or (len(unknown) == 1 and _was_edited_later(unknown[0], name, summaries)):
        for consumer in unknown:
            yield _made_from_another(consumer, name, others[consumer])
    elif files:
        yield Finding(
            name,
            Check.CONSUMERS,
            f"{artifact_folder(files)}: its input {name} is not the one it was made from: it has other files; put the "
            f"earlier one back, or move {_folders(unknown)} away and run snakemake again",
        )
    else:
        yield Finding(
            name,
            Check.CHAIN,
            f"{artifact_folder(name)} has the files that {_folders(unknown)} was made from, and another record: it was "
            f"edited, or made again (same files); put the earlier one back, or move {_folders(unknown)} away and run "
            "snakemake again",
        )


def _made_from_another(consumer: str, name: str, fault: str) -> Finding:
    difference = "with other files" if fault == "files" else "with the same files and another record"
    return Finding(
        consumer,
        Check.CONSUMERS if fault == "files" else Check.CHAIN,
        f"{artifact_folder(consumer)}: its input {name} is not the one it was made from: its record, if nobody edited "
        f"it, is of one {difference}; move {artifact_folder(consumer)} away and run snakemake again",
    )


def _is_older(summary: Summary | None) -> bool:
    return summary is None or summary.record == OLDER


def _was_edited_later(consumer: str, name: str, summaries: Summaries) -> bool:
    """Whether a consumer's manifest was edited rather than its input's, by the times of their files."""
    edited, input_edited = summaries[consumer], summaries[name]
    if edited is None or input_edited is None:
        return False
    return edited.edited > max(NOTICED_SECONDS, input_edited.edited)


def _not_there(name: str, consumers: list[str]) -> Finding:
    # Intermediate artifacts may be deleted to free space, but then they cannot be verified.
    return Finding(
        name,
        Check.CONSUMERS,
        f"{_folders(sorted(consumers))}: its input is not there: {artifact_folder(name)}; put it back, or run "
        "snakemake to make it",
    )


def _folders(names: list[str]) -> str:
    """Some artifacts in words, the first by its folder."""
    first = str(artifact_folder(names[0]))
    return first if len(names) == 1 else f"{first} (and {len(names) - 1} more)"


def _too_early(name: str, summaries: Summaries, faults: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    """A finding if an artifact was made before one of its inputs. An input that was made again is another finding."""
    summary = summaries[name]
    if summary is None or _is_older(summary) or summary.started is None:
        return
    for input_name in sorted(summary.inputs):
        made = summaries.get(input_name)
        if made is None or made.ended is None or name in faults[input_name]:
            continue
        if summary.inputs[input_name] not in made.former and summary.started < made.ended - CLOCK_SKEW_SECONDS:
            seconds = made.ended - summary.started
            yield Finding(
                name,
                Check.CONSUMERS,
                f"{artifact_folder(name)} was made {seconds:.0f} s before its input {input_name} was there: one of the "
                "two has a time that is not its own",
            )
