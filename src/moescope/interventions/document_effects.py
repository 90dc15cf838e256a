"""Effects of ablations by document, exact or estimated by gradient, and their means by domain with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.corpora.packing import Batch, Window, lay_out, pack
from moescope.corpora.tokenizing import TextEncoder
from moescope.interventions.ablation import Ablation, ablation_effects, check_ablations
from moescope.interventions.gradient import first_order_effects
from moescope.measures.constants import MIN_DOCUMENTS, MIN_EFFECTIVE_DOCUMENTS, NUM_BOOTSTRAP
from moescope.measures.intervals import LEAST_CARRYING, effect_intervals
from moescope.measures.resampling import poisson_weights

if TYPE_CHECKING:
    from moescope.models import MoEModel
    from moescope.statistics.samples.texts import SampledDocument

Floats = NDArray[np.float64]

GRADIENT_TOKENS = 2048
"""Padded tokens in a batch of the gradient method, which keeps the activations of all layers."""
INTERVAL = (
    f"95 % interval over documents, the wider of Student's t and bootstrap-t ({NUM_BOOTSTRAP} Poisson replicates); "
    f"NaN under {MIN_DOCUMENTS} documents, {MIN_EFFECTIVE_DOCUMENTS} effective ones by tokens, or "
    f"{LEAST_CARRYING:.0f} that carry the effect"
)
P_VALUE = "one-sided p-value of an effect of at most 0, Student's t over documents"
EFFECTIVE = (
    "effective number of documents: the smaller of that by tokens, (sum t)^2 / sum t^2, and that by effect, "
    "(sum |e|)^2 / sum e^2"
)


@dataclass(frozen=True)
class Documents:
    """The G documents that effects are measured on.

    Attributes:
        hashes_G: Hash of each.
        domain_ids_G: Index of each one's domain.
        counted_G: Its tokens.
        predicted_G: Its predicted tokens: those with a known next token.
    """

    hashes_G: NDArray[np.int64]
    domain_ids_G: NDArray[np.int64]
    counted_G: NDArray[np.int64]
    predicted_G: NDArray[np.int64]

    @classmethod
    def of(cls, documents: Sequence[SampledDocument]) -> Documents:
        """The facts of sampled documents, in their order."""
        return cls(
            np.array([document.document_hash for document in documents], dtype=np.int64),
            np.array([document.domain_id for document in documents], dtype=np.int64),
            np.array([len(document.token_ids) for document in documents], dtype=np.int64),
            np.array([int((document.next_token_ids >= 0).sum()) for document in documents], dtype=np.int64),
        )


@dataclass(frozen=True)
class FirstOrderEffects:
    """The gradient's estimates for every expert, by document; `gradient.FirstOrder` describes the attributes."""

    effects_GLE: Floats
    curvatures_GLE: Floats
    selected_GLE: NDArray[np.int64]
    weights_GLE: Floats
    losses_G: Floats

    @property
    def estimates_GLE(self) -> Floats:
        """The estimate of Δ loss: first-order and second-order term."""
        return self.effects_GLE + self.curvatures_GLE


@dataclass(frozen=True)
class Means:
    """Δ loss per token with its interval; row 0 is all documents, row d + 1 domain d.

    Attributes:
        mean_DP: Nats per predicted token; NaN where there is none.
        low_DP: Lower end of the interval; NaN where it is refused (`measures.intervals.effect_intervals`).
        high_DP: Upper end.
        p_value_DP: One-sided, of an effect of at most 0; NaN where the interval is refused.
        effective_DP: Effective number of documents, by tokens or by effect, whichever is smaller.
    """

    mean_DP: Floats
    low_DP: Floats
    high_DP: Floats
    p_value_DP: Floats
    effective_DP: Floats


def batches_of(documents: Sequence[SampledDocument], model: MoEModel, batch_tokens: int) -> list[Batch]:
    """Sampled documents as batches, rows of similar length together, with the tokenizer's prefix of a text.

    A special token inside a document is never counted and was not sampled: it is not in these batches.
    """
    encoder = TextEncoder(model.tokenizer)
    windows = [
        Window(
            row=np.concatenate([encoder.prefix, document.token_ids]),
            counted=len(encoder.prefix) + np.arange(len(document.token_ids)),
            next_ids=document.next_token_ids,
            positions=document.positions,
            document_hash=document.document_hash,
            domain_id=document.domain_id,
        )
        for document in documents
    ]
    return [lay_out(batch, encoder.padding_id).to(model.device) for batch in pack(windows, batch_tokens)]


def measure_first_order(
    model: MoEModel,
    documents: Sequence[SampledDocument],
    layers: Sequence[int],
    *,
    batch_tokens: int = GRADIENT_TOKENS,
) -> FirstOrderEffects:
    """The gradient's estimates for every expert of these layers, from one forward and one backward pass."""
    index_of = {document.document_hash: index for index, document in enumerate(documents)}
    shape = (len(documents), len(layers), model.num_experts)
    effects = FirstOrderEffects(
        np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64), np.zeros(shape), np.zeros(len(documents))
    )
    for batch in batches_of(documents, model, batch_tokens):
        found = first_order_effects(model, batch, layers)
        rows_B = [index_of[int(document)] for document in batch.tokens.document_hashes_B]
        effects.effects_GLE[rows_B] = found.effects_BLE.cpu().numpy()
        effects.curvatures_GLE[rows_B] = found.curvatures_BLE.cpu().numpy()
        effects.selected_GLE[rows_B] = found.selected_BLE.cpu().numpy()
        effects.weights_GLE[rows_B] = found.weights_BLE.cpu().numpy()
        effects.losses_G[rows_B] = found.losses_B.cpu().numpy()
    return effects


def measure_ablations(
    model: MoEModel,
    documents: Sequence[SampledDocument],
    ablations: Sequence[Ablation],
    *,
    within_GP: NDArray[np.bool_] | None = None,
    batch_tokens: int = 8192,
) -> Floats:
    """Exact effects of ablations by document, nats summed over its tokens, (G, number of ablations).

    With `within_GP`, a mask of the documents that each ablation is measured on, those elsewhere are NaN and take no
    time; documents of no ablation are not run.
    """
    check_ablations(model, ablations)
    if within_GP is None:
        within_GP = np.ones((len(documents), len(ablations)), dtype=bool)
    index_of = {document.document_hash: index for index, document in enumerate(documents)}
    used = [documents[index] for index in np.flatnonzero(within_GP.any(axis=1)).tolist()]
    effects_GP = np.zeros((len(documents), len(ablations)))
    for batch in batches_of(used, model, batch_tokens):
        rows_B = [index_of[int(document)] for document in batch.tokens.document_hashes_B]
        within_BP = torch.from_numpy(within_GP[rows_B])
        found_BP = ablation_effects(model, batch, ablations, batch_tokens=batch_tokens, within_BP=within_BP)
        effects_GP[rows_B] = found_BP.cpu().numpy()
    return np.where(within_GP, effects_GP, np.nan)


def domain_means(
    effects_GP: Floats,
    documents: Documents,
    num_domains: int,
    *,
    within_G: NDArray[np.bool_] | None = None,
    seed: int = 0,
    num_bootstrap: int = NUM_BOOTSTRAP,
) -> Means:
    """`Σ effects / Σ predicted tokens` over all documents and over each domain's.

    Intervals and p-values: see `measures.intervals.effect_intervals`. Replicates weigh each document by a hash of the
    document and the seed.

    Args:
        effects_GP: Nats summed over each document's tokens, for each of P changes.
        documents: The documents of its rows.
        num_domains: D.
        within_G: Mask of the documents to use; None: all.
        seed: Seed of the replicates.
        num_bootstrap: Number of replicates; 0 for no intervals.
    """
    chosen_G = np.ones(len(documents.hashes_G), bool) if within_G is None else within_G
    weights_GR = poisson_weights(documents.hashes_G, num_bootstrap, seed=seed).astype(float)
    rows = []
    for row in range(num_domains + 1):
        at_G = chosen_G if row == 0 else chosen_G & (documents.domain_ids_G == row - 1)
        rows.append(effect_intervals(effects_GP[at_G], documents.predicted_G[at_G], weights_GR[at_G]))
    return Means(
        mean_DP=np.stack([effects.mean for effects in rows]),
        low_DP=np.stack([effects.low for effects in rows]),
        high_DP=np.stack([effects.high for effects in rows]),
        p_value_DP=np.stack([effects.p_value for effects in rows]),
        effective_DP=np.stack([effects.effective for effects in rows]),
    )
