"""The loss without some experts: exact ablations, computed again only from the changed layer on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moescope.errors import ModelError, UsageError
from moescope.interventions.losses import token_losses
from moescope.interventions.rerun import KeptPass, keep, outputs_without, run_again

if TYPE_CHECKING:
    from moescope.corpora import Batch
    from moescope.models import MoEModel

# A pass run again from a layer on without a change must give the same losses: mean difference, nats per token.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_COARSE = 0.05


@dataclass(frozen=True, order=True)
class Ablation:
    """Experts of one layer that are ablated together: weight 0 at every token, the others unchanged.

    Attributes:
        layer: The decoder block's index in the checkpoint.
        experts: One expert or several.
    """

    layer: int
    experts: tuple[int, ...]


def check_ablations(model: MoEModel, ablations: Sequence[Ablation]) -> None:
    """Refuses layers and experts that do not exist, and experts that are named twice.

    Raises:
        UsageError: Says which there are.
    """
    for ablation in ablations:
        model.check_layers([ablation.layer])
        model.check_experts(ablation.experts)
        if len(set(ablation.experts)) < len(ablation.experts):
            raise UsageError(f"an expert is named twice: {', '.join(map(str, ablation.experts))}")


@torch.inference_mode()
def ablation_effects(
    model: MoEModel,
    batch: Batch,
    ablations: Sequence[Ablation],
    *,
    batch_tokens: int = 8192,
    kept: KeptPass | None = None,
    within_BP: Tensor | None = None,
) -> Tensor:
    """Δ loss of each ablation in each document of a batch: nats, summed over the document's predicted tokens.

    The layers below a change run once and their output is kept, as is the output of the layer's experts. Run again are:
    the experts of the tokens that selected an ablated one; the documents with such a token (the effect on the others is
    exactly 0) from the changed layer on, those of several ablations in one batch; the head, from the first such token.

    Args:
        model: A complete model.
        batch: On the model's device.
        ablations: Any number, of any layers.
        batch_tokens: Padded tokens in a batch that is run again.
        kept: The batch's pass, if it was kept before.
        within_BP: Mask of the documents that each ablation is measured on; None: all. Elsewhere its effect is 0.

    Returns:
        float64 (B, number of ablations).

    Raises:
        ModelError: The model is not complete, or its family's blocks cannot be run from the middle.
    """
    layers = sorted({ablation.layer for ablation in ablations})
    kept = kept or keep(model, batch, layers)
    effects_BP = torch.zeros(
        (kept.input_ids_BS.shape[0], len(ablations)), dtype=torch.float64, device=kept.losses_BS.device
    )
    for layer in reversed(layers):
        in_layer = [index for index, ablation in enumerate(ablations) if ablation.layer == layer]
        if layer == layers[-1]:
            _check_same(model, kept, layer)
        hits = {
            index: _hits(kept, ablations[index], None if within_BP is None else within_BP[:, index])
            for index in in_layer
        }
        for part in _parts(kept, hits, batch_tokens):
            effects_BP.index_put_((part.rows_J, part.ablations_J), _effects(model, kept, layer, part), accumulate=True)
    return effects_BP


@dataclass(frozen=True)
class _Part:
    """Documents run again together, each with one ablation.

    Attributes:
        ablations_J: Index of the ablation.
        rows_J: Row of the batch.
        hits_JS: Tokens that selected an ablated expert, cut to the longest row.
        experts: The experts of each ablation, by its index.
    """

    ablations_J: Tensor
    rows_J: Tensor
    hits_JS: Tensor
    experts: dict[int, Tensor]


@dataclass(frozen=True)
class _Hits:
    """Where one ablation acts: a mask (B, S) of tokens, and the experts that are ablated."""

    at_BS: Tensor
    experts: Tensor


def _hits(kept: KeptPass, ablation: Ablation, within_B: Tensor | None) -> _Hits:
    ids_NK = kept.calls[ablation.layer].expert_ids_NK
    experts = torch.tensor(ablation.experts, device=ids_NK.device)
    columns_S = torch.arange(kept.next_BS.shape[1], device=ids_NK.device)
    real_BS = columns_S < kept.lengths_B.to(ids_NK.device)[:, None]
    if within_B is not None:
        real_BS = real_BS & within_B.to(ids_NK.device)[:, None]
    return _Hits(torch.isin(ids_NK, experts).any(1).view(real_BS.shape) & real_BS, experts)


def _parts(kept: KeptPass, hits: Mapping[int, _Hits], batch_tokens: int) -> list[_Part]:
    """Documents with a token that an ablation acts on, long ones first, at most `batch_tokens` padded tokens a part."""
    if not hits:
        return []
    rows = [hit.at_BS.any(1).nonzero().squeeze(1) for hit in hits.values()]
    rows_J = torch.cat(rows)
    ablations_J = torch.cat([torch.full_like(rows_j, index) for index, rows_j in zip(hits, rows, strict=True)])
    lengths_J = kept.lengths_B.to(rows_J.device)[rows_J]
    order_J = lengths_J.argsort(descending=True, stable=True)
    ablations_J, rows_J, lengths = ablations_J[order_J], rows_J[order_J], lengths_J[order_J].tolist()
    parts, start = [], 0
    while start < len(lengths):
        end = start + max(1, batch_tokens // lengths[start])
        part_J, indices_J = rows_J[start:end], ablations_J[start:end]
        at_JS = torch.stack([hits[index].at_BS[row] for index, row in zip(indices_J.tolist(), part_J, strict=True)])
        experts = {index: hits[index].experts for index in indices_J.unique().tolist()}
        parts.append(_Part(indices_J, part_J, at_JS[:, : lengths[start]], experts))
        start = end
    return parts


def _effects(model: MoEModel, kept: KeptPass, layer: int, part: _Part) -> Tensor:
    """Δ loss of each document of a part, float64 (J,)."""
    rows_J, call = part.rows_J, kept.calls[layer]
    num_rows, length = part.hits_JS.shape
    full = kept.next_BS.shape[1]
    outputs_JSM = kept.outputs[layer].view(-1, full, kept.outputs[layer].shape[-1])[rows_J, :length].clone()
    for index, experts in part.experts.items():
        at_J, at_S = (part.hits_JS & (part.ablations_J == index)[:, None]).nonzero(as_tuple=True)
        outputs_JSM[at_J, at_S] = outputs_without(model, call, rows_J[at_J] * full + at_S, experts)
    inputs_JSM = kept.inputs[layer][rows_J.to(kept.inputs[layer].device), :length]
    home = kept.losses_BS.device
    rows_J, first_J = rows_J.to(home), part.hits_JS.to(torch.int8).argmax(1).to(home)
    last_JSM = run_again(model, layer, kept.input_ids_BS[rows_J, :length], inputs_JSM, outputs_JSM.flatten(0, 1))
    next_JS = kept.next_BS[rows_J, :length]
    # The change has no effect on tokens before the first changed one.
    at_JS = (next_JS >= 0) & (torch.arange(length, device=home) >= first_J[:, None])
    losses_n = token_losses(model, last_JSM[at_JS.to(last_JSM.device)], next_JS[at_JS]).to(home)
    changes_n = losses_n.double() - kept.losses_BS[rows_J, :length][at_JS].double()
    return torch.zeros(num_rows, dtype=torch.float64, device=home).index_add_(0, at_JS.nonzero()[:, 0], changes_n)


def _check_same(model: MoEModel, kept: KeptPass, layer: int) -> None:
    """Refuses a family whose pass, run again without a change, gives other losses; checks the first row."""
    width = int(kept.lengths_B[0])
    at_S = kept.next_BS[0, :width] >= 0
    if not bool(at_S.any()):
        return
    last_1SM = run_again(
        model, layer, kept.input_ids_BS[:1, :width], kept.inputs[layer][:1, :width], kept.outputs[layer][:width]
    )
    losses_n = token_losses(model, last_1SM[0][at_S.to(last_1SM.device)], kept.next_BS[0, :width][at_S])
    known_n = kept.losses_BS[0, :width][at_S]
    difference = float((losses_n.to(known_n.device) - known_n).abs().mean())
    allowed = TOLERANCE.get(model.dtype, _COARSE)
    if not difference <= allowed * max(1.0, float(known_n.abs().mean())):
        raise ModelError(
            f"{model.name} run again from layer {layer} on without a change has a loss that differs by "
            f"{difference:.2g} nats per token from that of one pass",
            expected=f"at most {allowed:g}: a family whose blocks pass on one hidden state and nothing else",
            remedy="use the gradient method, which needs no second pass",
        )
