"""Each layer's most co-activated pair of experts: selected on half of the documents, measured on the others."""

from __future__ import annotations

import numpy as np
import xarray as xr

from moescope.measures.clustered import clustered_mean
from moescope.measures.constants import MIN_EXPECTED
from moescope.measures.independence import pair_probabilities
from moescope.statistics.samples.routed import RoutedDocuments
from moescope.statistics.variables import variable

_WHERE = (
    "pair with the largest selection-half excess over independent routing, in standard deviations of a Poisson count"
)
DEFINITIONS = {
    "top_expert": ("index", f"one expert of the {_WHERE}; -1 where no pair is expected often enough"),
    "top_other_expert": ("index", f"the other expert of the {_WHERE}"),
    "top_excess_selection_half": ("standard deviations", f"(N_ij - expected) / sqrt(expected) of the {_WHERE}"),
    "top_lift": ("ratio", "N N_ij / (N_i N_j) of this pair on the evaluation half of the documents"),
    "top_lift_chance": ("ratio", "lift of this pair under independent routing with K experts per token"),
    "top_lift_ci_low": ("ratio", "2.5 % end of its 95 % interval over documents (linearized, t)"),
    "top_lift_ci_high": ("ratio", "97.5 % end of its 95 % interval over documents (linearized, t)"),
    "top_p_value": ("probability", "one-sided, of a lift no higher than under independent routing"),
}


def top_pairs(sample: RoutedDocuments, num_experts_per_token: int) -> xr.Dataset:
    """The variables of `DEFINITIONS` by `layer`."""
    values = {name: np.full(len(sample.layers), np.nan) for name in DEFINITIONS}
    for name in ("top_expert", "top_other_expert"):
        values[name] = np.full(len(sample.layers), -1)
    for position, layer in enumerate(sample.layers):
        found = _top_pair(sample, layer, num_experts_per_token)
        for name, value in found.items():
            values[name][position] = value
    return xr.Dataset(
        {name: variable("layer", values[name], *about) for name, about in DEFINITIONS.items()},
        coords={"layer": list(sample.layers)},
    )


def _top_pair(sample: RoutedDocuments, layer: int, num_experts_per_token: int) -> dict[str, float]:
    selected_NE, judge = sample.selected_NE(layer), sample.halves_N == 1
    learn_NE, judge_NE = selected_NE[~judge].astype(np.float64), selected_NE[judge].astype(np.float64)
    if sample.num_experts < 2 or not len(learn_NE) or not len(judge_NE):
        return {}
    together_EE = learn_NE.T @ learn_NE
    expected_EE = pair_probabilities(learn_NE.mean(axis=0), num_experts_per_token) * len(learn_NE)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess_EE = (together_EE - expected_EE) / np.sqrt(expected_EE)
    allowed_EE = np.triu(expected_EE >= MIN_EXPECTED, 1) & np.isfinite(excess_EE)
    if not allowed_EE.any():
        return {}
    i, j = np.unravel_index(int(np.where(allowed_EE, excess_EE, -np.inf).argmax()), allowed_EE.shape)
    found = {"top_expert": float(i), "top_other_expert": float(j), "top_excess_selection_half": float(excess_EE[i, j])}
    share_E = judge_NE.mean(axis=0)
    if share_E[i] == 0 or share_E[j] == 0:
        return found
    both = share_E[i] * share_E[j]
    chance = pair_probabilities(share_E, num_experts_per_token)[i, j] / both
    # Mean: P(i, j) - chance P(i) P(j), and with the influence of both shares in each token's score.
    scores_N = judge_NE[:, i] * judge_NE[:, j] - chance * (
        judge_NE[:, i] * share_E[j] + judge_NE[:, j] * share_E[i] - both
    )
    mean = clustered_mean(scores_N, sample.documents_N[judge], num_margins=2)
    low, high = mean.interval
    return found | {
        "top_lift": chance + mean.mean / both,
        "top_lift_chance": float(chance),
        "top_lift_ci_low": chance + low / both,
        "top_lift_ci_high": chance + high / both,
        "top_p_value": mean.p_value(),
    }
