"""Router confidence as rows: the frame made of the table that `RouterEntropy.compute` gives."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from moescope.statistics.entropy import MEASURES

_FIRST_COLUMNS = [
    "entropy_mean",
    "entropy_std",
    "normalized_entropy_mean",
    "top1_probability_mean",
    "topk_mass_mean",
    "margin_mean",
    "boundary_margin_mean",
    "boundary_tie_share",
]


def router_entropy_frame(table: xr.Dataset) -> pd.DataFrame:
    """One row per layer and domain (`all`, which pools tokens, first)."""
    columns = {"num_tokens": table["num_tokens"], "num_documents": table["num_documents"]}
    columns |= {name: table[name] for name in _FIRST_COLUMNS}
    for name in MEASURES:
        for level in table["quantile"].values:
            columns[f"{name}_q{round(100 * level):02d}"] = table[f"{name}_quantile"].sel(quantile=level)
    for name in (*MEASURES, "normalized_entropy", "normalized_selected_entropy"):
        for part in ("mean", "std"):
            columns.setdefault(f"{name}_{part}", table[f"{name}_{part}"])
    num_layers, num_domains = table["num_tokens"].shape
    rows = {
        "layer": np.repeat(table["layer"].values, num_domains),
        "domain": np.tile(table["domain"].values.astype(object), num_layers),
    }
    frame = pd.DataFrame(rows | {name: values.values.ravel() for name, values in columns.items()})
    frame["layer_tied"] = np.repeat(table["entropy_tied_layer"].values, num_domains)
    frame["domain_tied"] = np.tile(table["entropy_tied_domain"].values, num_layers)
    return frame
