"""Directions of the residual stream as tokens: what adding one to it would promote (direct logit attribution).

A direction is put through the final norm's gain and the unembedding, as if it were added to the last hidden state as it
is. Left out, as is usual (nostalgebraist 2020, "interpreting GPT: the logit lens"; Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"): what later layers make of it, and the final norm's division by the residual's
size, a positive number that differs from token to token; so logits of one direction may be ranked, and compared with
another's, but are not the model's own output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from moescope.errors import ModelError
from moescope.models.layout import last_norms

if TYPE_CHECKING:
    from moescope.models.moe import MoEModel

_ROWS = 16_384
"""Rows of the unembedding brought to float32 at a time."""


@torch.no_grad()
def direct_logits(model: MoEModel, directions_NM: Tensor) -> Tensor:
    """Logits that each direction adds, less their mean over the vocabulary: `W_U (g * d)`, centered.

    `g` is the final norm's gain (1 where there is none); of a norm that centers (LayerNorm), d is centered too. Biases,
    and a family's scaling or cap of logits, are left out.

    Args:
        model: A complete model.
        directions_NM: Directions of the residual stream, such as experts' mean outputs.

    Returns:
        (N, V), float32; softmax does not see that the mean was taken off.

    Raises:
        ModelError: The model was loaded without its head.
    """
    if not model.complete:
        raise ModelError(f"{model.name} was loaded without its head", remedy="load it without `layers`")
    weight_VM = model.hf.get_output_embeddings().weight
    folded_NM = through_norm(final_norm(model), directions_NM).to(weight_VM.device)
    logits_NV = torch.cat([folded_NM @ part_vM.float().T for part_vM in weight_VM.split(_ROWS)], dim=1)
    return logits_NV - logits_NV.mean(dim=1, keepdim=True)


def final_norm(model: MoEModel) -> nn.Module | None:
    """The norm between the last decoder block and the head; None where a family has none."""
    return next(iter(last_norms(model.hf, model.layout).values()), None)


def through_norm(norm: nn.Module | None, directions_NM: Tensor) -> Tensor:
    """Directions times a norm's gain, float32, centered first if the norm centers.

    The gain is found by feeding the norm, since families store it as g or as g - 1: for an input x of +1 and -1 in
    equal number, `(norm(x) - norm(-x)) / 2 = g x` for RMSNorm and LayerNorm alike.
    """
    directions_NM = directions_NM.float()
    parameter = None if norm is None else next(norm.parameters(), None)
    if norm is None or parameter is None:
        return directions_NM
    signs_M = 1.0 - 2.0 * (torch.arange(directions_NM.shape[1], device=parameter.device) % 2)
    signs_M = signs_M.to(parameter.dtype)[None, None]
    gain_M = ((norm(signs_M) - norm(-signs_M)) / 2 * signs_M).float().flatten()
    # A norm that centers does not see a constant: LayerNorm gives its bias, RMSNorm its gain.
    constant_M = torch.ones_like(signs_M)
    if not (norm(constant_M) - norm(-constant_M)).abs().max() > gain_M.abs().max():
        directions_NM = directions_NM - directions_NM.mean(dim=1, keepdim=True)
    return directions_NM.to(gain_M.device) * gain_M
