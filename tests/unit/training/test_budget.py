"""The activations of a training on a CPU fit into its memory, whatever the model's shape; small models keep all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from colbert_zero.models.colbert import EncodingSettings, load_colbert
from colbert_zero.training import budget, train
from colbert_zero.training.budget import activation_bytes_per_token, cpu_budget, gpu_budget
from colbert_zero.training.gradcache import MemoryBudget
from tiny_stages import job, model_spec, never

LENGTH = 20
HIDDEN, INTERMEDIATE, DIMENSIONS = 32, 48, 16


def load(folder: Path, **options: Any) -> Any:
    return load_colbert(folder, EncodingSettings("", "", 14, LENGTH), dimensions=DIMENSIONS, **options)


def variant(bert: Path, folder: Path, **changes: Any) -> Any:
    """A BERT with other settings, and random weights."""
    shutil.copytree(bert, folder)
    AutoModel.from_config(AutoConfig.from_pretrained(bert, **changes)).save_pretrained(folder)
    return load(folder)


def test_the_bytes_of_a_token_are_those_of_the_layers(modernbert: Path) -> None:
    found = activation_bytes_per_token(load(modernbert), LENGTH, bf16=False)
    # What a layer's backward pass needs in fp32. Attention: its input, queries and keys before and after rotation,
    # values, its output. The rest: its input, both halves of the first product, the activation, the gated product.
    floats = 2 * (8 * HIDDEN + 4 * INTERMEDIATE)
    assert 4 * floats <= found <= 2 * 4 * (floats + 3 * (HIDDEN + DIMENSIONS))


def test_the_bytes_of_a_token_follow_depth_and_width(bert: Path, tmp_path: Path) -> None:
    one, two, three = (
        activation_bytes_per_token(variant(bert, tmp_path / str(layers), num_hidden_layers=layers), LENGTH, bf16=False)
        for layers in (1, 2, 3)
    )
    assert three - two == two - one >= 4 * (7 * HIDDEN + 2 * INTERMEDIATE)
    wider = activation_bytes_per_token(
        variant(bert, tmp_path / "wider", intermediate_size=10 * INTERMEDIATE), LENGTH, bf16=False
    )
    assert wider - two == pytest.approx(2 * 4 * 2 * 9 * INTERMEDIATE)


def test_the_bytes_of_a_token_follow_the_length_where_attention_keeps_its_weights(modernbert: Path) -> None:
    model = load(modernbert, attention="eager")
    shorter, longer = (activation_bytes_per_token(model, length, bf16=False) for length in (10, 20))
    assert longer - shorter >= 2 * 2 * 10 * 4  # Layers, heads, tokens, bytes.
    assert not model.training


@pytest.mark.parametrize(
    ("memory_mb", "per_chunk", "in_memory"),
    [
        # Libraries and parameters take 900 and 1,000 MB, a token 1,000 bytes.
        (10**6, 2048, 65536),
        (1900 + 68, 2048, 65536),
        (1900 + 67, 2048, 32768),
        (1900 + 35, 2048, 32768),
        (1900 + 34, 2048, 16384),
        (1900 + 4, 1024, 2048),
        (1900 + 3, 1024, 1024),
        (1900 + 1, 256, 512),
        (1900, 64, 0),
        (500, 64, 0),
    ],
)
def test_the_budget_is_the_largest_that_fits(
    memory_mb: int, per_chunk: int, in_memory: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(budget, "activation_bytes_per_token", lambda *_: 1000)
    model: Any = torch.nn.Linear(10**9 // 16, 1, bias=False, device="meta")
    assert cpu_budget(model, memory_mb, LENGTH, bf16=False) == MemoryBudget(per_chunk, in_memory)
    too_little = f"takes about 1900 MB before it encodes a text, and may take {memory_mb}: raise mem_mb"
    assert (too_little in caplog.text) == (memory_mb <= 1900)


@pytest.mark.parametrize(("bytes_per_token", "warns"), [(7812, False), (7813, True)])
def test_too_little_is_less_than_two_of_the_smallest_chunks(
    bytes_per_token: int, warns: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 1 MB, which has room for 128 tokens of 7,812 bytes."""
    monkeypatch.setattr(budget, "activation_bytes_per_token", lambda *_: bytes_per_token)
    model: Any = torch.nn.Linear(10**9 // 16, 1, bias=False, device="meta")
    cpu_budget(model, 1901, LENGTH, bf16=False)
    assert bool(caplog.text) == warns


@pytest.mark.parametrize(
    ("free", "per_chunk", "in_memory"),
    [
        # A token of ModernBERT-base takes about 1 MB in bf16; the loss 3 GiB, the parameters and their moments 1.8 GB.
        (140 * 10**9, 16384, 102400),
        (78 * 10**9, 16384, 45056),
        (40 * 10**9, 8192, 22528),
        (38 * 10**9, 8192, 20480),
        (16 * 10**9, 4096, 5120),
        (6 * 10**9, 128, 224),
        (3 * 10**9, 64, 0),
    ],
)
def test_a_gpu_keeps_the_chunks_that_fit_into_its_free_memory(
    free: int, per_chunk: int, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "activation_bytes_per_token", lambda *_: 10**6)
    model: Any = torch.nn.Linear(150 * 10**6, 1, bias=False, device="meta")
    found = gpu_budget(model, free, LENGTH, bf16=True)
    assert found == MemoryBudget(per_chunk, in_memory)
    # What is kept, a chunk's backward pass, the loss, gradients and moments.
    taken = (in_memory + per_chunk) * 10**6 + 8 * 2**28 + 4 * 2**28 + 12 * 150 * 10**6
    assert taken <= 0.9 * free or per_chunk == 64


def test_the_memory_that_is_free_includes_what_pytorch_holds_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"mem_get_info": (50, 80), "memory_reserved": 20, "memory_allocated": 5}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert budget.free_gpu_bytes() == 65


def test_powers_of_two() -> None:
    assert [budget._power_of_two(number) for number in (-1, 0, 1, 2, 3, 4, 7, 8)] == [0, 0, 1, 2, 2, 4, 4, 8]


def test_what_autograd_keeps_and_the_result_are_counted_of_padded_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []

    def embed(model: Any, features: dict[str, torch.Tensor], _bf16: bool) -> torch.Tensor:
        masks.append(features["attention_mask"])
        # Kept are the ones and the exponential; the weight is a parameter.
        return torch.exp(model.weight * torch.ones(features["input_ids"].shape))

    monkeypatch.setattr(budget, "embed", embed)
    model: Any = torch.nn.Linear(1, 1, bias=False)
    assert activation_bytes_per_token(model, LENGTH, bf16=False) == 3 * 4
    for mask in masks:
        assert mask[:, -1].sum() == 0
        assert mask[:, :-1].all()


def facts_with(spec: Any, *flags: str) -> dict[str, Any]:
    shutil.rmtree(spec.state, ignore_errors=True)
    shutil.rmtree("out", ignore_errors=True)
    return dict(train.train(job(spec, Path("out"), *flags), never))


@pytest.mark.usefixtures("study")
def test_a_training_takes_the_memory_that_it_is_given(modernbert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = model_spec(modernbert, "unsupervised")
    much, little = (facts_with(spec, "--memory-mb", number) for number in ("2000", "902"))
    assert (much["tokens_per_chunk"], much["tokens_in_memory"]) == (2048, 65536)
    assert little["tokens_per_chunk"] < 2048 and little["tokens_in_memory"] < 2048
    assert little["final_loss"] == pytest.approx(much["final_loss"], abs=1e-4)
    # A flag of its own decides alone. The processes of a node share its memory.
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert facts_with(spec, "--memory-mb", "1804")["tokens_in_memory"] == little["tokens_in_memory"]
    assert facts_with(spec, "--memory-mb", "902", "--tokens-in-memory", "70000")["tokens_in_memory"] == 70000
    # Started by hand, it takes what is free.
    monkeypatch.setattr(train, "available_memory_mb", lambda: 1804)
    assert facts_with(spec, "--memory-mb", "0")["tokens_in_memory"] == little["tokens_in_memory"]
