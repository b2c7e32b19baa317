"""What can be asked for in a study: cells of its tables, artifacts by their names, and keys by their first digits."""

from __future__ import annotations

import csv
import difflib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from colbert_zero.audit.links import Link, is_name
from colbert_zero.graph.artifact import KEY_DIGITS, MANIFEST_FILE, Spec, artifact_folder, published_folders
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.study import Study
from colbert_zero.report.chain import key_of, kind_of, label_of

MEAN = "mean"
"""The last column of a table."""
KEY_MINIMUM = 6
"""So many digits of a key tell an artifact, if no other key begins with them."""
NEAR_NAMES = 5
"""So many near names are listed where a name is unknown."""


@dataclass(frozen=True)
class Table:
    """A table of the study: a report's spec, of which the report may not be there.

    Attributes:
        report: The spec.
        planned: Whether today's config plans it.
    """

    report: Spec
    planned: bool

    @property
    def measure(self) -> str:
        """The measure that it shows."""
        return str(self.report.settings["measure"])

    @property
    def rows(self) -> list[str]:
        """The names of its rows."""
        return sorted(self.report.settings["rows"])

    @property
    def _groups(self) -> Mapping[str, Sequence[str]]:
        groups: Mapping[str, Sequence[str]] = self.report.settings["groups"]
        return groups

    def shown(self, row: str) -> dict[str, list[str]]:
        """The names of a row's measures by column of the table, without the mean."""
        group_of = {member: name for name, members in self._groups.items() for member in members}
        columns: dict[str, list[str]] = {}
        for name in sorted(self.report.inputs[row], key=label_of):
            columns.setdefault(group_of.get(label_of(name), label_of(name)), []).append(name)
        return columns

    def columns(self, row: str) -> dict[str, list[str]]:
        """The names of a row's measures by what can be asked for: columns, members of groups, and the mean."""
        measures = sorted(self.report.inputs[row], key=label_of)
        return {label_of(name): [name] for name in measures} | self.shown(row) | {MEAN: measures}

    def printed(self, row: str, column: str) -> float | None:
        """The number in `table.csv` of the report; None if it has none."""
        path = self.report.folder / "table.csv"
        if not path.is_file():
            return None
        try:
            with path.open(encoding="utf-8", newline="") as file:
                return next(float(line[column]) for line in csv.DictReader(file) if line["name"] == row)
        except (OSError, ValueError, TypeError, KeyError, StopIteration):
            return None


@dataclass(frozen=True)
class Target:
    """What was asked for: artifacts, which a cell of a table may be computed from.

    Attributes:
        roots: The names of the artifacts.
        table: The table, if a cell was asked for.
        row: The cell's row.
        column: The cell's column.
    """

    roots: tuple[str, ...]
    table: Table | None = None
    row: str = ""
    column: str = ""

    def value(self, links: Mapping[str, Link]) -> float | None:
        """The cell's number, recomputed from values per query; None if it is no cell, or a value cannot be read."""
        if self.table is None:
            return None
        shown = self.table.shown(self.row) if self.column == MEAN else {self.column: list(self.roots)}
        columns = []
        for names in shown.values():
            values = [links[name].values().get(self.table.measure, {}).get("value") for name in names]
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                return None
            columns.append(fmean(known))
        return fmean(columns) if columns else None


class Names:
    """The names of the current study."""

    @cached_property
    def artifacts(self) -> list[str]:
        """The names of the artifacts that are there."""
        names = (f"{folder.parent.name}/{folder.name}" for folder in published_folders(Path()))
        return [name for name in names if is_name(name)]

    @cached_property
    def tables(self) -> list[Table]:
        """The tables whose cells can be asked for: that of today's config first, then those of reports, newest first.

        A config that cannot be planned here, such as one whose data are elsewhere, has no table.
        """
        tables = []
        with suppress(UserError, OSError):
            tables.append(Table(Study(read_config(Path(CONFIG_FILE)), Path()).report, planned=True))
        reports = [Link.open(name) for name in self.artifacts if kind_of(name) == "reports"]
        for link in sorted(reports, key=lambda link: [str(of.get("ended")) for of in link.attempts[-1:]], reverse=True):
            if link.spec is not None and _is_table(link.spec) and link.name not in [of.report.name for of in tables]:
                tables.append(Table(link.spec, planned=False))
        return tables

    def find(self, text: str) -> Target:
        """The cell, the artifact or the key that `text` names.

        Raises:
            UserError: There is none, or several; the message lists near names.
        """
        name = re.sub(r"^(?:\./)?(?:results|resources)/", "", text).rstrip("/")
        if name in self.artifacts:
            return Target((name,))
        row, _, column = text.partition("/")
        waiting = False
        for table in self.tables:
            if row in table.rows and column in (columns := table.columns(row)):
                measures = columns[column]
                if all((artifact_folder(measure) / MANIFEST_FILE).is_file() for measure in measures):
                    return Target(tuple(measures), table, row, column)
                waiting = True
        if waiting:
            raise UserError(f"{text} is not there: run snakemake to make it")
        if re.fullmatch(rf"[0-9a-f]{{{KEY_MINIMUM},{KEY_DIGITS}}}", text):
            found = [name for name in self.artifacts if key_of(name).startswith(text)]
            if len(found) > 1:
                raise UserError(f"several keys begin with {text}: {', '.join(found)}; give more digits")
            if found:
                return Target((found[0],))
        raise UserError(self._unknown(text))

    def _unknown(self, text: str) -> str:
        """What to say of a name that nothing has."""
        cells = [f"{row}/{column}" for table in self.tables for row in table.rows for column in table.columns(row)]
        known = list(dict.fromkeys([*cells, *self.artifacts]))
        if not known:
            return f"{Path.cwd()} holds no artifact: name the study's folder with --directory"
        near = difflib.get_close_matches(text, known, n=NEAR_NAMES, cutoff=0.5)
        near += [name for name in known if text and name.startswith(text.partition("/")[0])]
        listed = list(dict.fromkeys(near or known))[:NEAR_NAMES]
        return f"no cell, artifact or key is called {text!r}; near are {', '.join(listed)}"


def _is_table(spec: Spec) -> bool:
    """Whether a report's spec has what a planned one has."""
    groups = spec.settings.get("groups")
    return (
        isinstance(groups, Mapping)
        and all(isinstance(members, list) and all(map(_is_text, members)) for members in groups.values())
        and isinstance(spec.settings.get("rows"), Mapping)
        and _is_text(spec.settings.get("measure"))
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str)
