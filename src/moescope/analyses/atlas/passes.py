"""The passes of the atlas: the sampled documents run again, for the gradient and for exact ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moescope.analyses.atlas.named import Measurements, distinct, documents_of, named_experts
from moescope.interventions.ablation import Ablation
from moescope.interventions.document_effects import (
    Documents,
    FirstOrderEffects,
    batches_of,
    domain_means,
    measure_ablations,
    measure_first_order,
)
from moescope.measures.resampling import halves
from moescope.one_pass import feed
from moescope.statistics.contribution import ExpertContribution

if TYPE_CHECKING:
    from moescope.context import Context
    from moescope.models import MoEModel
    from moescope.statistics.samples.texts import SampledDocument, TextSample

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """What the passes over the sampled documents measured.

    Attributes:
        documents: The documents.
        first_order: The gradient's estimates, by document, layer and expert.
        ablations: The exact ablations, one expert each.
        exact_GP: Their effects, NaN in documents that they were not measured on.
        saliency_LE: Mean `w |o|` over the tokens routed to each expert; NaN for none.
        named: The named experts, estimated and measured.
    """

    documents: Documents
    first_order: FirstOrderEffects
    ablations: list[Ablation]
    exact_GP: Floats
    saliency_LE: Floats
    named: Measurements


def run_passes(
    model: MoEModel,
    sample: TextSample,
    context: Context,
    ablations: Sequence[Ablation],
    *,
    exact_tokens: int | None,
    named_tokens: int,
    batch_tokens: int,
) -> Measured:
    """Runs the sampled documents through the model again, for the gradient, the exact ablations and the named experts.

    Args:
        model: A complete model.
        sample: The text.
        context: What is looked at.
        ablations: The exact ablations.
        exact_tokens: Tokens of the documents that they are measured on, those of smallest hash in each domain; None:
            all documents, and experts are named by these effects, not by estimates.
        named_tokens: Tokens of the evaluation half that the expert named first for a domain is ablated on, whatever
            their domain; 0: no named expert is ablated.
        batch_tokens: Padded tokens in a batch of the ablations.
    """
    layers = list(context.layers)
    by_domain = [sample.documents(domain_id) for domain_id in range(len(sample.domains))]
    documents = [document for sampled in by_domain for document in sampled]
    facts = Documents.of(documents)
    at_G = _first(documents, by_domain, exact_tokens)
    first_order = measure_first_order(model, documents, layers)
    within_GP = np.repeat(at_G[:, None], len(ablations), axis=1)
    estimates_GX = first_order.estimates_GLE.reshape(len(documents), -1)
    evaluation_G = halves(facts.hashes_G, seed=context.seed).astype(bool)
    exact_GP = np.full(within_GP.shape, np.nan)
    if exact_tokens is None:
        exact_GP = measure_ablations(model, documents, ablations, batch_tokens=batch_tokens)
        named = _already_measured(layers, ablations, exact_GP, estimates_GX, facts, evaluation_G, context)
    else:
        selection = domain_means(estimates_GX, facts, len(by_domain), within_G=~evaluation_G, seed=context.seed)
        chosen = named_experts(selection) if named_tokens else []
        held_out = set(facts.hashes_G[evaluation_G].tolist())
        kept = [[document for document in sampled if document.document_hash in held_out] for sampled in by_domain]
        everywhere_G = _first(documents, kept, named_tokens)
        cells = distinct(chosen)
        own_GP = documents_of(chosen, facts, evaluation_G, everywhere_G)
        wanted = [Ablation(layers[cell // model.num_experts], (cell % model.num_experts,)) for cell in cells]
        # One call for all: ablations of one layer are run again together.
        effects_GP = measure_ablations(
            model,
            documents,
            [*ablations, *wanted],
            within_GP=np.concatenate([within_GP, own_GP], axis=1),
            batch_tokens=batch_tokens,
        )
        exact_GP = effects_GP[:, : len(ablations)]
        measured_GP = effects_GP[:, len(ablations) :]
        named = Measurements(selection, chosen, cells, everywhere_G, estimates_GX[:, cells], measured_GP)
    contribution = ExpertContribution(
        layers=layers,
        num_experts=model.num_experts,
        model_width=model.model_width,
        domains=list(context.domains),
        device=model.device,
    )
    ablated_on = [document for document, is_used in zip(documents, at_G, strict=True) if is_used]
    feed(model, batches_of(ablated_on, model, batch_tokens), [contribution], layers=layers)
    saliency_LE = contribution.compute()["saliency_mean"].values
    return Measured(facts, first_order, list(ablations), exact_GP, saliency_LE, named)


def _already_measured(
    layers: Sequence[int],
    ablations: Sequence[Ablation],
    exact_GP: Floats,
    estimates_GX: Floats,
    documents: Documents,
    evaluation_G: NDArray[np.bool_],
    context: Context,
) -> Measurements:
    """The named experts of the exact method, whose effects are all measured."""
    num_experts = context.model.num_experts
    cells_P = [layers.index(ablation.layer) * num_experts + ablation.experts[0] for ablation in ablations]
    effects_GX = np.full_like(estimates_GX, np.nan)
    effects_GX[:, cells_P] = exact_GP
    selection = domain_means(effects_GX, documents, len(context.domains), within_G=~evaluation_G, seed=context.seed)
    chosen = named_experts(selection)
    cells = distinct(chosen)
    return Measurements(selection, chosen, cells, evaluation_G, estimates_GX[:, cells], effects_GX[:, cells])


def _first(
    documents: Sequence[SampledDocument], by_domain: Sequence[Sequence[SampledDocument]], tokens: int | None
) -> NDArray[np.bool_]:
    """Mask of the first documents of each domain with so many tokens between them; None: all."""
    chosen = {
        document.document_hash
        for sampled in by_domain
        for document in _first_documents(sampled, tokens, len(by_domain))
    }
    return np.array([document.document_hash in chosen for document in documents], dtype=bool)


def _first_documents(sampled: Sequence[SampledDocument], tokens: int | None, num_domains: int) -> list[SampledDocument]:
    """The first documents of one domain, in ascending order of hash, with its share of so many tokens; None: all."""
    if tokens is None:
        return list(sampled)
    before = np.cumsum([0, *(len(document.token_ids) for document in sampled)])[:-1]
    return [document for document, start in zip(sampled, before, strict=True) if start < tokens // num_domains]
