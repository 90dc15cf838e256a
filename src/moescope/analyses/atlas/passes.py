"""The passes of the atlas: the sampled documents run again, for the gradient and for exact ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moescope.interventions.ablation import Ablation
from moescope.interventions.document_effects import (
    Documents,
    FirstOrderEffects,
    batches_of,
    measure_ablations,
    measure_first_order,
)
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
    """

    documents: Documents
    first_order: FirstOrderEffects
    ablations: list[Ablation]
    exact_GP: Floats
    saliency_LE: Floats


def run_passes(
    model: MoEModel,
    sample: TextSample,
    context: Context,
    ablations: Sequence[Ablation],
    exact_tokens: int | None,
    batch_tokens: int,
) -> Measured:
    """Runs the sampled documents through the model again, for the gradient and for the exact ablations.

    Args:
        model: A complete model.
        sample: The text.
        context: What is looked at.
        ablations: The exact ablations.
        exact_tokens: Tokens of the documents that they are measured on, those of smallest hash in each domain; None:
            all documents.
        batch_tokens: Padded tokens in a batch of the ablations.
    """
    layers = list(context.layers)
    by_domain = [sample.documents(domain_id) for domain_id in range(len(sample.domains))]
    documents = [document for sampled in by_domain for document in sampled]
    few = {
        document.document_hash
        for sampled in by_domain
        for document in _first_documents(sampled, exact_tokens, len(by_domain))
    }
    at_G = np.array([document.document_hash in few for document in documents], dtype=bool)
    exact_GP = np.full((len(documents), len(ablations)), np.nan)
    ablated_on = [document for document, is_used in zip(documents, at_G, strict=True) if is_used]
    exact_GP[at_G] = measure_ablations(model, ablated_on, ablations, batch_tokens=batch_tokens)
    contribution = ExpertContribution(
        layers=layers,
        num_experts=model.num_experts,
        model_width=model.model_width,
        domains=list(context.domains),
        device=model.device,
    )
    feed(model, batches_of(ablated_on, model, batch_tokens), [contribution], layers=layers)
    return Measured(
        Documents.of(documents),
        measure_first_order(model, documents, layers),
        list(ablations),
        exact_GP,
        contribution.compute()["saliency_mean"].values,
    )


def _first_documents(sampled: Sequence[SampledDocument], tokens: int | None, num_domains: int) -> list[SampledDocument]:
    """The first documents of one domain, in ascending order of hash, with its share of so many tokens; None: all."""
    if tokens is None:
        return list(sampled)
    before = np.cumsum([0, *(len(document.token_ids) for document in sampled)])[:-1]
    return [document for document, start in zip(sampled, before, strict=True) if start < tokens // num_domains]
