"""The documentation inside an installed package, as training pairs or as a collection.

    python -m colbert_zero.data.docstrings --spec '{"kind": "sources", "label": "package.scipy", ...}'

Makes `sources/package.*` (`pairs.parquet`: query, document) and `collections/package.*` (a BEIR-format folder). The
package is read, never imported. Every public docstring gives a pair: its summary sentence asks, the rest answers. The
object's own name is taken out of both, or finding the answer would be a string match.
"""

from __future__ import annotations

import ast
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
from colbert_zero.data.text import normalise
from colbert_zero.graph.artifact import Job, step_main
from colbert_zero.graph.console import UserError, log
from colbert_zero.graph.draws import draw

SCHEMA = pa.schema([("query", pa.string()), ("document", pa.string())])
REGISTRARS = frozenset({"add_docstr", "add_docstr_all", "add_newdoc"})
"""Functions by which numpy, scipy and torch document what is written in C."""
LEFT_OUT = re.compile(r"tests?|conftest|test_.*|.*_test|distutils")
"""Modules without text for readers; and numpy's distutils, which it has for Python 3.11 alone."""

ROLE = re.compile(r":[\w.:+-]+:`[~!]?([^`<]*?)\s*(?:<[^>`]*>)?`")
RULE = re.compile(r"^[\s=\-~^*#+\"'`.:]{3,}$\n?", re.MULTILINE)
PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
SENTENCE = re.compile(r"(?<=[^.\s]{2}[.!?])\s+(?=[A-Z\[(\"'])")
FIELD = re.compile(r">>> |\.\. |:\w|[-*] |\w+:$")
"""The start of a line that belongs to no prose: a doctest, directive, field, list item or section."""
SIGNATURE = re.compile(r"(?:\w+\.)*(\w+)\s*\(.*\)(?:\s*->.*|\s*--)?\s*", re.DOTALL)
"""A first paragraph that repeats the call, as functions written in C have it; the name is a group."""
WORD = re.compile(r"[^\W\d_]+")
PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


class Pair(NamedTuple):
    """What one docstring gives.

    Attributes:
        name: The qualified name of the object where it is defined; unique.
        query: The summary sentence, without the object's own name.
        document: The rest, without the object's own name, as one line.
    """

    name: str
    query: str
    document: str


@dataclass
class Module:
    """What is needed of one parsed source file.

    Attributes:
        docstrings: By the object's name within the module, `""` for the module's own.
        imports: `(module, name, bound name)` of every `from ... import ...` at the top level, absolute.
        registered: Docstrings given by a call of `REGISTRARS`, by qualified name.
    """

    docstrings: dict[str, str] = field(default_factory=dict)
    imports: list[tuple[str, str, str]] = field(default_factory=list)
    registered: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, source: bytes, name: str, is_package: bool) -> Module:
        """Read a module's source.

        Args:
            source: The file's bytes.
            name: The module's qualified name.
            is_package: Whether the file is an `__init__.py`, which decides what a relative import means.

        Raises:
            SyntaxError: It is no Python of this version.
            ValueError: It holds null bytes.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes the interpreter would warn of at import
            tree = ast.parse(source)
        module = cls()
        docstring = ast.get_docstring(tree)
        if docstring:
            module.docstrings[""] = docstring
        module._read(tree.body, name if is_package else name.rpartition(".")[0], "")
        return module

    def _read(self, body: list[ast.stmt], package: str, prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    self.docstrings.setdefault(prefix + node.name, docstring)
                if isinstance(node, ast.ClassDef):
                    self._read(node.body, package, f"{prefix}{node.name}.")
            elif isinstance(node, ast.If | ast.Try | ast.With):
                self._read(node.body, package, prefix)
                self._read(getattr(node, "orelse", []), package, prefix)
            elif isinstance(node, ast.ImportFrom) and not prefix:
                above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
                target = ".".join([*above, *([node.module] if node.module else [])])
                self.imports += [(target, alias.name, alias.asname or alias.name) for alias in node.names]
            elif isinstance(node, ast.Expr | ast.Assign) and isinstance(node.value, ast.Call):
                self.registered.update(_registered(node.value, package))


def make(job: Job) -> Mapping[str, Any]:
    """Write the pairs of one package as a source or as a collection."""
    settings = job.settings
    files = package_files(settings["package"], settings["version"])
    limits = (settings["minimum_query_words"], settings["minimum_words"], settings["maximum_words"])
    pairs, facts = read_pairs(files, *limits)
    if not pairs:
        raise UserError(f"{settings['package']}: none of its docstrings is long enough; choose another package")
    if job.spec.kind == "sources":
        columns = [[pair.query for pair in pairs], [pair.document for pair in pairs]]
        pq.write_table(pa.Table.from_arrays(columns, schema=SCHEMA), job.folder / "pairs.parquet", compression="zstd")
        return {"rows": len(pairs), **facts}
    drawn = sorted(pairs, key=lambda pair: draw(settings["seed"], "collection queries", pair.name))
    asked = {pair.name for pair in drawn[: settings["queries"]]}
    beir.write_collection(
        job.folder,
        (beir.Document(pair.name, "", pair.document) for pair in pairs),
        # Not the document's id: evaluators may drop a document that is called like the query.
        {f"summary:{pair.name}": pair.query for pair in pairs if pair.name in asked},
        {f"summary:{pair.name}": {pair.name: 1} for pair in pairs if pair.name in asked},
    )
    return {**beir.check(job.folder), **facts}


def package_files(package: str, version: str) -> dict[str, Path]:
    """The Python files of an installed distribution, tests and the like left out.

    Args:
        package: The distribution's name, as a package registry knows it.
        version: Its version; a local suffix (`+cpu`) of the installed one is ignored.

    Returns:
        Path by qualified module name.

    Raises:
        UserError: It is not installed, or in another version.
    """
    try:
        distribution = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise UserError(f"{package} {version} is not installed: its docstrings cannot be read; install it") from None
    if version not in (distribution.version, distribution.version.partition("+")[0]):
        raise UserError(
            f"{package}: the study says version {version}, installed is {distribution.version}; change one of them"
        )
    files = {}
    for file in distribution.files or ():
        *folders, stem = file.with_suffix("").parts
        parts = folders if stem == "__init__" else [*folders, stem]
        if (
            file.suffix == ".py"
            and parts
            and all(part.isidentifier() and not LEFT_OUT.fullmatch(part) for part in parts)
        ):
            files[".".join(parts)] = Path(str(distribution.locate_file(file)))
    return files


def read_pairs(
    files: Mapping[str, Path], minimum_query_words: int, minimum_words: int, maximum_words: int
) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of a package, by name, each query and each document once.

    Args:
        files: Path by qualified module name, in any order.
        minimum_query_words: Words a query has at least.
        minimum_words: Words a document has at least.
        maximum_words: Where a document is cut, counted by white space.

    Returns:
        The pairs, and counts: of `docstrings` read, of those dropped as `too_short` or `repeated`, and of
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
        if _words(pair.query) < minimum_query_words or _words(pair.document) < minimum_words:
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
    """The docstrings of what a package offers, by qualified name of where it is defined.

    Public is what has no leading underscore in its path, and what a public module imports from a private one.

    Args:
        files: Path by qualified module name, in any order.

    Returns:
        Docstring by name; and how many files could not be parsed.
    """
    modules: dict[str, Module | None] = {}

    def module(name: str) -> Module | None:
        if name not in modules:
            path = files[name]
            try:
                modules[name] = Module.parse(path.read_bytes(), name, path.name == "__init__.py")
            except (SyntaxError, ValueError) as error:
                log.info("%s is left out: %s", path, error)
                modules[name] = None
        return modules[name]

    found: dict[str, str] = {}
    wanted: list[tuple[str, str]] = []
    for name in sorted(files):
        if _public(name):
            wanted.append((name, "*"))
        elif name.endswith("_docs") or "newdocs" in name:
            wanted.append((name, ""))  # only for what it registers
    asked: set[tuple[str, str]] = set()
    while wanted:
        name, what = wanted.pop()
        if (name, what) in asked or name not in files:
            continue
        asked.add((name, what))
        content = module(name)
        if content is None:
            continue
        found |= {other: text for other, text in content.registered.items() if other not in found}
        for inner, docstring in content.docstrings.items():
            if (inner.partition(".")[0] == what or (what == "*" and (inner or _public(name)))) and _public(inner):
                found[f"{name}.{inner}" if inner else name] = docstring
        for target, original, bound in content.imports:
            if _public(target):
                continue
            if original == "*":
                wanted.append((target, what))
            elif bound == what or (what == "*" and _public(name) and _public(bound)):
                wanted.append((target, original))
    return found, sum(content is None for content in modules.values())


def make_pair(name: str, docstring: str) -> Pair:
    """Split a docstring into a summary sentence and the rest, and take the object's own name out of both.

    Args:
        name: The object's qualified name.
        docstring: As written.

    Returns:
        The pair; query or document may be too short, or empty.
    """
    own = name.rpartition(".")[2]
    text = RULE.sub("", ROLE.sub(r"\1", inspect.cleandoc(docstring))).replace("`", "").strip("\n")
    paragraphs = PARAGRAPH.split(text)
    while paragraphs and (signature := SIGNATURE.fullmatch(paragraphs[0])) and signature[1] == own:
        del paragraphs[0]
    lines = paragraphs[0].strip().splitlines() if paragraphs else []
    size = next((number for number, line in enumerate(lines) if FIELD.match(line.strip())), len(lines))
    summary, *rest = SENTENCE.split(" ".join(lines[:size]), maxsplit=1)
    nameless = _name_pattern(own)
    return Pair(
        name,
        _clean(nameless.sub("", summary)).strip(" .,:;-"),
        _clean(nameless.sub("", " ".join([*rest, *lines[size:], *paragraphs[1:]]))),
    )


@lru_cache(4096)
def _name_pattern(own: str) -> re.Pattern[str]:
    """The name as code writes it, in any case, as `snake_case` or `CamelCase`, with its module or a call's brackets."""
    parts = PARTS.findall(own)
    spelled = "[_-]?".join(parts) if "".join(parts) == own.replace("_", "") else re.escape(own)
    return re.compile(rf"(?<![\w.])(?:\w+\.)*{spelled}(?:\(\)|['\u2019]s)?(?!\w)", re.IGNORECASE)


def _clean(text: str) -> str:
    return re.sub(r" (?=[.,;:](?: |$)|[)\]])", "", " ".join(text.split()))


def _words(text: str) -> int:
    return len(WORD.findall(text))


def _public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def _registered(call: ast.Call, package: str) -> Iterator[tuple[str, str]]:
    """Qualified name and docstring of what a call documents, if it is such a call.

    The calls are `add_docstr(torch.abs, TEXT)`, `add_docstr_all("name", TEXT)`, `add_newdoc("module", "name", TEXT)`,
    `add_newdoc("module", "class", ("attribute", TEXT))`, the last also with a list of such pairs.
    """
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function.lstrip("_") not in REGISTRARS or len(call.args) < 2:
        return
    *path, last = call.args
    documented = last.elts if isinstance(last, ast.List) else [last]
    for item in documented:
        *names, text = [*path, *item.elts] if isinstance(item, ast.Tuple) else [*path, item]
        docstring = _text(text)
        spelled = [str(name.value) if isinstance(name, ast.Constant) else ast.unparse(name) for name in names]
        # A first argument of several is a module, private or not; a lone name is an object of this package.
        own = spelled[1:] or spelled[0].split(".")[-1:]
        if docstring and _public(".".join(own)):
            yield ".".join(spelled) if len(spelled) > 1 or "." in spelled[0] else f"{package}.{spelled[0]}", docstring


def _text(node: ast.expr) -> str | None:
    """The text of a literal, a sum of them, or a template, its placeholders left out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp):
        return (_text(node.left) or "") + (_text(node.right) or "") or None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        template = _text(node.func.value)
        return template and re.sub(r"(?<!\{)\{\w*\}(?!\})", "", template).replace("{{", "{").replace("}}", "}")
    return None


if __name__ == "__main__":
    step_main(make, __doc__)
