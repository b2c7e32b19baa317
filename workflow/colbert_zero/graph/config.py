"""A study's config: read it, validate it against the schema, fill in defaults, explain a mistake in one line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from colbert_zero.graph.console import UserError
from colbert_zero.graph.paths import WORKFLOW

Config = Mapping[str, Any]

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


@cache
def read_yaml(path: Path) -> Any:
    """The parsed YAML at `path`, read once."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 (both are the safe loader)


def read_config(path: Path) -> Config:
    """The parsed config at `path`.

    Raises:
        UserError: The file is missing, or is not YAML with settings in it.
    """
    try:
        config = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{path.absolute()} does not exist; a study is a folder with a config.yaml") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: no settings in it")
    return config


@cache
def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = read_yaml(WORKFLOW / "schemas" / "study.schema.yaml")
    return schema


def validate(config: Config) -> dict[str, Any]:
    """`config` with the schema's defaults filled in.

    Raises:
        UserError: The config does not fit the schema. The message names the first error, and for an unknown key the
            most similar known one.
    """
    schema = _schema()
    errors = jsonschema.Draft202012Validator(schema).iter_errors(config)
    first = min(errors, key=lambda error: [str(step) for step in error.absolute_path], default=None)
    if first is not None:
        raise UserError(f"config.yaml: {_error_line(first)}")
    complete: dict[str, Any] = _with_defaults(deepcopy(dict(config)), schema)
    return complete


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
    shown = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    if keys := _exclusive_keys(error):
        return f"give exactly one of {', '.join(keys)}"
    match error.validator:
        case "additionalProperties":
            unknown = next(key for key in value if key not in schema["properties"])
            return f"{unknown} is not a setting; {_suggestion(str(unknown), list(schema['properties']))}"
        case "required":
            return f"{next(key for key in expected if key not in value)} is missing"
        case "type" if isinstance(value, str) and expected == "number":
            return f"{shown} is text, not a number (YAML reads 1e-3 as text; write 1.0e-3)"
        case "type":
            types = [expected] if isinstance(expected, str) else expected
            return f"{shown} is not {' or '.join(map(TYPE_NAMES.__getitem__, types))}"
        case "pattern":
            return f"{shown} is not of the form {expected}"
        case "minItems" | "minProperties":
            return "there is nothing in it"
        case "uniqueItems":
            return f"{shown} has something twice"
        case _:
            return error.message


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
        raise UserError(f"config.yaml: {where}: {name} is not in {section}; {_suggestion(name, names)}")
    return name


def only_key(entry: Config, keys: Sequence[str], where: str) -> str:
    """The only one of `keys` that `entry` has.

    Raises:
        UserError: The entry has none of them, or several.
    """
    given = [key for key in keys if key in entry]
    if len(given) != 1:
        raise UserError(f"config.yaml: {where}: give exactly one of {', '.join(keys)}")
    return given[0]
