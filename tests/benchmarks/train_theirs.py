"""Train a stage with sentence-transformers' trainer and PyLate's losses, as the paper's released scripts do.

    python train_theirs.py JSON

Prints the seconds of each step, reading and tokenising among them, and the losses. What differs from the scripts: rows
come in the given order; query expansion is off, as it is in the models that they made; tokenising happens between the
steps, not in eight more processes; nothing is evaluated or saved; on a CPU it is fp32.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from pylate import losses, models, utils
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sampler import DefaultBatchSampler
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback

MINI_BATCH = 512
"""Texts that the scripts encode at once in the unsupervised stage."""


class Clock(TrainerCallback):
    """Notes when training begins and when each step ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.times.append(time.monotonic())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.monotonic())


def in_order(dataset: Dataset, **given: Any) -> DefaultBatchSampler:
    """Batches of the rows as they come."""
    return DefaultBatchSampler(SequentialSampler(dataset), **given)


def loss_of(settings: dict[str, Any], model: models.ColBERT) -> torch.nn.Module:
    """The loss of a stage."""
    if settings["stage"] == "unsupervised":
        return losses.CachedContrastive(model, mini_batch_size=MINI_BATCH, temperature=settings["temperature"])
    if settings["stage"] == "supervised":
        return losses.Contrastive(model, temperature=settings["temperature"])
    return losses.Distillation(model)


def main() -> None:
    """Train, and print what it took."""
    asked = json.loads(sys.argv[1])
    settings = asked["settings"]
    rows = Dataset.from_dict(pq.read_table(asked["rows"]).to_pydict())
    model = models.ColBERT(
        asked["start"],
        device=asked["device"],
        query_length=settings["query_length"],
        document_length=settings["document_length"],
        do_query_expansion=settings["query_expansion"],
        local_files_only=True,
    )
    prompts = {
        column: settings["query_prompt" if column == "query" else "document_prompt"]
        for column in rows.column_names
        if column != "scores"
    }
    loss, found, clock = loss_of(settings, model), [], Clock()
    loss.register_forward_hook(lambda _module, _inputs, value: found.append(value.item()))
    arguments = SentenceTransformerTrainingArguments(
        output_dir="theirs",
        num_train_epochs=1,
        per_device_train_batch_size=asked["batch"],
        batch_sampler=in_order,
        learning_rate=settings["learning_rate"],
        bf16=settings["precision"] == "bf16",
        dataloader_drop_last=True,
        use_cpu=asked["device"] == "cpu",
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        loss=loss,
        data_collator=utils.ColBERTCollator(model.tokenize, prompts=prompts),
        callbacks=[clock],
    ).train()
    seconds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    print(json.dumps({"seconds": seconds, "losses": found}))


if __name__ == "__main__":
    main()
