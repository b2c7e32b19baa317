"""Turn the docstrings of an installed package into training pairs or into a collection.

    python -m colbert_zero.data.docstrings --spec '{"kind": "sources", "label": "package.scipy", ...}'

Makes `sources/package.*` (`pairs.parquet`: query, document) and `collections/package.*` (a BEIR-format folder). The
package's files are parsed, never imported. Every public docstring gives a pair: its summary sentence is the query, the
rest is the document. The object's own name is removed from both; otherwise a string match would find the document.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from colbert_zero.data import beir
from colbert_zero.data.rows import PAIR_SCHEMA
from colbert_zero.data.text import normalise
from colbert_zero.graph.artifact import Job, step_main
from colbert_zero.graph.console import UserError, log
from colbert_zero.graph.digests import canonical_json, digest, file_digest
from colbert_zero.graph.draws import draw

DOCSTRING_SETTERS = frozenset({"add_docstr", "add_docstr_all", "add_newdoc"})
"""Functions with which numpy, scipy and torch attach docstrings to objects written in C."""
SKIPPED_MODULE_PATTERN = re.compile(r"tests?|conftest|test_.*|.*_test|distutils")
"""Modules without text for readers, and numpy's distutils, which exists for Python 3.11 only."""

ROLE_PATTERN = re.compile(r":[\w.:+-]+:`[~!]?([^`<]*?)\s*(?:<[^>`]*>)?`")
RULE_PATTERN = re.compile(r"^[\s=\-~^*#+\"'`.:]{3,}$\n?", re.MULTILINE)
PARAGRAPH_BREAK_PATTERN = re.compile(r"\n[^\S\n]*\n")
SENTENCE_BREAK_PATTERN = re.compile(r"(?<=[^.\s]{2}[.!?])\s+(?=[A-Z\[(\"'])")
FIELD_START_PATTERN = re.compile(r">>> |\.\. |:\w|[-*] |\w+:$")
"""The start of a line that is not prose: a doctest, directive, field, list item or section."""
SIGNATURE_PATTERN = re.compile(r"(?:\w+\.)*(\w+)\s*\(.*\)(?:\s*->.*|\s*--)?\s*", re.DOTALL)
"""A first paragraph that repeats the signature, as in functions written in C; the name is group 1."""
WORD_PATTERN = re.compile(r"[^\W\d_]+")
NAME_PART_PATTERN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class Pair(NamedTuple):
    """A query and a document from one docstring.

    Attributes:
        name: The object's qualified name in the module that defines it; unique.
        query: The summary sentence, without the object's own name.
        document: The rest of the docstring, without the object's own name, in one line.
    """

    name: str
    query: str
    document: str


@dataclass
class Module:
    """The docstrings and imports of one parsed source file.

    Attributes:
        docstrings: Docstring by the object's name within the module; `""` stands for the module itself.
        imports: `(module, name, bound name)` of every `from ... import ...` at the top level, with absolute module
            names.
        registered: Docstring by qualified name, of the calls of `DOCSTRING_SETTERS`.
    """

    docstrings: dict[str, str] = field(default_factory=dict)
    imports: list[tuple[str, str, str]] = field(default_factory=list)
    registered: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, source: bytes, name: str, is_package: bool) -> Module:
        """Parse a module's source.

        Args:
            source: The file's bytes.
            name: The module's qualified name.
            is_package: Whether the file is an `__init__.py`, which decides how relative imports are resolved.

        Raises:
            SyntaxError: The source is not valid Python of this version.
            ValueError: The source contains null bytes.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes
            tree = ast.parse(source)
        module = cls()
        docstring = ast.get_docstring(tree)
        if docstring:
            module.docstrings[""] = docstring
        module._collect(tree.body, name if is_package else name.rpartition(".")[0], "")
        return module

    def _collect(self, body: list[ast.stmt], package: str, prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    self.docstrings.setdefault(prefix + node.name, docstring)
                if isinstance(node, ast.ClassDef):
                    self._collect(node.body, package, f"{prefix}{node.name}.")
            elif isinstance(node, ast.If | ast.Try | ast.With):
                self._collect(node.body, package, prefix)
                self._collect(getattr(node, "orelse", []), package, prefix)
            elif isinstance(node, ast.ImportFrom) and not prefix:
                parents = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
                target = ".".join([*parents, *([node.module] if node.module else [])])
                self.imports += [(target, alias.name, alias.asname or alias.name) for alias in node.names]
            elif isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call):
                self.registered.update(_registered_docstrings(node.value, package))


def make(job: Job) -> Mapping[str, Any]:
    """Write the pairs of one package as a source or as a collection.

    Raises:
        UserError: The package is not installed in this version, or has no long enough docstring.
    """
    settings = job.settings
    files = package_files(settings["package"], settings["version"])
    read_facts = {
        "files_read": len(files),
        "digest_of_files": digest(
            canonical_json({name: file_digest(path) for name, path in files.items() if path.is_file()})
        ),
        "files_not_as_in_the_wheel": files_not_as_in_the_wheel(settings["package"]),
    }
    limits = (settings["minimum_query_words"], settings["minimum_words"], settings["maximum_words"])
    pairs, facts = read_pairs(files, *limits)
    if not pairs:
        raise UserError(f"{settings['package']}: none of its docstrings is long enough; choose another package")
    if job.spec.kind == "sources":
        columns = [[pair.query for pair in pairs], [pair.document for pair in pairs]]
        pq.write_table(
            pa.Table.from_arrays(columns, schema=PAIR_SCHEMA), job.folder / "pairs.parquet", compression="zstd"
        )
        return {"rows": len(pairs), **facts, **read_facts}
    shuffled = sorted(pairs, key=lambda pair: draw(settings["seed"], "collection queries", pair.name))
    queried = {pair.name for pair in shuffled[: settings["queries"]]}
    beir.write_collection(
        job.folder,
        (beir.Document(pair.name, "", pair.document) for pair in pairs),
        # A query's id differs from its document's: evaluators may drop a document that has the id of the query.
        {f"summary:{pair.name}": pair.query for pair in pairs if pair.name in queried},
        {f"summary:{pair.name}": {pair.name: 1} for pair in pairs if pair.name in queried},
    )
    return {**beir.check_collection(job.folder), **facts, **read_facts}


def package_files(package: str, version: str) -> dict[str, Path]:
    """Find the Python files of an installed distribution, except tests and other modules without text for readers.

    Args:
        package: The distribution's name, as a package registry knows it.
        version: Its version; a local suffix (`+cpu`) of the installed version is ignored.

    Returns:
        Path by qualified module name.

    Raises:
        UserError: The distribution is not installed, or has another version.
    """
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise UserError(f"{package} {version} is not installed: its docstrings cannot be read; install it") from None
    if version not in (distribution.version, distribution.version.partition("+")[0]):
        raise UserError(
            f"{package}: the study says version {version}, installed is {distribution.version}; change either"
        )
    files = {}
    for file in distribution.files or ():
        *folders, stem = file.with_suffix("").parts
        parts = folders if stem == "__init__" else [*folders, stem]
        if (
            file.suffix == ".py"
            and parts
            and all(part.isidentifier() and not SKIPPED_MODULE_PATTERN.fullmatch(part) for part in parts)
        ):
            files[".".join(parts)] = Path(str(distribution.locate_file(file)))
    return files


def files_not_as_in_the_wheel(package: str) -> int:
    """How many Python files of an installed distribution are missing, or have other bytes than its wheel's record says.

    The record (PEP 376, PEP 627) has a digest of each file: unpadded URL-safe base64.
    """
    count = 0
    for file in metadata.distribution(package).files or ():
        if file.suffix == ".py" and file.hash is not None:
            path = Path(str(file.locate()))
            content = path.read_bytes() if path.is_file() else b""
            found = base64.urlsafe_b64encode(hashlib.new(file.hash.mode, content).digest()).decode().rstrip("=")
            count += found != file.hash.value
    return count


def read_pairs(
    files: Mapping[str, Path], minimum_query_words: int, minimum_words: int, maximum_words: int
) -> tuple[list[Pair], dict[str, int]]:
    """Make the pairs of a package, sorted by name, each query and each document once.

    Args:
        files: Path by qualified module name, in any order.
        minimum_query_words: The fewest words of a query.
        minimum_words: The fewest words of a document.
        maximum_words: The number of words, separated by white space, after which a document is cut.

    Returns:
        The pairs; and counts of `docstrings` read, of pairs dropped as `too_short` or `repeated`, and of
        `unreadable_files`.
    """
    docstrings, unreadable = public_docstrings(files)
    pairs: list[Pair] = []
    seen_queries: set[str] = set()
    seen_documents: set[str] = set()
    too_short = 0
    for name in sorted(docstrings):
        pair = make_pair(name, docstrings[name])
        pair = pair._replace(document=" ".join(pair.document.split()[:maximum_words]))
        if _count_words(pair.query) < minimum_query_words or _count_words(pair.document) < minimum_words:
            too_short += 1
            continue
        query, document = normalise(pair.query), normalise(pair.document)
        if query not in seen_queries and document not in seen_documents:
            pairs.append(pair)
        seen_queries.add(query)
        seen_documents.add(document)
    return pairs, {
        "docstrings": len(docstrings),
        "too_short": too_short,
        "repeated": len(docstrings) - too_short - len(pairs),
        "unreadable_files": unreadable,
    }


def public_docstrings(files: Mapping[str, Path]) -> tuple[dict[str, str], int]:
    """Collect the docstrings of a package's public objects.

    An object is public if no part of its path has a leading underscore, or if a public module imports it from a private
    one.

    Args:
        files: Path by qualified module name, in any order.

    Returns:
        Docstring by the qualified name in the defining module; and how many files could not be parsed.
    """
    modules: dict[str, Module | None] = {}

    def parsed_module(name: str) -> Module | None:
        if name not in modules:
            path = files[name]
            try:
                modules[name] = Module.parse(path.read_bytes(), name, path.name == "__init__.py")
            except (SyntaxError, ValueError) as error:
                log.info("%s is skipped: %s", path, error)
                modules[name] = None
        return modules[name]

    docstrings: dict[str, str] = {}
    # Pairs of a module and what to read of it: the name of one object, "*" for all, "" for only what it registers.
    pending: list[tuple[str, str]] = []
    for name in sorted(files):
        if _is_public(name):
            pending.append((name, "*"))
        elif name.endswith("_docs") or "newdocs" in name:
            pending.append((name, ""))
    visited: set[tuple[str, str]] = set()
    while pending:
        name, selection = pending.pop()
        if (name, selection) in visited or name not in files:
            continue
        visited.add((name, selection))
        module = parsed_module(name)
        if module is None:
            continue
        docstrings |= {other: text for other, text in module.registered.items() if other not in docstrings}
        for inner, docstring in module.docstrings.items():
            is_selected = inner.partition(".")[0] == selection or (selection == "*" and (inner or _is_public(name)))
            if is_selected and _is_public(inner):
                docstrings[f"{name}.{inner}" if inner else name] = docstring
        for target, original, bound in module.imports:
            if _is_public(target):
                continue
            if original == "*":
                pending.append((target, selection))
            elif bound == selection or (selection == "*" and _is_public(name) and _is_public(bound)):
                pending.append((target, original))
    return docstrings, sum(module is None for module in modules.values())


def make_pair(name: str, docstring: str) -> Pair:
    """Split a docstring into its summary sentence and the rest, and remove the object's own name from both.

    Args:
        name: The object's qualified name.
        docstring: The docstring as written in the source.

    Returns:
        The pair; query or document may be too short, or empty.
    """
    object_name = name.rpartition(".")[2]
    text = RULE_PATTERN.sub("", ROLE_PATTERN.sub(r"\1", inspect.cleandoc(docstring))).replace("`", "").strip("\n")
    paragraphs = PARAGRAPH_BREAK_PATTERN.split(text)
    while paragraphs and (signature := SIGNATURE_PATTERN.fullmatch(paragraphs[0])) and signature[1] == object_name:
        del paragraphs[0]
    lines = paragraphs[0].strip().splitlines() if paragraphs else []
    summary_lines = next(
        (number for number, line in enumerate(lines) if FIELD_START_PATTERN.match(line.strip())), len(lines)
    )
    summary, *rest = SENTENCE_BREAK_PATTERN.split(" ".join(lines[:summary_lines]), maxsplit=1)
    name_pattern = _name_pattern(object_name)
    return Pair(
        name,
        _clean(name_pattern.sub("", summary)).strip(" .,:;-"),
        _clean(name_pattern.sub("", " ".join([*rest, *lines[summary_lines:], *paragraphs[1:]]))),
    )


@lru_cache(4096)
def _name_pattern(object_name: str) -> re.Pattern[str]:
    """Match the name in any case, as `snake_case` or `CamelCase`, with its module path or a call's parentheses."""
    parts = NAME_PART_PATTERN.findall(object_name)
    spelled = "[_-]?".join(parts) if "".join(parts) == object_name.replace("_", "") else re.escape(object_name)
    return re.compile(rf"(?<![\w.])(?:\w+\.)*{spelled}(?:\(\)|['\u2019]s)?(?!\w)", re.IGNORECASE)


def _clean(text: str) -> str:
    """Collapse white space, and remove the spaces before punctuation that a removed name leaves."""
    return re.sub(r" (?=[.,;:](?: |$)|[)\]])", "", " ".join(text.split()))


def _count_words(text: str) -> int:
    return len(WORD_PATTERN.findall(text))


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def _registered_docstrings(call: ast.Call, package: str) -> Iterator[tuple[str, str]]:
    """Yield the qualified names and docstrings that a call of `DOCSTRING_SETTERS` registers.

    The calls are `add_docstr(torch.abs, TEXT)`, `add_docstr_all("name", TEXT)`, `add_newdoc("module", "name", TEXT)`,
    `add_newdoc("module", "class", ("attribute", TEXT))`, the last also with a list of such tuples.
    """
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function.lstrip("_") not in DOCSTRING_SETTERS or len(call.args) < 2:
        return
    *path, last = call.args
    for item in last.elts if isinstance(last, ast.List) else [last]:
        *names, text = [*path, *item.elts] if isinstance(item, ast.Tuple) else [*path, item]
        docstring = _literal_text(text)
        spelled = [str(name.value) if isinstance(name, ast.Constant) else ast.unparse(name) for name in names]
        # The first of several arguments is a module, private or not; a single name is an object of this package.
        object_path = spelled[1:] or spelled[0].split(".")[-1:]
        if docstring and _is_public(".".join(object_path)):
            yield ".".join(spelled) if len(spelled) > 1 or "." in spelled[0] else f"{package}.{spelled[0]}", docstring


def _literal_text(node: ast.expr) -> str | None:
    """The text of a string literal, of a sum of literals, or of a `format` template without its placeholders."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp):
        return (_literal_text(node.left) or "") + (_literal_text(node.right) or "") or None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        template = _literal_text(node.func.value)
        return template and re.sub(r"(?<!\{)\{\w*\}(?!\})", "", template).replace("{{", "{").replace("}}", "}")
    return None


if __name__ == "__main__":
    step_main(make, __doc__)
