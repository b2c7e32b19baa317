"""What a language model keeps of inputs' beginnings: several inputs go on from one, which is read once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from colbert_zero.models.batches import batches_by_length
from colbert_zero.teaching.pairs import TOKENS_PER_BATCH, Ids, Inputs


def can_go_on(model: Any, tokens: int) -> bool:
    """Whether a language model can read an input in two parts of at most `tokens` together, padding among them.

    It can if all that it keeps of a part are the keys and values of each token: no state of the whole (Mamba, Jamba),
    and no window that is shorter, since padding between the parts would count in it.
    """
    if model._is_stateful:
        return False
    windows = (getattr(layer, "sliding_window", None) for layer in DynamicCache(config=model.config).layers)
    return all(window is None or window >= tokens for window in windows)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """The place of each token in its input, which is padded on the left: 0 is the first of the text."""
    return (mask.cumsum(1) - 1).clamp(min=0)


class Beginnings:
    """The keys and values of some beginnings, in each layer of a language model."""

    def __init__(self, model: Any, inputs: Inputs, device: str) -> None:
        """Read the beginnings, at least one."""
        self._lengths = inputs.lengths
        self._layers: list[list[torch.Tensor]] = []
        self._mask = inputs.pad(np.arange(len(inputs)), 0, left=True)["attention_mask"].to(device)
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
        """Zeros for all beginnings, of which a tensor has some: beginnings x heads x tokens x size."""
        return tensor.new_zeros(len(self._lengths), tensor.shape[1], self._mask.shape[1], tensor.shape[3])

    def before(self, numbers: Ids) -> tuple[torch.Tensor, Before]:
        """The beginnings with some numbers, one for each input that goes on from it, padded on the left.

        Returns:
            The mask (inputs x tokens), and the keys and values, as a model takes them.
        """
        width, chosen = int(self._lengths[numbers].max()), torch.from_numpy(numbers).to(self._mask.device)
        return self._mask[chosen, -width:], Before(self._layers, chosen, width)


class Before(DynamicCache):
    """The keys and values of beginnings, for inputs that go on from them. Nothing of these inputs is kept."""

    def __init__(self, layers: list[list[torch.Tensor]], chosen: torch.Tensor, width: int) -> None:
        """Take the last `width` tokens of the chosen ones of all beginnings, whose keys and values are `layers`."""
        super().__init__()
        self._kept, self._chosen, self._width = layers, chosen, width

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values of a layer: those of the beginnings, then those of what goes on."""
        keys, values = (
            torch.cat([kept[self._chosen, :, -self._width :], states], dim=2)
            for kept, states in zip(self._kept[layer_idx], (key_states, value_states), strict=True)
        )
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The tokens of the beginnings, padding among them."""
        return self._width

    def get_mask_sizes(self, cache_position: torch.Tensor, layer_idx: int) -> tuple[int, int]:
        """The tokens that the mask is for, and the number of the first."""
        return self._width + len(cache_position), 0
