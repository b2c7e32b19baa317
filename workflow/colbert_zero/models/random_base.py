"""A small ModernBERT with random weights, and a tokenizer trained on the sources: a base to start from without a hub.

    python -m colbert_zero.models.random_base --spec '{"kind": "bases", "label": "random.tiny", ...}'

Makes `bases/random.*`: a folder that transformers, sentence-transformers and PyLate load offline.
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

POSITIONS = 1024
"""The longest input: documents of 512 tokens, and room for prompts. Rotary positions have no parameters."""
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def make(job: Job) -> Mapping[str, Any]:
    """Train the tokenizer, draw the weights, save both."""
    settings = job.settings
    tokenizer = train_tokenizer(texts_of(job.inputs("sources")), settings["vocabulary"])
    model = draw_model(tokenizer, settings)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(job.folder)
    model.save_pretrained(job.folder)
    return {"parameters": model.num_parameters(), "vocabulary": len(tokenizer)}


def texts_of(sources: Iterable[Artifact]) -> Iterator[str]:
    """The queries and documents of all sources, in order."""
    for source in sources:
        for batch in read_source(source):
            for column in ("query", "document"):
                yield from (text for text in batch.column(column).to_pylist() if text)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A lower-cased byte-level BPE tokenizer that puts `[CLS]` before and `[SEP]` after a text.

    Not WordPiece, whose trainer numbers the pieces of a word in the order of a hash table: each process would get
    another vocabulary from the same texts.

    Args:
        texts: What to train on.
        vocabulary: The number of tokens; fewer where the texts do not hold as many, never fewer than the 256 bytes
            and the special tokens.

    Raises:
        UserError: There is no text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    count = 0

    def counted() -> Iterator[str]:
        nonlocal count
        for text in texts:
            count += 1
            yield text

    tokenizer.train_from_iterator(counted(), trainer)
    if not count:
        raise UserError("the base's sources hold no text to train a tokenizer on; name others")
    first, last = SPECIAL["cls_token"], SPECIAL["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL,
    )


def draw_model(tokenizer: PreTrainedTokenizerFast, settings: Mapping[str, Any]) -> ModernBertModel:
    """A ModernBERT for a tokenizer, its weights drawn on the CPU from the seed alone.

    Args:
        tokenizer: Whose vocabulary and special tokens.
        settings: `layers`, `hidden` (the width), `heads`, `intermediate` (the width of the feed-forward part), `seed`.

    Raises:
        UserError: The heads do not divide the width into parts of an even size, as rotary positions need.
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
        max_position_embeddings=POSITIONS,
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
