"""Prefixes that several inputs of a language model share: each is read once, and its keys and values are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from colbert_zero.models.batches import batches_by_length
from colbert_zero.teaching.pairs import TOKENS_PER_BATCH, Ids, Inputs


def can_cache_prefixes(model: Any, tokens: int) -> bool:
    """Whether a language model can read a prefix, and later what follows: at most `tokens` together, padding included.

    It can if all that it keeps are the keys and values of each token in each layer: no state of the whole (Mamba,
    Jamba), no layers that share keys (Gemma 3n), and no window of fewer tokens, in which the padding between prefix and
    rest would count.
    """
    if model._is_stateful:
        return False
    layers = DynamicCache(config=model.config).layers
    windows = (getattr(layer, "sliding_window", None) for layer in layers)
    each_its_own = len(layers) == model.config.get_text_config(decoder=True).num_hidden_layers
    return each_its_own and all(window is None or window >= tokens for window in windows)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """The place of each token in its input (inputs x tokens): 0 is the first of the text, not of the padding.

    Args:
        mask: 1 for a token and 0 for padding (inputs x tokens).
    """
    return (mask.cumsum(1) - 1).clamp(min=0)


class Prefixes:
    """The keys and values of some prefixes, in each layer of a language model."""

    def __init__(self, model: Any, inputs: Inputs, device: str) -> None:
        """Read the prefixes.

        Args:
            model: A language model of transformers that `can_cache_prefixes`, on the device.
            inputs: The prefixes, at least one.
            device: `cpu` or `cuda`.
        """
        self._lengths = inputs.lengths
        self._mask = inputs.pad(np.arange(len(inputs)), 0, left=True)["attention_mask"].to(device)
        # By layer, its keys and its values: prefixes x heads x tokens of the longest x size, padded on the left.
        self._layers: list[list[torch.Tensor]] = []
        for rows in batches_by_length(inputs.lengths, TOKENS_PER_BATCH[device]):
            features = {name: of.to(device) for name, of in inputs.pad(rows, 0, left=True).items()}
            read = DynamicCache()
            model(
                **features,
                position_ids=positions(features["attention_mask"]),
                past_key_values=read,
                use_cache=True,
                logits_to_keep=1,
            )
            found: list[list[Any]] = [[layer.keys, layer.values] for layer in read.layers]
            self._layers = self._layers or [[self._room_for(tensor) for tensor in layer] for layer in found]
            for kept, layer in zip(self._layers, found, strict=True):
                for room, tensor in zip(kept, layer, strict=True):
                    room[torch.from_numpy(rows), :, -tensor.shape[2] :] = tensor

    def _room_for(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.new_zeros(len(self._lengths), tensor.shape[1], self._mask.shape[1], tensor.shape[3])

    def of(self, numbers: Ids) -> tuple[torch.Tensor, PrefixCache]:
        """The prefix of each of some inputs, by its number, padded on the left to the longest of them.

        Returns:
            The mask (inputs x tokens), and what a model takes as `past_key_values`.
        """
        width, chosen = int(self._lengths[numbers].max()), torch.from_numpy(numbers).to(self._mask.device)
        return self._mask[chosen, -width:], PrefixCache(self._layers, chosen, width)


class PrefixCache(DynamicCache):
    """The keys and values of prefixes, for the inputs that go on from them, of which nothing is kept."""

    def __init__(self, layers: list[list[torch.Tensor]], chosen: torch.Tensor, width: int) -> None:
        """Take the last `width` tokens of the chosen ones of all prefixes, whose keys and values are `layers`."""
        super().__init__()
        self._kept, self._chosen, self._width = layers, chosen, width

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of a layer: those of the prefixes, then those of what follows (… x tokens x size)."""
        keys, values = (
            torch.cat([kept[self._chosen, :, -self._width :], states], dim=2)
            for kept, states in zip(self._kept[layer_idx], (key_states, value_states), strict=True)
        )
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The tokens of the prefixes, padding included."""
        return self._width

    def get_mask_sizes(self, cache_position: torch.Tensor, layer_idx: int) -> tuple[int, int]:
        """How many tokens the mask is for, and the number of the first."""
        return self._width + len(cache_position), 0
