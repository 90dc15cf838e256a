"""Overlap of pairs of experts as rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

MEASURES = ("jaccard", "overlap_coefficient", "weighted_jaccard")
TOP_PAIRS = 20


def summary_frame(table: xr.Dataset) -> pd.DataFrame:
    """A row per layer and measure: mean and median over pairs, also under independent routing."""
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    rows = []
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        for measure in MEASURES:
            values_P = at[measure].values[i_P, j_P]
            known_P = np.isfinite(values_P)
            values_P = values_P[known_P]
            independent_P = at[f"{measure}_chance"].values[i_P, j_P][known_P]
            rows.append(
                {
                    "layer": layer,
                    "measure": measure,
                    "num_tokens": int(at["num_tokens"]),
                    "num_pairs": len(values_P),
                    "mean": values_P.mean() if len(values_P) else np.nan,
                    "mean_chance": independent_P.mean() if len(values_P) else np.nan,
                    "median": np.median(values_P) if len(values_P) else np.nan,
                    "median_chance": np.median(independent_P) if len(values_P) else np.nan,
                }
            )
    return pd.DataFrame(rows)


def pairs_frame(table: xr.Dataset) -> pd.DataFrame:
    """The pairs furthest above independent routing, of each layer and measure."""
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    rows: list[dict[str, Any]] = []
    for layer in table["layer"].values.tolist():
        at = table.sel(layer=layer)
        selected_E = at["num_selected"].values
        for measure in MEASURES:
            values_P = at[measure].values[i_P, j_P]
            independent_P = at[f"{measure}_chance"].values[i_P, j_P]
            known_P = np.isfinite(values_P)
            excess_P = np.where(known_P, values_P - independent_P, -np.inf)
            top = np.argsort(-excess_P, kind="stable")[:TOP_PAIRS]
            for place, pair in enumerate(top[known_P[top]].tolist()):
                i, j = int(i_P[pair]), int(j_P[pair])
                rows.append(
                    {
                        "layer": layer,
                        "measure": measure,
                        "rank": place,
                        "expert": i,
                        "other_expert": j,
                        "num_selected": int(selected_E[i]),
                        "other_num_selected": int(selected_E[j]),
                        "overlap": values_P[pair],
                        "overlap_chance": independent_P[pair],
                    }
                )
    return pd.DataFrame(rows)
