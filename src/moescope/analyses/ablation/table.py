"""The numbers of an ablation by domain, with those of its controls, and the same as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from moescope.interventions.ablation import Ablation
from moescope.interventions.document_effects import EFFECTIVE, INTERVAL, P_VALUE, Documents, domain_means
from moescope.measures.constants import ALL
from moescope.measures.usage import ratio
from moescope.statistics.variables import Variable, variable

BITS = 1 / np.log(2)
NATS = "nats per token"


@dataclass(frozen=True)
class Measured:
    """What the passes measured, by document.

    Attributes:
        documents: The documents.
        bytes_G: UTF-8 bytes of the text of each document's predicted tokens.
        losses_G: Loss summed over them with all experts, nats.
        selected_G: Tokens of each that select an ablated expert.
        effects_GP: Δ loss of the ablation, then of each control, nats summed over the document.
    """

    documents: Documents
    bytes_G: NDArray[np.int64]
    losses_G: NDArray[np.float64]
    selected_G: NDArray[np.int64]
    effects_GP: NDArray[np.float64]


def table_of(
    measured: Measured, controls: Sequence[Ablation], frequencies: Sequence[float], domains: Sequence[str], seed: int
) -> xr.Dataset:
    """The labeled numbers by `domain` (first `all`) and `control`.

    Args:
        measured: What the passes measured.
        controls: The control ablations.
        frequencies: Share of a sample's tokens that select any expert of the ablation, then of each control.
        domains: Names of the domains.
        seed: Seed of the bootstrap replicates.
    """
    documents, effects_GP = measured.documents, measured.effects_GP
    means = domain_means(effects_GP, documents, len(domains), seed=seed)
    names = [ALL, *domains]
    num_controls = len(controls)

    def sums(values_G: NDArray) -> NDArray:
        by_domain = [values_G[documents.domain_ids_G == domain_id].sum() for domain_id in range(len(domains))]
        return np.array([values_G.sum(), *by_domain])

    tokens_D, bytes_D = sums(documents.predicted_G), sums(measured.bytes_G)
    losses_D, effects_D = sums(measured.losses_G), sums(effects_GP[:, 0])
    delta_D, control_DC = means.mean_DP[:, 0], means.mean_DP[:, 1:]
    known_D = (tokens_D > 0) & bool(num_controls)
    control_D, low_D, high_D = (np.full(len(names), np.nan) for _ in range(3))
    if known_D.any():
        control_D[known_D] = control_DC[known_D].mean(1)
        low_D[known_D], high_D[known_D] = np.quantile(control_DC[known_D], [0.05, 0.95], axis=1)
    excess_G1 = effects_GP[:, :1] - (effects_GP[:, 1:].mean(1, keepdims=True) if num_controls else np.nan)
    excess = domain_means(excess_G1, documents, len(domains), seed=seed)

    dims = ("domain",)
    delta = "loss without the experts minus loss with them, the same tokens"
    variables: dict[str, Variable] = {
        "num_tokens": variable(dims, tokens_D, "tokens", "predicted tokens: those with a known next token"),
        "num_documents": variable(dims, sums(np.ones_like(documents.predicted_G)), "documents", "documents"),
        "num_bytes": variable(dims, bytes_D, "bytes", "UTF-8 bytes of the text of the predicted tokens"),
        "num_selected": variable(
            dims, sums(measured.selected_G), "tokens", "counted tokens that select an ablated expert"
        ),
        "loss": variable(dims, ratio(losses_D, tokens_D), NATS, "mean loss with all experts"),
        "loss_ablated": variable(dims, ratio(losses_D + effects_D, tokens_D), NATS, "mean loss without the experts"),
        "delta_loss": variable(dims, delta_D, NATS, delta),
        "delta_loss_ci_low": variable(dims, means.low_DP[:, 0], NATS, f"lower end, {INTERVAL}, of: {delta}"),
        "delta_loss_ci_high": variable(dims, means.high_DP[:, 0], NATS, f"upper end, {INTERVAL}, of: {delta}"),
        "p_value": variable(dims, means.p_value_DP[:, 0], "probability", P_VALUE),
        "effective_documents": variable(dims, means.effective_DP[:, 0], "documents", EFFECTIVE),
        "bits_per_byte": variable(dims, ratio(losses_D * BITS, bytes_D), "bits per byte", "loss with all experts"),
        "bits_per_byte_ablated": variable(
            dims, ratio((losses_D + effects_D) * BITS, bytes_D), "bits per byte", "loss without the experts"
        ),
        "delta_loss_control": variable(dims, control_D, NATS, "mean Δ loss of the controls"),
        "delta_loss_control_q05": variable(dims, low_D, NATS, "5 % quantile of the controls' Δ loss"),
        "delta_loss_control_q95": variable(dims, high_D, NATS, "95 % quantile of the controls' Δ loss"),
        "num_controls_below": variable(
            dims, (control_DC < delta_D[:, None]).sum(1), "controls", "controls with a smaller Δ loss"
        ),
        "excess": variable(dims, excess.mean_DP[:, 0], NATS, "Δ loss minus the mean Δ loss of the controls"),
        "excess_ci_low": variable(dims, excess.low_DP[:, 0], NATS, f"lower end, {INTERVAL}, of the excess"),
        "excess_ci_high": variable(dims, excess.high_DP[:, 0], NATS, f"upper end, {INTERVAL}, of the excess"),
        "excess_p_value": variable(dims, excess.p_value_DP[:, 0], "probability", f"{P_VALUE}: of the excess"),
        "selection_frequency": variable((), frequencies[0], "share", "tokens that select an ablated expert, sampled"),
    }
    both = ("control", "domain")
    variables |= {
        "control_experts": variable(
            "control", [" ".join(map(str, c.experts)) for c in controls], "ids", "experts of the control"
        ),
        "control_selection_frequency": variable(
            "control", list(frequencies[1:]), "share", "tokens that select any of its experts, sampled"
        ),
        "each_control_delta_loss": variable(both, control_DC.T, NATS, "Δ loss of each control"),
        "each_control_delta_loss_ci_low": variable(both, means.low_DP[:, 1:].T, NATS, f"lower end, {INTERVAL}"),
        "each_control_delta_loss_ci_high": variable(both, means.high_DP[:, 1:].T, NATS, f"upper end, {INTERVAL}"),
    }
    return xr.Dataset(variables, coords={"domain": names, "control": np.arange(num_controls)})


def domain_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per domain, first `all`."""
    by_domain = [str(name) for name in table.data_vars if table[name].dims == ("domain",)]
    frame = table[by_domain].to_dataframe().reset_index()
    frame.insert(frame.columns.get_loc("num_controls_below"), "num_controls", table.sizes["control"])
    return frame.rename(columns={"delta_loss_ci_low": "ci_low", "delta_loss_ci_high": "ci_high"})


def control_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per control and domain."""
    columns = {
        "control_experts": "experts",
        "control_selection_frequency": "selection_frequency",
        "each_control_delta_loss": "delta_loss",
        "each_control_delta_loss_ci_low": "ci_low",
        "each_control_delta_loss_ci_high": "ci_high",
    }
    frame = table[list(columns)].to_dataframe(dim_order=["control", "domain"]).reset_index().rename(columns=columns)
    return frame[["control", "experts", "selection_frequency", "domain", "delta_loss", "ci_low", "ci_high"]]
