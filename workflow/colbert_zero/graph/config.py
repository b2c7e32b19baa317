"""The grammar of a study's config: the schema's checks, its defaults, and words for what is wrong."""

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

WORKFLOW = Path(__file__).parents[2]

Config = Mapping[str, Any]

TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a group of settings",
    "null": "null",
}
"""JSON's types, for people."""


@cache
def read_yaml(path: Path) -> Any:
    """The parsed YAML at `path`, read once."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 (both are the safe loader)


def read_config(path: Path) -> Config:
    """The parsed config at `path`.

    Raises:
        UserError: It is missing, or not YAML with settings in it.
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


def check(config: Config) -> dict[str, Any]:
    """`config` with defaults filled in, if it fits the schema.

    Raises:
        UserError: The first thing that does not, naming the nearest known key for an unknown one.
    """
    schema = _schema()
    found = jsonschema.Draft202012Validator(schema).iter_errors(config)
    first = min(found, key=lambda error: [str(step) for step in error.absolute_path], default=None)
    if first is not None:
        raise UserError(f"config.yaml: {_explain(first)}")
    filled: dict[str, Any] = _filled(deepcopy(dict(config)), schema)
    return filled


def _explain(error: jsonschema.ValidationError) -> str:
    while error.context and not _one_key_of(error):
        # Of several alternatives, the one that came closest has the deepest error.
        error = max(error.context, key=lambda inner: (len(inner.path), inner.validator == "additionalProperties"))
    return f"{'.'.join(map(str, error.absolute_path)) or 'the study'}: {_words(error)}"


def _one_key_of(error: jsonschema.ValidationError) -> list[str]:
    """The keys of which exactly one is wanted, if that is what is wrong."""
    schema: Any = error.schema
    if error.validator in ("minProperties", "maxProperties"):
        return list(schema.get("properties", ()))
    alternatives = schema["oneOf"] if error.validator == "oneOf" else []
    return [key for alternative in alternatives for key in alternative.get("required", ())]


def _words(error: jsonschema.ValidationError) -> str:
    """What is wrong with a value, for whoever wrote it."""
    value: Any = error.instance
    wanted: Any = error.validator_value
    schema: Any = error.schema
    # YAML knows dates, which may be values, and keys.
    shown = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)
    if keys := _one_key_of(error):
        return f"give exactly one of {', '.join(keys)}"
    match error.validator:
        case "additionalProperties":
            unknown = next(key for key in value if key not in schema["properties"])
            return f"{unknown} is not a setting; {_hint(str(unknown), list(schema['properties']))}"
        case "required":
            return f"{next(key for key in wanted if key not in value)} is missing"
        case "type" if isinstance(value, str) and wanted == "number":
            return f"{shown} is text, not a number (YAML reads 1e-3 as text; write 1.0e-3)"
        case "type":
            types = [wanted] if isinstance(wanted, str) else wanted
            return f"{shown} is not {' or '.join(map(TYPES.__getitem__, types))}"
        case "pattern":
            return f"{shown} is not of the form {wanted}"
        case "minItems" | "minProperties":
            return "there is nothing in it"
        case "uniqueItems":
            return f"{shown} has something twice"
        case _:
            return error.message


def _hint(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"


def _definition(name: str) -> dict[str, Any]:
    definition: dict[str, Any] = _schema()["$defs"][name]
    return definition


def _defaults(schema: Config) -> dict[str, Any]:
    properties = schema.get("properties", {})
    return {name: deepcopy(inner["default"]) for name, inner in properties.items() if "default" in inner}


def stage_defaults() -> dict[str, Any]:
    """The settings of a stage that a config need not name."""
    return _defaults(_definition("settings"))


def _filled(value: Any, schema: Config) -> Any:
    """`value` with the schema's defaults where it is silent; but stage settings, which are merged first."""
    if "$ref" in schema:
        schema = _definition(schema["$ref"].rpartition("/")[2])
    if not isinstance(value, dict) or schema is _definition("settings"):
        return value
    inner_schemas = schema.get("properties", {})
    rest = schema.get("additionalProperties") or {}
    value = _defaults(schema) | value
    return {name: _filled(inner, inner_schemas.get(name, rest)) for name, inner in value.items()}


def require_known(name: str, names: Iterable[str], where: str, section: str) -> str:
    """`name`, if it is one of `names`.

    Raises:
        UserError: It is not; the nearest one is named, `where` it was written and the `section` it should be in.
    """
    names = list(names)
    if name not in names:
        raise UserError(f"config.yaml: {where}: {name} is not in {section}; {_hint(name, names)}")
    return name


def only_key(entry: Config, origins: Sequence[str], where: str) -> str:
    """The only one of `origins` that `entry` gives.

    Raises:
        UserError: It gives none, or several.
    """
    found = [origin for origin in origins if origin in entry]
    if len(found) != 1:
        raise UserError(f"config.yaml: {where}: give exactly one of {', '.join(origins)}")
    return found[0]
