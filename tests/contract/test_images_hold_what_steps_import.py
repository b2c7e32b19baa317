"""Each step's modules find in its image what they import: the image's lock names it."""

import ast
import re
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "workflow" / "colbert_zero"
OWN = "colbert_zero"


def steps():
    """Image and module of every rule that runs one."""
    for file in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        for rule in re.split(r"^rule ", file.read_text(), flags=re.MULTILINE)[1:]:
            image = re.search(r'container:\s+image\("(\w+)"\)', rule)
            modules = re.findall(rf"-m {OWN}\.([\w.]+)", rule)
            # It starts the training in processes of its own.
            modules += ["training.train"] * ("machine.launch" in modules)
            if image and modules:
                yield from ((image[1], module) for module in modules)


def file_of(module):
    return PACKAGE / f"{module.replace('.', '/')}.py"


@cache
def imports(module):
    """What a module imports: other packages at once, modules of this one also when it needs them."""
    tree = ast.parse(file_of(module).read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == OWN:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names - {OWN}


def closure(module):
    """All that a step may import of this package, and what those modules import at once."""
    found, todo = set(), [module]
    while todo:
        for name in imports(todo.pop()):
            if name.startswith(OWN + "."):
                inner = name.removeprefix(OWN + ".")
                if inner not in found and file_of(inner).is_file():
                    found.add(inner)
                    todo.append(inner)
            else:
                found.add(name.split(".")[0])
    return {name for name in found if not file_of(name).is_file()} - sys.stdlib_module_names


def locked(image):
    text = (ROOT / "envs" / f"{image}.txt").read_text()
    return set(re.findall(r"^([a-z0-9.-]+)==", text, re.MULTILINE))


@pytest.mark.parametrize(("image", "module"), sorted(set(steps())))
def test_the_image_has_what_the_step_imports(image, module):
    known, there = packages_distributions(), locked(image)
    for name in closure(module):
        distributions = {re.sub(r"[-_.]+", "-", found).lower() for found in known[name]}
        assert distributions & there, f"{module} imports {name}, which is not in envs/{image}.txt"


def test_every_step_is_looked_at():
    found = set(steps())
    assert {image for image, _ in found} == {"torch", "lucene"}
    assert ("torch", "machine.launch") in found and ("lucene", "mining.bm25") in found and len(found) > 12
