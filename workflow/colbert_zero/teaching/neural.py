"""Score each training query's documents with a neural re-ranker.

    python -m colbert_zero.teaching.neural --spec JSON --threads 2 --device auto

There are two kinds of re-rankers. A `cross-encoder` is a sequence classifier with one output. A `causal-lm` is a
language model, prompted to say whether the document answers the query; the logit of its answer is the score, as in
bge-reranker-v2-gemma. Both give raw logits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM

from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import UserError, progress
from colbert_zero.graph.model_folder import check_lengths
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.models.loading import (
    HEADS,
    load_tokenizer,
    model_name,
    refuse_other_vocabulary,
    refuse_unpaddable,
    whole_model,
)
from colbert_zero.teaching.scoring import DocumentsToScore, choose_documents, write_scores

INSTRUCTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
"""The instruction that bge-reranker-v2-gemma was trained with (its model card); a setting can replace it."""
QUERY_PREFIX, DOCUMENT_PREFIX, SEPARATOR = "A: ", "B: ", "\n"
"""The rest of the model's input: the lines `A: query`, `B: document` and the instruction."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

ROWS_SORTED_TOGETHER = 256
"""Rows whose pairs are sorted by length together: the more, the less padding."""
PAIRS_PER_BATCH = 32

Pair = tuple[str, str]
"""A query and a document."""


class Teacher(Protocol):
    """A re-ranker."""

    def score(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """Return the raw scores of the pairs, in their order."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `rows-*.parquet`."""
    # Load the teacher first: what is wrong with it shows before the rows are read.
    teacher = load_teacher(job, choose_device(job))
    to_score = choose_documents(job)
    scores = _score_rows(teacher, to_score)
    return write_scores(job, to_score, progress(scores, len(to_score.rows), "queries"))


def load_teacher(job: Job, device: str) -> Teacher:
    """Load the teacher that a job's setting `teacher` describes, from the job's input `model`.

    Raises:
        UserError: The folder contains no such model.
    """
    settings, model = job.settings["teacher"], job.input("model")
    folder, name = model.verified_folder(), model_name(model)
    precision, length = PRECISIONS[settings["precision"]], settings["maximum_length"]
    if settings["kind"] == "cross-encoder":
        return CrossEncoderTeacher(folder, length, precision, device, name)
    instruction = settings["instruction"] or INSTRUCTION
    return CausalLMTeacher(folder, length, precision, device, instruction, settings["answer"], name)


class CrossEncoderTeacher:
    """A re-ranker that sentence-transformers loads as a `CrossEncoder`."""

    def __init__(
        self, folder: Path, maximum_length: int, precision: torch.dtype, device: str, name: str | None = None
    ) -> None:
        """Load the model.

        Args:
            folder: The model folder.
            maximum_length: Maximum tokens of a pair; the longer of its texts is truncated first.
            precision: The dtype of the model's weights.
            device: The device to compute on.
            name: What messages call the folder: by default its path.

        Raises:
            UserError: The folder cannot be loaded whole, as a classifier with one output, names code, or its model
                cannot take such long pairs.
        """
        from sentence_transformers import CrossEncoder

        name = name or str(folder)
        check_lengths(folder, {"maximum_length": maximum_length}, name)
        with whole_model(folder, name, "a cross-encoder", unused=HEADS) as embeddings:
            self._model = CrossEncoder(
                str(folder),
                max_length=maximum_length,
                activation_fn=torch.nn.Identity(),
                local_files_only=True,
                device=device,
                model_kwargs={"use_safetensors": True, "dtype": precision},
            )
        if self._model.config.num_labels != 1:
            raise UserError(f"{name}: a re-ranker has one output, this model has {self._model.config.num_labels}")
        refuse_other_vocabulary(self._model.tokenizer, embeddings[0], name)
        refuse_unpaddable(self._model.tokenizer, name)
        # A decoder finds the last token of each pair by it, and many configs leave it out.
        if self._model.config.pad_token_id is None:
            self._model.config.pad_token_id = self._model.tokenizer.pad_token_id

    def score(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """The logits of pairs, in their order."""
        lengths = [len(query) + len(document) for query, document in pairs]
        scores = np.empty(len(pairs), np.float32)
        for batch in _batches_by_length(lengths):
            predicted = self._model.predict(
                [pairs[position] for position in batch],
                batch_size=PAIRS_PER_BATCH,
                show_progress_bar=False,
                convert_to_tensor=True,
            )
            scores[batch] = predicted.float().cpu().numpy()
        return scores


class CausalLMTeacher:
    """A language model prompted to say whether a document answers a query; the score is the answer token's logit.

    The input is that of bge-reranker-v2-gemma: `A: query`, a newline, `B: document`, truncated to `maximum_length`
    tokens (the query to three quarters of them), a newline and the instruction. Each part is tokenised on its own.
    """

    def __init__(
        self,
        folder: Path,
        maximum_length: int,
        precision: torch.dtype,
        device: str,
        instruction: str,
        answer: str,
        name: str | None = None,
    ) -> None:
        """Load the model.

        Args:
            folder: The model folder.
            maximum_length: Maximum tokens of query and document together, without the instruction.
            precision: The dtype of the model's weights; the logit itself is computed in fp32.
            device: The device to compute on.
            instruction: The text after query and document.
            answer: The answer whose logit is the score: one token.
            name: What messages call the folder: by default its path.

        Raises:
            UserError: The folder cannot be loaded whole, names code, its model cannot take such long inputs, or its
                tokenizer makes another number of tokens than one of the answer.
        """
        name = name or str(folder)
        with whole_model(folder, name, "a causal-lm") as embeddings:
            self._tokenizer = load_tokenizer(folder)
            self._maximum_length = maximum_length
            self._separator_ids = self._token_ids(SEPARATOR)
            self._instruction_ids = self._separator_ids + self._token_ids(instruction)
            answer_id = self._answer_id(answer, name)
            lengths = {"maximum_length plus the instruction": maximum_length + len(self._instruction_ids)}
            check_lengths(folder, lengths, name)
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=precision
            )
        refuse_other_vocabulary(self._tokenizer, embeddings[0], name)
        model.set_output_embeddings(_AnswerTokenHead(model.get_output_embeddings(), answer_id))
        self._model = model.to(device).eval()

    def _answer_id(self, answer: str, name: str) -> int:
        """The token id of the answer."""
        answer_ids = self._token_ids(answer)
        if len(answer_ids) != 1 or answer_ids[0] == self._tokenizer.unk_token_id:
            tokens = self._tokenizer.convert_ids_to_tokens(answer_ids)
            raise UserError(f"{name}: answer {answer!r} is {tokens} to its tokenizer; give an answer that is one token")
        return answer_ids[0]

    @torch.inference_mode()
    def score(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """The logits of pairs, in their order."""
        inputs = [self._input_ids(*pair) for pair in pairs]
        scores = np.empty(len(pairs), np.float32)
        for batch in _batches_by_length(list(map(len, inputs))):
            input_ids, mask = _pad_left([inputs[position] for position in batch], self._model.device)
            # Position 0 is the first token of the text, not of the padding.
            position_ids = (mask.cumsum(1) - 1).clamp(min=0)
            output = self._model(
                input_ids=input_ids, attention_mask=mask, position_ids=position_ids, use_cache=False, logits_to_keep=1
            )
            scores[batch] = output.logits[:, -1, 0].float().cpu().numpy()
        return scores

    def _input_ids(self, query: str, document: str) -> list[int]:
        bos_id = self._tokenizer.bos_token_id
        start_ids = [] if bos_id is None or bos_id == self._tokenizer.pad_token_id else [bos_id]
        query_ids = self._token_ids(QUERY_PREFIX + query)[: self._maximum_length * 3 // 4]
        pair_ids = start_ids + query_ids + self._separator_ids + self._token_ids(DOCUMENT_PREFIX + document)
        return pair_ids[: self._maximum_length] + self._instruction_ids

    def _token_ids(self, text: str) -> list[int]:
        # verbose=False: no warning about a document longer than the model's maximum, since it is truncated later.
        token_ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return token_ids


class _AnswerTokenHead(torch.nn.Module):
    """One row of a language model's output layer, in fp32: the logit of one token instead of 256,000."""

    def __init__(self, head: torch.nn.Linear, token: int) -> None:
        super().__init__()
        bias = torch.zeros(()) if head.bias is None else head.bias[token]
        self._weight, self._bias = (
            torch.nn.Parameter(value.detach().float().clone(), requires_grad=False)
            for value in (head.weight[token], bias)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The token's logit (… x 1) from hidden states (… x hidden size)."""
        return (hidden.float() @ self._weight + self._bias).unsqueeze(-1)


def _score_rows(teacher: Teacher, to_score: DocumentsToScore) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the raw scores of each row's documents."""
    queries = to_score.queries
    for start in range(0, len(queries), ROWS_SORTED_TOGETHER):
        window = range(start, min(start + ROWS_SORTED_TOGETHER, len(queries)))
        pairs = [(queries[position], text) for position in window for text in to_score.texts(position)]
        yield from teacher.score(pairs).reshape(len(window), -1)


def _batches_by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield batches of positions of similar length, the longest first, so that an out-of-memory error comes at once."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    for start in range(0, len(order), PAIRS_PER_BATCH):
        yield order[start : start + PAIRS_PER_BATCH]


def _pad_left(inputs: Sequence[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask (texts x longest text), padded on the left: the last tokens share a column."""
    width = max(map(len, inputs))
    input_ids = torch.zeros(len(inputs), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(inputs):
        input_ids[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    return input_ids.to(device), mask.to(device)


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option))
