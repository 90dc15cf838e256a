"""Rank correlations over experts of the effect of ablation with routing statistics, and with its other half."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moescope.measures.correlation import (
    CorrelationDifference,
    ExpertCorrelation,
    correlate_experts,
    correlate_rows,
    correlation_difference,
    pooled,
)
from moescope.measures.usage import lift, ratio
from moescope.statistics.variables import Variable, variable

if TYPE_CHECKING:
    import xarray as xr

Floats = NDArray[np.float64]

GRADIENT, FIRST_ORDER, EXACT = "gradient", "first order", "ablated"
ACROSS, WITHIN_LAYERS, WITHIN_DOMAINS = "all layers", "within layers", "within domains"
OTHER_HALF = "effect on other documents"
RHO = "Spearman's rho"
DEFINITIONS = {
    "relation_effect": ("name", "the effect: estimated by gradient, or of exact ablation"),
    "relation_predictor": ("name", "the measure that it is correlated with"),
    "relation_scope": (
        "name",
        "experts of all layers; mean over layers of the correlation within each; or over domains",
    ),
    "relation_num": ("pairs", "experts, or experts and domains, with both values"),
    "rank_correlation": (RHO, "rank correlation of effect and predictor"),
    "rank_correlation_ci_low": (RHO, "low end of the 95 % interval over experts (delete-one-expert jackknife)"),
    "rank_correlation_ci_high": (RHO, "high end of the 95 % interval over experts (delete-one-expert jackknife)"),
    "rank_correlation_null_low": (RHO, "2.5 % quantile of the values under permutation of the experts"),
    "rank_correlation_null_high": (RHO, "97.5 % quantile of the values under permutation of the experts"),
    "rank_correlation_p_value": ("share", "permutations (and the measured value itself) with a value as far from 0"),
    "best_predictor_lead": (
        RHO,
        "by how much the size of the best predictor's correlation with the effect, in this scope, exceeds this one's; "
        "paired over experts; none for the best itself",
    ),
    "best_predictor_lead_ci_low": (RHO, "low end of its 95 % interval (delete-one-expert jackknife of the difference)"),
    "best_predictor_lead_ci_high": (RHO, "high end of its 95 % interval"),
    "best_predictor_lead_p_value": ("probability", "one-sided, of a lead of 0 or below; one comparison, not corrected"),
}
Relation = tuple[str, str, str]
"""Effect, predictor, scope."""


def relations(
    table: xr.Dataset, counted_D: NDArray[np.int64], weights_LE: Floats, cells: Sequence[int], *, seed: int
) -> dict[str, Variable]:
    """By `relation`: the rank correlation of an effect with a predictor, over experts.

    Args:
        table: The effects, as `Atlas.table` labels them.
        counted_D: Counted tokens of all domains, then of each.
        weights_LE: Sum of the weights applied to each expert at them.
        cells: Layer and expert of each exact ablation, as index into the flattened (L, E).
        seed: Of the permutations.
    """
    tokens = max(1, int(counted_D[0]))
    effect_LDE = table["delta_loss"].values
    selected_LDE = table["num_selected"].values
    saliency_LE = np.nan_to_num(table["saliency"].values)
    specialization_LDE = ratio(selected_LDE, counted_D[:, None])[:, 1:]
    lift_LDE = lift(specialization_LDE)
    predictors: dict[str, Floats] = {
        "selection frequency": selected_LDE[:, 0] / tokens,
        "weight": weights_LE / tokens,
        "saliency": saliency_LE,
        "total saliency": saliency_LE * selected_LDE[:, 0] / tokens,
    }
    several_domains = lift_LDE.shape[1] > 1
    if several_domains:
        predictors["highest lift"] = np.nan_to_num(lift_LDE).max(1)
    main = EXACT if table.attrs["method"] == "exact" else GRADIENT
    found: list[tuple[str, str, str, ExpertCorrelation]] = []

    def add(effect: str, predictor: str, scope: str, correlation: ExpertCorrelation) -> None:
        found.append((effect, predictor, scope, correlation))

    leads: dict[Relation, CorrelationDifference] = {}
    if len(cells) > 1:
        exact_P = table["ablated_delta_loss"].values
        estimates = {GRADIENT: table["ablated_gradient"].values, FIRST_ORDER: table["ablated_first_order"].values}
        others = {name: values_LE.ravel()[list(cells)] for name, values_LE in predictors.items()}
        for name, values_P in (estimates | (others if main != EXACT else {})).items():
            add(EXACT, name, ACROSS, correlate_experts(values_P, exact_P, seed=seed))
        if main != EXACT:
            rows = {name: values_P[None] for name, values_P in others.items()}
            leads |= _leads(found, EXACT, ACROSS, rows, exact_P[None], seed=seed)
    first_LDE, second_LDE = table["selection_half_delta_loss"].values, table["evaluation_half_delta_loss"].values
    for name, values_LE in {**predictors, OTHER_HALF: first_LDE[:, 0]}.items():
        effect_LE = (second_LDE if name == OTHER_HALF else effect_LDE)[:, 0]
        add(main, name, ACROSS, correlate_experts(values_LE.ravel(), effect_LE.ravel(), seed=seed))
        layers = [correlate_experts(*rows, seed=seed) for rows in zip(values_LE, effect_LE, strict=True)]
        add(main, name, WITHIN_LAYERS, pooled(layers))
    leads |= _leads(found, main, WITHIN_LAYERS, predictors, effect_LDE[:, 0], seed=seed)
    if several_domains:
        by_domain = {"domain specialization": specialization_LDE, "lift": lift_LDE, OTHER_HALF: first_LDE[:, 1:]}
        for name, values_LDE in by_domain.items():
            of_LDE = (second_LDE if name == OTHER_HALF else effect_LDE)[:, 1:]
            add(main, name, WITHIN_DOMAINS, correlate_rows(_by_domain(values_LDE), _by_domain(of_LDE), seed=seed))
    return _variables(found, leads)


def _leads(
    found: Sequence[tuple[str, str, str, ExpertCorrelation]],
    effect: str,
    scope: str,
    predictors: Mapping[str, Floats],
    effect_LE: Floats,
    *,
    seed: int,
) -> dict[Relation, CorrelationDifference]:
    """The lead of the best predictor of an effect over each of the others, by relation."""
    known = {
        name: correlation.value
        for of, name, within, correlation in found
        if (of, within) == (effect, scope) and name in predictors and np.isfinite(correlation.value)
    }
    if not known:
        return {}
    best = max(known, key=lambda name: abs(known[name]))
    return {
        (effect, name, scope): correlation_difference(
            predictors[best],
            predictors[name],
            effect_LE,
            signs=(float(np.sign(known[best])), float(np.sign(known[name]) or 1)),
            seed=seed,
        )
        for name in known
        if name != best
    }


def _by_domain(values_LDE: Floats) -> Floats:
    """A row per domain, the experts of all layers in it."""
    return values_LDE.swapaxes(0, 1).reshape(values_LDE.shape[1], -1)


def _variables(
    found: Sequence[tuple[str, str, str, ExpertCorrelation]], leads: Mapping[Relation, CorrelationDifference]
) -> dict[str, Variable]:
    none = CorrelationDifference(np.nan, np.nan, np.nan, np.nan)
    leads_R = [leads.get((effect, predictor, scope), none) for effect, predictor, scope, _ in found]
    values: Mapping[str, list] = {
        "relation_effect": [effect for effect, _, _, _ in found],
        "relation_predictor": [predictor for _, predictor, _, _ in found],
        "relation_scope": [scope for _, _, scope, _ in found],
        "relation_num": [correlation.num_values for *_, correlation in found],
        "rank_correlation": [correlation.value for *_, correlation in found],
        "rank_correlation_ci_low": [correlation.low for *_, correlation in found],
        "rank_correlation_ci_high": [correlation.high for *_, correlation in found],
        "rank_correlation_null_low": [correlation.null_low for *_, correlation in found],
        "rank_correlation_null_high": [correlation.null_high for *_, correlation in found],
        "rank_correlation_p_value": [correlation.p_value for *_, correlation in found],
        "best_predictor_lead": [lead.value for lead in leads_R],
        "best_predictor_lead_ci_low": [lead.low for lead in leads_R],
        "best_predictor_lead_ci_high": [lead.high for lead in leads_R],
        "best_predictor_lead_p_value": [lead.p_value for lead in leads_R],
    }
    return {name: variable("relation", np.array(values[name]), *DEFINITIONS[name]) for name in DEFINITIONS}
