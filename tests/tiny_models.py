"""Models of some ten thousand parameters with random weights, saved by transformers."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast

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


def tiny_modernbert(folder: Path, texts: Sequence[str]) -> Path:
    """A ModernBERT of two layers, one with local attention, without dropout."""
    tokenizer = _tokenizer(texts)
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=256, pad_token_id=0, cls_token_id=2, bos_token_id=2, sep_token_id=3, eos_token_id=3,
        global_attn_every_n_layers=2, local_attention=16, initializer_range=0.1,
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


def tiny_dense(folder: Path, base: Path) -> Path:
    """A sentence-transformers model of a base, with mean pooling."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(base), device="cpu").save(str(folder), create_model_card=False)
    return folder


def _save(kind: Any, config: Any, tokenizer: Any, folder: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
