"""Usage and specialization as rows: frames made of the table that `ExpertUsage.compute` gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.usage.set_information import DEFINITIONS
from moescope.measures.constants import ALL

_LOAD = [
    "normalized_usage_entropy",
    "coefficient_of_variation",
    "gini",
    "max_violation",
    "num_unused_experts",
    "auxiliary_loss",
]
_SPECIALIST_COLUMNS = [
    "rank",
    "layer",
    "domain",
    "expert",
    "num_tokens",
    "num_documents",
    "domain_specialization",
    "ci_low",
    "ci_high",
    "lift",
    "lift_ci_low",
    "lift_ci_high",
    "uniform_baseline",
    "selection_half_domain_specialization",
    "selection_half_lift",
    "selection_half_lift_ci_low",
    "lift_p_value",
    "lift_degrees_of_freedom",
    "effective_documents",
    "selection_half_lift_p_value",
]


def usage_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer, domain (first `all`) and expert; in a domain's rows the frequency is its specialization."""
    num_layers, num_domains, num_experts = table["num_selected"].shape
    shape = (num_layers, 1 + num_domains, num_experts)

    def cells(pooled: str, by_domain: str) -> np.ndarray:
        pooled_LE, by_domain_LDE = table[pooled].values, table[by_domain].values
        return np.concatenate([pooled_LE[:, None], by_domain_LDE], axis=1).ravel()

    def rows(pooled: str, by_domain: str) -> np.ndarray:
        pooled_L, by_domain_LD = table[pooled].values, table[by_domain].values
        both_LD = np.concatenate([pooled_L[:, None], by_domain_LD], axis=1)
        return np.broadcast_to(both_LD[..., None], shape).ravel()

    def lifts(name: str) -> np.ndarray:
        lift_LDE = table[name].values
        return np.concatenate([np.full((num_layers, 1, num_experts), np.nan), lift_LDE], axis=1).ravel()

    def rows_of_domains(name: str) -> np.ndarray:
        by_domain_LD = np.concatenate([np.full((num_layers, 1), np.nan), table[name].values], axis=1)
        return np.broadcast_to(by_domain_LD[..., None], shape).ravel()

    domains = np.array([ALL, *table["domain"].values.tolist()], dtype=object)
    return pd.DataFrame(
        {
            "layer": np.broadcast_to(table["layer"].values[:, None, None], shape).ravel(),
            "domain": np.broadcast_to(domains[None, :, None], shape).ravel(),
            "expert": np.broadcast_to(table["expert"].values[None, None, :], shape).ravel(),
            "num_tokens": rows("num_tokens_all", "num_tokens"),
            "num_documents": rows("num_documents_all", "num_documents"),
            "num_selected": cells("num_selected_all", "num_selected"),
            "selection_frequency": cells("selection_frequency", "domain_specialization"),
            "ci_low": cells("selection_frequency_ci_low", "domain_specialization_ci_low"),
            "ci_high": cells("selection_frequency_ci_high", "domain_specialization_ci_high"),
            "lift": lifts("lift"),
            "lift_ci_low": lifts("lift_ci_low"),
            "lift_ci_high": lifts("lift_ci_high"),
            "effective_documents": rows_of_domains("effective_documents"),
            "lift_logit_se": lifts("lift_logit_se"),
            "lift_degrees_of_freedom": lifts("lift_degrees_of_freedom"),
            "lift_p_value": lifts("lift_p_value"),
        }
    )


def load_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer and domain (first `all`) with every measure of load."""
    rows = []
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        for domain in [ALL, *table["domain"].values.tolist()]:
            cell, suffix = (at, "_all") if domain == ALL else (at.sel(domain=domain), "")
            names = ["num_tokens", "num_documents", *_LOAD]
            rows.append(
                {"layer": layer, "domain": domain} | {name: cell[f"{name}{suffix}"].values.item() for name in names}
            )
    return pd.DataFrame(rows)


def divergence_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer and expert: Jensen-Shannon divergence, bits, with its null, its excess over it and p-values."""
    frame = _with_null(table, "divergence", "_p_value", "_p_value_tail", "_p_value_any")
    frame.insert(2, "num_selected", table["num_selected_all"].values.ravel())
    return frame


def information_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer: mutual information, bits and share of H(domain), each with its null and its excess over it.

    And the information of the set of selected experts, where the table has it.
    """
    bits = _with_null(table, "mutual_information", "_p_value", "_p_value_tail", "_p_value_any_layer")
    bits.insert(1, "num_tokens", table["num_tokens_all"].values)
    bits.insert(2, "domain_entropy", table["domain_entropy"].values)
    frame = bits.merge(_with_null(table, "mutual_information_share"), on="layer")
    names = [name for name in DEFINITIONS if name in table]
    return frame.merge(table[names].to_dataframe().reset_index(), on="layer") if names else frame


def _with_null(table: xr.Dataset, name: str, *more: str) -> pd.DataFrame:
    endings = ["", "_null_mean", "_null_low", "_null_high", "_excess", *more]
    return table[[f"{name}{ending}" for ending in endings]].to_dataframe().reset_index()


def specialists_frame(table: xr.Dataset) -> pd.DataFrame:
    """For each layer and domain its most specialized expert: selected on half 0 of the documents, measured on half 1.

    Selected is the expert with the highest lower end of the lift's interval on half 0, among those that the
    domain's tokens select at least as often as uniform routing would (K / E). The lift itself would favor experts whose
    lift a single document raises. Ties go to the higher lift, then to the lower id. Rows are sorted by that lower end,
    highest first; `rank` counts them. Domains without tokens on half 0 have no row.

    Columns `selection_half_*` are of half 0; all others but the names are of half 1, with 95 % intervals.
    """
    baseline = float(table.attrs["uniform_baseline"])
    evaluated = {
        "num_tokens": "num_tokens",
        "num_documents": "num_documents",
        "domain_specialization": "domain_specialization",
        "ci_low": "domain_specialization_ci_low",
        "ci_high": "domain_specialization_ci_high",
        "lift": "lift",
        "lift_ci_low": "lift_ci_low",
        "lift_ci_high": "lift_ci_high",
        "lift_p_value": "lift_p_value",
        "lift_degrees_of_freedom": "lift_degrees_of_freedom",
        "effective_documents": "effective_documents",
    }
    rows = []
    for layer in table["layer"].values.tolist():
        for domain in table["domain"].values.tolist():
            at = table.sel(layer=layer, domain=domain)
            candidates = np.flatnonzero(at["selection_half_domain_specialization"].values >= baseline)
            if not candidates.size:
                continue
            score = np.nan_to_num(at["selection_half_lift_ci_low"].values[candidates], nan=0.0)
            order = np.lexsort((candidates, -at["selection_half_lift"].values[candidates], -score))
            cell = at.isel(expert=int(candidates[order[0]]))
            rows.append(
                {"layer": layer, "domain": domain, "expert": cell["expert"].item()}
                | {column: cell[f"evaluation_half_{name}"].item() for column, name in evaluated.items()}
                | {"uniform_baseline": baseline}
                | {name: cell[name].item() for name in _SPECIALIST_COLUMNS if name.startswith("selection_half_")}
            )
    frame = pd.DataFrame(rows, columns=_SPECIALIST_COLUMNS[1:])
    frame = frame.sort_values("selection_half_lift_ci_low", ascending=False, kind="stable").reset_index(drop=True)
    frame.insert(0, "rank", np.arange(len(frame)))
    return frame
