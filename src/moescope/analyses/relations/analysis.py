"""Relations: whether experts that are similar in one measure are similar in another; from the run's other tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import pandas as pd
import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.relations import figures as draw
from moescope.analyses.relations.table import layer_rows, pooled_rows, relate

if TYPE_CHECKING:
    from moescope.context import Context
    from moescope.statistics.base import Statistic


class Relations(Analysis):
    """Rank correlations of two measures within each layer, for all of `table.RELATIONS` that have both tables."""

    name: ClassVar[str] = "relations"
    min_domains: ClassVar[int] = 0
    needs_text: ClassVar[bool] = False

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """None."""
        return {}

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """By `relation, layer`: `rank_correlation` with interval and null, `p_value`, `num_experts`, `num_values`.

        By `relation`: the same with `pooled_` before it, for the mean over layers. A dataset without variables where no
        relation has both its tables.
        """
        return relate(given.tables, seed=context.seed)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`relations`: a row per relation and layer. `relations_pooled`: a row per relation, means over layers."""
        if not table.data_vars:
            return {}
        return {"relations": layer_rows(table), "relations_pooled": pooled_rows(table)}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """A panel for each relation, over layers."""
        if table.data_vars:
            yield "relations", partial(draw.panels, table, context.caption)
