"""The next-token loss of a batch, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from moescope.errors import ModelError

if TYPE_CHECKING:
    from moescope.corpora import Batch
    from moescope.models import MoEModel

# Logits of this many bytes stay in a CPU's cache between the head and the softmax; a GPU is faster with more.
_CPU_LOGIT_BYTES = 8 * 2**20
_GPU_LOGIT_BYTES = 64 * 2**20
_FEWEST_ROWS = 256


def next_tokens(batch: Batch) -> Tensor:
    """The true next token at each position of a batch, int64 (B, S); -1 where there is none.

    There is none at padding, at tokens that are not counted, and where a document ends or a special token follows.
    """
    next_BS = torch.full_like(batch.input_ids_BS, -1)
    next_BS.view(-1)[batch.keep_T] = batch.tokens.next_token_ids_T
    return next_BS


def token_losses(model: MoEModel, hidden_nM: Tensor, next_n: Tensor) -> Tensor:
    """`-ln p(next token)` in nats of each of these last hidden states, float32.

    Args:
        model: A complete model.
        hidden_nM: Last hidden states.
        next_n: Their true next tokens, all of them 0 or more.
    """
    parts = [
        F.cross_entropy(model.logits(states_nM).float(), next_ids_n, reduction="none")
        for states_nM, next_ids_n in _chunks(model, hidden_nM, next_n)
    ]
    return torch.cat(parts) if parts else hidden_nM.new_zeros(0, dtype=torch.float32)


def backward(model: MoEModel, hidden_nM: Tensor, next_n: Tensor) -> Tensor:
    """Runs the sum of all losses backward through the head alone, in parts.

    Returns:
        Each token's loss in nats. The gradient with respect to `hidden_nM` (a leaf) is in its `.grad`.
    """
    losses = []
    for states_nM, next_ids_n in _chunks(model, hidden_nM, next_n):
        losses_n = F.cross_entropy(model.logits(states_nM).float(), next_ids_n, reduction="none")
        losses_n.sum().backward()  # type: ignore[no-untyped-call]
        losses.append(losses_n.detach())
    return torch.cat(losses)


def _chunks(model: MoEModel, hidden_nM: Tensor, next_n: Tensor) -> list[tuple[Tensor, Tensor]]:
    if not hidden_nM.shape[0]:
        return []
    num_bytes = _CPU_LOGIT_BYTES if hidden_nM.device.type == "cpu" else _GPU_LOGIT_BYTES
    rows = max(_FEWEST_ROWS, num_bytes // (4 * model.vocab_size))
    next_n = next_n.to(hidden_nM.device)
    return list(zip(hidden_nM.split(rows), next_n.split(rows), strict=True))


def check_complete(model: MoEModel, what: str) -> None:
    """Refuses a model that is not loaded to its whole depth.

    Raises:
        ModelError: The model was loaded down to some layer only.
    """
    if not model.complete:
        raise ModelError(
            f"{what} is measured in the loss, and {model.name} was loaded down to layer {model.layers[-1]} only",
            remedy="load the model without `layers`",
        )
