"""What a stranger loads from a model's folder, by the recipes of `docs/loading.md`, is what was trained."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import loading_recipes
from colbert_zero.models import random_base
from colbert_zero.models.colbert import EncodingSettings, embed, load_colbert, save_colbert, scoring_mask, tokenize
from loading_recipes import Embeddings
from tiny_models import SENTENCES

PYLATE, SENTENCE_TRANSFORMERS, TRANSFORMERS = "PyLate", "sentence-transformers 6", "transformers alone"
PEERS = Path(sys.prefix) / "peers"
LOCK = Path(__file__).resolve().parents[3] / "envs" / "peers.txt"
TEXTS = [
    "",
    " \t ",
    "fox",
    "...?!",
    " a model, scored again ",
    "The Fox, and the DOG: (the same) again!",
    "[Q] [MASK] [D] fox",
    "ÀÉ 漢字 naïve",
    " ".join(["the lazy dog"] * 20),
]
"""Nothing, white space, a word, punctuation, mixed case, special tokens, other letters, more than the lengths."""
BOTH = {"queries": TEXTS, "documents": TEXTS}
PROMPTS = {"prompts": ("search_query: ", "search_document: "), "noprompts": ("", "")}
EXPANSIONS = {"expansion": True, "noexpansion": False}
MODELS = ["-".join(names) for names in product(("modernbert", "bert", "bytelevel"), PROMPTS, EXPANSIONS)]


def encoding_of(name: str) -> EncodingSettings:
    _, prompts, expansion = name.split("-")
    return EncodingSettings(
        *PROMPTS[prompts], query_length=24, document_length=20, query_expansion=EXPANSIONS[expansion]
    )


def is_stripped(name: str, key: str) -> bool:
    """Whether a text has no white space at its ends, its prompt included."""
    side, number = key.split()
    query_prompt, document_prompt = PROMPTS[name.split("-")[1]]
    text = (query_prompt if side == "query" else document_prompt) + TEXTS[int(number)]
    return text == text.strip()


@pytest.fixture(scope="module")
def bytelevel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose tokenizer has tokens for white space, as ModernBERT's has: one of the embedded study's kind."""
    folder = tmp_path_factory.mktemp("bytelevel")
    tokenizer = random_base.train_tokenizer(SENTENCES, 400)
    settings = {"layers": 1, "hidden": 32, "heads": 2, "intermediate": 32, "seed": 1}
    for part in (tokenizer, random_base.random_model(tokenizer, settings)):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each kind, saved as a training saves it."""
    root = tmp_path_factory.mktemp("models")
    for name in MODELS:
        base: Path = request.getfixturevalue(name.partition("-")[0])
        save_colbert(load_colbert(base, encoding_of(name), seed=3), root / name, encoding_of(name))
    return {name: root / name for name in MODELS}


@pytest.fixture(scope="module", autouse=True)
def cpu() -> Iterator[None]:
    """The recipes leave the device to the libraries; here, the sides of each comparison have the same one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def pylates(folders: dict[str, Path]) -> dict[str, Embeddings]:
    """By model, what PyLate makes of the texts."""
    return {name: loading_recipes.run(PYLATE, folder, BOTH) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def theirs(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Embeddings]:
    """By model, what the locked sentence-transformers makes of the texts, in a process of its own."""
    (version,) = re.findall(r"^sentence-transformers==(\S+)", LOCK.read_text(), re.MULTILINE)
    if not (PEERS / f"sentence_transformers-{version}.dist-info").is_dir():
        pytest.fail(f"no sentence-transformers {version} in {PEERS}: `make test` installs it", pytrace=False)
    out = tmp_path_factory.mktemp("theirs")
    (out / "texts.json").write_text(json.dumps(BOTH))
    command = [sys.executable, loading_recipes.__file__, SENTENCE_TRANSFORMERS, out / "texts.json", out]
    environment = os.environ | {"PYTHONPATH": str(PEERS), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    process = subprocess.run([*command, *folders.values()], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    found = {}
    for name in MODELS:
        with np.load(out / f"{name}.npz") as file:
            found[name] = {key: file[key] for key in file.files}
    return found


@pytest.mark.parametrize("name", MODELS)
def test_sentence_transformers_gives_pylates_embeddings_bit_for_bit(
    name: str, pylates: dict[str, Embeddings], theirs: dict[str, Embeddings]
) -> None:
    assert theirs[name].keys() == pylates[name].keys()
    for key, embedding in pylates[name].items():
        assert embedding.dtype == np.float32
        if is_stripped(name, key) or not name.startswith("bytelevel"):
            assert np.array_equal(theirs[name][key], embedding), key


def test_white_space_at_the_ends_is_kept_by_sentence_transformers_alone(
    pylates: dict[str, Embeddings], theirs: dict[str, Embeddings]
) -> None:
    """The one difference that `docs/loading.md` names: a tokenizer may have tokens for it."""
    name = "bytelevel-noprompts-noexpansion"
    unlike = {key for key, found in pylates[name].items() if not np.array_equal(theirs[name][key], found)}
    assert unlike == {key for key in pylates[name] if not is_stripped(name, key)} != set()


@pytest.mark.parametrize("name", MODELS)
def test_transformers_alone_give_pylates_embeddings(
    name: str, folders: dict[str, Path], pylates: dict[str, Embeddings]
) -> None:
    found = loading_recipes.run(TRANSFORMERS, folders[name], BOTH)
    assert found.keys() == pylates[name].keys()
    for key, embedding in pylates[name].items():
        assert found[key].shape == embedding.shape, key
        np.testing.assert_allclose(found[key], embedding, atol=1e-6, rtol=0, err_msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_the_recipes_encode_as_training_does(
    name: str, folders: dict[str, Path], pylates: dict[str, Embeddings]
) -> None:
    encoding = encoding_of(name)
    model = load_colbert(folders[name], encoding)
    for side, prompt in (("query", encoding.query_prompt), ("document", encoding.document_prompt)):
        features = tokenize(model, TEXTS, side == "query", prompt).pad()
        mask = scoring_mask(model, features, side == "query")
        with torch.no_grad():
            vectors = embed(model, features)
        for number in range(len(TEXTS)):
            found = vectors[number][mask[number]].numpy()
            np.testing.assert_allclose(found, pylates[name][f"{side} {number}"], atol=1e-6, rtol=0)


def test_each_recipe_of_the_page_is_tried() -> None:
    assert list(loading_recipes.recipes()) == [PYLATE, SENTENCE_TRANSFORMERS, TRANSFORMERS]
