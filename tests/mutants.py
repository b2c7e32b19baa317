"""Change one thing at a time in our code, and see whether a unit test of the changed module notices.

    python tests/mutants.py [--jobs N] [graph/digests.py mining ...]

prints each change that no test noticed and that `mutants.txt` does not call equal, and fails if there is one. Such a
change either has no test (write one that states the right value), or it changes nothing that anybody can see: then it
goes into `mutants.txt` as it was printed, with the reason on the line below.

Changed are comparisons, signs, operators, conditions, numbers, flags, minima and maxima. Of the libraries for this,
mutmut leaves out what is decorated and what stands outside functions, half of this code and the keys' length with it;
cosmic-ray changes files in place and starts Python anew each time, which with torch takes longer than most tests. Here
a process that has imported the libraries is forked for each change, and works on a copy.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = Path("workflow/colbert_zero")
CHANGED = ("graph", "mining", "retrieval", "training", "evaluation", "data/batches.py")
"""The rooms and modules that are changed if none are named."""
EQUAL = Path(__file__).with_suffix(".txt")
LIBRARIES = (
    "hypothesis", "ir_measures", "jsonschema", "numpy", "pyarrow.parquet", "torch", "faiss", "yaml",
    "sklearn.decomposition", "sentence_transformers", "pylate.models",
)  # fmt: skip
"""Imported once, before any process is forked."""
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "results", "resources", "logs", "benchmarks", "shared")
SECONDS = 20.0
"""How long a test may take beyond three times what it takes without a change: one that hangs has noticed."""

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
GUARDS = {"strict", "frozen"}
"""Arguments of `zip` and of data classes that refuse what no code here does."""
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    Attributes:
        module: The module's path in the package.
        line: The number of the line that is changed.
        before: What the line says, as `ast` writes it.
        after: What it says then.
        text: The changed module.
    """

    module: str
    line: int
    before: str
    after: str
    text: str

    @property
    def block(self) -> str:
        """The change as `mutants.txt` has it, without the reason."""
        return f"{self.module}\n- {self.before}\n+ {self.after}"


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """Every change of a module's source."""
    tree = ast.parse(source)
    before = ast.unparse(tree).split("\n")
    for parent, field, position, node in _places(tree):
        for other in _replacements(node):
            _put(parent, field, position, other)
            after = ast.unparse(tree).split("\n")
            changed = next(at for at, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1])
            yield Mutant(module, node.lineno, before[changed].strip(), after[changed].strip(), "\n".join(after))
        _put(parent, field, position, node)


def _places(parent: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.expr | ast.stmt]]:
    """Yield every expression and statement, and where it stands; not types, messages, or what only guards."""
    if isinstance(parent, ast.JoinedStr) or (isinstance(parent, ast.keyword) and parent.arg in GUARDS):
        return
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns"):
            continue
        for position, node in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(node, ast.expr | ast.stmt):
                yield parent, field, position if isinstance(value, list) else None, node
            if isinstance(node, ast.AST):
                yield from _places(node)


def _put(parent: ast.AST, field: str, position: int | None, node: ast.AST) -> None:
    if position is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[position] = node


def _replacements(node: ast.expr | ast.stmt) -> Iterator[ast.AST]:
    """What stands instead of a node, one at a time."""
    match node:
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            for at, operator in enumerate(ops):
                changed = [*ops[:at], COMPARISONS[type(operator)](), *ops[at + 1 :]]
                yield ast.Compare(left, changed, comparators)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
            yield ast.BinOp(left, OPERATORS[type(operator)](), right)
        case ast.AugAssign(target=target, op=operator, value=value) if type(operator) in OPERATORS:
            yield ast.AugAssign(target, OPERATORS[type(operator)](), value)
        case ast.BoolOp(op=operator, values=values):
            yield ast.BoolOp(ast.Or() if isinstance(operator, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 2 or 1.0)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords) if name in FUNCTIONS:
            yield ast.Call(ast.Name(FUNCTIONS[name]), arguments, keywords)
        case ast.IfExp(test=ast.Name() | ast.Attribute() | ast.Call() as test, body=body, orelse=orelse):
            yield ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.If(test=ast.Name() | ast.Attribute() | ast.Call() as test, body=body, orelse=orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)


def tests_of(module: str) -> list[str]:
    """The unit tests of a module: those in its room that begin with its name or import it, or all of its room."""
    room, name = module.removesuffix(".py").split("/")[0], module.removesuffix(".py").replace("/", ".")
    package, _, last = name.rpartition(".")
    imports = re.compile(rf"colbert_zero\.{re.escape(name)}\b|from colbert_zero\.{package} import [^\n]*\b{last}\b")
    begins = re.compile(rf"test_{last}(_\w+)?\.py")
    files = sorted((ROOT / "tests/unit" / room).glob("test_*.py"))
    found = [path for path in files if begins.fullmatch(path.name) or imports.search(path.read_text(encoding="utf-8"))]
    return [str(path.relative_to(ROOT)) for path in found or files]


class Noticing:
    """Has the tests that noticed a change run first: the next change, a line further, is mostly noticed by the same."""

    def __init__(self, record: Path) -> None:
        """Read which tests noticed changes from a file, the last one last; there may be none yet."""
        self._record = record
        names = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
        self._rank = {name: -number for number, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the tests that noticed a change first, the last one before the others."""
        items.sort(key=lambda item: self._rank.get(item.nodeid, 1))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write down the test that fails, with which the process ends."""
        if report.failed:
            with self._record.open("a", encoding="utf-8") as file:
                file.write(f"{report.nodeid}\n")


class Copy:
    """A copy of the repository, in which one module at a time is changed."""

    def __init__(self, folder: Path) -> None:
        """Copy the files that tests read into a folder, which is made."""
        shutil.copytree(ROOT, folder, ignore=NOT_COPIED, symlinks=True)
        self._folder = folder

    def pass_with(self, mutant: Mutant, tests: Sequence[str], seconds: float) -> bool:
        """Whether tests pass, in at most `seconds`, although a module is changed."""
        path = self._folder / PACKAGE / mutant.module
        source = path.read_text(encoding="utf-8")
        path.write_text(mutant.text, encoding="utf-8")
        try:
            return self.pass_(tests, seconds)
        finally:
            path.write_text(source, encoding="utf-8")

    def pass_(self, tests: Sequence[str], seconds: float) -> bool:
        """Whether tests pass, in at most `seconds`, in a process of their own."""
        process = os.fork()
        if not process:
            os._exit(self._run(tests))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                return status == 0
            time.sleep(0.02)
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return False

    def last_words(self) -> str:
        """The end of what the last tests printed."""
        return (self._folder / "pytest.log").read_text(encoding="utf-8", errors="replace")[-1000:]

    def _run(self, tests: Sequence[str]) -> int:
        os.setpgid(0, 0)
        os.chdir(self._folder)
        output = os.open(self._folder / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        # For the processes that tests start. No bytecode: a change may keep a file's size and second.
        os.environ |= {"PYTHONPATH": str(self._folder / "workflow"), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.dont_write_bytecode = True
        # A law is tried on the same examples each time.
        flags = ["-x", "--hypothesis-seed=0", "-p", "no:cacheprovider", "--basetemp", str(self._folder / "tmp")]
        try:
            return int(pytest.main([*flags, *tests], [Noticing(self._folder / "noticing.txt")]))
        except BaseException:
            return 1


@dataclass(frozen=True)
class Trial:
    """A change to try."""

    mutant: Mutant
    tests: list[str]
    seconds: float


_copy: Copy
"""That of this process."""


def _begin(parent: Path) -> None:
    global _copy
    _copy = Copy(parent / str(os.getpid()))


def _seconds(tests: list[str]) -> float | str:
    """How long tests take, or what they say if they fail as they are."""
    start = time.monotonic()
    return time.monotonic() - start if _copy.pass_(tests, 1800) else _copy.last_words()


def _try(trial: Trial) -> tuple[Mutant, bool]:
    """A change, and whether the tests notice it."""
    return trial.mutant, not _copy.pass_with(trial.mutant, trial.tests, trial.seconds)


def modules_in(named: Sequence[str]) -> list[str]:
    """The modules that paths in the package name, rooms included."""
    package = ROOT / PACKAGE
    found = [
        sorted((package / name).rglob("*.py")) if (package / name).is_dir() else [package / name] for name in named
    ]
    return [str(path.relative_to(package)) for paths in found for path in paths]


def equal_blocks() -> set[str]:
    """The changes that `mutants.txt` calls equal."""
    blocks = EQUAL.read_text(encoding="utf-8").split("\n\n")
    return {"\n".join(block.strip().split("\n")[:3]) for block in blocks}


def main() -> int:
    """Try the changes of the modules that are named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=CHANGED, help="rooms or modules, such as mining/corpus.py")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes try changes at once (1)")
    options = parser.parse_args()
    for library in LIBRARIES:
        importlib.import_module(library)
    equal, failed = equal_blocks(), False
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("fork").Pool(options.jobs, _begin, [Path(folder)]) as pool,
    ):
        for module in modules_in(options.modules):
            source = (ROOT / PACKAGE / module).read_text(encoding="utf-8")
            found = list(mutants(module, source))
            to_try = [mutant for mutant in found if mutant.block not in equal]
            for block in sorted(equal - {mutant.block for mutant in found}):
                if block.startswith(f"{module}\n"):
                    print(f"\n{EQUAL.name} has a change of code that is no longer there:\n{block}\n", flush=True)
                    failed = True
            tests = tests_of(module)
            seconds = pool.apply(_seconds, [tests]) if to_try else 0.0
            if isinstance(seconds, str):
                print(f"{module}: its tests fail as they are: {seconds}", flush=True)
                failed = True
                continue
            trials = [Trial(mutant, tests, SECONDS + 3 * seconds) for mutant in to_try]
            unnoticed = 0
            for mutant, noticed in pool.imap(_try, trials):
                if not noticed:
                    print(f"\nline {mutant.line} of\n{mutant.block}\n", flush=True)
                    unnoticed += 1
            print(f"{module}: {len(trials)} changes, {unnoticed} not noticed by {' '.join(tests)}", flush=True)
            failed |= bool(unnoticed)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
