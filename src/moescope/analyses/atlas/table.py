"""The numbers of the atlas: effects on the sampled documents, agreement of the two methods, and the same as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from moescope.analyses.atlas.named import NATS, measured_variables
from moescope.analyses.atlas.options import Method
from moescope.analyses.atlas.passes import Measured
from moescope.analyses.atlas.relations import relations
from moescope.interventions.controls import NUM_CONTROLS, matched_experts
from moescope.interventions.document_effects import EFFECTIVE, INTERVAL, P_VALUE, Documents, domain_means
from moescope.measures.constants import ALL, MIN_DOCUMENTS
from moescope.measures.resampling import halves
from moescope.measures.usage import ratio
from moescope.statistics.variables import Variable, variable

if TYPE_CHECKING:
    from moescope.context import Context

Floats = NDArray[np.float64]

CELLS = ("layer", "domain", "expert")


def table_of(measured: Measured, context: Context, method: Method) -> xr.Dataset:
    """The labeled numbers; see `Atlas.table`."""
    layers = list(context.layers)
    num_experts = measured.first_order.effects_GLE.shape[2]
    cells = [layers.index(ablation.layer) * num_experts + ablation.experts[0] for ablation in measured.ablations]
    variables = _effects(measured, context, method, cells) | _ablated(measured, context, cells)
    half_G = halves(measured.documents.hashes_G, seed=context.seed).astype(bool)
    variables |= measured_variables(
        measured.named, measured.documents, half_G, len(context.domains), num_experts, seed=context.seed
    )
    table = xr.Dataset(
        variables, coords={"layer": layers, "domain": [ALL, *context.domains], "expert": np.arange(num_experts)}
    )
    table.attrs |= {"method": method, "min_documents": MIN_DOCUMENTS, "interval": INTERVAL}
    counted_D = _by_domain(measured.documents.counted_G, measured.documents, len(context.domains))
    weights_LE = measured.first_order.weights_GLE.sum(0)
    return table.assign(relations(table, counted_D, weights_LE, cells, seed=context.seed))


def _effects(measured: Measured, context: Context, method: Method, cells: Sequence[int]) -> dict[str, Variable]:
    """By `layer, domain, expert`: Δ loss on all documents and on each half, and what else is known of each cell."""
    documents, first = measured.documents, measured.first_order
    num_domains = len(context.domains)
    num_layers, num_experts = first.effects_GLE.shape[1:]
    half_G = halves(documents.hashes_G, seed=context.seed)
    effects_GX = first.estimates_GLE.reshape(len(half_G), -1)
    if method == "exact":
        effects_GX = np.full_like(effects_GX, np.nan)
        effects_GX[:, list(cells)] = measured.exact_GP

    def by_cell(values_DX: Floats) -> Floats:
        return values_DX.reshape(num_domains + 1, num_layers, num_experts).swapaxes(0, 1)

    def by_domain(values_G: NDArray) -> NDArray:
        return _by_domain(values_G, documents, num_domains)

    effect = (
        "mean over the domain's predicted tokens of the loss without the expert minus the loss with it"
        if method == "exact"
        else "estimate by gradient of the change of loss if the expert is ablated: the sum of -w dL/dw + "
        "(w dL/dw)^2 / 2 over the domain's tokens, divided by its predicted tokens"
    )
    variables: dict[str, Variable] = {}
    for prefix, half, added in (
        ("", None, ""),
        ("selection_half_", 0, "; half 0 of the documents"),
        ("evaluation_half_", 1, "; half 1 of the documents"),
    ):
        within_G = None if half is None else half_G == half
        if half == 0:
            means = measured.named.selection
        else:
            means = domain_means(effects_GX, documents, num_domains, within_G=within_G, seed=context.seed)
        name = f"{prefix}delta_loss"
        variables[name] = variable(CELLS, by_cell(means.mean_DP), NATS, effect + added)
        for end, values_DP in (("low", means.low_DP), ("high", means.high_DP)):
            definition = f"{end} end of the {INTERVAL}, of: {effect}{added}"
            variables[f"{name}_ci_{end}"] = variable(CELLS, by_cell(values_DP), NATS, definition)
        variables[f"{name}_p_value"] = variable(CELLS, by_cell(means.p_value_DP), "probability", P_VALUE + added)
        variables[f"{prefix}effective_documents"] = variable(
            CELLS, by_cell(means.effective_DP), "documents", EFFECTIVE + added
        )
        counted = np.ones(len(half_G), np.int64) if within_G is None else within_G.astype(np.int64)
        for key, values_G, definition in (
            ("num_tokens", documents.predicted_G, "predicted tokens: those with a known next token"),
            ("num_documents", np.ones_like(documents.predicted_G), "documents"),
        ):
            variables[prefix + key] = variable("domain", by_domain(values_G * counted), key[4:], definition + added)
    selected_LDE = by_domain(first.selected_GLE).swapaxes(0, 1)
    tokens_D = variables["num_tokens"][1]
    slopes_GX = first.effects_GLE.reshape(len(half_G), -1)
    slopes = domain_means(slopes_GX, documents, num_domains, seed=context.seed, num_bootstrap=0)
    return variables | {
        "first_order": variable(
            CELLS, by_cell(slopes.mean_DP), NATS, "first-order term of the estimate: the sum of -w dL/dw alone"
        ),
        "num_selected": variable(CELLS, selected_LDE, "tokens", "counted tokens of the domain that select the expert"),
        "delta_loss_routed": variable(
            CELLS,
            ratio(variables["delta_loss"][1] * tokens_D[:, None], selected_LDE),
            "nats per routed token",
            f"{effect}, but per token that selects the expert",
        ),
        "loss": variable(
            "domain",
            ratio(by_domain(first.losses_G), tokens_D),
            NATS,
            "mean loss over the domain's predicted tokens",
        ),
        "saliency": variable(
            ("layer", "expert"),
            measured.saliency_LE,
            "norm of a hidden state",
            "mean w |o| over the tokens that select the expert",
        ),
    }


def _ablated(measured: Measured, context: Context, cells: Sequence[int]) -> dict[str, Variable]:
    """By `ablation`: the exact effects, and the gradient's estimates on the same documents."""
    at_G: NDArray[np.bool_] = np.zeros(len(measured.exact_GP), dtype=bool)
    if cells:
        at_G |= np.isfinite(measured.exact_GP).all(1)
    first_GX = measured.first_order.effects_GLE.reshape(len(at_G), -1)
    estimate_GX = measured.first_order.estimates_GLE.reshape(len(at_G), -1)
    exact_GP = np.where(at_G[:, None], measured.exact_GP, 0.0)
    exact = domain_means(exact_GP, measured.documents, 0, within_G=at_G, seed=context.seed)
    first, estimate = (
        domain_means(values_GX[:, list(cells)], measured.documents, 0, within_G=at_G, num_bootstrap=0)
        for values_GX in (first_GX, estimate_GX)
    )
    num_tokens, num_documents = int(measured.documents.predicted_G[at_G].sum()), int(at_G.sum())
    layers, experts = ([a.layer for a in measured.ablations], [a.experts[0] for a in measured.ablations])
    effect = "loss without the expert minus loss with it"
    return {
        "ablated_layer": variable("ablation", np.array(layers, int), "index", "layer"),
        "ablated_expert": variable("ablation", np.array(experts, int), "index", "expert that was ablated"),
        "ablated_delta_loss": variable("ablation", exact.mean_DP[0], NATS, effect),
        "ablated_delta_loss_ci_low": variable("ablation", exact.low_DP[0], NATS, f"low end, {INTERVAL}"),
        "ablated_delta_loss_ci_high": variable("ablation", exact.high_DP[0], NATS, f"high end, {INTERVAL}"),
        "ablated_p_value": variable("ablation", exact.p_value_DP[0], "probability", P_VALUE),
        "ablated_effective_documents": variable("ablation", exact.effective_DP[0], "documents", EFFECTIVE),
        "ablated_gradient": variable(
            "ablation", estimate.mean_DP[0], NATS, "estimate by gradient on the same documents"
        ),
        "ablated_first_order": variable("ablation", first.mean_DP[0], NATS, "its first-order term"),
        "ablated_num_tokens": variable((), np.array(num_tokens), "tokens", "predicted tokens they were measured on"),
        "ablated_num_documents": variable((), np.array(num_documents), "documents", "documents of these tokens"),
    }


def _by_domain(values_G: NDArray, documents: Documents, num_domains: int) -> NDArray:
    """Sums over all documents, then over each domain's."""
    return np.stack([values_G.sum(0), *(values_G[documents.domain_ids_G == d].sum(0) for d in range(num_domains))])


def atlas_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer, domain (first `all`) and expert; experts that were not measured are left out."""
    shape = table["delta_loss"].shape

    def column(name: str) -> np.ndarray:
        values = table[name].values
        return np.broadcast_to(values[None, :, None] if values.ndim == 1 else values, shape).ravel()

    layers, domains, experts = (table[name].values for name in ("layer", "domain", "expert"))
    frame = pd.DataFrame(
        {
            "layer": np.broadcast_to(layers[:, None, None], shape).ravel(),
            "domain": np.broadcast_to(domains.astype(object)[None, :, None], shape).ravel(),
            "expert": np.broadcast_to(experts, shape).ravel(),
            "num_tokens": column("num_tokens"),
            "num_documents": column("num_documents"),
            "num_selected": column("num_selected"),
            "method": str(table.attrs["method"]),
            "delta_loss": column("delta_loss"),
            "ci_low": column("delta_loss_ci_low"),
            "ci_high": column("delta_loss_ci_high"),
            "delta_loss_routed": column("delta_loss_routed"),
            "first_order": column("first_order"),
            "loss": column("loss"),
            "p_value": column("delta_loss_p_value"),
            "effective_documents": column("effective_documents"),
        }
    )
    measured_LE = np.isfinite(table["delta_loss"].values).any(1)
    return frame[np.broadcast_to(measured_LE[:, None], shape).ravel()].reset_index(drop=True)


def measured_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per domain (first `all`) and named expert that was ablated: Δ loss measured, and estimated."""
    names = {
        "rank": "measured_rank",
        "layer": "measured_layer_position",
        "expert": "measured_expert",
        "num_tokens": "measured_num_tokens",
        "num_documents": "measured_num_documents",
        "delta_loss_measured": "measured_delta_loss",
        "delta_loss_measured_ci_low": "measured_delta_loss_ci_low",
        "delta_loss_measured_ci_high": "measured_delta_loss_ci_high",
        "p_value": "measured_p_value",
        "effective_documents": "measured_effective_documents",
        "delta_loss_estimate": "measured_estimate",
        "delta_loss_estimate_ci_low": "measured_estimate_ci_low",
        "delta_loss_estimate_ci_high": "measured_estimate_ci_high",
    }
    frame = pd.DataFrame({column: table[name].values for column, name in names.items()})
    domains = table["domain"].values.astype(object)
    frame.insert(0, "domain", domains[table["measured_domain"].values])
    frame["layer"] = table["layer"].values[frame["layer"].to_numpy()]
    return frame


def top_frame(table: xr.Dataset, *, seed: int) -> pd.DataFrame:
    """For each domain the experts with the largest effect: chosen on half 0 of the documents, ablated on half 1.

    Chosen are the experts with the highest lower end of the interval on half 0 (the highest effect, where there are too
    few documents for intervals), by the estimate where the method is the gradient. The control of each is the mean
    estimate, on the same documents, of up to 20 random experts of its layer that the domain's tokens select about as
    often.

    Columns: `rank` from 0; `selection_half_` is of half 0, all others of half 1 but `loss`, which is of both. `method`
    says how selection and controls were obtained.

    Args:
        table: The atlas' table.
        seed: Seed of the controls.
    """
    measured = measured_frame(table)
    domains = table["measured_domain"].values
    rows = []
    for index in np.flatnonzero(measured["rank"].to_numpy() >= 0).tolist():
        of_domain = table.isel(domain=int(domains[index]))
        row = {str(name): measured[name].iloc[index] for name in measured.columns}
        at = of_domain.sel(layer=row["layer"])
        expert = int(row["expert"])
        # Of an atlas by exact ablation, these are measured too.
        effects_E = at["evaluation_half_delta_loss"].values
        unknown = np.flatnonzero(~np.isfinite(effects_E)).tolist()
        controls = matched_experts(at["num_selected"].values, expert, num=NUM_CONTROLS, exclude=unknown, seed=seed)
        known = effects_E[controls]
        rows.append(
            row
            | {
                "delta_loss_control": float(known.mean()) if known.size else np.nan,
                "delta_loss_control_q05": float(np.quantile(known, 0.05)) if known.size else np.nan,
                "delta_loss_control_q95": float(np.quantile(known, 0.95)) if known.size else np.nan,
                "num_controls": len(controls),
                "method": str(table.attrs["method"]),
                "selection_half_delta_loss": float(at["selection_half_delta_loss"].values[expert]),
                "selection_half_ci_low": float(at["selection_half_delta_loss_ci_low"].values[expert]),
                "loss": float(of_domain["loss"]),
            }
        )
    return pd.DataFrame(rows)


def ablated_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per exact ablation, with the gradient's estimate on the same documents."""
    names = {
        "layer": "ablated_layer",
        "expert": "ablated_expert",
        "delta_loss": "ablated_delta_loss",
        "ci_low": "ablated_delta_loss_ci_low",
        "ci_high": "ablated_delta_loss_ci_high",
        "delta_loss_gradient": "ablated_gradient",
        "first_order": "ablated_first_order",
        "p_value": "ablated_p_value",
        "effective_documents": "ablated_effective_documents",
    }
    frame = pd.DataFrame({column: table[name].values for column, name in names.items()})
    frame.insert(2, "num_tokens", int(table["ablated_num_tokens"]))
    frame.insert(3, "num_documents", int(table["ablated_num_documents"]))
    return frame


def relations_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per effect, predictor and scope: Spearman's rank correlation over experts, its interval and its null.

    `lead`: by how much the best routing statistic's exceeds it.
    """
    names = {
        "effect": "relation_effect",
        "predictor": "relation_predictor",
        "scope": "relation_scope",
        "num": "relation_num",
        "rank_correlation": "rank_correlation",
        "ci_low": "rank_correlation_ci_low",
        "ci_high": "rank_correlation_ci_high",
        "null_low": "rank_correlation_null_low",
        "null_high": "rank_correlation_null_high",
        "p_value": "rank_correlation_p_value",
        "lead": "best_predictor_lead",
        "lead_ci_low": "best_predictor_lead_ci_low",
        "lead_ci_high": "best_predictor_lead_ci_high",
        "lead_p_value": "best_predictor_lead_p_value",
    }
    return pd.DataFrame({column: table[name].values for column, name in names.items()})
