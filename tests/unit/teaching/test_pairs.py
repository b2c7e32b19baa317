"""Laws of a re-ranker's inputs: each text is tokenised once, and each pair is what its tokenizer makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.processors import BertProcessing
from transformers import PreTrainedTokenizerFast

from colbert_zero.models.batches import batches_by_length
from colbert_zero.teaching.pair_encoder import PairEncoder
from colbert_zero.teaching.pairs import Inputs, Pairs, longest_first, score_batches

WORDS = [*"abcdefgh", "sky", "blue"]
lengths = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def a_tokenizer(post_processor: Any, **settings: Any) -> Any:
    """A tokenizer of words: with a first text of n words and a second of m, a pair has n + m tokens, and its frame."""
    vocabulary = {word: at for at, word in enumerate(["<pad>", "<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", **settings)


MARKERS = [("<s>", 2), ("</s>", 3)]
XLM_R = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> </s> $B </s>", MARKERS)
BERT = processors.TemplateProcessing("<s>:0 $A:0 </s>:0", "<s>:0 $A:0 </s>:0 $B:1 </s>:1", MARKERS)
BEHIND = processors.TemplateProcessing("$A", "$A $B </s>", MARKERS)
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "XLM-R's frame, without types": lambda: a_tokenizer(XLM_R, model_input_names=["input_ids", "attention_mask"]),
    "BERT's frame, with types": lambda: a_tokenizer(BERT),
    "BERT's frame by its own class": lambda: a_tokenizer(BertProcessing(("</s>", 3), ("<s>", 2))),
    "an end alone": lambda: a_tokenizer(BEHIND, padding_side="left"),
    "no frame": lambda: a_tokenizer(None),
    "cut on the left": lambda: a_tokenizer(BERT, truncation_side="left"),
}


def some_texts(sizes: list[int]) -> list[str]:
    return [" ".join(WORDS[(at + size) % len(WORDS)] for at in range(size)) for size in sizes]


def unpadded(inputs: Inputs) -> list[tuple[list[int], list[int] | None]]:
    return [
        (
            inputs.ids[start : start + length].tolist(),
            None if inputs.types is None else inputs.types[start : start + length].tolist(),
        )
        for start, length in zip(inputs.starts.tolist(), inputs.lengths.tolist(), strict=True)
    ]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("maximum", [8, 9, 31])
def test_a_pair_is_what_its_tokenizer_makes_of_it(kind: str, maximum: int) -> None:
    tokenizer = TOKENIZERS[kind]()
    sizes = [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 30, 31, 32, 70]
    pairs = [(query, document) for query in some_texts(sizes) for document in some_texts(sizes)]
    found = unpadded(PairEncoder(tokenizer, maximum)(Pairs.of(pairs)))
    has_types = "token_type_ids" in tokenizer.model_input_names
    for (query, document), (ids, types) in zip(pairs, found, strict=True):
        expected = TOKENIZERS[kind]()(query, document, truncation=True, max_length=maximum, return_token_type_ids=True)
        assert ids == expected["input_ids"]
        assert types == (expected["token_type_ids"] if has_types else None)


def test_each_text_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PairEncoder(TOKENIZERS["BERT's frame, with types"](), 20)
    read: list[str] = []
    texts = encoder._texts
    monkeypatch.setattr(encoder, "_texts", lambda asked: read.extend(asked) or texts(asked))
    encoder(Pairs.of([(query, document) for query in ("a", "b") for document in ("sky", "blue", "sky")]))
    assert sorted(read) == ["a", "b", "blue", "sky"]


@given(st.integers(0, 25), st.integers(0, 25), st.integers(1, 20))
def test_the_longer_text_is_cut_first(first: int, second: int, room: int) -> None:
    (kept_first,), (kept_second,) = longest_first(np.array([first]), np.array([second]), room)
    assert kept_first + kept_second == min(first + second, room)
    assert kept_first <= first and kept_second <= second
    if kept_first < first and kept_second < second:
        assert abs(kept_first - kept_second) <= 1
    elif kept_first < first:
        assert kept_second <= kept_first + 1
    elif kept_second < second:
        assert kept_first <= kept_second + 1


@given(lengths, st.integers(1, 100))
def test_batches_hold_all_inputs_once_the_longest_first_and_no_more_tokens_than_asked(
    sizes: list[int], tokens: int
) -> None:
    batches = list(batches_by_length(np.array(sizes), tokens))
    numbers = [number for batch in batches for number in batch.tolist()]
    assert sorted(numbers) == list(range(len(sizes)))
    in_order = [sizes[number] for number in numbers]
    assert in_order == sorted(in_order, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * sizes[batch[0]] <= tokens


@given(lengths.filter(lambda sizes: max(sizes) > 0), st.booleans())
def test_padding_is_what_the_tokenizer_pads(sizes: list[int], left: bool) -> None:
    tokenizer = a_tokenizer(None, padding_side="left" if left else "right")
    inputs = PairEncoder(tokenizer, 100)(Pairs.of([("", text) for text in some_texts(sizes)]))
    expected = tokenizer([["", text] for text in some_texts(sizes)], padding=True, return_tensors="pt")
    padded = inputs.pad(np.arange(len(sizes)), tokenizer.pad_token_id, left=left)
    assert set(padded) == set(expected)
    for name, values in padded.items():
        assert values.tolist() == expected[name].tolist()


def test_scores_come_in_the_order_of_the_pairs() -> None:
    import torch

    inputs = Inputs(np.arange(10), np.array([1, 4, 2, 3]))
    scores = score_batches(inputs, "cpu", lambda rows: torch.from_numpy(inputs.lengths[rows] * 10.0))
    assert scores.tolist() == [10, 40, 20, 30]


def test_a_tokenizer_without_a_fast_one_encodes_each_pair() -> None:
    tokenizer = TOKENIZERS["BERT's frame, with types"]()

    class Slow:
        is_fast = False
        model_input_names = tokenizer.model_input_names

        def __call__(self, *arguments: Any, **settings: Any) -> Any:
            return tokenizer(*arguments, **settings)

    pairs = Pairs.of([("a b", "sky"), ("a", "blue " * 30)])
    assert unpadded(PairEncoder(Slow(), 12)(pairs)) == unpadded(PairEncoder(tokenizer, 12)(pairs))
