"""MaxSim of all queries with all documents by the fused kernels that PyLate offers (late-interaction-kernels).

They write no similarity down, so a large step takes less time and memory on a GPU. They compute in half precision:
what a stage in bf16 has of a matrix product anyway.
"""

from __future__ import annotations

import importlib.util
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from colbert_zero.graph.console import UserError

DTYPE = torch.bfloat16
"""What the kernels multiply; they add in fp32."""
MULTIPLE, MOST = 8, 256
"""Sizes of embeddings that fit the kernels: multiples of 8, up to 256."""
AMPERE = (8, 0)
"""The first generation of GPUs that multiplies in bf16."""

# The package warns of embeddings that are not of length 1, and takes the padding of queries for such.
warnings.filterwarnings("ignore", message="late-interaction-kernels: .* median L2 norm")


def check_fused(stage: str, device: str, precision: str, dimensions: int) -> None:
    """Refuse a training for which the kernels are not made.

    Args:
        stage: What is trained.
        device: Where it computes.
        precision: `fp32` or `bf16`.
        dimensions: Of the embeddings.

    Raises:
        UserError: Why not.
    """
    if stage == "distillation":
        reason = "is for stages that score each query with the documents of all"
    elif device != "cuda":
        reason = "needs a GPU"
    elif torch.cuda.get_device_capability() < AMPERE:
        reason = f"needs a GPU that multiplies in bf16, which {torch.cuda.get_device_name()} does not"
    elif precision != "bf16":
        reason = f"computes in half precision, and the stage has precision: {precision}"
    elif dimensions % MULTIPLE or dimensions > MOST:
        reason = f"takes dimensions that are multiples of {MULTIPLE} up to {MOST}, not {dimensions}"
    elif importlib.util.find_spec("late_interaction_kernels") is None:
        reason = "needs the package late-interaction-kernels, which is not installed"
    else:
        return
    raise UserError(f"maxsim: fused {reason}; take it out of resources in config.yaml")


def fused_maxsim(
    queries: Tensor, queries_mask: Tensor, documents: Tensor, documents_mask: Tensor, padded_to: int | None = None
) -> Tensor:
    """`losses.maxsim`, fused: the same arguments and scores, up to the rounding of half precision.

    Gradients are products in half precision, added up in fp32 in a fixed order.
    """
    from late_interaction_kernels.autograd import maxsim

    # A masked token becomes a zero, which is what it counts for. The kernels' own mask would leave it out.
    documents = documents * documents_mask[:, :, None]
    if padded_to is not None and documents.shape[1] < padded_to:
        # Padded to the full length, each of them would end on a zero.
        documents = F.pad(documents, (0, 0, 0, 1))
    # "lowmem" is the way back without atomic additions, whose order would differ from run to run.
    scores: Tensor = maxsim(queries.to(DTYPE), documents.to(DTYPE), q_mask=queries_mask, backward="lowmem")
    return scores
