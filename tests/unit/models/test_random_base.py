"""Laws of the random base: the same bytes in any process, and every library loads it offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from colbert_zero.graph import artifact
from colbert_zero.graph.artifact import Artifact, Job, Spec
from colbert_zero.graph.console import UserError
from colbert_zero.models import random_base

WORDS = ["graph", "vertex", "edge", "path", "tree", "walk", "weight", "matrix", "vector", "norm"]
SETTINGS: dict[str, Any] = {
    "architecture": "modernbert",
    "layers": 2,
    "hidden": 32,
    "heads": 2,
    "intermediate": 48,
    "vocabulary": 400,
    "seed": 3,
}


def publish_source(label: str) -> Spec:
    """A small source in the current folder."""

    def make(job: Job) -> dict[str, int]:
        texts = [f"{first} {second}s of the {label}" for first in WORDS for second in WORDS]
        pq.write_table(pa.table({"query": texts, "document": texts[::-1]}), job.folder / "pairs.parquet")
        return {"rows": len(texts)}

    spec = Spec("sources", f"package.{label}", {})
    assert artifact.run_step(make, None, ["--spec", spec.text]) == 0
    return spec


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spec:
    """The spec of a tiny base in a study of two sources."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = [publish_source(label).name for label in ("first", "second")]
    return Spec("bases", "random.tiny", SETTINGS, {"sources": names})


def test_two_processes_make_the_same_bytes(spec: Spec) -> None:
    assert artifact.run_step(random_base.make, None, ["--spec", spec.text]) == 0
    here = Artifact.open(spec.name).manifest["outputs"]
    spec.folder.rename("first")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(random_base.__file__).parents[2]),
        "PYTHONHASHSEED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "colbert_zero.models.random_base", "--spec", spec.text]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert Artifact.open(spec.name).manifest["outputs"] == here
    assert set(here) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_the_seed_decides_the_weights_and_leaves_the_global_generator_alone() -> None:
    tokenizer = random_base.train_tokenizer(WORDS, 400)
    state = torch.get_rng_state()
    first, same, other = (random_base.random_model(tokenizer, SETTINGS | {"seed": seed}) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [model.embeddings.tok_embeddings.weight for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_transformers_loads_the_base_and_the_facts_are_true(spec: Spec) -> None:
    assert artifact.run_step(random_base.make, None, ["--spec", spec.text]) == 0
    published = Artifact.open(spec.name)
    model = AutoModel.from_pretrained(published.folder)
    tokenizer = AutoTokenizer.from_pretrained(published.folder)
    assert published.facts == {"parameters": model.num_parameters(), "vocabulary": len(tokenizer)}
    assert len(tokenizer) <= SETTINGS["vocabulary"]
    assert tokenizer.convert_ids_to_tokens(tokenizer("GRAPH vertex").input_ids) == [
        "[CLS]",
        "Ġgraph",
        "Ġvertex",
        "[SEP]",
    ]
    special = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token)
    assert special == ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    config = json.loads((published.folder / "config.json").read_text())
    assert config["pad_token_id"] == tokenizer.pad_token_id
    long = tokenizer(" ".join(WORDS * 51), return_tensors="pt")
    assert np.shape(long.input_ids) == (1, 512)
    with torch.no_grad():
        assert torch.isfinite(model(**long).last_hidden_state).all()


def test_pylate_loads_the_base_and_encodes(spec: Spec) -> None:
    from pylate.models import ColBERT

    assert artifact.run_step(random_base.make, None, ["--spec", spec.text]) == 0
    model = ColBERT(str(spec.folder), device="cpu", document_length=64)
    tokens = model.tokenize(["graph vertex"], is_query=False)["input_ids"][0].tolist()
    shown = model.tokenizer.convert_ids_to_tokens(tokens)
    assert shown[:4] == ["[CLS]", "[D] ", "Ġgraph", "Ġvertex"] and shown[4] == "[SEP]"
    (embedding,) = model.encode(["graph vertex"], is_query=False, show_progress_bar=False)
    assert np.shape(embedding) == (5, 128)


def test_no_word_is_unknown_to_the_tokenizer() -> None:
    tokenizer = random_base.train_tokenizer(WORDS, 300)
    ids = tokenizer("Straße 木 \u0000 🙂").input_ids
    assert tokenizer.unk_token_id not in ids
    assert str(tokenizer.decode(ids, skip_special_tokens=True)).strip() == "straße 木 \u0000 🙂"


def test_sources_without_text_are_refused() -> None:
    with pytest.raises(UserError, match="no text"):
        random_base.train_tokenizer(iter(()), 400)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match="32 is not an even multiple of its 3 heads"):
        random_base.random_model(random_base.train_tokenizer(WORDS, 300), SETTINGS | {"heads": 3})
