"""Say where a number comes from: every artifact that it rests on, from the number to what came from outside.

colbert-zero trace colbert-zero/scifact --directory STUDY
colbert-zero trace colbert-zero/mean --html chain.html --directory STUDY
colbert-zero trace 3f9a2c1b7d04 --json --directory STUDY

Asked for is a cell of the table (ROW/COLLECTION, ROW/GROUP or ROW/mean), an artifact's name, or the first digits of a
key. Exit status: 0; 1 if a number is not the one that was recorded, or an artifact of the chain is missing or damaged;
2 if nothing has that name.

JSON has `format`, `asked`, `holds` (whether status is 0), `cell` (null for an artifact; else row, column, measure,
value, printed, report, planned, queries, agrees) and `artifacts`, in order: number, name, kind, label, key, problem,
inputs (names by role), settings, origin, facts, made (record, manifest, files, code, python, packages, image, machine,
arguments, seconds, peak_memory_mb, attempts), and values of measures. What was not recorded is null.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from colbert_zero.audit.links import Link, follow, inputs_of, same_number
from colbert_zero.audit.names import MEAN, Names, Target
from colbert_zero.graph.console import one_line
from colbert_zero.graph.text_files import replace_text
from colbert_zero.report.chain import KINDS, Group, group, key_of, kind_of, label_of, leaves, origin, show

FAILED = 2
FORMAT = 1
"""The version of the JSON: a key never changes its meaning; a new version may drop one."""
NOT_RECORDED = "not recorded"
WIDTH = 110
SUBJECT_WIDTH = 9
LIST_MAXIMUM = 6
"""Longer lists among the facts are shown as their length."""
ATTEMPTS_MAXIMUM = 6
"""Of more attempts, the first and the last ones are shown."""

Items = list[tuple[str, list[str]]]
"""What is said of an artifact: a word for the subject, and what is said of it."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what is asked for, and the forms of the answer."""
    parser.add_argument("target", help="ROW/COLLECTION, an artifact's name, or the first digits of its key")
    parser.add_argument("--json", action="store_true", help="write JSON: everything, under names that stay")
    # The command changes into the study's folder before it runs: a path is one of the folder that it was given in.
    parser.add_argument("--html", type=_absolute, metavar="FILE", help="also write a page with the chain as a figure")


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def run(options: argparse.Namespace) -> int:
    """Write the chain of what was asked for; return 0 if every number and record in it holds together, else 1.

    Raises:
        UserError: Nothing is called so.
    """
    trace = Trace.of(options.target)
    if options.html is not None:
        replace_text(options.html, trace.html())
    sys.stdout.write(json.dumps(trace.as_json(), indent=1, ensure_ascii=False) + "\n" if options.json else trace.text())
    if options.html is not None and not options.json:
        sys.stdout.write(f"\nThe chain as a figure: {one_line(str(options.html))}\n")
    return 0 if trace.holds else 1


@dataclass(frozen=True)
class Trace:
    """The chain of a cell or of an artifact.

    Attributes:
        asked: What was asked for.
        target: What that is.
        links: The artifacts of the chain, by name.
    """

    asked: str
    target: Target
    links: Mapping[str, Link]

    @classmethod
    def of(cls, asked: str) -> Trace:
        """The chain of the cell, the artifact or the key that `asked` names, in the current study.

        Raises:
            UserError: Nothing is called so.
        """
        target = Names().find(asked)
        return cls(asked, target, follow(target.roots))

    @cached_property
    def groups(self) -> list[Group]:
        """The artifacts in groups, in order from the number to what came from outside."""
        return group(self.target.roots, inputs_of(self.links))

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The artifacts' numbers in this chain, from 1."""
        return {name: number for number, name in enumerate((name for of in self.groups for name in of.names), 1)}

    @cached_property
    def values(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What each of the chain's measures says, by measure; see `Link.values`."""
        return {name: self.links[name].values() for name in self.numbers if kind_of(name) == "measures"}

    @cached_property
    def cell(self) -> dict[str, Any] | None:
        """The cell that was asked for, as in the JSON; None if an artifact was."""
        table = self.target.table
        if table is None:
            return None
        value = self.target.value(self.links)
        recorded = [self.values[name].get(table.measure, {}) for name in self.target.roots]
        printed = table.printed(self.target.row, self.target.column)
        in_table = self.target.column in (*table.shown(self.target.row), MEAN)
        there = table.report.folder.is_dir()
        return {
            "row": self.target.row,
            "column": self.target.column,
            "measure": table.measure,
            "value": value,
            "report": table.report.name if there else None,
            "printed": printed,
            "planned": table.planned,
            "queries": sum(of.get("queries") or 0 for of in recorded),
            "agrees": all(of.get("agrees") for of in recorded)
            and (not (there and in_table) or same_number(value, printed)),
        }

    @property
    def holds(self) -> bool:
        """Whether every number is the one that was recorded, and every artifact can be read."""
        agree = all(value["agrees"] for of in self.values.values() for value in of.values())
        return (
            agree
            and not any(link.problem for link in self.links.values())
            and (self.cell or {"agrees": True})["agrees"]
        )

    def as_json(self) -> dict[str, Any]:
        """The answer for programs."""
        return {
            "format": FORMAT,
            "asked": self.asked,
            "cell": self.cell,
            "holds": self.holds,
            "artifacts": [self._artifact(name) for name in self.numbers],
        }

    def _artifact(self, name: str) -> dict[str, Any]:
        link = self.links[name]
        entry = {
            "number": self.numbers[name],
            "name": name,
            "kind": kind_of(name),
            "label": label_of(name),
            "key": key_of(name),
            "problem": link.problem,
            "inputs": {role: list(names) for role, names in link.spec.inputs.items()} if link.spec else None,
            "settings": link.settings if link.spec else None,
            "origin": origin(link.settings),
            "facts": link.facts,
            "made": link.record(),
        }
        return entry | ({"values": self.values[name]} if name in self.values else {})

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """The record of each artifact, by name; see `Link.record`."""
        return {name: self.links[name].record() for name in self.numbers}

    @cached_property
    def facets(self) -> dict[str, dict[str, str]]:
        """Of each artifact, the code, packages, image and machine that it was made with, in words."""
        return {name: _facets(self.records[name]) for name in self.numbers if self.links[name].manifest}

    @cached_property
    def common(self) -> dict[str, str]:
        """The code, packages, image and machine that most artifacts of the chain were made with."""
        counts: dict[str, Counter[str]] = {}
        for of in self.facets.values():
            for subject, text in of.items():
                counts.setdefault(subject, Counter())[text] += 1
        return {subject: of.most_common(1)[0][0] for subject, of in counts.items()}

    def describe(self, name: str) -> Items:
        """What is said of an artifact: first what decides it, then how it was made."""
        link, record = self.links[name], self.records[name]
        items: Items = []
        if link.problem:
            items.append(("problem", [link.problem]))
        if link.spec is not None and link.spec.inputs:
            items.append(("from", [f"{role} {self._references(names)}" for role, names in link.spec.inputs.items()]))
        if found := origin(link.settings):
            items.append(("origin", [found]))
        items.append(("settings", [f"{path} {show(path, value)}" for path, value in leaves(link.settings) if path]))
        for measure, value in self.values.get(name, {}).items():
            items.append((measure, _value_items(value)))
        if not link.manifest:
            return items
        items.append(("facts", list(_fact_items(link.facts))))
        module = [str(record["code"]["module"] or NOT_RECORDED)]
        changed = record["code"]["changed"] or []
        items.append(("step", [*module, *(f"its {part} changed while it ran" for part in changed), *_cost(record)]))
        items.append(("attempts", list(_attempt_items(record["attempts"]))))
        files = record["files"]
        sizes = f"{files['count']} with {files['bytes']} bytes"
        items.append(("files", [sizes, f"digest {files['digest']}", f"record {record['manifest']}"]))
        items += [(subject, [text]) for subject, text in self.facets[name].items() if text != self.common.get(subject)]
        return [(subject, [one_line(text) for text in texts]) for subject, texts in items if texts]

    def _references(self, names: Sequence[str]) -> str:
        """`[3] [7] to [9]`: the numbers of inputs, runs of three or more shortened."""
        runs: list[list[int]] = []
        for number in sorted(self.numbers[name] for name in names):
            if runs and number == runs[-1][-1] + 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        return " ".join(
            f"[{run[0]}] to [{run[-1]}]" if len(run) > 2 else " ".join(f"[{number}]" for number in run) for run in runs
        )

    @property
    def headline(self) -> list[str]:
        """The answer in a few lines: the number, and whether what was recorded agrees."""
        if self.cell is None:
            lines = [f"{', '.join(self.target.roots)} rests on {_plural(len(self.links) - 1, 'artifact')}"]
            return [one_line(line) for line in lines + ([] if self.holds else ["NOT ALL OF IT IS AS RECORDED"])]
        cell = self.cell
        known = cell["value"] is not None
        number = f"{cell['value']} ({100 * cell['value']:.2f} in a table)" if known else "cannot be computed"
        lines = [
            f"{cell['row']}/{cell['column']}: {cell['measure']} = {number}",
            f"computed from the values of {cell['queries']} queries in {_plural(len(self.target.roots), 'measure')}",
        ]
        if cell["report"] is None:
            lines.append("in no report yet")
        else:
            lines.append(f"in {cell['report']}" + ("" if cell["planned"] else ", which is not that of today's config"))
        if not cell["agrees"]:
            recorded = [value for of in self.values.values() for name, value in of.items() if name == cell["measure"]]
            said = ", ".join(str(value["recorded"]) for value in recorded)
            lines.append(
                f"THE RECORD DISAGREES: the measures' records say {said}; the report's table says {cell['printed']}"
            )
        else:
            lines.append("what is recorded agrees")
        return [one_line(line) for line in lines]

    def heading(self, of: Group) -> str:
        """`[3] index indexes/dev-…`, or `[5] to [9] shards, 5 of them`."""
        first, last = self.numbers[of.names[0]], self.numbers[of.names[-1]]
        kind = KINDS.get(of.kind, of.kind)
        if len(of.names) == 1:
            return one_line(f"[{first}] {kind}  {of.names[0]}")
        return one_line(f"[{first}] to [{last}] {kind}: {len(of.names)} of them, with in common")

    def shared(self, of: Group) -> Items:
        """What is said of every artifact of a group."""
        described = [dict(self.describe(name)) for name in of.names]
        shared = [
            (subject, [text for text in texts if all(text in other.get(subject, ()) for other in described)])
            for subject, texts in described[0].items()
        ]
        return [(subject, texts) for subject, texts in shared if texts]

    def own(self, of: Group) -> list[tuple[str, Items]]:
        """Of each artifact of a group of several: its heading, and what is not said of all of them."""
        if len(of.names) == 1:
            return []
        shared = dict(self.shared(of))
        described = {name: self.describe(name) for name in of.names}
        return [
            (
                one_line(f"[{self.numbers[name]}] {name}"),
                [
                    (subject, own)
                    for subject, texts in items
                    if (own := [text for text in texts if text not in shared.get(subject, ())])
                ],
            )
            for name, items in described.items()
        ]

    def text(self) -> str:
        """The answer for a terminal."""
        lines = [*self.headline, ""]
        for of in self.groups:
            lines.append(self.heading(of))
            lines += _item_lines(4, self.shared(of))
            for name, items in self.own(of):
                lines += [f"    {name}", *_item_lines(8, items)]
            lines.append("")
        lines.append("all of them, where nothing else is said:")
        lines += _item_lines(4, [(subject, one_line(text).split("; ")) for subject, text in self.common.items()])
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """The answer as a page to read offline, with the chain as a figure."""
        from colbert_zero.report.chain_figure import draw_chain
        from colbert_zero.report.template import fill

        number = self.asked
        if self.cell is not None and self.cell["value"] is not None:
            number = f"{self.cell['measure']} {100 * self.cell['value']:.2f}"
        notes = {name: self.note(name) for name in self.numbers}
        return fill(
            "chain.html",
            asked=self.asked,
            headline=self.headline,
            holds=self.holds,
            figure=draw_chain(number, self.target.roots, inputs_of(self.links), notes),
            groups=[
                {"heading": self.heading(of), "shared": self.shared(of), "own": self.own(of)} for of in self.groups
            ],
            common=self.common,
        )

    def note(self, name: str) -> str:
        """What the figure shows when one points at an artifact: its name, origin and digests."""
        link, files = self.links[name], self.records[name]["files"]
        digests = f"files {files['digest']}" if files else link.problem or ""
        return " · ".join(part for part in (name, origin(link.settings), digests) if part)


def _facets(record: Mapping[str, Any]) -> dict[str, str]:
    """The code, packages, image and machine of a record, in words."""
    code, machine, image = record["code"], record["machine"], record["image"]
    packages = record["packages"]
    hosts = sorted({str(attempt["host"]) for attempt in record["attempts"] if "host" in attempt})
    of_machine = [machine[name] for name in ("processor", "platform") if machine.get(name)]
    of_machine += [f"{machine['cores']} cores"] if machine.get("cores") else []
    of_machine += [f"{machine['memory_mb']} MB"] if machine.get("memory_mb") else []
    parts = code["parts"] if isinstance(code["parts"], Mapping) else {}
    return {
        "code": f"{code['digest'] or NOT_RECORDED}",
        "commit": str(code["commit"] or NOT_RECORDED),
        "parts": "; ".join(f"{name} {str(digest)[:16]}" for name, digest in sorted(parts.items())) or NOT_RECORDED,
        "python": str(record["python"] or NOT_RECORDED),
        "packages": "; ".join(f"{name} {version}" for name, version in sorted(packages.items()))
        if isinstance(packages, Mapping)
        else NOT_RECORDED,
        "image": "; ".join(f"{name} {value}" for name, value in sorted(image.items()))
        if isinstance(image, Mapping)
        else "none: it ran outside an image",
        "machine": "; ".join(map(str, of_machine)) or NOT_RECORDED,
        "host": "; ".join(hosts) or NOT_RECORDED,
    }


def _value_items(value: Mapping[str, Any]) -> list[str]:
    """What is said of a measure: its value, and whether the record agrees."""
    items = [str(value["value"]) if value["value"] is not None else "cannot be computed"]
    items += [f"{value['queries']} queries"] if value["queries"] else []
    if value["problem"]:
        items.append(f"{value['problem']}")
    items.append("the record agrees" if value["agrees"] else f"THE RECORD SAYS {value['recorded']}")
    return items


def _fact_items(facts: Mapping[str, Any]) -> Iterator[str]:
    """The leaves of facts; a long list is shown as its length, and what another line says is left out."""
    for name, value in sorted(facts.items()):
        if name == "means":
            continue
        if isinstance(value, list) and len(value) > LIST_MAXIMUM:
            yield f"{name} {len(value)} items"
        else:
            yield from (f"{path} {show(path, leaf)}" for path, leaf in leaves(value, name))


def _cost(record: Mapping[str, Any]) -> Iterator[str]:
    """What a step took, and what it computed on."""
    if record["seconds"] is not None:
        yield f"{record['seconds']} s"
    if record["peak_memory_mb"] is not None:
        yield f"{record['peak_memory_mb']} MB"
    machine = record["machine"]
    if machine.get("threads") is not None:
        yield _plural(machine["threads"], "thread")
    for name, value in machine.items():
        if name in ("device", "devices", "gpu", "gpus"):
            yield from (f"{path} {show(path, leaf)}" for path, leaf in leaves(value, name))
    if record["arguments"]:
        yield "arguments " + " ".join(map(str, record["arguments"]))


def _attempt_items(attempts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line for each attempt: when, where, how it ended, and what steps it made."""
    if not attempts:
        yield NOT_RECORDED
    half = ATTEMPTS_MAXIMUM // 2
    for number, attempt in enumerate(attempts, 1):
        if len(attempts) > ATTEMPTS_MAXIMUM and half < number <= len(attempts) - half:
            if number == half + 1:
                yield f"and {len(attempts) - 2 * half} more"
            continue
        words = [f"{number}.", str(attempt.get("started", "?")), "to", str(attempt.get("ended", "?"))]
        words += [f"{name} {attempt[name]}" for name in ("host", "node", "job", "gpus") if attempt.get(name)]
        if "start_step" in attempt or "end_step" in attempt:
            words.append(f"steps {attempt.get('start_step', '?')} to {attempt.get('end_step', '?')}")
        yield " ".join([*words, str(attempt.get("end", "its end is not recorded"))])


def _plural(number: Any, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _item_lines(indent: int, items: Items) -> Iterator[str]:
    """The lines of what is said of an artifact, `indent` spaces from the left."""
    for subject, texts in items:
        yield from _wrapped(f"{' ' * indent}{subject.ljust(SUBJECT_WIDTH)} ", texts)


def _wrapped(start: str, texts: Sequence[str]) -> list[str]:
    """Texts in lines that begin with `start`, or as far to the right; a line is broken between texts only."""
    lines = [start]
    for position, text in enumerate(texts):
        separated = text + (" ·" if position < len(texts) - 1 else "")
        if lines[-1].strip() and len(lines[-1]) + len(separated) > WIDTH and lines[-1] != start:
            lines.append(" " * len(start))
        lines[-1] += separated + " "
    return [line.rstrip() for line in lines]
