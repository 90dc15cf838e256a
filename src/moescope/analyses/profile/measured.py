"""The experts that have a page of their own, ablated for real on the evaluation half of the documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from moescope.errors import ModelError, warn
from moescope.interventions.ablation import Ablation
from moescope.interventions.document_effects import INTERVAL, Documents, domain_means, measure_ablations
from moescope.measures.resampling import halves
from moescope.statistics.variables import variable

if TYPE_CHECKING:
    from moescope.context import Context
    from moescope.models import MoEModel
    from moescope.statistics.samples.texts import TextSample

MOST_MEASURED = 16
"""Experts that are ablated; further ones have the estimate alone."""
NAME = "effect_measured"


def best_labeled(labels: xr.Dataset) -> list[tuple[int, int]]:
    """Layer (as position) and expert of those with a label, highest balanced accuracy on the selection half first."""
    scores_LE = labels["label_selection_half_balanced_accuracy"].values
    order = np.argsort(-scores_LE.ravel(), kind="stable")
    labeled = labels["label_text"].values.ravel() != ""
    return [divmod(int(cell), scores_LE.shape[1]) for cell in order if labeled[cell]]


def measured_effects(
    model: MoEModel, sample: TextSample, context: Context, cells: Sequence[tuple[int, int]]
) -> xr.Dataset:
    """Δ loss of ablating some experts, on the documents of the atlas' evaluation half.

    By `layer, expert`: `effect_measured` over all domains; by `layer, domain, expert`: `effect_measured_by_domain`;
    each with its interval, NaN where an expert was not ablated. Empty without such documents.

    Args:
        model: A complete model.
        sample: The atlas' sample of text.
        context: What is looked at.
        cells: Layer (as position) and expert of each; the first `MOST_MEASURED` are ablated.
    """
    every = [document for domain_id in range(len(sample.domains)) for document in sample.documents(domain_id)]
    documents = [d for d in every if halves(np.array([d.document_hash]), seed=context.seed)[0]]
    if not documents or not cells:
        return xr.Dataset()
    cells = list(cells[:MOST_MEASURED])
    facts = Documents.of(documents)
    ablations = [Ablation(context.layers[layer], (expert,)) for layer, expert in cells]
    try:
        effects_GP = measure_ablations(model, documents, ablations)
    except ModelError as error:
        warn(f"effects in profiles are estimated alone: {error.found}")
        return xr.Dataset()
    means = domain_means(effects_GP, facts, len(context.domains), seed=context.seed)
    definition = "loss without the expert minus loss with it, measured by ablation on the evaluation half of documents"
    shape = (len(context.layers), len(context.domains) + 1, model.num_experts)
    layers_P, experts_P = (list(indices) for indices in zip(*cells, strict=True))
    variables = {}
    for end, values_DP in (("", means.mean_DP), ("_ci_low", means.low_DP), ("_ci_high", means.high_DP)):
        values_LDE = np.full(shape, np.nan)
        values_LDE[layers_P, :, experts_P] = values_DP.T
        words = definition if not end else f"{end[4:]} end of the {INTERVAL}, of: {definition}"
        units = "nats per token"
        variables[NAME + end] = variable(("layer", "expert"), values_LDE[:, 0], units, words)
        variables[f"{NAME}_by_domain{end}"] = variable(("layer", "domain", "expert"), values_LDE[:, 1:], units, words)
    attrs = {
        f"{NAME}_definition": definition,
        f"{NAME}_num_tokens": int(facts.predicted_G.sum()),
        f"{NAME}_num_documents": len(documents),
    }
    return xr.Dataset(variables, attrs=attrs)
