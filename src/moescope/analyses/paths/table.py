"""Expert paths as rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.paths.dependence import DEFINITIONS
from moescope.measures.constants import MIN_EXPECTED

TOP_PATHS = 50


def summary_frame(table: xr.Dataset) -> pd.DataFrame:
    """A row per pair of consecutive layers: normalized mutual information, dependence on held-out documents."""
    names = ["num_tokens", "nmi", "nmi_chance", "top1_nmi", "top1_nmi_chance", *DEFINITIONS]
    return table[names].to_dataframe().reset_index()[["layer", "next_layer", *names]]


def top_frame(table: xr.Dataset) -> pd.DataFrame:
    """The paths of highest lift of each pair of layers, among those expected at least `MIN_EXPECTED` times."""
    keys = ["layer", "next_layer", "rank", "expert", "next_expert"]
    columns = ["num_paths", "transition", "lift", "top1_num_paths", "top1_transition", "top1_lift"]
    rows = []
    for position, layer in enumerate(table["layer"].values.tolist()):
        at = table.isel(layer=position)
        values_EE = {column: at[column].values for column in columns}
        paths_EE, lift_EE = values_EE["num_paths"], values_EE["lift"]
        with np.errstate(invalid="ignore", divide="ignore"):
            ranked_EE = paths_EE / lift_EE >= MIN_EXPECTED
        # A path that no token takes has no ratio; it is no candidate for the highest lift either.
        order = np.argsort(-np.where(ranked_EE, lift_EE, -np.inf), axis=None, kind="stable")[:TOP_PATHS]
        for place, cell in enumerate(order[ranked_EE.ravel()[order]]):
            a, b = (int(index) for index in np.unravel_index(cell, lift_EE.shape))
            ids = {"layer": layer, "next_layer": int(at["next_layer"]), "rank": place, "expert": a, "next_expert": b}
            rows.append(ids | {column: values[a, b] for column, values in values_EE.items()})
    return pd.DataFrame(rows, columns=[*keys, *columns])
