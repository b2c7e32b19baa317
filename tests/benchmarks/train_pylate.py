"""Train a stage with sentence-transformers' trainer and PyLate's losses, as the paper's released scripts do.

    python train_pylate.py JSON

What differs from the scripts: rows come in the given order; query expansion is off, as it is in the models that they
made; tokenising happens between the steps, not in eight more processes; nothing is evaluated or saved; on a CPU it is
fp32.
"""

from __future__ import annotations

from typing import Any

import torch
from pylate import losses, models, utils
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

from peer_training import PeerTask

MINI_BATCH = 512
"""Texts that the scripts encode at once in the unsupervised stage."""


def loss_of(settings: dict[str, Any], model: models.ColBERT) -> torch.nn.Module:
    """The loss of a stage."""
    if settings["stage"] == "unsupervised":
        return losses.CachedContrastive(model, mini_batch_size=MINI_BATCH, temperature=settings["temperature"])
    if settings["stage"] == "supervised":
        return losses.Contrastive(model, temperature=settings["temperature"])
    return losses.Distillation(model)


def main() -> None:
    """Train, and print what it took."""
    task = PeerTask.from_command_line()
    settings, columns = task.settings, task.columns()
    model = models.ColBERT(
        task.start,
        device=task.device,
        query_length=settings["query_length"],
        document_length=settings["document_length"],
        do_query_expansion=settings["query_expansion"],
        local_files_only=True,
        model_kwargs=task.model_options,
    )
    task.train(
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        columns,
        loss_of(settings, model),
        data_collator=utils.ColBERTCollator(model.tokenize, prompts=task.prompts(columns)),
    )


if __name__ == "__main__":
    main()
