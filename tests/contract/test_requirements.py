"""Each lock is whole: all that a pinned package needs is pinned, so nothing is ever resolved while installing."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ENVS = Path(__file__).parents[2] / "envs"
LOCKS = ("local", "host", "torch", "lucene")
PYTHONS = ("3.11.0", "3.11.99", "3.12.0", "3.12.99", "3.13.0", "3.13.99")
MACHINES = ("x86_64", "aarch64")
UNUSED = {
    "pyserini": {
        canonicalize_name(line) for line in (ENVS / "lucene.excludes").read_text().split("\n") if line[:1] != "#"
    },
    "pytrec-eval-terrier": {"scipy"},
}
"""What packages ask for and our use of them does not need; a lock's excludes may leave out these, and no others."""
ENVIRONMENTS = [(python, machine) for python in PYTHONS for machine in MACHINES]


@dataclass(frozen=True)
class Pin:
    """A line of a lock."""

    version: str
    marker: Marker | None
    hashed: bool


def markers(python, machine):
    """What a Linux machine says of itself."""
    found = {
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python,
        "implementation_name": "cpython",
        "implementation_version": python,
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "platform_release": "",
        "platform_version": "",
    }
    return tuple(found.items())


def lock_of(name):
    """The pins of a lock, by package."""
    text = (ENVS / f"{name}.txt").read_text().replace("\\\n", " ")
    pins = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement = Requirement(line.partition("--hash")[0].strip())
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            package = canonicalize_name(requirement.name)
            assert package not in pins, f"{package} is pinned twice"
            pins[package] = Pin(specifier.version, requirement.marker, "--hash=sha256:" in line)
    return pins


def asked_for(name):
    """What a lock is made from: the requirements of its .in file, and of those that it includes."""
    for line in (ENVS / f"{name}.in").read_text().splitlines():
        if line.startswith("-r "):
            yield from asked_for(line.removeprefix("-r ").removesuffix(".in"))
        elif line and not line.startswith("#"):
            yield Requirement(line)


def left_out(name):
    """The packages that a lock leaves out, though Pyserini asks for them."""
    path = ENVS / f"{name}.excludes"
    lines = path.read_text().splitlines() if path.exists() else []
    return {canonicalize_name(line) for line in lines if not line.startswith("#")}


@cache
def metadata_of(package):
    """Version, wanted Pythons and requirements of an installed package."""
    found = distribution(package)
    python = SpecifierSet(found.metadata["Requires-Python"] or "")
    return found.version.partition("+")[0], python, [Requirement(text) for text in found.requires or ()]


@cache
def applies(marker, environment, extras):
    """Whether a requirement counts on a machine, for a package of which these extras are wanted."""
    return any(marker.evaluate(dict(environment) | {"extra": extra}) for extra in extras)


def unmet(pins, roots, excluded, environment):
    """The requirements that a lock does not meet on one kind of machine, a line for each; and the packages it needs."""
    findings, needed = [], set()
    todo = [("the .in file", requirement, frozenset({""})) for requirement in roots]
    seen = set()
    while todo:
        by, requirement, extras = todo.pop()
        if requirement.marker and not applies(requirement.marker, environment, extras):
            continue
        package = canonicalize_name(requirement.name)
        if package in excluded & UNUSED.get(by, set()):
            continue
        needed.add(package)
        pin = pins.get(package)
        if pin is None or (pin.marker and not applies(pin.marker, environment, frozenset({""}))):
            findings.append(f"{by} needs {requirement}, which is not pinned")
            continue
        if not requirement.specifier.contains(pin.version, prereleases=True):
            findings.append(f"{by} needs {requirement}, and {pin.version} is pinned")
        wanted = frozenset({"", *requirement.extras})
        if (package, wanted) not in seen:
            seen.add((package, wanted))
            version, pythons, requirements = metadata_of(package)
            if version != pin.version:
                findings.append(f"{package} {pin.version} is pinned, and {version} installed: run make test")
            if not pythons.contains(dict(environment)["python_full_version"]):
                findings.append(f"{package} needs Python {pythons}")
            todo += [(package, inner, wanted) for inner in requirements]
    return findings, needed


def check(name, pins, environment):
    return unmet(pins, list(asked_for(name)), left_out(name), markers(*environment))


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids="-".join)
@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_met_by_a_pin(name, environment):
    findings, _ = check(name, lock_of(name), environment)
    assert findings == []


@pytest.mark.parametrize("name", LOCKS)
def test_a_line_that_is_taken_out_is_missed(name):
    """So no line is there that nothing needs, but for what only other systems need."""
    pins = lock_of(name)
    for package, pin in pins.items():
        if pin.marker is None or applies(pin.marker, markers("3.11.0", "x86_64"), frozenset({""})):
            rest = {other: pin for other, pin in pins.items() if other != package}
            findings, _ = check(name, rest, ("3.11.0", "x86_64"))
            assert any(package in canonicalize_name(line.partition(" needs ")[2]) for line in findings), package


def test_a_pin_that_another_package_refuses_is_found():
    pins = lock_of("local")
    findings, _ = check("local", pins | {"transformers": Pin("9.0", None, True)}, ("3.12.0", "x86_64"))
    assert any(re.search(r"needs transformers.*9\.0 is pinned", line) for line in findings)


def test_an_extra_that_a_package_asks_for_is_followed():
    pins = lock_of("local")
    without = {name: pin for name, pin in pins.items() if name != "late-interaction-kernels"}
    findings, _ = check("local", without, ("3.11.0", "x86_64"))
    assert any("late-interaction-kernels" in line for line in findings)


@pytest.mark.parametrize("name", (*LOCKS, "browser", "peers", "pretrained", "validators"))
def test_every_line_has_the_digests_of_its_files(name):
    assert all(pin.hashed for pin in lock_of(name).values())


def test_all_locks_have_one_version_of_a_package():
    local = lock_of("local")
    for name in LOCKS:
        for package, pin in lock_of(name).items():
            assert pin.version == local[package].version, f"{package} in envs/{name}.txt"


def test_what_is_left_out_here_is_left_out_of_the_image_and_asked_for_by_nobody_else():
    assert left_out("local") <= left_out("lucene")
    _, needed = check("local", lock_of("local"), ("3.11.0", "x86_64"))
    assert not left_out("local") & needed
