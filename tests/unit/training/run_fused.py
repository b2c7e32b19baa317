"""Run the fused kernels in Triton's interpreter (TRITON_INTERPRET=1), and print how far they are from `maxsim`."""

from __future__ import annotations

import json
from typing import Any

import torch
import triton.runtime.interpreter as interpreter
from late_interaction_kernels import forward
from late_interaction_kernels.backward import lowmem
from torch import Tensor

from colbert_zero.training import fused
from colbert_zero.training.losses import maxsim

DIMENSIONS = 16


def patch_kernels_for_cpu() -> None:
    """Make the kernels run on tensors that are not on a GPU, without autotuning."""
    torch.Tensor.is_cuda = property(lambda _: True)  # type: ignore[assignment,method-assign]
    for kernel in (forward._maxsim_fwd_kernel, lowmem._bwd_dQ_kernel, lowmem._bwd_dD_owned_kernel):
        kernel.configs, kernel.early_config_prune, kernel.cache_results = kernel.configs[:1], None, False
    # The interpreter treats bf16 as integers.
    fused.KERNEL_DTYPE = torch.float16
    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        # Triton 3.6 converts an array of one number to that number, which NumPy 2.4 no longer does.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def embeddings(generator: torch.Generator, *shape: int) -> Tensor:
    """Random multiples of 1/8: half precision holds their products exactly, and many similarities tie."""
    return torch.randint(-4, 5, (*shape, DIMENSIONS), generator=generator) / 8


def differences(generator: torch.Generator, length: int, padded_to: int | None) -> dict[str, float]:
    """The largest differences between `maxsim` and `fused_maxsim`, of the scores and of the gradients."""
    queries, documents = embeddings(generator, 5, 6), embeddings(generator, 7, length)
    # The first query's first token has a negative similarity with every document token: a masked token's 0 is larger.
    queries[0, 0], documents[..., 0] = torch.eye(DIMENSIONS)[0], -1.0
    queries_mask = torch.rand(5, 6, generator=generator) < 0.7
    queries_mask[0, 0] = True
    mask = torch.rand(7, length, generator=generator) < 0.7
    # One document without a masked token, one with all tokens masked.
    mask[0], mask[1] = True, False
    weights = torch.randint(-4, 5, (5, 7), generator=generator) / 8
    results = []
    for scorer in (maxsim, fused.fused_maxsim):
        leaves = queries.clone().requires_grad_(), documents.clone().requires_grad_()
        scores = scorer(leaves[0], queries_mask, leaves[1], mask, padded_to)
        (scores * weights).sum().backward()
        results.append((scores.detach(), leaves[0].grad, leaves[1].grad))
    names = ("scores", "queries", "documents")
    return {name: (a - b).abs().max().item() for name, a, b in zip(names, *results, strict=True)}


def main() -> None:
    """Print the differences by case."""
    patch_kernels_for_cpu()
    generator = torch.Generator().manual_seed(0)
    cases = {"full": (9, 9), "shorter": (9, 12), "alone": (9, None)}
    print(json.dumps({name: differences(generator, *case) for name, case in cases.items()}))


if __name__ == "__main__":
    main()
