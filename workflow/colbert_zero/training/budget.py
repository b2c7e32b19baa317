"""How many tokens a training encodes at once: by the model's shape, and by the memory that it may take.

More at once takes less time, and changes the model by no more than rounding (and dropout, see `gradcache`). On a GPU
`GradCache` lowers a budget that is too large. On a CPU it cannot: the kernel ends a process that has run out of memory.
"""

from __future__ import annotations

import torch
from pylate import models
from torch import Tensor

from colbert_zero.graph.console import log
from colbert_zero.models.colbert import embed
from colbert_zero.training.gradcache import MINIMUM_TOKENS_PER_CHUNK, PAIRS_PER_BLOCK, MemoryBudget
from colbert_zero.training.losses import SIMILARITIES_PER_BLOCK

TOKENS_PER_CHUNK = {"cpu": 2048, "cuda": 16384}
"""Padded tokens encoded at once: few enough for a CPU's cache, enough to keep a GPU busy."""
TOKENS_IN_MEMORY = 65536
"""On a CPU, padded tokens whose activations are kept at most: about 1 GB for 2 layers of 128."""
LIBRARIES_MB = 900
"""What a training takes besides parameters and activations: Python and its libraries."""
BYTES_PER_PARAMETER = 16
"""A weight, its gradient and AdamW's two moments, in fp32."""
BYTES_TO_COME_PER_PARAMETER = 12
"""The same without the weight, which is on the GPU when its free memory is read."""
BLOCK_BYTES = 8 * PAIRS_PER_BLOCK["cuda"] + 4 * SIMILARITIES_PER_BLOCK["cuda"]
"""What a loss on a GPU takes for a block of queries."""
USED_SHARE = 0.9
"""The share of a GPU's free memory that is planned; the rest is for gaps between tensors, for weights in half precision
and for the embeddings of a step."""
MB = 10**6


def cpu_budget(model: models.ColBERT, memory_mb: int, length: int, bf16: bool) -> MemoryBudget:
    """What fits into a process's memory.

    Both numbers of tokens are powers of two, so that few changes of the memory change the rounding, and at most
    `TOKENS_PER_CHUNK` and `TOKENS_IN_MEMORY`. A single text is encoded at once in any case.

    Args:
        model: The model to train.
        memory_mb: The memory of the process, in MB.
        length: Tokens of the longest text.
        bf16: Whether the model computes under autocast.
    """
    parameters_mb = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters()) // MB
    needed_mb = LIBRARIES_MB + parameters_mb
    per_token = activation_bytes_per_token(model, length, bf16)
    fitting = max(0, memory_mb - needed_mb) * MB // per_token
    # The backward pass of a chunk takes about as much again as its activations.
    per_chunk = max(MINIMUM_TOKENS_PER_CHUNK, min(TOKENS_PER_CHUNK["cpu"], _power_of_two(fitting // 2)))
    if fitting < 2 * MINIMUM_TOKENS_PER_CHUNK:
        log.warning(
            "a training of this model takes about %d MB before it encodes a text, and may take %d: raise mem_mb, "
            "under resources in config.yaml",
            needed_mb,
            memory_mb,
        )
    return MemoryBudget(per_chunk, min(TOKENS_IN_MEMORY, _power_of_two(fitting - per_chunk)))


def gpu_budget(model: models.ColBERT, free_bytes: int, length: int, bf16: bool) -> MemoryBudget:
    """What fits into the memory of a GPU: chunks of at most `TOKENS_PER_CHUNK`, and all that can be kept.

    Args:
        model: The model to train, on the GPU.
        free_bytes: What is free there, see `free_gpu_bytes`.
        length: Tokens of the longest text.
        bf16: Whether the model computes under autocast.
    """
    to_come = BYTES_TO_COME_PER_PARAMETER * sum(parameter.numel() for parameter in model.parameters()) + BLOCK_BYTES
    per_token = activation_bytes_per_token(model, length, bf16)
    fitting = max(0, int(USED_SHARE * free_bytes) - to_come) // per_token
    # As on a CPU, the backward pass of a chunk takes about as much again as its activations.
    per_chunk = max(MINIMUM_TOKENS_PER_CHUNK, min(TOKENS_PER_CHUNK["cuda"], _power_of_two(fitting // 2)))
    # Large steps: how much is free differs a little from run to run.
    quarter = per_chunk // 4
    return MemoryBudget(per_chunk, max(0, fitting - per_chunk) // quarter * quarter)


def free_gpu_bytes() -> int:
    """The memory of this process's GPU that it can still get, PyTorch's own reserve among it."""
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def _power_of_two(number: int) -> int:
    """The largest power of two that is at most `number`; 0 if there is none."""
    return 1 << number.bit_length() - 1 if number > 0 else 0


def activation_bytes_per_token(model: models.ColBERT, length: int, bf16: bool) -> int:
    """The bytes that autograd keeps of a padded token between forward and backward pass, on the model's device.

    They are counted in two small batches, and not computed from the model's config, whose fields differ from one
    architecture to the next. With some implementations of attention they grow with the length of the texts.

    Args:
        model: The model; afterwards it is in the mode that it was in.
        length: Tokens of each text.
        bf16: Whether the model computes under autocast.
    """
    was_training = model.training
    model.train()
    # What does not grow with the number of texts, such as weights in half precision, is in both counts.
    one, two = (_saved_bytes(model, texts, length, bf16) for texts in (1, 2))
    model.train(was_training)
    return (two - one) // length


def _saved_bytes(model: models.ColBERT, texts: int, length: int, bf16: bool) -> int:
    """The bytes that autograd keeps of a batch, besides the model's parameters."""
    device = next(model.parameters()).device
    token_ids = torch.zeros(texts, length, dtype=torch.int64, device=device)
    # Where no text is padded, an implementation of attention may need no mask.
    mask = torch.ones_like(token_ids)
    mask[:, -1] = 0
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    bytes_by_storage: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            bytes_by_storage[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        # The result keeps the graph, and so each counted storage, until all are counted.
        embeddings = embed(model, {"input_ids": token_ids, "attention_mask": mask}, bf16)
    return sum(bytes_by_storage.values()) + embeddings.nbytes
