"""Say what differs between two things, and what it reaches: cells, artifacts, studies or clones.

colbert-zero diff colbert-zero/scifact colbert-zero-noprompts/scifact --directory STUDY
colbert-zero diff mystudy:mine/dev theirs:mine/dev
colbert-zero diff mystudy theirs
colbert-zero diff clone-before clone-now

Each of the two is a cell (ROW/COLLECTION) or an artifact's name or key in the study of --directory; STUDY:CELL, or
STUDY: alone, for another study's folder; or the folder of a clone, whose code is compared. A study alone is compared as
its config plans it. Files are compared by the digests that were recorded; times and memory are not compared. Exit
status: 0 if nothing differs, 1 if something does, 2 if that cannot be told.

JSON has `format`, `a`, `b` and `same` (null if that cannot be told). Of clones: parts, modules, reach. Of all else:
values; config (path, a, b, reach: what gets another key if this leaf alone is changed); causes (about, path, a, b, in:
the artifacts whose own specs have it, reach: those that have other keys because of it); only; made (about, path, a, b,
in); other_files (one spec, other bytes, told where it begins), other_files_reached, same_files (other specs, the same
bytes) and unknown.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colbert_zero.audit.comparison import ABSENT, Cause, Comparison, Pair, Side
from colbert_zero.audit.links import follow, is_name, planned_links
from colbert_zero.audit.names import Names
from colbert_zero.audit.trees import TreeComparison, compare_trees, is_code
from colbert_zero.graph.artifact import SPEC_FILE
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import UserError, one_line
from colbert_zero.graph.digests import canonical_json
from colbert_zero.graph.study import Study
from colbert_zero.report.chain import kind_of, label_of, rank, show

FORMAT = 1
"""The version of the JSON: a key never changes its meaning; a new version may drop one."""
SAME, DIFFERENT, CANNOT_TELL = 0, 1, 2
FAILED = CANNOT_TELL
NAMES_MAXIMUM = 8
"""So many names are listed in a line of text; JSON has them all."""
PART_DIGITS = 16
"""So many digits of a digest are shown in text."""


@dataclass(frozen=True)
class Place:
    """One of the two things, before it is read.

    Attributes:
        asked: What it was called.
        folder: The study's folder or the clone; None for the study of --directory.
        name: What is meant in the study; None for the study or the clone as a whole.
        code: Whether a clone's code is meant.
    """

    asked: str
    folder: Path | None
    name: str | None
    code: bool = False


def find_place(text: str) -> Place:
    """What an argument names, in the folder that the command was given in."""
    folder = Path(text)
    if text and folder.is_dir():
        whole = folder.resolve()
        if (whole / SPEC_FILE).is_file() and is_name(f"{whole.parent.name}/{whole.name}"):
            return Place(text, whole.parents[2], f"{whole.parent.name}/{whole.name}")
        if is_code(folder):
            return Place(text, folder.absolute(), None, code=True)
        if (folder / CONFIG_FILE).is_file():
            return Place(text, folder.absolute(), None)
    before, colon, name = text.rpartition(":")
    if colon and Path(before).is_dir():
        return Place(text, Path(before).absolute(), name or None)
    return Place(text, None, text)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the two things, and the form of the answer."""
    # Their folders are found now: the command changes into the study's folder before it runs.
    parser.add_argument("one", type=find_place, metavar="A", help="a cell, a name, a key, STUDY:CELL, STUDY or a clone")
    parser.add_argument("other", type=find_place, metavar="B", help="the other")
    parser.add_argument("--json", action="store_true", help="write JSON: everything, under names that stay")


def run(options: argparse.Namespace) -> int:
    """Write what differs; return 0 if nothing does, 1 if something does, and 2 if that cannot be told.

    Raises:
        UserError: One of the two is not there, or they cannot be compared.
    """
    status, report, text = _compare(options.one, options.other)
    if options.json:
        sys.stdout.write(json.dumps({"format": FORMAT, **report}, indent=1, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("".join(one_line(line) + "\n" for line in text))
    return status


def _compare(one: Place, other: Place) -> tuple[int, dict[str, Any], list[str]]:
    """The exit status, the JSON and the lines of an answer."""
    asked = {"a": one.asked, "b": other.asked}
    if one.code != other.code:
        raise UserError(
            f"{one.asked} and {other.asked}: one is a clone; for the study in it write it with a colon, CLONE:"
        )
    if one.code and one.folder is not None and other.folder is not None:
        trees = compare_trees(one.folder, other.folder)
        status = DIFFERENT if trees.parts or trees.modules else SAME
        return status, asked | {"same": status == SAME, **vars(trees)}, list(_tree_lines(one, other, trees))
    if (one.name is None) != (other.name is None):
        raise UserError(f"{one.asked} and {other.asked}: one is a whole study, the other is not; name a cell of both")
    leaves: list[ConfigLeaf] = []
    if one.name is None and other.name is None:
        (first, first_study), (second, second_study) = _whole(one), _whole(other)
        leaves = _config_leaves(one, first_study, second_study)
    else:
        first, second = _part(one), _part(other)
    comparison = Comparison(first, second)
    different = comparison.differs or bool(leaves)
    # Of a study as planned, that artifacts are not there yet is no doubt.
    doubtful = bool(comparison.unknown) and one.name is not None
    status = DIFFERENT if different else CANNOT_TELL if doubtful else SAME
    return status, asked | _as_json(comparison, leaves, status), list(_lines(comparison, leaves, status))


def _part(place: Place) -> Side:
    """The chain of a cell or an artifact."""
    with chdir(place.folder or Path()):
        target = Names().find(place.name or "")
        links = follow(target.roots)
        return Side(
            place.asked,
            str(Path.cwd()),
            links,
            target.roots,
            {name: link.record() for name, link in links.items()},
            target.value(links),
            target.table.measure if target.table else None,
        )


def _whole(place: Place) -> tuple[Side, Study]:
    """A study as its config plans it."""
    with chdir(place.folder or Path()):
        study = Study(read_config(Path(CONFIG_FILE)), Path())
        links = planned_links(study)
        records = {name: link.record() for name, link in links.items()}
        return Side(place.asked, str(Path.cwd()), links, (study.report.name,), records), study


@dataclass(frozen=True)
class ConfigLeaf:
    """A leaf of two configs that differs.

    Attributes:
        path: Its dotted path; of an entry that one of them does not have, the entry's.
        values: Both values.
        reach: The artifacts, as KIND/LABEL, that get other keys if this leaf alone is changed; None if it cannot be
            changed alone.
    """

    path: str
    values: tuple[Any, Any]
    reach: list[str] | None


def _config_leaves(place: Place, one: Study, other: Study) -> list[ConfigLeaf]:
    """The leaves in which two configs differ, defaults filled in."""
    leaves = []
    with chdir(place.folder or Path()):
        for path, values in _differing(one.config, other.config, ()):
            config = copy.deepcopy(dict(one.config))
            *parents, last = path
            section: Any = config
            for name in parents:
                section = section[name]
            if values[1] is ABSENT:
                del section[last]
            else:
                section[last] = values[1]
            try:
                planned = Study(config, Path())
            except UserError:
                reach = None
            else:
                known = {spec.name for spec in one.specs.values()}
                reach = [_without_key(spec.name) for spec in planned.specs.values() if spec.name not in known]
                reach = sorted(dict.fromkeys(reach), key=lambda name: (rank(name), name))
            leaves.append(ConfigLeaf(".".join(map(str, path)), values, reach))
    return leaves


def _differing(one: Any, other: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[Any, Any]]]:
    """The paths and both values of what differs; what one side does not have at all is told as a whole."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in sorted({*one, *other}):
            yield from _differing(one.get(name, ABSENT), other.get(name, ABSENT), (*path, name))
    elif canonical_json(one) != canonical_json(other):
        yield path, (one, other)


def _without_key(name: str) -> str:
    return f"{kind_of(name)}/{label_of(name)}"


def _as_json(comparison: Comparison, leaves: Sequence[ConfigLeaf], status: int) -> dict[str, Any]:
    """The answer for programs."""
    return {
        "same": {SAME: True, DIFFERENT: False}.get(status),
        "values": {
            side: {"measure": of.measure, "value": of.value}
            for side, of in (("a", comparison.one), ("b", comparison.other))
        },
        "config": [
            {"path": leaf.path, "a": leaf.values[0], "b": leaf.values[1], "reach": leaf.reach} for leaf in leaves
        ],
        "causes": [
            {
                "about": cause.about,
                "path": cause.path,
                "a": cause.values[0],
                "b": cause.values[1],
                "in": [_pair(pair) for pair in cause.places],
                "reach": [_pair(pair) for pair in cause.reach],
            }
            for cause in comparison.causes
        ],
        "only": {"a": comparison.only[0], "b": comparison.only[1]},
        "made": [
            {
                "about": making.about,
                "path": making.path,
                "a": making.values[0],
                "b": making.values[1],
                "in": [_pair(pair) for pair in making.places],
            }
            for making in comparison.makings
        ],
        "other_files": [{**_pair(pair), "files": files} for pair, files in comparison.other_files.items()],
        "other_files_reached": [_pair(pair) for pair in comparison.other_files_reached],
        "same_files": [_pair(pair) for pair in comparison.same_files],
        "unknown": comparison.unknown,
    }


def _pair(pair: Pair) -> dict[str, str]:
    return {"a": pair[0], "b": pair[1]}


def _lines(comparison: Comparison, leaves: Sequence[ConfigLeaf], status: int) -> Iterator[str]:
    """The answer for a terminal."""
    width = max(len(comparison.one.asked), len(comparison.other.asked))
    for side, of in (("A", comparison.one), ("B", comparison.other)):
        number = f"  {of.measure} {of.value}" if of.value is not None else ""
        yield f"{side}  {of.asked.ljust(width)}{number}".rstrip()
    if comparison.values_differ and comparison.one.measure == comparison.other.measure:
        assert comparison.one.value is not None and comparison.other.value is not None
        yield f"   B minus A, x 100: {100 * (comparison.other.value - comparison.one.value):+.2f}"
    if leaves:
        yield from ("", "the configs differ, A → B:")
        for leaf in leaves:
            yield f"  {leaf.path}  {_change(leaf.path, leaf.values)}"
            if leaf.reach is None:
                yield "      reaches: cannot be told, as it cannot be changed alone"
            else:
                yield f"      reaches {_some(leaf.reach) if leaf.reach else 'nothing: no key depends on it'}"
    if comparison.causes:
        yield from ("", "what decides the artifacts differs, A → B:")
        for cause in comparison.causes:
            yield f"  {cause.about.ljust(7)}  {cause.path}  {_change(cause.path, cause.values)}"
            if cause.places:
                yield f"      in {_some([_both(pair) for pair in cause.places])}"
            yield f"      reaches {_reach(cause)}"
    for side, names in zip("AB", comparison.only, strict=True):
        if names:
            yield from ("", f"only in {side}: {_some(names)}")
    if comparison.other_files:
        yield from ("", "the same specs made other files:")
        for pair, files in comparison.other_files.items():
            yield f"  {pair[0]}: {_some(files)}"
        if comparison.other_files_reached:
            yield f"      reaches {_some([pair[0] for pair in comparison.other_files_reached])}"
    if comparison.same_files:
        yield from ("", f"other specs made the same files: {_some([_both(pair) for pair in comparison.same_files])}")
    if comparison.makings:
        yield from ("", "they were made otherwise, A → B:")
        for making in comparison.makings:
            values = " → ".join(_short(show("", value)) for value in making.values)
            yield f"  {making.about.ljust(8)}  {making.path}  {values}"
            yield f"      of {_some([_both(pair) for pair in making.places])}"
    if comparison.unknown:
        yield from ("", "what cannot be told:", *(f"  {line}" for line in comparison.unknown))
    if status == SAME:
        yield "nothing differs"


def _change(path: str, values: tuple[Any, Any]) -> str:
    """Both values of a leaf; if one of two texts needs quotation marks, both have them."""
    shown = [show(path, value) for value in values if value is not ABSENT]
    quoted = any(text.startswith('"') for text in shown)
    return " → ".join(ABSENT if value is ABSENT else show("prompt" if quoted else path, value) for value in values)


def _short(text: str) -> str:
    """A digest by its first digits, anything else as it is."""
    return text[:PART_DIGITS] if len(text) == 64 and set(text.strip('"')) <= set("0123456789abcdef") else text


def _both(pair: Pair) -> str:
    """`kind/label-KEY`, or both keys: `kind/label-KEY|KEY`."""
    if pair[0] == pair[1]:
        return pair[0]
    if _without_key(pair[0]) == _without_key(pair[1]):
        return f"{pair[0]}|{pair[1].rpartition('-')[2]}"
    return f"{pair[0]}|{pair[1]}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_MAXIMUM
    return ", ".join(names[:NAMES_MAXIMUM]) + (f" and {more} more" if more > 0 else "")


def _reach(cause: Cause) -> str:
    """What a cause reaches: how many artifacts of each kind, the models by their stages."""
    if not cause.reach:
        return "nothing else"
    counts: dict[str, int] = {}
    for pair in cause.reach:
        kind = kind_of(pair[0])
        what = _without_key(pair[0]) if kind == "models" else kind
        counts[what] = counts.get(what, 0) + 1
    return ", ".join(what if "/" in what and count == 1 else f"{count} {what}" for what, count in counts.items())


def _tree_lines(one: Place, other: Place, trees: TreeComparison) -> Iterator[str]:
    """The answer for a terminal, of two clones."""
    yield from (f"A  {one.asked}", f"B  {other.asked}")
    for name, digests in trees.parts.items():
        yield f"  part  {name}  " + " → ".join((digest or ABSENT)[:PART_DIGITS] for digest in digests)
    if "package" in trees.parts and not trees.modules:
        yield "  the modules differ in comments, docstrings or formatting only"
    for name, digests in trees.modules.items():
        yield f"  module  {name}  " + " → ".join(digest or ABSENT for digest in digests)
    for step, modules in trees.reach.items():
        yield f"  reaches the step {step}: by {_some(modules)}"
    if trees.modules and not trees.reach:
        yield "  no step imports a module that differs"
    if not trees.parts and not trees.modules:
        yield "nothing differs"
