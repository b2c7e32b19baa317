"""Neural re-rankers: a score for each pair of a query and a document.

There are two kinds. A `cross-encoder` is a sequence classifier with one output. A `causal-lm` is a language model,
prompted to say whether the document answers the query; the logit of its answer is the score, as in
bge-reranker-v2-gemma. Both give raw logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from colbert_zero.graph.console import UserError
from colbert_zero.graph.model_folder import check_lengths
from colbert_zero.models.loading import (
    HEADS,
    TRIAL,
    load_tokenizer,
    refuse_other_vocabulary,
    refuse_unpaddable,
    whole_model,
)
from colbert_zero.teaching.pair_encoder import PairEncoder
from colbert_zero.teaching.pairs import Ids, Inputs, Pairs, Scores, TextTokenizer, score_batches
from colbert_zero.teaching.prefix_cache import Prefixes, can_cache_prefixes, positions
from colbert_zero.teaching.teacher import Teacher

INSTRUCTION = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
"""The instruction that bge-reranker-v2-gemma was trained with (its model card); a setting can replace it."""
QUERY_PREFIX, DOCUMENT_PREFIX, SEPARATOR = "A: ", "B: ", "\n"
"""The rest of the model's input: the lines `A: query`, `B: document` and the instruction."""


class CrossEncoderTeacher(Teacher):
    """A re-ranker that sentence-transformers loads as a `CrossEncoder`; the scores are those of its `predict`."""

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
            loaded = CrossEncoder(
                str(folder),
                max_length=maximum_length,
                activation_fn=torch.nn.Identity(),
                local_files_only=True,
                device=device,
                model_kwargs={"use_safetensors": True, "dtype": precision},
            )
            if loaded.config.num_labels != 1:
                raise UserError(f"{name}: a re-ranker has one output, this model has {loaded.config.num_labels}")
            self._tokenizer: Any = loaded.tokenizer
            refuse_other_vocabulary(self._tokenizer, embeddings[0], name)
            refuse_unpaddable(self._tokenizer, name)
            # A decoder finds the last token of each pair by it, and many configs leave it out.
            if loaded.config.pad_token_id is None:
                loaded.config.pad_token_id = self._tokenizer.pad_token_id
            self._model: Any = loaded.model.eval()
            self._device = device
            self._encode = PairEncoder(self._tokenizer, self._tokenizer.model_max_length)
            self.score([(TRIAL, TRIAL)])

    def tokenise(self, pairs: Pairs) -> Callable[[], Scores]:
        """Tokenise pairs, and return what computes their logits."""
        return partial(self._score, self._encode(pairs))

    @torch.inference_mode()
    def _score(self, inputs: Inputs) -> Scores:
        return score_batches(inputs, self._device, partial(self._logits, inputs))

    def _logits(self, inputs: Inputs, rows: Ids) -> torch.Tensor:
        tokenizer = self._tokenizer
        features = inputs.pad(
            rows,
            tokenizer.pad_token_id,
            left=tokenizer.padding_side == "left",
            pad_type=tokenizer.pad_token_type_id,
        )
        logits: torch.Tensor = self._model(**{name: of.to(self._device) for name, of in features.items()}).logits
        return logits[:, 0]


class CausalLMTeacher(Teacher):
    """A language model prompted to say whether a document answers a query; the score is the answer token's logit.

    The input is that of bge-reranker-v2-gemma: `A: query`, a newline, `B: document`, truncated to `maximum_length`
    tokens (the query to three quarters of them), a newline and the instruction. Each part is tokenised on its own. A
    query of several pairs is read once, where the model allows it.
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
            self._tokens = TextTokenizer(self._tokenizer)
            self._maximum_length = maximum_length
            self._separator, of_instruction = self._tokens([SEPARATOR, instruction])
            self._end = np.concatenate([self._separator, of_instruction])
            answer_id = self._answer_id(answer, name)
            lengths = {"maximum_length plus the instruction": maximum_length + len(self._end)}
            check_lengths(folder, lengths, name)
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=precision
            )
            refuse_other_vocabulary(self._tokenizer, embeddings[0], name)
            model.set_output_embeddings(_AnswerTokenHead(model.get_output_embeddings(), answer_id))
            self._model, self._device = model.to(device).eval(), device
            # In a batch, prefixes and rests are each padded to the longest.
            self._caches_prefixes = can_cache_prefixes(model, 2 * maximum_length + len(self._end))
            bos_id = self._tokenizer.bos_token_id
            has_start = bos_id is not None and bos_id != self._tokenizer.pad_token_id
            self._start = np.array([bos_id] if has_start else [], np.int64)
            # Two documents of a query, whose prefix is then read once.
            self.score([(TRIAL, TRIAL), (TRIAL, "")])

    def _answer_id(self, answer: str, name: str) -> int:
        """The token id of the answer."""
        (ids,) = self._tokens([answer])
        answer_ids: list[int] = ids.tolist()
        if len(answer_ids) != 1 or answer_ids[0] == self._tokenizer.unk_token_id:
            tokens = self._tokenizer.convert_ids_to_tokens(answer_ids)
            raise UserError(f"{name}: answer {answer!r} is {tokens} to its tokenizer; give an answer that is one token")
        return answer_ids[0]

    def tokenise(self, pairs: Pairs) -> Callable[[], Scores]:
        """Tokenise pairs, and return what computes their logits."""
        queries = self._tokens([QUERY_PREFIX + query for query in pairs.queries])
        documents = self._tokens([DOCUMENT_PREFIX + document for document in pairs.documents])
        question, length = self._maximum_length * 3 // 4, self._maximum_length
        prefixes = [np.concatenate([self._start, ids[:question], self._separator])[:length] for ids in queries]
        numbers = zip(pairs.query_of, pairs.document_of, strict=True)
        parts = [
            (prefixes[query], documents[document][: length - len(prefixes[query])], self._end)
            for query, document in numbers
        ]
        if not self._caches_prefixes or len(queries) == len(parts):
            return partial(self._score, Inputs.join(parts))
        rests = Inputs.join([rest for _, *rest in parts])
        return partial(self._score_rests, Inputs.join([[prefix] for prefix in prefixes]), rests, pairs.query_of)

    @torch.inference_mode()
    def _score(self, inputs: Inputs) -> Scores:
        return score_batches(inputs, self._device, partial(self._logits, inputs))

    def _logits(self, inputs: Inputs, rows: Ids) -> torch.Tensor:
        # Padded on the left, the last tokens share a column.
        features = {name: of.to(self._device) for name, of in inputs.pad(rows, 0, left=True).items()}
        logits: torch.Tensor = self._model(
            **features, position_ids=positions(features["attention_mask"]), use_cache=False, logits_to_keep=1
        ).logits
        return logits[:, -1, 0]

    @torch.inference_mode()
    def _score_rests(self, prefixes: Inputs, rests: Inputs, prefix_of: Ids) -> Scores:
        """Score inputs by what follows their prefixes; `prefix_of` has the number of each input's."""
        read = Prefixes(self._model, prefixes, self._device)

        def logits(rows: Ids) -> torch.Tensor:
            mask, cache = read.of(prefix_of[rows])
            features = {name: of.to(self._device) for name, of in rests.pad(rows, 0, left=True).items()}
            mask = torch.cat([mask, features["attention_mask"]], dim=1)
            found: torch.Tensor = self._model(
                input_ids=features["input_ids"],
                attention_mask=mask,
                position_ids=positions(mask)[:, -features["input_ids"].shape[1] :],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            return found[:, -1, 0]

        return score_batches(rests, self._device, logits)


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
