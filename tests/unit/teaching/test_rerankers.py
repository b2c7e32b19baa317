"""Scores are those of `CrossEncoder.predict`, and of a plain forward pass of a language model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pylate import models as pylate_models
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from colbert_zero.graph.console import UserError
from colbert_zero.teaching import pairs as pairs_module
from colbert_zero.teaching.late_interaction import LateInteractionTeacher
from colbert_zero.teaching.prefix_cache import can_cache_prefixes
from colbert_zero.teaching.rerankers import INSTRUCTION, CausalLMTeacher, CrossEncoderTeacher
from tiny_models import late_interaction_model, tiny_causal_lm, tiny_modernbert

TEXT = "apple an is red blue sky the evening in ripe apples green grass and long query document"
WORDS = TEXT.split()
GENERATOR = np.random.default_rng(0)
QUERIES = [" ".join(GENERATOR.choice(WORDS, size)) for size in (1, 3, 8, 70)]
DOCUMENTS = [" ".join(GENERATOR.choice(WORDS, size)) for size in (1, 2, 5, 9, 14, 30, 60, 61, 90)]
PAIRS = [(query, document) for document in DOCUMENTS for query in QUERIES]
LENGTH = 64
CLOSE = 1e-4


def with_head(kind: Any, config: Any, tokenizer: Any, folder: Path) -> Path:
    """Save a classifier with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def a_bert(folder: Path, bert: Path, _modernbert: Path) -> Path:
    config = BertConfig.from_pretrained(bert, num_labels=1)
    return with_head(BertForSequenceClassification, config, AutoTokenizer.from_pretrained(bert), folder)


def a_modernbert(folder: Path, _bert: Path, modernbert: Path) -> Path:
    config = ModernBertConfig.from_pretrained(modernbert, num_labels=1)
    return with_head(ModernBertForSequenceClassification, config, AutoTokenizer.from_pretrained(modernbert), folder)


def an_xlm_roberta(folder: Path, _bert: Path, _modernbert: Path) -> Path:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = sorted({letter for word in WORDS for letter in word})
    pieces = [*((token, 0.0) for token in special), ("▁", -2.0), *((letter, -9.0) for letter in letters)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    kind: Any = PreTrainedTokenizerFast
    fast = kind(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{name}_token": token for name, token in names.items()},
    )
    config = XLMRobertaConfig(
        vocab_size=len(fast), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=130, pad_token_id=1, bos_token_id=0, eos_token_id=2, num_labels=1, type_vocab_size=1,
        initializer_range=0.1,
    )  # fmt: skip
    return with_head(XLMRobertaForSequenceClassification, config, fast, folder)


CROSS_ENCODERS: dict[str, Callable[[Path, Path, Path], Path]] = {
    "BERT": a_bert,
    "ModernBERT": a_modernbert,
    "XLM-R": an_xlm_roberta,
}


@pytest.mark.parametrize("architecture", CROSS_ENCODERS)
def test_a_cross_encoder_scores_as_sentence_transformers_predicts(
    architecture: str, tmp_path: Path, bert: Path, modernbert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CROSS_ENCODERS[architecture](tmp_path, bert, modernbert)
    peer = CrossEncoder(str(folder), max_length=LENGTH, activation_fn=torch.nn.Identity(), device="cpu")
    expected = np.concatenate([peer.predict([pair], show_progress_bar=False) for pair in PAIRS])
    teacher = CrossEncoderTeacher(folder, LENGTH, torch.float32, "cpu")
    assert teacher._encode._frame is not None, "each text is tokenised once"
    for tokens in (1, 200, 8192):
        monkeypatch.setitem(pairs_module.TOKENS_PER_BATCH, "cpu", tokens)
        scores = teacher.score(PAIRS)
        np.testing.assert_allclose(scores, expected, atol=CLOSE)
    np.testing.assert_allclose(scores, peer.predict(PAIRS, show_progress_bar=False), atol=CLOSE)
    assert np.ptp(scores) > 100 * CLOSE


def a_gemma(folder: Path) -> Path:
    """The architecture of bge-reranker-v2-gemma: Gemma 1."""
    tiny_causal_lm(folder, [INSTRUCTION, "Yes No", *WORDS])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = GemmaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=1, bos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    return with_head(GemmaForCausalLM, config, tokenizer, folder)


def a_gemma_2(folder: Path) -> Path:
    """With a window of 16 tokens."""
    return tiny_causal_lm(folder, [INSTRUCTION, "Yes No", *WORDS])


def a_llama(folder: Path) -> Path:
    """As many rerankers are, whose padding token is that of the end."""
    tokenizer = AutoTokenizer.from_pretrained(a_gemma_2(folder))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=1, eos_token_id=1, bos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    return with_head(LlamaForCausalLM, config, tokenizer, folder)


def a_mistral(folder: Path) -> Path:
    """With a window that is longer than any input."""
    tokenizer = AutoTokenizer.from_pretrained(a_gemma_2(folder))
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, sliding_window=512, pad_token_id=0, bos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    return with_head(MistralForCausalLM, config, tokenizer, folder)


class TokensRead:
    """Counts the tokens that a model reads, without padding."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        model.register_forward_pre_hook(self._add, with_kwargs=True)

    def _add(self, _model: Any, _arguments: Any, named: dict[str, torch.Tensor]) -> None:
        self.count += int(named["attention_mask"][:, -named["input_ids"].shape[1] :].sum())


@pytest.mark.parametrize(("make", "cached"), [(a_gemma, True), (a_gemma_2, False), (a_llama, True), (a_mistral, True)])
def test_a_language_model_scores_as_a_plain_forward_pass_for_each_pair(
    make: Callable[[Path], Path], cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def tokens(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    expected, lengths, starts = [], [], {}
    for query, document in PAIRS:
        question = tokens(f"A: {query}")[: LENGTH * 3 // 4]
        start = [tokenizer.bos_token_id, *question, *tokens("\n")]
        ids = [*start, *tokens(f"B: {document}")][:LENGTH]
        ids += [*tokens("\n"), *tokens(INSTRUCTION)]
        starts[query] = len(start)
        lengths.append(len(ids))
        with torch.inference_mode():
            expected.append(plain.eval()(torch.tensor([ids])).logits[0, -1, tokens("Yes")[0]].item())
    teacher = CausalLMTeacher(folder, LENGTH, torch.float32, "cpu", INSTRUCTION, "Yes")
    again = sum(lengths) - sum(starts[query] for query, _ in PAIRS) + sum(starts.values())
    for budget in (1, 500, 8192):
        monkeypatch.setitem(pairs_module.TOKENS_PER_BATCH, "cpu", budget)
        read = TokensRead(teacher._model)
        scores = teacher.score(PAIRS)
        np.testing.assert_allclose(scores, expected, atol=CLOSE)
        assert read.count == (again if cached else sum(lengths))
    assert np.ptp(scores) > 100 * CLOSE
    read = TokensRead(teacher._model)
    np.testing.assert_allclose(teacher.score(PAIRS[:3]), expected[:3], atol=CLOSE)
    assert read.count == sum(lengths[:3]), "a query alone is read with its document"


def test_prefixes_are_cached_where_a_model_keeps_keys_and_values_of_all_tokens() -> None:
    sizes = {"vocab_size": 10, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    attention = {**sizes, "num_attention_heads": 2, "num_key_value_heads": 1}
    window = MistralForCausalLM(MistralConfig(**attention, sliding_window=50))
    assert [can_cache_prefixes(window, tokens) for tokens in (50, 51)] == [True, False]
    assert can_cache_prefixes(MistralForCausalLM(MistralConfig(**attention, sliding_window=None)), 10**6)
    assert not can_cache_prefixes(MambaForCausalLM(MambaConfig(**sizes)), 1)
    shared = MistralForCausalLM(MistralConfig(**attention, sliding_window=None))
    shared.config.num_kv_shared_layers = 1  # as Gemma 3n has some
    assert not can_cache_prefixes(shared, 1)


def test_threads_and_the_pairs_scored_together_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = CausalLMTeacher(
        tiny_causal_lm(tmp_path, [INSTRUCTION, "Yes No", *WORDS]), LENGTH, torch.float32, "cpu", INSTRUCTION, "Yes"
    )
    monkeypatch.setattr("colbert_zero.teaching.teacher.PAIRS_SORTED_TOGETHER", 5)
    one, four = teacher.score(PAIRS, 1), teacher.score(PAIRS, 4)
    assert one.tobytes() == four.tobytes()
    assert teacher.score(PAIRS[:5]).tobytes() == one[:5].tobytes()


@pytest.fixture(scope="module", params=[True, False], ids=["prompts", "none"])
def late_interaction(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tiny_modernbert(tmp_path_factory.mktemp("base"), [TEXT], positions=520)
    return late_interaction_model(tmp_path_factory.mktemp("late"), base, has_prompts=request.param)


def test_a_late_interaction_model_scores_as_pylate_does(
    late_interaction: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = pylate_models.ColBERT(str(late_interaction), device="cpu")
    queries, documents = ([pair[side] for pair in PAIRS] for side in range(2))
    # One by one, so that nothing is padded.
    embedded = [
        (
            peer.encode([query], is_query=True, prompt_name="query", show_progress_bar=False)[0],
            peer.encode([document], is_query=False, prompt_name="document", show_progress_bar=False)[0],
        )
        for query, document in zip(queries, documents, strict=True)
    ]
    expected = [(query @ document.T).max(axis=1).sum() for query, document in embedded]
    teacher = LateInteractionTeacher(late_interaction, "fp32", "cpu")
    monkeypatch.setattr("colbert_zero.teaching.late_interaction.PAIRS_AT_ONCE", 3)
    for tokens in (1, 200, 8192):
        monkeypatch.setitem(pairs_module.TOKENS_PER_BATCH, "cpu", tokens)
        scores = teacher.score(PAIRS)
        np.testing.assert_allclose(scores, expected, atol=CLOSE)
    assert np.ptp(scores) > 100 * CLOSE


def test_a_base_is_no_late_interaction_teacher(modernbert: Path) -> None:
    with pytest.raises(UserError, match="does not say its query_prompt, document_prompt, query_length"):
        LateInteractionTeacher(modernbert, "fp32", "cpu")
