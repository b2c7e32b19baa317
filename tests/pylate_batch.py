"""Batches as PyLate's collator makes them, at full padding, for its losses."""

from __future__ import annotations

from typing import Any

from pylate.utils import ColBERTCollator

from colbert_zero.models.colbert import EncodingSettings


def collate(model: Any, rows: list[dict[str, Any]], encoding: EncodingSettings) -> tuple[list[dict[str, Any]], Any]:
    """The input of a loss: the features of each column of rows but `scores`, and the labels, which are the scores."""
    columns = [name for name in rows[0] if name != "scores"]
    prompts = {name: encoding.query_prompt if name == "query" else encoding.document_prompt for name in columns}
    batch = ColBERTCollator(tokenize_fn=model.tokenize, prompts=prompts)(rows)
    features = [
        {key.removeprefix(f"{name}_"): batch[key] for key in batch if key.startswith(f"{name}_")} for name in columns
    ]
    return features, batch.get("label")
