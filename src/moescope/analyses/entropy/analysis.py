"""Router decisiveness: entropy of the router's probabilities, margins, ties, by layer and by layer and domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.statistics.entropy import MEASURES, RouterEntropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic

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


class Entropy(Analysis):
    """How decided the router is."""

    name = "entropy"
    summary = "Router decisiveness: entropy, margins and ties, by layer and domain."

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Sums and histograms of the measures, by layer and domain."""
        model = context.model
        return {
            "entropy": RouterEntropy(
                layers=list(context.layers),
                num_experts=model.num_experts,
                num_experts_per_token=model.num_experts_per_token,
                domains=list(context.domains),
                selects_by=model.router.selects_by,
                device=model.device,
            )
        }

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """What `RouterEntropy.compute` gives; attrs also say how the family turns logits into probabilities."""
        table = statistics["entropy"].compute()
        table.attrs["scoring"] = context.model.router.scoring
        return table

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`router_entropy`: one row per layer and domain, `all` first; quantiles are `*_q05` ... `*_q95`."""
        return {"router_entropy": router_entropy_frame(table)}

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`router_entropy_histograms`: of each measure the counts (layer, domain, place) and the edges.

        Place 0 counts what lies below the lowest edge, the last place what lies above the highest.
        """
        arrays = {"layers": table["layer"].values, "domains": table["domain"].values.astype(str)}
        for name in MEASURES:
            arrays[f"{name}_edges"] = table[f"{name}_bin"].values[1:]
            arrays[f"{name}_counts"] = table[f"{name}_counts"].values
        return {"router_entropy_histograms": arrays}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """Entropy, shares, margins by layer (histograms if there is but one); entropy by domain; its histograms."""
        from moescope.analyses.entropy import figures as draw

        alone = table.sizes["layer"] == 1
        yield "router_decisiveness", (draw.decisiveness_of_one if alone else draw.decisiveness)(table, context)
        if len(context.domains) > 1:
            yield "router_entropy_domains", (draw.domains_of_one if alone else draw.domains)(table, context)
        if not alone:
            yield "router_entropy_histograms", draw.histograms(table, context)
        yield "router_margins", (draw.margins_of_one if alone else draw.margins)(table, context)


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
    return pd.DataFrame(rows | {name: values.values.ravel() for name, values in columns.items()})
