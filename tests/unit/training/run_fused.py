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


def as_on_a_gpu() -> None:
    """Have the kernels run here: on tensors that are not on a GPU, without trying which way is the fastest."""
    torch.Tensor.is_cuda = property(lambda _: True)  # type: ignore[assignment,method-assign]
    for kernel in (forward._maxsim_fwd_kernel, lowmem._bwd_dQ_kernel, lowmem._bwd_dD_owned_kernel):
        kernel.configs, kernel.early_config_prune, kernel.cache_results = kernel.configs[:1], None, False
    # The interpreter takes bf16 for whole numbers.
    fused.DTYPE = torch.float16
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        # Triton 3.6 asks for what NumPy 2.4 no longer does: an array of one number as that number.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def embeddings(generator: torch.Generator, *shape: int) -> Tensor:
    """Of eighths, whose products half precision holds without rounding; so few that many tie."""
    return torch.randint(-4, 5, (*shape, DIMENSIONS), generator=generator) / 8


def differences(generator: torch.Generator, length: int, padded_to: int | None) -> dict[str, float]:
    """The largest ones between the two ways, of scores and of gradients."""
    queries, documents = embeddings(generator, 5, 6), embeddings(generator, 7, length)
    # Every document token likes the first query's first token less than a masked one does.
    queries[0, 0], documents[..., 0] = torch.eye(DIMENSIONS)[0], -1.0
    queries_mask = torch.rand(5, 6, generator=generator) < 0.7
    queries_mask[0, 0] = True
    mask = torch.rand(7, length, generator=generator) < 0.7
    # One full, one empty.
    mask[0], mask[1] = True, False
    weights = torch.randint(-4, 5, (5, 7), generator=generator) / 8
    found = []
    for scorer in (maxsim, fused.fused_maxsim):
        leaves = queries.clone().requires_grad_(), documents.clone().requires_grad_()
        scores = scorer(leaves[0], queries_mask, leaves[1], mask, padded_to)
        (scores * weights).sum().backward()
        found.append((scores.detach(), leaves[0].grad, leaves[1].grad))
    names = ("scores", "queries", "documents")
    return {name: (a - b).abs().max().item() for name, a, b in zip(names, *found, strict=True)}


def main() -> None:
    """Print the differences by case."""
    as_on_a_gpu()
    generator = torch.Generator().manual_seed(0)
    cases = {"full": (9, 9), "shorter": (9, 12), "alone": (9, None)}
    print(json.dumps({name: differences(generator, *case) for name, case in cases.items()}))


if __name__ == "__main__":
    main()
