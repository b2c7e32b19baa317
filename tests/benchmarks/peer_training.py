"""What the scripts that train with another library share: their task, the trainer's arguments, the clock, the answer.

Imported under two versions of sentence-transformers, so it takes from it only what both have.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from sentence_transformers import DefaultBatchSampler
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments


@dataclass(frozen=True)
class PeerTask:
    """What `bench_train.py` asks of a peer.

    Attributes:
        settings: The stage's, with the names that they have in a study.
        start: The folder of the model that training starts from.
        rows: A Parquet file with the rows, in the order of the steps.
        batch: Rows per step.
        device: `cpu` or `cuda`.
        cached: Whether the loss has a gradient cache, where a library leaves the choice.
        attention: The implementation of attention, as transformers names it; None lets the library choose.
    """

    settings: dict[str, Any]
    start: str
    rows: str
    batch: int
    device: str
    cached: bool = False
    attention: str | None = None

    @classmethod
    def from_command_line(cls) -> PeerTask:
        """Read the JSON of the only argument."""
        return cls(**json.loads(sys.argv[1]))

    @property
    def model_options(self) -> dict[str, Any]:
        """What a library passes on to transformers when it loads the model."""
        return {} if self.attention is None else {"attn_implementation": self.attention}

    def columns(self) -> dict[str, list[Any]]:
        """The rows' columns."""
        columns: dict[str, list[Any]] = pq.read_table(self.rows).to_pydict()
        return columns

    def prompts(self, columns: Iterable[str], *, query: str = "", document: str = "") -> dict[str, str]:
        """The prompt of each column of texts, behind the side's marker where the library takes it as text."""
        prompts = {
            "query": query + self.settings["query_prompt"],
            "document": document + self.settings["document_prompt"],
        }
        return {
            column: prompts["query" if column == "query" else "document"] for column in columns if column != "scores"
        }

    def train(
        self,
        trainer: type[Trainer],
        arguments: type[TrainingArguments],
        columns: dict[str, list[Any]],
        loss: torch.nn.Module,
        *,
        options: dict[str, Any] | None = None,
        **parts: Any,
    ) -> None:
        """Train; print each step's seconds, reading and tokenising among them, its loss, and the most MiB on the GPU.

        Args:
            trainer: The library's trainer.
            arguments: The class of its arguments.
            columns: The rows.
            loss: The loss, with its model.
            options: Arguments that only this library has.
            parts: What else the trainer is made of.
        """
        losses: list[float] = []
        clock = Clock()
        loss.register_forward_hook(lambda _module, _inputs, value: losses.append(value.item()))
        trainer(
            model=loss.model,
            args=arguments(
                output_dir="trained",
                num_train_epochs=1,
                per_device_train_batch_size=self.batch,
                batch_sampler=in_order,
                learning_rate=self.settings["learning_rate"],
                bf16=self.settings["precision"] == "bf16",
                dataloader_drop_last=True,
                use_cpu=self.device == "cpu",
                logging_steps=50,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                **(options or {}),
            ),
            train_dataset=Dataset.from_dict(columns),
            loss=loss,
            callbacks=[clock],
            **parts,
        ).train()
        seconds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
        memory = torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else 0
        print(json.dumps({"seconds": seconds, "losses": losses, "memory": memory}))


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
