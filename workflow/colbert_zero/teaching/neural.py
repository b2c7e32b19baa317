"""Score each training query's documents with a neural re-ranker.

    python -m colbert_zero.teaching.neural --spec JSON --threads 2 --device auto

Kinds: `cross-encoder`, a sequence classifier with one output, and `causal-lm`, a language model that is asked whether
the document answers the query and scored by the logit of its answer, as bge-reranker-v2-gemma is. Raw logits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from colbert_zero.graph.artifact import Job, run_step
from colbert_zero.graph.console import UserError, progress
from colbert_zero.machine.devices import add_device_option, choose_device
from colbert_zero.teaching.scoring import DocumentsToScore, choose_documents, write_scores

INSTRUCTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
"""What bge-reranker-v2-gemma was trained to be asked (its model card); a setting can replace it."""
QUERY, DOCUMENT, SEPARATOR = "A: ", "B: ", "\n"
"""The rest of its input: `A: query`, `B: document` and the instruction, one a line."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

ROWS_AT_ONCE = 256
"""Their pairs are sorted by length together: many, for little padding."""
PAIRS_PER_BATCH = 32

Pair = tuple[str, str]
"""A query and a document."""


class Teacher(Protocol):
    """A re-ranker."""

    def score(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """The raw scores of pairs, in their order."""


def make(job: Job) -> Mapping[str, Any]:
    """Write `rows-*.parquet`."""
    device = choose_device(job)
    to_score = choose_documents(job)
    scores = _scores(load_teacher(job, device), to_score)
    return write_scores(job, to_score, progress(scores, len(to_score.rows), "queries"))


def load_teacher(job: Job, device: str) -> Teacher:
    """Load the teacher that a job's setting `teacher` asks for, from its input `model`.

    Raises:
        UserError: The folder holds no such model.
    """
    settings, folder = job.settings["teacher"], job.input("model").model_folder()
    precision, length = PRECISIONS[settings["precision"]], settings["maximum_length"]
    try:
        if settings["kind"] == "cross-encoder":
            return CrossEncoderTeacher(folder, length, precision, device)
        instruction = settings["instruction"] or INSTRUCTION
        return CausalTeacher(folder, length, precision, device, instruction, settings["answer"])
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no {settings['kind']} loads from it ({' '.join(str(error).split())})") from None


class CrossEncoderTeacher:
    """A re-ranker that sentence-transformers loads as a `CrossEncoder`."""

    def __init__(self, folder: Path, maximum_length: int, precision: torch.dtype, device: str) -> None:
        """Load it.

        Args:
            folder: The model.
            maximum_length: Tokens of a pair; the longer of its texts is cut first.
            precision: Of the model's weights.
            device: Where it computes.

        Raises:
            ValueError: It has more outputs than one.
        """
        from sentence_transformers import CrossEncoder

        self._model = CrossEncoder(
            str(folder),
            max_length=maximum_length,
            activation_fn=torch.nn.Identity(),
            local_files_only=True,
            device=device,
            model_kwargs={"use_safetensors": True, "dtype": precision},
        )
        if self._model.config.num_labels != 1:
            raise ValueError(f"a re-ranker has one output, it has {self._model.config.num_labels}")

    def score(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """The logits of pairs, in their order."""
        lengths = [len(query) + len(document) for query, document in pairs]
        scores = np.empty(len(pairs), np.float32)
        for batch in _by_length(lengths):
            predicted = self._model.predict(
                [pairs[position] for position in batch],
                batch_size=PAIRS_PER_BATCH,
                show_progress_bar=False,
                convert_to_tensor=True,
            )
            scores[batch] = predicted.float().cpu().numpy()
        return scores


class CausalTeacher:
    """A language model that is asked whether a document answers a query; its answer's logit is the score.

    The input is that of bge-reranker-v2-gemma: `A: query`, a newline, `B: document`, cut to `maximum_length` tokens
    (the query to three quarters of them), a newline and the instruction. Each part is tokenised alone.
    """

    def __init__(
        self, folder: Path, maximum_length: int, precision: torch.dtype, device: str, instruction: str, answer: str
    ) -> None:
        """Load it.

        Args:
            folder: The model.
            maximum_length: Tokens of query and document, the instruction not counted.
            precision: Of the model's weights; the logit itself is computed in fp32.
            device: Where it computes.
            instruction: What is asked.
            answer: The answer whose first token's logit is the score.

        Raises:
            ValueError: The tokenizer knows no token for the answer.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=precision
        )
        self._maximum_length = maximum_length
        self._newline = self._tokens(SEPARATOR)
        self._question = self._newline + self._tokens(instruction)
        tokens = self._tokens(answer)
        if not tokens:
            raise ValueError(f"its tokenizer makes no token of the answer {answer!r}")
        model.set_output_embeddings(_AnswerHead(model.get_output_embeddings(), tokens[0]))
        self._model = model.to(device).eval()

    @torch.inference_mode()
    def score(self, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
        """The logits of pairs, in their order."""
        inputs = [self._input(*pair) for pair in pairs]
        scores = np.empty(len(pairs), np.float32)
        for batch in _by_length(list(map(len, inputs))):
            tokens, mask = _padded_left([inputs[position] for position in batch], self._model.device)
            # Counted from the first token of the text, not of the padding.
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            output = self._model(
                input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
            )
            scores[batch] = output.logits[:, -1, 0].float().cpu().numpy()
        return scores

    def _input(self, query: str, document: str) -> list[int]:
        start = self._tokenizer.bos_token_id
        begin = [] if start is None or start == self._tokenizer.pad_token_id else [start]
        asked = self._tokens(QUERY + query)[: self._maximum_length * 3 // 4]
        texts = begin + asked + self._newline + self._tokens(DOCUMENT + document)
        return texts[: self._maximum_length] + self._question

    def _tokens(self, text: str) -> list[int]:
        # verbose: a document longer than the model is no news, it is cut.
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tokens


class _AnswerHead(torch.nn.Module):
    """One row of a language model's output layer, in fp32: a logit for one token instead of 256,000."""

    def __init__(self, head: torch.nn.Linear, token: int) -> None:
        super().__init__()
        bias = torch.zeros(()) if head.bias is None else head.bias[token]
        self._weight, self._bias = (
            torch.nn.Parameter(value.detach().float().clone(), requires_grad=False)
            for value in (head.weight[token], bias)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """The token's logit (… x 1) of hidden states (… x width)."""
        return (hidden.float() @ self._weight + self._bias).unsqueeze(-1)


def _scores(teacher: Teacher, lesson: DocumentsToScore) -> Iterator[npt.NDArray[np.float32]]:
    """The scores of each row's documents."""
    queries = lesson.queries
    for start in range(0, len(queries), ROWS_AT_ONCE):
        window = range(start, min(start + ROWS_AT_ONCE, len(queries)))
        pairs = [(queries[position], text) for position in window for text in lesson.texts(position)]
        yield from teacher.score(pairs).reshape(len(window), -1)


def _by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions in batches of similar length, the longest first, so that too little memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    for start in range(0, len(order), PAIRS_PER_BATCH):
        yield order[start : start + PAIRS_PER_BATCH]


def _padded_left(inputs: Sequence[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask (texts x longest), the texts at the right end: their last logits stand together."""
    width = max(map(len, inputs))
    tokens = torch.zeros(len(inputs), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(inputs):
        tokens[row, width - len(ids) :] = torch.tensor(ids)
        mask[row, width - len(ids) :] = 1
    return tokens.to(device), mask.to(device)


if __name__ == "__main__":
    sys.exit(run_step(make, __doc__, add_options=add_device_option))
