"""A study's config: read it, validate it against the schema, fill in defaults, explain a mistake in one line."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colbert_zero.graph.console import UserError
from colbert_zero.graph.local_files import problem_with_file
from colbert_zero.graph.paths import WORKFLOW
from colbert_zero.graph.strict_yaml import MAXIMUM_BYTES, parse
from colbert_zero.graph.yaml_files import read_yaml as read_yaml

if TYPE_CHECKING:
    import jsonschema

Config = Mapping[str, Any]

CONFIG_FILE = "config.yaml"
LOCK_FILE = "config.lock.yaml"
"""Beside the config; see `revisions`."""
LARGEST_NUMBER = 2**31 - 1
"""Of a setting without a maximum of its own: what is above does not fit where libraries and SLURM keep counts."""
MAXIMUM_SHOWN = 100
"""How many characters of a value an error shows."""

TYPE_NAMES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a group of settings",
    "null": "null",
}
"""JSON Schema's types, in the words of error messages."""


def read_config(path: Path, overrides: Config | None = None) -> Config:
    """The parsed config at `path`.

    Args:
        path: The file.
        overrides: Settings that replace the file's, group by group, as `snakemake --config` gives them.

    Raises:
        UserError: The file is missing, or is not YAML with settings in it; see `strict_yaml.parse`.
    """
    problem = problem_with_file(path)
    if problem == "does not exist":
        raise UserError(f"{path.absolute()} does not exist; a study is a folder with a config.yaml")
    if problem:
        raise UserError(f"{path} {problem}; a study is a folder with a config.yaml")
    with path.open("rb") as file:
        data = file.read(MAXIMUM_BYTES + 1)
    try:
        config = parse(data)
        if not isinstance(config, dict):
            found = "there is nothing in it" if config is None else "not a group of settings"
            raise UserError(f"{found}; a config begins with a setting, such as study: mine")
        if "__use_yte__" in config:
            raise UserError("__use_yte__ is not a setting: a config holds values, and its expressions are never run")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return _merged(config, overrides or {})


def _merged(config: Config, overrides: Config) -> Config:
    """`config` with the settings of `overrides` in it, of which a group is merged and anything else replaced."""
    merged = dict(config)
    for name, value in overrides.items():
        inner = config.get(name)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            value = _merged(inner, value)
        merged[name] = value
    return merged


@contextmanager
def errors_in_config() -> Iterator[None]:
    """Put the config's name before what a UserError says, unless its name or its lock file's is there."""
    try:
        yield
    except UserError as error:
        message = str(error)
        named = message.startswith((f"{CONFIG_FILE}: ", f"{LOCK_FILE}: "))
        raise type(error)(message if named else f"{CONFIG_FILE}: {message}") from None


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = read_yaml(WORKFLOW / "schemas" / "study.schema.yaml")
    return schema


# JSON Schema takes 16.0 for an integer, NaN for a number, and finds a pattern anywhere, its $ before a last line end.


def _is_whole_number(_checker: object, value: object) -> bool:
    return type(value) is int


def _is_number(_checker: object, value: object) -> bool:
    return type(value) is int or (type(value) is float and math.isfinite(value))


def _is_text(_checker: object, value: object) -> bool:
    # The command line may hold bytes that are no characters, which Python keeps as lone surrogates. No path, argument
    # or name may hold a null character.
    return isinstance(value, str) and not any(
        character == "\0" or "\ud800" <= character <= "\udfff" for character in value
    )


@cache
def _validator() -> Any:
    """What checks a config against the schema."""
    import jsonschema  # here: steps that only look up the registry run in images without it

    draft = jsonschema.Draft202012Validator

    def check_type(validator: Any, types: Any, value: Any, schema: Config) -> Iterator[jsonschema.ValidationError]:
        yield from draft.VALIDATORS["type"](validator, types, value, schema)
        if validator.is_type(value, "number") and "maximum" not in schema and value > LARGEST_NUMBER:
            yield jsonschema.ValidationError("", validator="maximum", validator_value=LARGEST_NUMBER)

    def check_pattern(
        validator: Any, pattern: str, value: Any, _schema: Config
    ) -> Iterator[jsonschema.ValidationError]:
        if validator.is_type(value, "string") and not re.fullmatch(pattern.removesuffix("$"), value):
            yield jsonschema.ValidationError("")

    strict = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
        draft,
        {"type": check_type, "pattern": check_pattern},
        type_checker=draft.TYPE_CHECKER.redefine_many(
            {"integer": _is_whole_number, "number": _is_number, "string": _is_text}
        ),
    )
    return strict(_schema())


@errors_in_config()
def validate(config: Config) -> dict[str, Any]:
    """`config` with the schema's defaults filled in.

    Equal numbers are equal in what is returned, so that they give the same keys: 1.0 is 1.

    Raises:
        UserError: The config does not fit the schema. The message names the first error, and for an unknown key the
            most similar known one.
    """
    errors = _validator().iter_errors(config)
    first = min(errors, key=lambda error: [str(step) for step in error.absolute_path], default=None)
    if first is not None:
        raise UserError(_error_line(first))
    complete: dict[str, Any] = _with_defaults(_canonical(config), _schema())
    return complete


def _canonical(value: Any) -> Any:
    """A copy of a value, in which every number that is whole is an integer."""
    if isinstance(value, Mapping):
        return {name: _canonical(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _error_line(error: jsonschema.ValidationError) -> str:
    """Where in the config an error is, and what is wrong there."""
    while error.context and not _exclusive_keys(error):
        # The alternative that the author most likely meant is the one whose error lies deepest.
        error = max(error.context, key=lambda inner: (len(inner.path), inner.validator == "additionalProperties"))
    return f"{'.'.join(map(str, error.absolute_path)) or 'the study'}: {_describe(error)}"


def _exclusive_keys(error: jsonschema.ValidationError) -> list[str]:
    """The keys of which exactly one must be given, if the error is that none or several are."""
    schema: Any = error.schema
    if error.validator in ("minProperties", "maxProperties"):
        return list(schema.get("properties", ()))
    alternatives = schema["oneOf"] if error.validator == "oneOf" else []
    return [key for alternative in alternatives for key in alternative.get("required", ())]


def _describe(error: jsonschema.ValidationError) -> str:
    """What is wrong with a value, in words for the config's author."""
    value: Any = error.instance
    expected: Any = error.validator_value
    schema: Any = error.schema
    # YAML parses dates, as values and as keys, which JSON does not have.
    shown = _shortened(json.dumps(value, ensure_ascii=False, default=str, skipkeys=True))
    if keys := _exclusive_keys(error):
        return f"give exactly one of {', '.join(keys)}"
    match error.validator:
        case "additionalProperties":
            unknown = next(key for key in value if key not in schema["properties"])
            suggestion = _suggestion(str(unknown), list(schema["properties"]))
            return f"{_shortened(str(unknown))} is not a setting; {suggestion}"
        case "required":
            return f"{next(key for key in expected if key not in value)} is missing"
        case "type" if isinstance(value, str) and expected == "number":
            return f"{shown} is text, not a number; a number has no quotes: write 1.0e-3"
        case "type" if isinstance(value, float) and value.is_integer():
            return f"{shown} is not a whole number; write {int(value)}"
        case "type" if isinstance(value, float) and expected == "number":
            return f"{shown} is not a finite number"
        case "type":
            types = [expected] if isinstance(expected, str) else expected
            return f"{shown} is not {' or '.join(map(TYPE_NAMES.__getitem__, types))}"
        case "pattern":
            return f"{shown} is not of the form {expected}"
        case "minItems" | "minProperties" | "minLength":
            return "there is nothing in it"
        case "minimum":
            return f"{shown} is less than {expected}"
        case "exclusiveMinimum":
            return f"{shown} is not above {expected}"
        case "maximum":
            return f"{shown} is more than {expected}"
        case "maxLength":
            return f"{shown} has {len(value)} characters; at most {expected} are allowed"
        case "enum":
            return f"{shown} is none of {', '.join(map(str, expected))}"
        case "uniqueItems":
            return f"{shown} has something twice"
        case _:
            return error.message


def _shortened(text: str) -> str:
    return text if len(text) <= MAXIMUM_SHOWN else f"{text[:MAXIMUM_SHOWN]}..."


def _suggestion(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"


def _definition(name: str) -> dict[str, Any]:
    definition: dict[str, Any] = _schema()["$defs"][name]
    return definition


def _defaults(schema: Config) -> dict[str, Any]:
    """The defaults of an object's properties, of those that have one."""
    properties = schema.get("properties", {})
    return {name: deepcopy(inner["default"]) for name, inner in properties.items() if "default" in inner}


def stage_defaults() -> dict[str, Any]:
    """The default values of a stage's settings."""
    return _defaults(_definition("settings"))


def _with_defaults(value: Any, schema: Config) -> Any:
    """`value` with the schema's defaults filled in, except in stage settings, which recipes merge first."""
    if "$ref" in schema:
        schema = _definition(schema["$ref"].rpartition("/")[2])
    if not isinstance(value, dict) or schema is _definition("settings"):
        return value
    inner_schemas = schema.get("properties", {})
    schema_of_others = schema.get("additionalProperties") or {}
    value = _defaults(schema) | value
    return {name: _with_defaults(inner, inner_schemas.get(name, schema_of_others)) for name, inner in value.items()}


def require_known(name: str, names: Iterable[str], where: str, section: str) -> str:
    """`name`, if it is one of `names`.

    Raises:
        UserError: It is not. The message says `where` the name is used, which `section` lacks it, and the most similar
            known name.
    """
    names = list(names)
    if name not in names:
        raise UserError(f"{where}: {_shortened(name)} is not in {section}; {_suggestion(name, names)}")
    return name


def only_key(entry: Config, keys: Sequence[str], where: str, options: Mapping[str, Sequence[str]] | None = None) -> str:
    """The only one of `keys` that `entry` has.

    Args:
        entry: An entry of the config, which one of the keys says the kind of.
        keys: The kinds.
        where: The entry's place in the config.
        options: For each setting that only entries of some kinds have, these kinds.

    Raises:
        UserError: The entry has none of the keys, or several, or a setting that its kind does not have.
    """
    given = [key for key in keys if key in entry]
    if len(given) != 1:
        raise UserError(f"{where}: give exactly one of {', '.join(keys)}")
    (kind,) = given
    for option, kinds in (options or {}).items():
        if option in entry and kind not in kinds:
            raise UserError(f"{where}: {option} means nothing beside {kind}; it belongs to {' or '.join(kinds)}")
    return kind


def refuse_clashes(section: str, planned: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse two things of one name: an entry that is called as a member of another one, or two members.

    Args:
        section: The section of the config.
        planned: What each of its entries stands for, by name: one thing of its own name, or the members of a group. Two
            entries may stand for the same thing.

    Raises:
        UserError: A name means two things.
    """
    first: dict[str, tuple[str, Any]] = {}
    for entry, things in planned.items():
        for name, thing in things.items():
            other, meant = first.setdefault(name, (entry, thing))
            if meant != thing:
                raise _clash(section, entry, name, other)
    for entry, things in planned.items():
        if entry in first and entry not in things:
            raise _clash(section, entry, entry, first[entry][0])


def _clash(section: str, entry: str, name: str, other: str) -> UserError:
    return UserError(
        f"{section}.{entry}: {name} is a name in {section}.{other} too, of something else: rename one, or leave it out"
    )
