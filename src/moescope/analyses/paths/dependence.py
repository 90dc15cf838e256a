"""How far the first-ranked expert of one layer depends on that of the layer before, on held-out documents."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import xarray as xr

from moescope.measures.association import held_out_scores
from moescope.measures.clustered import summarized
from moescope.statistics.samples.routed import RoutedDocuments
from moescope.statistics.variables import variable

_OF = "dependence of first-ranked experts of consecutive layers, on held-out documents"
DEFINITIONS = {
    "dependence": (
        "nats",
        "sum_ij (P(i, j) - P(i) P(j)) W_ij on the evaluation half of the documents, W_ij the logarithm of the lift of "
        "the pair on the selection half; 0 if the choices are independent of each other",
    ),
    "dependence_ci_low": ("nats", f"2.5 % end of the 95 % interval over documents (linearized, t), of {_OF}"),
    "dependence_ci_high": ("nats", f"97.5 % end of the 95 % interval over documents (linearized, t), of {_OF}"),
    "dependence_p_value": ("probability", f"one-sided, of no {_OF}"),
    "dependence_tied": ("yes or no", "not shown to lie below the pair of the highest value (paired, Bonferroni)"),
}


def dependence(sample: RoutedDocuments) -> xr.Dataset:
    """The variables of `DEFINITIONS`, by the first of two consecutive layers; NaN for too few documents."""
    layers = list(sample.layers[:-1])
    values = {name: np.full(len(layers), np.nan) for name in DEFINITIONS}
    values["dependence_tied"] = np.zeros(len(layers), dtype=bool)
    judge = sample.halves_N == 1
    if layers and judge.any() and not judge.all():
        firsts_LN = [sample.expert_ids_NK(layer)[:, 0] for layer in sample.layers]
        scores_LN = np.stack(
            [
                held_out_scores(here_N, next_N[:, None], sample.halves_N, sample.num_experts, sample.num_experts)
                for here_N, next_N in pairwise(firsts_LN)
            ]
        )
        values |= summarized(scores_LN, sample.documents_N[judge], "dependence", num_margins=2)
    return xr.Dataset(
        {name: variable("layer", values[name], *about) for name, about in DEFINITIONS.items()}, coords={"layer": layers}
    )
