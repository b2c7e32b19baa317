"""Models of some ten thousand parameters with random weights, saved by transformers."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
)

SENTENCES = [
    "A retrieval model scores every query with every document: it sums the best similarities (MaxSim).",
    "The quick, brown fox jumps over the lazy dog; search_query: and search_document: are prompts!",
]
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def _tokenizer(texts: Sequence[str]) -> Any:
    # The vocabulary is built by hand: trainers break ties differently in each process.
    words = sorted({word for text in texts for word in re.findall("[a-z]+", text.lower())})
    pieces = [
        *SPECIAL_TOKENS,
        *string.punctuation,
        *string.ascii_lowercase,
        *(f"##{c}" for c in string.ascii_lowercase),
    ]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *words]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **names)


def tiny_modernbert(folder: Path, texts: Sequence[str], positions: int = 256) -> Path:
    """A ModernBERT of two layers, one with local attention, without dropout, for so many tokens."""
    tokenizer = _tokenizer(texts)
    tokenizer.model_max_length = positions
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=positions, pad_token_id=0, cls_token_id=2, bos_token_id=2, sep_token_id=3,
        eos_token_id=3, global_attn_every_n_layers=2, local_attention=16, initializer_range=0.1,
    )  # fmt: skip
    return _save(ModernBertModel, config, tokenizer, folder)


def tiny_bert(folder: Path, texts: Sequence[str]) -> Path:
    """A BERT of two layers, with dropout."""
    tokenizer = _tokenizer(texts)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=256, initializer_range=0.1,
    )  # fmt: skip
    return _save(BertModel, config, tokenizer, folder)


def tiny_cross_encoder(folder: Path, bert: Path) -> Path:
    """A cross-encoder of the shape, and with the tokenizer, of a BERT."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        kind: Any = BertForSequenceClassification
        kind(BertConfig.from_pretrained(bert, num_labels=1)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bert).save_pretrained(folder)
    return folder


def tiny_dense(folder: Path, base: Path) -> Path:
    """A sentence-transformers model of a base, with mean pooling."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(base), device="cpu").save(str(folder), create_model_card=False)
    return folder


def dense_model(
    folder: Path, base: Path, pooling: str = "mean", *, dense: int | None = None, normalize: bool = False, **saved: Any
) -> Path:
    """A sentence-transformers model of a base: a pooling, perhaps a projection to `dense` dimensions and unit length.

    What is `saved` stands in its config: `prompts`, `similarity_fn_name` ...
    """
    from sentence_transformers import SentenceTransformer, models

    transformer = models.Transformer(str(base))
    modules: list[Any] = [transformer, models.Pooling(transformer.get_word_embedding_dimension(), pooling)]
    if dense is not None:
        with torch.random.fork_rng():
            torch.manual_seed(2)
            modules.append(models.Dense(modules[1].get_sentence_embedding_dimension(), dense))
    if normalize:
        modules.append(models.Normalize())
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | saved))
    return folder


def late_interaction_model(folder: Path, base: Path, *, has_prompts: bool) -> Path:
    """A base with a projection to 16 dimensions as PyLate saves it, with the lengths of the paper's models."""
    from pylate import models

    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = models.ColBERT(
            str(base), embedding_size=16, query_length=39 if has_prompts else 32,
            document_length=519 if has_prompts else 512, do_query_expansion=False, device="cpu",
        )  # fmt: skip
    if has_prompts:
        model.prompts = {"query": "search_query: ", "document": "search_document: "}
    model.save(str(folder), create_model_card=False)
    return folder


def tiny_causal_lm(folder: Path, texts: Sequence[str]) -> Path:
    """A Gemma 2 of two layers, with a byte-level tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<pad>", "<eos>", "<bos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([text for text in texts for _ in range(3)], trainer)
    fast: Any = PreTrainedTokenizerFast
    wrapped = fast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    wrapped.save_pretrained(folder)
    # This model caps its logits and ties its output layer to its input: our own head must keep both.
    config = Gemma2Config(
        vocab_size=len(wrapped), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=1, bos_token_id=2, sliding_window=16,
        initializer_range=0.2, final_logit_softcapping=5.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        kind: Any = Gemma2ForCausalLM
        kind(config).save_pretrained(folder)
    return folder


def _save(kind: Any, config: Any, tokenizer: Any, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
