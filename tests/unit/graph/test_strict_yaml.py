"""The YAML of a config: plain values, read in bounded time, each mistake one line with its place."""

import time
import tracemalloc
from itertools import pairwise

import pytest
import yaml

from colbert_zero.graph.config import read_config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.graph.strict_yaml import parse


def doubling(line):
    """Twelve lines, each with ten aliases of the one before it."""
    names = [f"a{number}" for number in range(12)]
    lines = [f"{new}: &{new} {line(', '.join([f'*{old}'] * 10))}" for old, new in pairwise(names)]
    return "\n".join(["a0: &a0 {x: 1}", *lines])


REFUSED = {
    "tab": ("a:\n\tb: 1", "line 2, column 1: not YAML: a tab cannot indent"),
    "tab in a list": ("a:\n- b\n\t- c", "line 3, column 1: not YAML: "),
    "broken": ("a: [1,\nb: 2", "line 3, column 1: not YAML: "),
    "unclosed quote": ("a: 'b", "line 1, column 6: not YAML: "),
    "a colon in a value": ("a: b: c", "line 1, column 5: not YAML: "),
    "an @": ("a: @b", "line 1, column 4: not YAML: @ cannot begin a value: quote it"),
    "undefined alias": ("a: *b", "line 1, column 4: not YAML: found undefined alias"),
    "duplicate": ("a:\n  b: 1\n  c: 2\n  b: 3", "line 4, column 3: b is there twice, first in line 2"),
    "duplicate in quotes": ("a: 1\n'a': 1", "line 2, column 1: a is there twice, first in line 1"),
    "two documents": ("a: 1\n---\nb: 1", "line 2, column 1: a second document"),
    "two documents, the second broken": ("a: 1\n---\nb: ][", "line 2, column 1: a second document"),
    "latin-1": ("a: é".encode("latin-1"), "line 1, column 4: not UTF-8 (byte 0xe9)"),
    "latin-1 further down": ("a: ü\nb: é".encode() + b"\xff", "line 2, column 5: not UTF-8 (byte 0xff)"),
    "utf-16": ("a: 1".encode("utf-16"), "line 1, column 1: not UTF-8"),
    "null character": ("a: \0", "line 1, column 4: the character 0x00"),
    "escape sequence": ("ü: \x1b[31m", "line 1, column 4: the character 0x1b"),
    "escape sequence in a name": ('"a\\e[31m": 1', "line 1, column 1: the name 'a\\x1b[31m' has characters"),
    "line end in a name": ('"a\\ncolbert-zero: done": 1', "line 1, column 1: the name 'a\\ncolbert"),
    "code": ("a: !!python/object/apply:os.system [x]", "line 1, column 4: the tag !!python/object/apply:os.system is"),
    "tag of its own": ("a: !x 1", "line 1, column 4: the tag !x is not allowed"),
    "standard tag": ("a: !!set {b, c}", "line 1, column 4: the tag !!set is not allowed"),
    "truth value for a name": ("no: 1", "line 1, column 1: YAML reads the name no as true or false: put it in quotes"),
    "number for a name": ("2024: 1", "line 1, column 1: YAML reads the name 2024 as a number: put it in quotes"),
    "date for a name": ("2024-01-01: 1", "line 1, column 1: YAML reads the name 2024-01-01 as a date"),
    "null for a name": ("a: {~: 1}", "line 1, column 5: YAML reads the name ~ as null"),
    "list for a name": ("[a]: 1", "line 1, column 1: a setting's name is one word"),
    "octal": ("a: 016", "line 1, column 4: 016 is no decimal number"),
    "base 60": ("a: 10:30", "line 1, column 4: 10:30 is no decimal number"),
    "base 60 with a point": ("a: 10:30.5", "line 1, column 4: 10:30.5 is no decimal number"),
    "a date that is none": ("a: 2024-13-45", "line 1, column 4: 2024-13-45 is not a date that can be"),
    "thousands of digits": ("a: " + "1" * 5000, "is not a number that can be"),
    "an equals sign": ("a: =", "line 1, column 4: = alone is no value"),
    "a group in itself": ("a: &a {b: [*a]}", "line 1, column 4: what is here is inside itself"),
    "aliases of lists": (doubling("[{}]".format), "its aliases (*) stand for more than"),
    "aliases of groups": (doubling("{{<<: [{}]}}".format), "its aliases (*) stand for more than"),
    "deep by aliases": (
        "a0: &a0 [1]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}, 1]" for n in range(1, 900)),
        "nest too deep",
    ),
    "deep list": ("[" * 500_000, "column 21: nested deeper"),
    "deep list after lists that end": ("[" + "[], " * 40 + "[" * 500_000, "column 181: nested deeper"),
    "deep groups": ("{a: " * 200_000, "nested deeper than"),
    "deep dashes": ("- " * 400_000, "nested deeper than"),
    "deep question marks": ("? " * 400_000, "nested deeper than"),
    "many values": ("a: [" + "1, " * 300_000 + "]", "line 1, column 59996: more than 20000 values"),
    "long": ("#" * 1_000_001, "longer than 1000000 bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_config_must_not_hold_is_one_line_with_its_place_at_once(case):
    text, words = REFUSED[case]
    started = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        parse(text if isinstance(text, bytes) else text.encode())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
    assert peak < 64e6
    assert time.perf_counter() - started < 10  # Of which the tracing takes most.


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("a: &all [1, 2]\nb: *all", {"a": [1, 2], "b": [1, 2]}),
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
        ("a: '2024'\n'no': b", {"a": "2024", "no": "b"}),
        ("%YAML 1.1\n---\na: 1\n...\n", {"a": 1}),
        ("a: |\n  b\n  c\n", {"a": "b\nc\n"}),
        ('{"a": 8e-06, "b": [1E3, -2.5e+1], "c": "1e3"}', {"a": 8e-06, "b": [1000.0, -25.0], "c": "1e3"}),
        ("a: 1e-3\nb: .5e2\nc: 1.e3\nd: 1e\ne: e3", {"a": 0.001, "b": 50.0, "c": 1000.0, "d": "1e", "e": "e3"}),
        ("a: 1_000\nb: -0\nc: +1.5e+3", {"a": 1000, "b": 0, "c": 1500.0}),
    ],
)
def test_what_yaml_says_plainly_is_read(text, value):
    assert parse(text.encode()) == value


@pytest.mark.parametrize(
    "text", ["#" * 1_000_000, "[" * 20 + "]" * 20, "[" * 20 + "1" + "]" * 20, f"[{'1, ' * 19_999}]"], ids=len
)
def test_the_limits_themselves_are_fine(text):
    assert parse(text.encode()) == yaml.safe_load(text)


def values_by_aliases(more):
    """A document of 19,883 values, of which most are aliases, and `more`."""
    return f"a: &a [{'1, ' * 140}]\nb: [{'*a, ' * 140}{'1, ' * more}]"


def depth_by_aliases(depth):
    """A document that is so deep by aliases, each of which stands before something flat."""
    lines = [f"a{number}: &a{number} [*a{number - 1}, 1]" for number in range(1, depth - 1)]
    return "\n".join(["a0: &a0 [1]", *lines])


@pytest.mark.parametrize(
    ("document", "limit"), [(values_by_aliases, 20_000 - 19_883), (depth_by_aliases, 20)], ids=["values", "depth"]
)
def test_what_aliases_stand_for_is_counted_to_the_limit_itself(document, limit):
    assert parse(document(limit).encode()) == yaml.safe_load(document(limit))
    with pytest.raises(UserError, match=r"its aliases \(\*\) stand for more than 20000 values, or nest too deep"):
        parse(document(limit + 1).encode())


@pytest.mark.parametrize("folder", ["", "local", "tests/fixtures/study-0.1.0"])
def test_our_own_configs_are_read_as_any_yaml_loader_reads_them(folder):
    path = REPOSITORY / folder / "config.yaml"
    assert read_config(path) == yaml.safe_load(path.read_text())
