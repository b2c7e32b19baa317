"""Make a small base without a hub: a ModernBERT with random weights, and a tokenizer trained on the sources.

    python -m colbert_zero.models.random_base --spec '{"kind": "bases", "label": "random.tiny", ...}'

The artifact `bases/random.*` is a folder that transformers, sentence-transformers and PyLate load offline.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import ModernBertConfig, ModernBertModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from colbert_zero.data.sources import read_source
from colbert_zero.graph.artifact import Artifact, Job, step_main
from colbert_zero.graph.console import UserError
from colbert_zero.graph.draws import draw

MAXIMUM_POSITIONS = 1024
"""Tokens of the longest input: documents of 512 tokens, and room for prompts. Rotary positions have no parameters."""
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def make(job: Job) -> Mapping[str, Any]:
    """Train the tokenizer, draw the weights, and save both."""
    settings = job.settings
    tokenizer = train_tokenizer(source_texts(job.inputs("sources")), settings["vocabulary"])
    model = random_model(tokenizer, settings)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(job.folder)
    model.save_pretrained(job.folder)
    return {"parameters": model.num_parameters(), "vocabulary": len(tokenizer)}


def source_texts(sources: Iterable[Artifact]) -> Iterator[str]:
    """Yield the queries and documents of all sources, in order; empty texts are left out."""
    for source in sources:
        for batch in read_source(source):
            for column in ("query", "document"):
                yield from (text for text in batch.column(column).to_pylist() if text)


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing byte-level BPE tokenizer that puts `[CLS]` before and `[SEP]` after a text.

    WordPiece is not used: its trainer numbers the pieces of a word in the order of a hash table, so that each process
    would get another vocabulary from the same texts.

    Args:
        texts: The training texts.
        vocabulary_size: The number of tokens. The vocabulary is smaller if the texts yield fewer tokens, but it always
            holds the 256 bytes and the special tokens.

    Raises:
        UserError: `texts` is empty.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    text_count = 0

    def count_texts() -> Iterator[str]:
        nonlocal text_count
        for text in texts:
            text_count += 1
            yield text

    tokenizer.train_from_iterator(count_texts(), trainer)
    if not text_count:
        raise UserError("the base's sources hold no text to train a tokenizer on; name other sources")
    cls_token, sep_token = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls_token} $A {sep_token}",
        pair=f"{cls_token} $A {sep_token} $B {sep_token}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls_token, sep_token)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_max_length=MAXIMUM_POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )


def random_model(tokenizer: PreTrainedTokenizerFast, settings: Mapping[str, Any]) -> ModernBertModel:
    """Make a ModernBERT for a tokenizer; the weights are drawn on the CPU and depend on the seed alone.

    Args:
        tokenizer: Its vocabulary size and special tokens go into the model's config.
        settings: `layers`, `hidden` (hidden size), `heads`, `intermediate` (size of the feed-forward layers), `seed`.

    Raises:
        UserError: The hidden size per head is not an even integer, which rotary positions need.
    """
    if settings["hidden"] % (2 * settings["heads"]):
        raise UserError(
            f"the base's hidden size {settings['hidden']} is not an even multiple of its {settings['heads']} heads;"
            " change one of them"
        )
    config = ModernBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings["hidden"],
        intermediate_size=settings["intermediate"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        max_position_embeddings=MAXIMUM_POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(settings["seed"], "base weights"))
        return ModernBertModel(config)


if __name__ == "__main__":
    step_main(make, __doc__)
