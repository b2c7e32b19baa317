"""What share of a GPU's arithmetic a training uses: the floating point operations that its texts need, over the peak.

Model FLOP utilisation (Chowdhery et al. 2022, PaLM, appendix B): forward and backward pass of a token take
6 N + 12 L H T operations, with N parameters besides the token embeddings, L layers of width H, and T tokens that a
token attends to. What is computed twice, or for padding, is not counted, and neither is MaxSim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "GH200": 989e12,
    "H200 NVL": 836e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
}
"""Dense bf16 operations per second by a part of the device's name, the first that fits (NVIDIA's data sheets)."""


def peak_of(device: str) -> float | None:
    """The peak of a device of this name; None if it is not in the table."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def operations(config: Mapping[str, Any], parameters: int, tokens: float, length: float) -> float:
    """Floating point operations of forward and backward pass of some texts.

    Args:
        config: The config of a ModernBERT, one of whose layers in a few attends to the whole text.
        parameters: All of the model's.
        tokens: Of all texts together, without padding.
        length: Of a text.
    """
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    whole = -(-layers // config["global_attn_every_n_layers"])
    # A token of the other layers sees half of `local_attention` tokens on each side, and itself.
    attended = whole * length + (layers - whole) * min(length, config["local_attention"] + 1)
    computing = parameters - config["vocab_size"] * width
    return tokens * (6 * computing + 12 * width * attended)
