"""Which code makes an artifact: digests of all that decides it by parts, and of the modules that its step imports.

A module's digest is one of its syntax tree: comments, docstrings and formatting do not count, nor does the version of
Python that reads it. So an audit can tell a change that reaches a step from one that does not.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from colbert_zero.graph.digests import canonical_json, digest, file_digest
from colbert_zero.graph.paths import REPOSITORY, WORKFLOW

PACKAGE = "colbert_zero"
COMMIT_VARIABLE = "COLBERT_ZERO_COMMIT"
"""The environment variable by which Snakemake tells its jobs the code's commit: images have no git."""
PARTS = {
    "package": f"workflow/{PACKAGE}/**/*.py",
    "rules": "workflow/rules/*.smk",
    "schema": "workflow/schemas/*",
    "registry": "workflow/registry/*",
    "report": "workflow/report/*",
    "locks": "envs/*.txt",
    "images": "containers/*.def",
}
"""The files of each part of the code, as patterns in the repository. An image shows `workflow/` alone to its steps, and
its own labels identify its definition and lock."""
MODULE_DIGITS = 16
"""Hex digits of a module's digest: they tell versions of one module apart."""


def code_identity(module: str | None = None) -> dict[str, Any]:
    """What identifies the code that runs.

    Args:
        module: The module of a step, `colbert_zero.evaluation.measure`.

    Returns:
        `digest` of the package's files; `parts`, a digest of each of `PARTS`, None where it cannot be seen; `commit` if
        it is known; and of a step its `module` and `modules`, the digests of it and of all that it imports.
    """
    parts = part_digests()
    identity: dict[str, Any] = {
        "digest": parts["package"],
        "parts": parts,
        "commit": os.environ.get(COMMIT_VARIABLE) or source_commit(),
    }
    if module is not None and _module_file(module) is not None:
        identity |= {"module": module, "modules": module_digests(module)}
    return identity


def part_digests(repository: Path | None = None) -> dict[str, str | None]:
    """The digest of each of `PARTS` in this clone or in another, None for one of which no file is there."""
    return {name: _files_digest(repository or REPOSITORY, pattern) for name, pattern in PARTS.items()}


def _files_digest(repository: Path, pattern: str) -> str | None:
    files = {path.relative_to(repository).as_posix(): path for path in repository.glob(pattern) if path.is_file()}
    return digest(canonical_json({name: file_digest(path) for name, path in files.items()})) if files else None


def module_digests(module: str, workflow: Path | None = None) -> dict[str, str]:
    """The digest of `module`, and of all modules of this package that it imports, directly or not; by name, sorted.

    An import counts wherever it stands, and so does the name of a module that is started by its name.

    Args:
        module: The module's name.
        workflow: The folder `workflow/` of another clone, whose modules are meant.
    """
    found: dict[str, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = _module_file(name, workflow)
        if path is not None and name not in found:
            found[name], imports = _read_module(path)
            pending += [*imports, name.rpartition(".")[0]]
    return dict(sorted(found.items()))


def _module_file(name: str, workflow: Path | None = None) -> Path | None:
    """The file of a module of this package, None if there is no such module."""
    if name.split(".")[0] != PACKAGE:
        return None
    path = (workflow or WORKFLOW).joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@cache
def _read_module(path: Path) -> tuple[str, tuple[str, ...]]:
    """A module's digest, and the names that it may import."""
    tree = ast.parse(path.read_bytes())
    return digest(canonical_json(_essence(tree)))[:MODULE_DIGITS], tuple(_imported(tree))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield module
                yield from (f"{module}.{name.name}" for name in names)
            case ast.Constant(value=str(text)) if text.startswith(f"{PACKAGE}."):
                yield text


def _essence(node: Any) -> Any:
    """What a syntax tree says, as JSON values: without docstrings, positions, and fields that are empty.

    Versions of Python add fields to nodes, which are empty where the syntax of an older version is used.
    """
    match node:
        case ast.AST():
            values = {name: getattr(node, name, None) for name in node._fields}
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                values["body"] = node.body[ast.get_docstring(node, clean=False) is not None :]
            said = ((name, value) for name, value in values.items() if name == "body" or value not in (None, []))
            return [type(node).__name__, {name: _essence(value) for name, value in said}]
        case list():
            return [_essence(child) for child in node]
        case str():
            # A literal may have half a surrogate pair, which no UTF-8 holds.
            return node.encode("utf-8", "backslashreplace").decode()
        case int() | None:
            return node
        case _:
            return repr(node)


def step_module(make: Any) -> str:
    """The name of the module that defines a step's `make`, also where it is the program that runs."""
    function = make.func if isinstance(make, partial) else make
    name = str(function.__module__)
    specification = getattr(sys.modules.get(name), "__spec__", None)
    return name if specification is None else str(specification.name)


def source_commit() -> str | None:
    """The git commit of this package's source files, and whether they have changed since; None without git."""
    git = ["git", "-C", str(WORKFLOW / PACKAGE)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = [*git, "status", "--porcelain", "--", "."]
        changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}, changed" if changed.strip() else head
