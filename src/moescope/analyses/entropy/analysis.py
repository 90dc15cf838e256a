"""Router confidence: entropy of the router's probabilities, margins, ties, by layer and by layer and domain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.entropy.table import router_entropy_frame
from moescope.context import Context
from moescope.statistics.entropy import MEASURES, RouterEntropy

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr

    from moescope.statistics.base import Statistic


class Entropy(Analysis):
    """Entropy, margins and top probabilities of the router."""

    name: ClassVar[str] = "entropy"

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Sums and histograms of the measures, by layer and domain."""
        model = context.model
        return {
            "entropy": RouterEntropy(
                layers=list(context.layers),
                num_experts=model.num_experts,
                num_experts_per_token=model.num_experts_per_token,
                domains=list(context.domains),
                selects_by=model.selects_by,
                seed=context.seed,
                device=model.device,
            )
        }

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """What `RouterEntropy.compute` gives; attrs also say how the family turns logits into probabilities."""
        return statistics["entropy"].compute().assign_attrs(scoring=context.model.scoring)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`router_entropy`: one row per layer and domain, `all` first; quantiles are `*_q05` ... `*_q95`."""
        return {"router_entropy": router_entropy_frame(table)}

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`router_entropy_histograms`: of each measure the counts (layer, domain, cell) and the edges.

        Cell 0 counts values below the lowest edge, the last cell those above the highest.
        """
        arrays = {"layers": table["layer"].values, "domains": table["domain"].values.astype(str)}
        for name in MEASURES:
            arrays[f"{name}_edges"] = table[f"{name}_bin"].values[1:]
            arrays[f"{name}_counts"] = table[f"{name}_counts"].values
        return {"router_entropy_histograms": arrays}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """Entropy, shares, margins by layer (histograms for a single layer); entropy by domain; its histograms."""
        from moescope.analyses.entropy import figures as draw

        single = table.sizes["layer"] == 1
        confidence, domains, margins = (
            (draw.confidence_of_one, draw.domains_of_one, draw.margins_of_one)
            if single
            else (draw.confidence, draw.domains, draw.margins)
        )
        yield "router_decisiveness", partial(confidence, table, context)
        if len(context.domains) > 1:
            yield "router_entropy_domains", partial(domains, table, context)
        if not single:
            yield "router_entropy_histograms", partial(draw.histograms, table, context)
        yield "router_margins", partial(margins, table, context)
