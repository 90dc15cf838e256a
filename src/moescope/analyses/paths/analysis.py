"""Expert paths: how far the expert at one MoE layer predicts the expert at the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from moescope.analyses.base import Analysis, Drawing, Given, routed_tokens
from moescope.analyses.paths.dependence import DEFINITIONS, dependence
from moescope.analyses.paths.table import summary_frame, top_frame
from moescope.context import Context
from moescope.errors import warn
from moescope.statistics.paths import ExpertPaths
from moescope.statistics.samples.routed import RoutedTokens

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr

    from moescope.statistics.base import Statistic


class Paths(Analysis):
    """Over all K x K pairs of experts of consecutive layers looked at, and between first-ranked experts only."""

    name: ClassVar[str] = "paths"
    columns: ClassVar[tuple[str, ...] | None] = ("expert_ids",)

    def left_out(self, context: Context) -> Iterator[str]:
        """Paths of first-ranked experts, where a trace does not keep the order."""
        if not context.knows("ranks"):
            yield "paths: those of first-ranked experts are left out: the trace has no column ranks"

    def check(self, context: Context) -> None:
        """Warns that a single layer has no next one; other questions of the run are answered."""
        if len(context.layers) < 2:
            warn(
                f"expert paths need two layers or more; only layer {context.layers[0]} is looked at, so there are none",
                stacklevel=2,
            )

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Pairs of experts of consecutive layers, and whole documents to test their dependence on."""
        model = context.model
        return {
            **routed_tokens(context),
            "paths": ExpertPaths(
                layers=list(context.layers),
                num_experts=model.num_experts,
                num_experts_per_token=model.num_experts_per_token,
                device=model.device,
            ),
        }

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """By `layer` (and `next_layer`): normalized mutual information, dependence on held-out documents.

        By experts: transitions, lifts, flows.
        """
        documents = statistics["routed_tokens"]
        assert isinstance(documents, RoutedTokens)
        if not context.knows("ranks"):
            documents = documents.empty()
        return statistics["paths"].compute().assign(dependence(documents.sample()).data_vars)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`paths`: a row per pair of layers. `paths_top`: those of highest lift. Empty for one layer."""
        return {"paths": summary_frame(table), "paths_top": top_frame(table)}

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`paths`: counts, transitions, lifts, (earlier layer, its expert, next layer's expert)."""
        if not table.sizes["layer"]:
            return {}
        arrays = {str(name): values.values for name, values in table.data_vars.items() if name not in DEFINITIONS}
        return {"paths": {"layers": table["layer"].values, "next_layers": table["next_layer"].values, **arrays}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """Information between layers; flows and lifts as a heat map for each pair. Nothing where there is one layer."""
        from moescope.analyses.paths import figures as draw

        if not table.sizes["layer"]:
            return
        yield "paths_information", partial(draw.information, table, context)
        yield "paths_flows", partial(draw.flows, table, context)
        yield "paths_lift", partial(draw.lifts, table, context)
