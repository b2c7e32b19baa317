"""What a config may say: numbers that fit, names that mean one thing, settings of the right kind, equal keys for equal
values. Each mistake is one line that begins with the config's name."""

import copy
import datetime
import math
import os

import pytest
import yaml

from colbert_zero.graph.config import LARGEST_NUMBER, read_config, validate
from colbert_zero.graph.console import UserError
from colbert_zero.graph.paths import WORKFLOW
from colbert_zero.graph.study import Study
from own_study import CONFIG, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_data(folder / "data")
    return folder


def changed(path, value, config=CONFIG):
    config = copy.deepcopy(config)
    *steps, last = path.split("/")
    inner = config
    for step in steps:
        inner = inner.setdefault(step, {})
    inner[last] = value
    return config


def error_of(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message.startswith("config.yaml: ")
    assert "\n" not in message
    assert len(message) < 500
    return message


def numeric_settings(schema, path=()):
    """Path and schema of every setting that is a number; `*` stands for any name."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    types = schema.get("type", ())
    if {"integer", "number"} & {*([types] if isinstance(types, str) else types)}:
        yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from numeric_settings(inner, (*path, name))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from numeric_settings(schema["additionalProperties"], (*path, "*"))


SCHEMA = yaml.safe_load((WORKFLOW / "schemas" / "study.schema.yaml").read_text())
NUMBERS = {"/".join(path): schema for path, schema in numeric_settings(SCHEMA)}
ALL_KINDS = {
    "miners": {
        "gte": {"encoder": {"model": "small"}, "depth": 20},
        "colbert": {"late-interaction": {"model": "small"}, "depth": 20},
    },
    "mining": {"judged": {"miners": ["bm25"], "negatives": 1, "judge": {"teacher": "reranker"}}},
    "teachers": {
        "reranker": {"cross-encoder": {"model": "small"}, "miners": ["bm25"], "documents": 4},
        "gemma": {"causal-lm": {"model": "small"}, "miners": ["bm25"], "documents": 4},
        "both": {"ensemble": {"members": ["reranker", "gemma"]}},
    },
    "baselines": {"late": {"late_interaction": {"model": "small"}}, "dense": {"dense": {"model": "small"}}},
    "resources": {"default": {}},
}


def with_number(path, value):
    """A config with the number in an entry that has the path's kind."""
    section, _, rest = path.partition("/*/")
    config = copy.deepcopy(CONFIG)
    for name, entries in ALL_KINDS.items():
        config[name] = config.get(name, {}) | copy.deepcopy(entries)
    if rest:
        names = [name for name, entry in config[section].items() if rest.partition("/")[0] in entry]
        path = f"{section}/{(names or list(config[section]))[0]}/{rest}"
    return changed(path.replace("*", "reranker"), value, config)


@pytest.mark.parametrize("path", NUMBERS)
def test_a_number_is_finite_and_fits_whatever_the_setting(path):
    setting = path.removesuffix("/*").rpartition("/")[2]
    for value in (math.nan, math.inf, -math.inf, 10**400, -(10**400), 1e300, True, "1"):
        assert setting in error_of(validate, with_number(path, value))


@pytest.mark.parametrize("path", [path for path, schema in NUMBERS.items() if "number" not in schema["type"]])
def test_a_whole_number_is_written_as_one(path):
    assert "16.0 is not a whole number; write 16" in error_of(validate, with_number(path, 16.0))


@pytest.mark.parametrize(("seed", "accepted"), [(0, True), (2**32 - 1, True), (-1, False), (2**32, False)])
def test_a_seed_is_one_that_every_library_takes(seed, accepted):
    if accepted:
        assert validate(changed("seed", seed))["seed"] == seed
    else:
        assert "seed" in error_of(validate, changed("seed", seed))


def test_the_largest_number_is_what_32_bits_hold():
    assert LARGEST_NUMBER == 2147483647
    path = "stages/unsupervised/batch_size"
    assert validate(changed(path, LARGEST_NUMBER))
    assert f"is more than {LARGEST_NUMBER}" in error_of(validate, changed(path, LARGEST_NUMBER + 1))


@pytest.mark.parametrize(
    ("path", "whole"),
    [("stages/unsupervised/temperature", 1), ("stages/supervised/gradient_clip", 2), ("mining/fused/p", 1)],
)
def test_equal_numbers_give_equal_keys(folder, path, whole):
    one, same, other = (Study(changed(path, value), folder).report.key for value in (whole, float(whole), whole / 2))
    assert one == same != other


NAME_250 = "n" * 250
MISTAKES = {
    "recipe and baseline": ("baselines/all", {"bm25": {}}, "baselines.all: a recipe is called all too"),
    "collection and member": (
        "collections",
        {"cqadupstack": {"registry": "cqadupstack"}, "cqadupstack-gis": {"folder": "data/mine"}},
        "cqadupstack-gis is a name in collections.cqadupstack too",
    ),
    "members of two kinds": (
        "collections",
        {"one": {"registry": "cqadupstack", "query_length": 64}, "two": {"registry": "cqadupstack"}},
        "is a name in collections.one too",
    ),
    "a group and a member of another one": (
        "sources",
        CONFIG["sources"]
        | {"fever_hn_mine": {"registry": "nomic-unsupervised"}, "nomic": {"registry": "nomic-supervised"}},
        "sources.fever_hn_mine: fever_hn_mine is a name in sources.nomic too",
    ),
    "a date as a key": ("seed", {datetime.date(2024, 1, 1): 1}, "seed: {} is not "),
    "source and member": (
        "sources",
        CONFIG["sources"] | {"quora": {"package": "scipy"}, "nomic": {"registry": "nomic-unsupervised"}},
        "sources.nomic: quora is a name in sources.quora too",
    ),
    "columns of a package": ("sources/x", {"package": "scipy", "columns": {}}, "columns means nothing beside package"),
    "words of a file": ("sources/lines/minimum_words", 3, "minimum_words means nothing beside file"),
    "words of the registry": ("sources/x", {"registry": "quora", "maximum_words": 9}, "maximum_words means nothing"),
    "queries of a folder": (
        "collections/mine/queries",
        3,
        "queries means nothing beside folder; it belongs to package",
    ),
    "words of a collection": ("collections/mine/maximum_words", 3, "maximum_words means nothing beside folder"),
    "split of the registry": ("collections/x", {"registry": "fiqa", "split": "dev"}, "split means nothing beside reg"),
    "split of a package": ("collections/x", {"package": "scipy", "split": "dev"}, "split means nothing beside package"),
    "long study": ("study", NAME_250, "study: "),
    "long recipe": (f"recipes/{NAME_250}", CONFIG["recipes"]["all"], "has 250 characters; at most 100 are allowed"),
    "long source": (f"sources/{NAME_250}", {"package": "scipy"}, "has 250 characters; at most 100 are allowed"),
    "long unknown name": ("recipes/all/base", NAME_250, "... is not in models"),
    "line end after the study": ("study", "own\n", 'study: "own\\n" is not of the form'),
    "line end after a recipe": ("recipes/all\n", CONFIG["recipes"]["all"], 'recipes: "all\\n" is not of the form'),
    "line end after a GPU": ("resources/unsupervised/gpu_model", "a100\n", '"a100\\n" is not of the form'),
    "line end after a split": ("collections/mine/split", "test\n", '"test\\n" is not of the form'),
    "line end after an image": ("images/torch", f"docker://x@sha256:{'0' * 64}\n", "is not of the form"),
    "path for a split": ("collections/mine/split", "../../x", '"../../x" is not of the form'),
    "absolute path for a split": ("collections/mine/split", "/x", '"/x" is not of the form'),
    "parent for a split": ("collections/mine/split", "..", '".." is not of the form'),
    "bytes that are no text": ("prompts/search/query", "\udcff", "prompts.search.query: "),
    "the first half of a pair": ("prompts/search/query", "\ud800", "prompts.search.query: "),
    "the last half of a pair": ("prompts/search/query", "\udfff", "prompts.search.query: "),
    "text for a whole number": ("seed", "7", 'seed: "7" is not a whole number'),
    "text for a number": (
        "stages/unsupervised/temperature",
        "0.1",
        '"0.1" is text, not a number; a number has no quote',
    ),
    "truth for a number": ("stages/unsupervised/temperature", True, "temperature: true is not a number"),
    "no finite number": ("stages/unsupervised/temperature", math.inf, "Infinity is not a finite number"),
    "a mistyped stage of a recipe": (
        "recipes/all/stages",
        [{"superwised": {}}],
        "recipes.all.stages.0: superwised is not a setting; did you mean supervised?",
    ),
    "a mistyped setting of a recipe's stage": (
        "recipes/all/stages",
        [{"supervised": {"learning_rte": 1}}],
        "recipes.all.stages.0.supervised: learning_rte is not a setting; did you mean learning_rate?",
    ),
    "a wrong value in a recipe's stage": (
        "recipes/all/stages",
        [{"supervised": {"batch_size": 1.5}}],
        "recipes.all.stages.0.supervised.batch_size: 1.5 is not a whole number",
    ),
    "another alphabet": ("study", "étude", 'study: "étude" is not of the form'),
    "a null character": ("collections/mine/folder", "a\0b", "collections.mine.folder: "),
    "expressions": ("__use_yte__", True, "__use_yte__ is not a setting"),
    "definitions": ("__definitions__", ["import os"], "__definitions__ is not a setting"),
    "condition": ("?if True", {}, "?if True is not a setting"),
    "forged line": ("a\ncolbert-zero: done", 1, "a\\ncolbert-zero: done is not a setting"),
}
SHELL = {
    "command": "x; touch y",
    "substitution": "$(touch y)",
    "backticks": "`touch y`",
    "pipe": "x | y",
    "background": "x & y",
    "redirection": "x > y",
    "quotes": "'x'",
    "double quotes": '"x"',
    "backslash": "x\\y",
    "line end": "x\ny",
    "tab": "x\ty",
    "braces": "{x}",
    "comment": "x #y",
    "history": "x!y",
    "glob": "x*",
}
SHELL_SETTINGS = (
    *("resources/default/slurm_extra", "resources/default/gpu_model"),
    *("images/torch", "images/lucene", "images/folder", "images/build/mirror", "images/build/certificates"),
)
MISTAKES |= {
    f"{what} in {path}": (path, f"{'http://' * path.endswith('mirror')}{text}", "is not of the form")
    for path in SHELL_SETTINGS
    for what, text in SHELL.items()
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_in_a_value_is_one_line(folder, name):
    path, value, words = MISTAKES[name]
    assert words in error_of(Study, changed(path, value), folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (
            "resources/default/slurm_extra",
            "--exclusive --nodelist=gpu[01-04,07] --gres=gpu:a100:2 --comment=a_b.c@d+e%f",
        ),
        ("images/torch", "../shared/torch-1.0_a.sif"),
        ("images/torch", "/données/torch.sif"),
        ("images/lucene", f"oras://registry.example:5000/a/b:1@sha256:{'0' * 64}"),
        ("images/build/mirror", "http://deb.example.org:3142/debian"),
        ("collections/mine/split", "dev_2.a-b"),
        ("study", "n" * 100),
    ],
)
def test_what_means_only_itself_is_accepted(path, value):
    assert validate(changed(path, value))


def test_of_several_mistakes_the_first_by_its_place_is_told():
    config = changed("stages/unsupervised/epochs", -1, changed("seed", -1))
    assert error_of(validate, config).startswith("config.yaml: seed: -1 is less than 0")


def test_two_entries_may_be_the_same_thing(folder):
    config = changed("sources/again", {"registry": "nomic-unsupervised"})
    config["sources"]["quora"] = {"registry": "nomic-unsupervised/quora"}
    config["collections"] |= {"cqadupstack": {"registry": "cqadupstack"}, "forums": {"registry": "cqadupstack"}}
    study = Study(config, folder)
    assert len([spec for spec in study.specs.values() if spec.kind == "collections"]) == 13


def test_a_long_name_fits_into_file_names(folder):
    name = "n" * 100
    config = changed(f"collections/{name}", CONFIG["collections"]["mine"])
    longest = max(len(spec.folder.name) for spec in Study(config, folder).specs.values())
    assert longest + len(".documents-1000-of-1000.partial.lock") < os.pathconf(folder, "PC_NAME_MAX")


# The file


def write(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is nothing in it; a config begins with a setting, such as study: mine"),
        ("# study: mine\n", "there is nothing in it"),
        ("- study\n", "not a group of settings"),
        ("study", "not a group of settings"),
        ("__use_yte__: true\nstudy: ?__import__('os').system('touch ran')", "__use_yte__ is not a setting: "),
        ("study: a\nstudy: b\n", "line 2, column 1: study is there twice"),
        ("study: a\n" + "#" * 1_000_000, "longer than 1000000 bytes"),
    ],
)
def test_a_file_that_is_no_config_is_one_line(tmp_path, text, words):
    with pytest.raises(UserError) as caught:
        read_config(write(tmp_path, text))
    assert str(caught.value).startswith(f"{tmp_path / 'config.yaml'}: {words}")
    assert "\n" not in str(caught.value)


def test_a_config_that_cannot_be_read_is_one_line(tmp_path):
    path = tmp_path / "config.yaml"
    makers = {
        "does not exist; a study is a folder": lambda: None,
        "is a link to nowhere, which does not exist": lambda: path.symlink_to("nowhere"),
        "is a folder, not a file": path.mkdir,
        "is a pipe, not a file": lambda: os.mkfifo(path),
    }
    for words, make in makers.items():
        make()
        with pytest.raises(UserError) as caught:
            read_config(path)
        assert str(caught.value).startswith(f"{path} {words}")
        if os.path.lexists(path):
            (os.rmdir if path.is_dir() else os.unlink)(path)


def test_settings_of_the_command_line_replace_those_of_the_file(tmp_path):
    path = write(tmp_path, "study: a\nseed: 1\nshards: {rows_per_shard: 5, minimum_characters: 2}\n")
    overrides = {"seed": 2, "shards": {"rows_per_shard": 6}, "prompts": {"p": 1}}
    assert read_config(path, overrides) == {
        "study": "a",
        "seed": 2,
        "shards": {"rows_per_shard": 6, "minimum_characters": 2},
        "prompts": {"p": 1},
    }
    assert read_config(path)["seed"] == 1
