"""Train a stage with the multi-vector trainer and losses of sentence-transformers 6, at the settings that are its best.

    PYTHONPATH=.venv/peers python train_sentence_transformers.py JSON

Texts, prompts, lengths and rows are those of the other sides. The losses are the library's own: padding is left out of
MaxSim, where PyLate counts it as a similarity of 0, and a student's scores are not scaled to 0 and 1 in distillation.

With `cached` in JSON, a contrastive stage has the loss with a gradient cache, which fits any batch into memory and
packs its chunks by tokens; else the one without, which saves the second forward pass. `bench_train.py` tries both and
takes the faster.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder, MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments
from sentence_transformers.multi_vector_encoder import losses

from peer_training import PeerTask

# Tried, with the rows of `bench_train.py` on two busy cores; the least seconds of a step, of two rounds where there are
# two numbers. Cached, 128 pairs scored at once: 1024 tokens 3.9 and 3.7, 2048 3.8 and 4.1, 4096 3.5 and 3.6. Without
# cache: 8 texts 3.4 and 3.4, 16 3.2 and 3.4, 32 3.4 and 3.6. Supervised: 8 texts 1.3 and 1.4, 16 1.5 and 1.4, 32 1.4;
# cached, 2048 tokens 1.7. Distillation: 8 texts 2.5, 16 2.8, 32 3.4, all 256 5.2.
TOKENS = {"cpu": 4096, "cuda": 32768}
"""Tokens that are encoded at once with a gradient cache. On a GPU nothing was tried: enough to keep one busy."""
TEXTS = {"unsupervised": 16, "supervised": 16, "distillation": 8}
"""Texts that are encoded at once without one on a CPU, each chunk as wide as its longest."""
TEXTS_ON_GPU = 256
"""The same on a GPU, of all stages."""


def loss_of(task: PeerTask, model: MultiVectorEncoder) -> torch.nn.Module:
    """The loss of a stage."""
    stage = task.settings["stage"]
    texts = TEXTS[stage] if task.device == "cpu" else TEXTS_ON_GPU
    if stage == "distillation":
        return losses.MultiVectorDistillKLDivLoss(model, mini_batch_size=texts)
    scale = 1 / task.settings["temperature"]
    if task.cached:
        return losses.CachedMultiVectorMultipleNegativesRankingLoss(
            model, scale=scale, mini_batch_num_tokens=TOKENS[task.device], score_mini_batch_size=task.batch
        )
    return losses.MultiVectorMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=texts)


def in_columns(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The same rows with a column for each document of a list."""
    if "documents" not in columns:
        return columns
    places = enumerate(zip(*columns["documents"], strict=True))
    documents = {f"document_{place}": list(texts) for place, texts in places}
    return {"query": columns["query"], **documents, "scores": columns["scores"]}


def main() -> None:
    """Train, and print what it took."""
    task = PeerTask.from_command_line()
    settings, columns = task.settings, in_columns(task.columns())
    model = MultiVectorEncoder(task.start, device=task.device, local_files_only=True, model_kwargs=task.model_options)
    config = json.loads(Path(task.start, "config_sentence_transformers.json").read_text())
    task.train(
        MultiVectorEncoderTrainer,
        MultiVectorEncoderTrainingArguments,
        columns,
        loss_of(task, model),
        options={
            "prompts": task.prompts(columns, query=config["query_prefix"], document=config["document_prefix"]),
            "max_length": {side: settings[f"{side}_length"] for side in ("query", "document")},
        },
    )


if __name__ == "__main__":
    main()
