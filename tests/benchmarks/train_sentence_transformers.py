"""Train a stage with the multi-vector trainer and losses of sentence-transformers 6, at the settings that are its best.

    PYTHONPATH=.venv/peers python train_sentence_transformers.py JSON

Texts, prompts, lengths and rows are those of the other sides. The losses are the library's own: padding is left out of
MaxSim, where PyLate counts it as a similarity of 0, and a student's scores are not scaled to 0 and 1 in distillation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder, MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments
from sentence_transformers.multi_vector_encoder import losses

from peer_training import PeerTask


def loss_of(settings: dict[str, Any], model: MultiVectorEncoder) -> torch.nn.Module:
    """The loss of a stage."""
    import os

    o = json.loads(os.environ.get("TRY", "{}"))
    if settings["stage"] == "distillation":
        return losses.MultiVectorDistillKLDivLoss(model, **o)
    scale = 1 / settings["temperature"]
    if o.pop("cached", settings["stage"] == "unsupervised"):
        return losses.CachedMultiVectorMultipleNegativesRankingLoss(model, scale=scale, **o)
    return losses.MultiVectorMultipleNegativesRankingLoss(model, scale=scale, **o)


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
    model = MultiVectorEncoder(task.start, device=task.device, local_files_only=True)
    markers = json.loads(Path(task.start, "config_sentence_transformers.json").read_text())
    prompts = {side: markers[f"{side}_prefix"] + settings[f"{side}_prompt"] for side in ("query", "document")}
    task.train(
        MultiVectorEncoderTrainer,
        MultiVectorEncoderTrainingArguments,
        columns,
        loss_of(settings, model),
        options={
            "prompts": {
                column: prompts["query" if column == "query" else "document"]
                for column in columns
                if column != "scores"
            },
            "max_length": {side: settings[f"{side}_length"] for side in prompts},
        },
    )


if __name__ == "__main__":
    main()
