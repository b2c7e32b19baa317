"""MaxSim of all queries with all documents, with the fused kernels that PyLate offers (late-interaction-kernels).

The kernels never write the similarities to memory, so a large step takes less time and memory on a GPU. They multiply
in half precision. `losses.maxsim` and the reference multiply in fp32, in a stage in bf16 as well, since autocast covers
the model alone: with these kernels, scores and gradients are rounded to bf16, and no longer the reference's.
"""

from __future__ import annotations

import importlib.util
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from colbert_zero.graph.console import UserError

KERNEL_DTYPE = torch.bfloat16
"""The dtype in which the kernels multiply; they add in fp32."""
DIMENSIONS_MULTIPLE, MAX_DIMENSIONS = 8, 256
"""Sizes of embeddings that fit the kernels: multiples of 8, up to 256."""
BF16_COMPUTE_CAPABILITY = (8, 0)
"""Compute capability of Ampere, the first generation of GPUs that multiplies in bf16."""

# The package warns of embeddings that are not of length 1, and the padding of queries is not.
warnings.filterwarnings("ignore", message="late-interaction-kernels: .* median L2 norm")


def check_fused(stage: str, device: str, precision: str, dimensions: int) -> None:
    """Check that the kernels can compute a stage here.

    Args:
        stage: `unsupervised`, `supervised` or `distillation`.
        device: `cpu` or `cuda`.
        precision: `fp32` or `bf16`.
        dimensions: The size of the embeddings.

    Raises:
        UserError: The kernels cannot compute the stage; the message says why.
    """
    if stage == "distillation":
        reason = "is for stages that score each query with the documents of all queries"
    elif device != "cuda":
        reason = "needs a GPU"
    elif torch.cuda.get_device_capability() < BF16_COMPUTE_CAPABILITY:
        reason = f"needs a GPU that multiplies in bf16, which {torch.cuda.get_device_name()} does not"
    elif precision != "bf16":
        reason = f"computes in half precision, and the stage has precision: {precision}"
    elif dimensions % DIMENSIONS_MULTIPLE or dimensions > MAX_DIMENSIONS:
        reason = (
            f"takes dimensions that are multiples of {DIMENSIONS_MULTIPLE} up to {MAX_DIMENSIONS}, not {dimensions}"
        )
    elif importlib.util.find_spec("late_interaction_kernels") is None:
        reason = "needs the package late-interaction-kernels, which is not installed"
    else:
        return
    raise UserError(f"maxsim: fused {reason}; remove maxsim from resources in config.yaml")


def fused_maxsim(
    queries: Tensor, queries_mask: Tensor, documents: Tensor, documents_mask: Tensor, padded_to: int | None = None
) -> Tensor:
    """`losses.maxsim` with fused kernels: the same arguments and scores, up to the rounding of half precision.

    The gradients are products in half precision, added up in fp32 in a fixed order.
    """
    from late_interaction_kernels.autograd import maxsim

    # A masked document token has a similarity of 0 in PyLate. The kernels' own mask would leave the token out instead.
    documents = documents * documents_mask[:, :, None]
    if padded_to is not None and documents.shape[1] < padded_to:
        # In the reference each of these documents ends with padding, whose similarity is 0; one suffices.
        documents = F.pad(documents, (0, 0, 0, 1))
    # The "lowmem" backward pass has no atomic additions, whose order would differ from run to run.
    scores: Tensor = maxsim(
        queries.to(KERNEL_DTYPE), documents.to(KERNEL_DTYPE), q_mask=queries_mask, backward="lowmem"
    )
    return scores
