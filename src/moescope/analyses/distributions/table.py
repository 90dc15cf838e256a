"""Routing distributions as rows: frames made of the table that `RoutingDistributions.compute` gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from moescope.measures.histogram import merge_bins
from moescope.statistics.distributions import QUANTITIES


def summary_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer and quantity: mean, standard deviation, quantiles of its values."""
    parts = []
    for name in QUANTITIES:
        columns = {
            "layer": table["layer"].values,
            "quantity": name,
            "num_tokens": table["num_tokens"].values,
            "num_values": table[f"{name}_counts"].sum(f"{name}_bin").values,
            "mean": table[f"{name}_mean"].values,
            "std": table[f"{name}_std"].values,
        }
        for level in table["quantile"].values:
            columns[f"q{round(100 * level):02d}"] = table[f"{name}_quantile"].sel(quantile=level).values
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True).sort_values("layer", kind="stable", ignore_index=True)


def histogram_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer, quantity, scale and bin that is not empty: `low <= x < high`, and the number of values.

    Scale is `linear` (bins of 1/4 for logits, 1/128 for probabilities, the last including 1) or `log` (8 bins to each
    factor of 2). Ends of the axis are -inf and inf. The finer counts are in the arrays.
    """
    scales = [("logit", "linear", "logit", 4)]
    scales += [(name, "log", name, 8) for name in ("probability", "renormalized", "weight")]
    scales += [(name, "linear", f"{name}_linear", 1) for name in ("probability", "renormalized")]
    parts = []
    for name, scale, variable, step in scales:
        bins = "linear_bin" if variable.endswith("_linear") else f"{name}_bin"
        edges = table[bins].values[1:]
        counts = merge_bins(table[f"{variable}_counts"].values, edges, edges[::step])
        bounds = np.concatenate([[-np.inf], edges[::step], [np.inf]])
        layer, cell = np.nonzero(counts)
        parts.append(
            pd.DataFrame(
                {
                    "layer": table["layer"].values[layer],
                    "quantity": name,
                    "scale": scale,
                    "low": bounds[cell],
                    "high": bounds[cell + 1],
                    "num_values": counts[layer, cell],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def rank_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer and rank: the mean of each quantity at that rank."""
    num_layers, num_ranks = table.sizes["layer"], table.sizes["rank"]
    columns = {
        "layer": np.repeat(table["layer"].values, num_ranks),
        "rank": np.tile(table["rank"].values, num_layers),
        "num_tokens": np.repeat(table["num_tokens"].values, num_ranks),
    }
    return pd.DataFrame(columns | {f"{name}_mean": table[f"{name}_by_rank"].values.ravel() for name in QUANTITIES})
