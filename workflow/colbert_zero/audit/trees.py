"""Compare the code of two clones: by parts, by modules, and by the steps that a changed module reaches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from colbert_zero.graph.code import PACKAGE, PARTS, module_digests, part_digests
from colbert_zero.graph.console import UserError

STEP_PATTERN = re.compile(rf"-m ({PACKAGE}(?:\.\w+)+)")
"""How a rule starts a step."""


@dataclass(frozen=True)
class TreeComparison:
    """What differs between two clones.

    Attributes:
        parts: Both digests of each part that differs; None where a clone has no file of it.
        modules: Both digests of each module that differs by more than comments, docstrings and formatting.
        reach: The steps that import a module that differs, each with those modules.
    """

    parts: dict[str, tuple[str | None, str | None]]
    modules: dict[str, tuple[str | None, str | None]]
    reach: dict[str, list[str]]


def is_code(folder: Path) -> bool:
    """Whether a folder is a clone."""
    return (folder / "workflow" / PACKAGE / "__init__.py").is_file()


def compare_trees(one: Path, other: Path) -> TreeComparison:
    """Compare the code of two clones.

    Raises:
        UserError: A module cannot be read.
    """
    parts = [part_digests(root) for root in (one, other)]
    modules = [_modules(root) for root in (one, other)]
    changed = _differing(*modules)
    reach = {}
    for step in sorted(_steps(one) | _steps(other)):
        imported = {**module_digests(step, one / "workflow"), **module_digests(step, other / "workflow")}
        if found := sorted(imported.keys() & changed.keys()):
            reach[step] = found
    return TreeComparison(
        {name: _differing(*parts)[name] for name in PARTS if name in _differing(*parts)}, changed, reach
    )


def _differing(one: dict[str, str | None], other: dict[str, str | None]) -> dict[str, tuple[str | None, str | None]]:
    return {
        name: (one.get(name), other.get(name)) for name in sorted({**one, **other}) if one.get(name) != other.get(name)
    }


def _modules(root: Path) -> dict[str, str | None]:
    """The digest of each module of a clone's package."""
    workflow = root / "workflow"
    digests: dict[str, str | None] = {}
    for path in sorted((workflow / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(workflow).with_suffix("").parts).removesuffix(".__init__")
        if name not in digests:
            try:
                digests |= module_digests(name, workflow)
            except (SyntaxError, ValueError) as error:
                raise UserError(f"{root}: a module of it cannot be read ({error}): compare another clone") from None
    return digests


def _steps(root: Path) -> set[str]:
    """The modules that a clone's rules start."""
    rules = (root / "workflow" / "rules").glob("*.smk")
    return {name for path in rules for name in STEP_PATTERN.findall(path.read_text(encoding="utf-8"))}
