"""Routing distributions: histograms of logits, probabilities and weights over tokens and experts, and means by rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.distributions.table import histogram_frame, rank_frame, summary_frame
from moescope.context import Context
from moescope.statistics.distributions import QUANTITIES, RoutingDistributions

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr

    from moescope.statistics.base import Statistic


class Distributions(Analysis):
    """Distributions of router logits, probabilities and applied weights."""

    name: ClassVar[str] = "distributions"

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Histograms and sums by rank, by layer."""
        model = context.model
        return {
            "distributions": RoutingDistributions(
                layers=list(context.layers),
                num_experts=model.num_experts,
                num_experts_per_token=model.num_experts_per_token,
                device=model.device,
            )
        }

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """What `RoutingDistributions.compute` gives; attrs also say how the family turns logits into probabilities."""
        return statistics["distributions"].compute().assign_attrs(scoring=context.model.scoring)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`routing_distributions` (moments, quantiles), `routing_histograms` (long), `weights_by_rank`."""
        return {
            "routing_distributions": summary_frame(table),
            "routing_histograms": histogram_frame(table),
            "weights_by_rank": rank_frame(table),
        }

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`routing_histograms`: of each quantity the counts (layer, cell) and the edges, as fine as they were counted.

        Cell 0 counts values below the lowest edge, the last cell those above the highest.
        """
        arrays = {"layers": table["layer"].values}
        for name in QUANTITIES:
            arrays[f"{name}_edges"] = table[f"{name}_bin"].values[1:]
            arrays[f"{name}_counts"] = table[f"{name}_counts"].values
        return {"routing_histograms": arrays}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """All four quantities in one figure, each by layer, and means by rank."""
        from moescope.analyses.distributions import figures as draw

        yield "routing_distributions", partial(draw.overview, table, context)
        if table.sizes["layer"] > 1:
            for name in QUANTITIES:
                yield f"routing_{name}_by_layer", partial(draw.by_layer, table, name, context)
        yield "routing_by_rank", partial(draw.by_rank, table, context)
