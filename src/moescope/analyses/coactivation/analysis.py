"""Co-activation: which experts are selected for the same tokens, more or less often than chance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from moescope.analyses.base import Analysis, Drawing, Given, routed_tokens
from moescope.analyses.coactivation.table import pairs_frame, summary_frame
from moescope.analyses.coactivation.top_pair import DEFINITIONS, top_pairs
from moescope.context import Context
from moescope.statistics.cooccurrence import ExpertCooccurrence
from moescope.statistics.samples.routed import RoutedTokens

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr

    from moescope.statistics.base import Statistic


def cooccurrence(context: Context) -> dict[str, Statistic]:
    """The co-occurrence of experts under the key that analyses share it by."""
    model = context.model
    return {
        "cooccurrence": ExpertCooccurrence(
            layers=list(context.layers),
            num_experts=model.num_experts,
            num_experts_per_token=model.num_experts_per_token,
            device=model.device,
        )
    }


class Coactivation(Analysis):
    """All pairs of the K experts of a token."""

    name: ClassVar[str] = "coactivation"
    columns: ClassVar[tuple[str, ...] | None] = ("expert_ids",)

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Co-occurrence of experts, and whole documents to test the most co-activated pair on."""
        return {**cooccurrence(context), **routed_tokens(context)}

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """By `layer, expert, other_expert`: num_together, co-activation and lift, both also with `_chance`.

        By `layer`: the pair selected on half of the documents, as measured on the others.
        """
        names = ["coactivation", "coactivation_chance", "lift", "lift_chance"]
        table = statistics["cooccurrence"].compute()[["num_tokens", "num_selected", "num_together", *names]]
        documents = statistics["routed_tokens"]
        assert isinstance(documents, RoutedTokens)
        return table.assign(top_pairs(documents.sample(), context.model.num_experts_per_token).data_vars)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`coactivation`: a row per layer. `coactivation_pairs`: each layer's pairs of highest lift."""
        return {"coactivation": summary_frame(table), "coactivation_pairs": pairs_frame(table)}

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`coactivation`: every measure for every pair of experts, (layer, expert, other expert)."""
        arrays = {str(name): values.values for name, values in table.data_vars.items() if name not in DEFINITIONS}
        return {"coactivation": {"layers": table["layer"].values, **arrays}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """Spread of the lift over pairs, per layer; a heat map per layer."""
        from moescope.analyses.coactivation import figures as draw

        yield "coactivation_by_layer", partial(draw.by_layer, table, context)
        yield "coactivation_lift", partial(draw.lifts, table, context)
