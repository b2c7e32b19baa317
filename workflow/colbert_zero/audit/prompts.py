"""Show a recipe's prompts, and whether they are the same bytes from its config to its indexes.

    colbert-zero prompts [RECIPE] --directory local [--json]

Prompts are shown as JSON strings, so that a space at an end is seen, with their length in bytes. Each place is compared
with the one that its prompts come from: config, spec of a stage, saved model, spec of an index, and what the index was
encoded with. The prompts of a stage that are others than those of the stage before it, and of an index that are others
than its model's, are meant where the config says so.

Of a baseline that is a model, the name is given: its prompts are compared with those that the model was saved with.

Then the first query and document of a source and of a collection become tokens, by the saved tokenizer, with the
prompt; and the tokens of all judged queries of the smallest collection are counted, as they were when it was encoded.

The exit status is 0 if all are equal or meant to differ, 1 if one differs, 2 if something is not made yet or damaged.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from colbert_zero.audit.prompt_chain import (
    Configured,
    Place,
    Prompts,
    Verdict,
    baseline_places,
    recipe_places,
    status,
    trained_model,
)
from colbert_zero.graph.artifact import KEY_DIGITS, MANIFEST_FILE, Artifact, Spec
from colbert_zero.graph.config import CONFIG_FILE, read_config, require_known
from colbert_zero.graph.console import one_line
from colbert_zero.graph.model_folder import read_json_object
from colbert_zero.graph.planners.evaluation import Row
from colbert_zero.graph.saved_encoding import CONFIG_FILE as SAVED_FILE
from colbert_zero.graph.study import Study

FAILED = 2
"""The exit status where the study or an artifact cannot be read."""
TOKENIZER_FILE, TRANSFORMER_FILE = "tokenizer.json", "sentence_bert_config.json"
TOKENS_SHOWN = 6
"""Of a sample, the tokens that are shown behind the prompt's."""
MOST_QUERIES_COUNTED = 20_000


@dataclass(frozen=True)
class Sample:
    """A text as a model's input.

    Attributes:
        what: Which text it is.
        text: Prompt and text.
        prompt_tokens: How many of its tokens are the prompt's.
        is_prefix: Whether the prompt's own token ids, made from the prompt alone, begin it, after the model's marker.
        tokens: Its tokens.
        ids: Their ids.
    """

    what: str
    text: str
    prompt_tokens: int
    is_prefix: bool
    tokens: Sequence[str]
    ids: Sequence[int]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the recipe and `--json`."""
    parser.add_argument("recipe", nargs="?", help="a recipe, or a baseline that is a model (all recipes, if any)")
    parser.add_argument("--json", action="store_true", help="write JSON")


def run(options: argparse.Namespace) -> int:
    """Write where the prompts of recipes stand, or of one baseline; return the exit status.

    Raises:
        UserError: There is no such row, or an artifact is damaged.
    """
    study = Study(read_config(Path(CONFIG_FILE)), Path(), remember=False)
    rows = {row.name: row for row in study.rows if _indexes(study, row)}
    recipes = sorted(name for name in rows if rows[name].kind == "recipe")
    names = (recipes or sorted(rows)) if options.recipe is None else [options.recipe]
    found = []
    for name in names:
        row = rows[require_known(name, rows, "prompts", "recipes and baselines with a model")]
        if row.stages:
            found.append((name, [*_places(study, row), *_counted(study, row)], list(_samples(study, row))))
        else:
            found.append((name, list(_baseline_places(study, row)), []))
    if options.json:
        value = [
            {"recipe": name, "places": [_as_json(place) for place in places], "samples": [vars(one) for one in samples]}
            for name, places, samples in found
        ]
        sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    elif not found:
        sys.stdout.write("no row of this study has a model, and so none has prompts\n")
    else:
        for name, places, samples in found:
            _write_text(name, places, samples)
    return status(place.verdict for _, places, _ in found for place in places)


def configured_prompts(config: Mapping[str, Any], recipe: str) -> Iterator[Configured]:
    """What a checked config says of the prompts of each stage of a recipe, and of its miners."""
    entry = config["recipes"][recipe]
    for stage in entry["stages"]:
        name, own = (stage, {}) if isinstance(stage, str) else next(iter(stage.items()))
        settings = config["stages"].get(name, {}) | entry.get("every_stage", {}) | own
        where = f"{CONFIG_FILE}: stage {name} of {recipe}, prompts {settings['prompts']}"
        miners: Sequence[str] = ()
        if name == "supervised" and settings.get("mining"):
            miners = config["mining"][settings["mining"]]["miners"]
        elif name == "distillation" and settings.get("teacher"):
            teacher = config["teachers"][settings["teacher"]]
            if "ensemble" in teacher:  # Its members have the same miners.
                teacher = config["teachers"][teacher["ensemble"]["members"][0]]
            miners = teacher["miners"]
        encoders = [config["miners"][miner].get("encoder") for miner in miners]
        prompts = config["prompts"][settings["prompts"]]
        yield Configured(
            where,
            Prompts(prompts["query"], prompts["document"]),
            [Prompts.of(encoder) if encoder else None for encoder in encoders],
        )


def _places(study: Study, row: Row) -> Iterator[Place]:
    return recipe_places(
        row.stages,
        _indexes(study, row),
        study.specs,
        list(configured_prompts(study.config, row.name.partition("@")[0])),
    )


def _baseline_places(study: Study, row: Row) -> Iterator[Place]:
    indexes = _indexes(study, row)
    (model,) = (spec for spec in study.inputs_of(indexes[0]) if spec.kind == "bases")
    return baseline_places(model, indexes)


def _indexes(study: Study, row: Row) -> list[Spec]:
    """The indexes of a row, in the order of their collections' names."""
    runs = [
        run for _, measure in sorted(row.measures.items()) for run in study.inputs_of(measure) if run.kind == "runs"
    ]
    return [index for run in runs for index in study.inputs_of(run) if index.kind == "indexes"]


def _is_made(spec: Spec) -> bool:
    return (spec.folder / MANIFEST_FILE).is_file()


# Tokens


class SavedTokenizer:
    """The tokenizer that a model was saved with, and what else decides how a text becomes its input."""

    def __init__(self, model: Artifact) -> None:
        """Read it from the files of `model`."""
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(model.file(TOKENIZER_FILE)))
        self.tokenizer.no_padding()
        self.saved = read_json_object(model.file(SAVED_FILE))
        files = model.files()
        transformer = read_json_object(model.file(TRANSFORMER_FILE)) if TRANSFORMER_FILE in files else {}
        self.lower = bool(transformer.get("do_lower_case"))

    def ids(self, text: str, side: str, length: int) -> list[int]:
        """The token ids of prompt and text, with the marker of `side`, cut to `length` tokens."""
        marker = self.tokenizer.token_to_id(self.saved.get(f"{side}_prefix") or "")
        # The marker takes a token's place, behind the first one.
        self.tokenizer.enable_truncation(length if marker is None else length - 1)
        text = text.strip()
        ids: list[int] = self.tokenizer.encode(text.lower() if self.lower else text).ids
        return ids if marker is None else [ids[0], marker, *ids[1:]]

    def sample(self, what: str, side: str, prompt: str, text: str, length: int) -> Sample:
        """`text` as the model's input on one side."""
        ids = self.ids(prompt + text, side, length)
        self.tokenizer.no_truncation()
        alone = prompt.strip()
        own = self.tokenizer.encode(alone.lower() if self.lower else alone, add_special_tokens=False).ids
        first = 1 + (self.tokenizer.token_to_id(self.saved.get(f"{side}_prefix") or "") is not None)
        tokens = [self.tokenizer.id_to_token(number) for number in ids]
        return Sample(what, prompt + text, len(own), ids[first : first + len(own)] == own, tokens, ids)


def _samples(study: Study, row: Row) -> Iterator[Sample]:
    """Yield the first texts of the first stage's first source, and of the first collection, as inputs of the models."""
    first, last = trained_model(row.stages[0], study.specs), row.stages[-1]
    rows = study.spec_of(first.inputs["rows"][0][-KEY_DIGITS:])
    if _is_made(first) and _is_made(rows):
        tokenizer = SavedTokenizer(Artifact.open(first.name))
        for side, text in _first_texts(Artifact.open(rows.name)).items():
            length, prompt = first.settings[f"{side}_length"], first.settings[f"{side}_prompt"]
            yield tokenizer.sample(f"first {side} of {rows.name}, in stage {first.label}", side, prompt, text, length)
    for index in islice(_indexes(study, row), 1):
        collection = next(spec for spec in study.inputs_of(index) if spec.kind == "collections")
        if _is_made(last) and _is_made(index) and _is_made(collection):
            tokenizer, encoding = SavedTokenizer(Artifact.open(last.name)), Artifact.open(index.name).facts["encoding"]
            for side, text in _first_collection_texts(Artifact.open(collection.name)).items():
                length, prompt = encoding[f"{side}_length"], encoding[f"{side}_prompt"]
                yield tokenizer.sample(f"first {side} of {collection.name}", side, prompt, text, length)


def _first_texts(rows: Artifact) -> dict[str, str]:
    """The query and the document of the first row of training rows."""
    from colbert_zero.data.rows import RowReader

    reader = RowReader(rows)
    if not len(reader):
        return {}
    (row,) = reader.read(0, 1).to_pylist()
    return {"query": row["query"], "document": row["document"] if "document" in row else row["documents"][0]}


def _first_collection_texts(artifact: Artifact) -> dict[str, str]:
    """The first judged query and the first document of a collection."""
    from colbert_zero.data.beir import Collection
    from colbert_zero.data.text import document_text

    collection = Collection.open(artifact)
    document = next(collection.documents())
    return {
        "query": next(iter(collection.judged_queries.values())),
        "document": document_text(document.title, document.text),
    }


def _counted(study: Study, row: Row) -> Iterator[Place]:
    """Count the tokens of all judged queries of one collection again: another prompt would make another number."""
    from colbert_zero.data.beir import Collection

    made = [index for index in _indexes(study, row) if _is_made(index) and _is_made(row.stages[-1])]
    indexes = [index for index in map(Artifact.open, (spec.name for spec in made)) if _is_countable(index)]
    if not indexes:
        return
    index = min(indexes, key=lambda artifact: (artifact.facts["queries"], artifact.name))
    collection = Collection.open(Artifact.open(index.spec.inputs["collection"][0]))
    tokenizer, encoding = SavedTokenizer(Artifact.open(row.stages[-1].name)), index.facts["encoding"]
    prompt, length = encoding["query_prompt"], encoding["query_length"]
    tokens = sum(len(tokenizer.ids(prompt + text, "query", length)) for text in collection.judged_queries.values())
    recorded = index.facts["query_tokens"]
    note = f"{tokens} tokens with this prompt, {recorded} when they were encoded"
    verdict = Verdict.EQUAL if tokens == recorded else Verdict.DIFFERS
    where = f"{index.facts['queries']} queries of {index.spec.label}: tokens"
    yield Place(where, Prompts.of(encoding), verdict, note, index.name)


def _is_countable(index: Artifact) -> bool:
    """Whether the tokens of an index's queries are on record, without masks that expand them, and not too many."""
    facts = index.facts
    encoding, queries = facts.get("encoding"), facts.get("queries")
    if not (isinstance(encoding, dict) and isinstance(queries, int) and isinstance(facts.get("query_tokens"), int)):
        return False
    return encoding.get("query_expansion") is False and queries <= MOST_QUERIES_COUNTED


# Output


def _as_json(place: Place) -> dict[str, Any]:
    prompts = place.prompts._asdict() if place.prompts else None
    return {
        "where": place.where,
        "artifact": place.artifact,
        "prompts": prompts,
        "bytes": {side: len(text.encode()) for side, text in prompts.items()} if prompts else None,
        "verdict": place.verdict.value,
        "note": place.note,
    }


def _write_text(recipe: str, places: Sequence[Place], samples: Sequence[Sample]) -> None:
    lines = [(place.where, _shown(place.prompts), _verdict_text(place)) for place in places]
    widths = [max(len(line[column]) for line in lines) for column in (0, 1)]
    sys.stdout.write(one_line(recipe) + "\n")
    for where, prompts, verdict in lines:
        sys.stdout.write(one_line(f"  {where.ljust(widths[0])}  {prompts.ljust(widths[1])}  {verdict}") + "\n")
    for sample in samples:
        sys.stdout.write(one_line(f"  {sample.what}: {_quoted(sample.text[:60])}") + "\n")
        pairs = [f"{number} {_quoted(token)}" for number, token in zip(sample.ids, sample.tokens, strict=True)]
        shown_pairs = pairs[: 2 + sample.prompt_tokens + TOKENS_SHOWN]
        more = len(pairs) - len(shown_pairs)
        shown = "  ".join(shown_pairs) + (f"  and {more} more" if more > 0 else "")
        sys.stdout.write(one_line(f"    {shown}") + "\n")
        proof = "begins with them" if sample.is_prefix else "does not begin with them: its text joins the prompt's end"
        sys.stdout.write(f"    the prompt alone has {sample.prompt_tokens} tokens; the input {proof}\n")
    code = status(place.verdict for place in places)
    words = ("equal, or meant to differ", "they differ, and nothing says that this is meant", "not all is made yet")
    sys.stdout.write(f"  {words[code]}\n")


def _verdict_text(place: Place) -> str:
    return f"{place.verdict.value}{f': {place.note}' if place.note else ''}"


def _shown(prompts: Prompts | None) -> str:
    if prompts is None:
        return ""
    return "  ".join(f"{_quoted(text)} {len(text.encode())}" for text in prompts)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
