"""Expert token overlap: how far two experts share tokens, and token types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.coactivation.analysis import cooccurrence
from moescope.analyses.overlap.table import MEASURES, pairs_frame, summary_frame
from moescope.analyses.vocabulary.analysis import token_usage, warn_of_pooled
from moescope.context import Context
from moescope.statistics.tokens import TokenUsage

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from moescope.statistics.base import Statistic


class Overlap(Analysis):
    """Two readings: the same occurrences (tokens routed to both), and the same vocabulary (token types of both)."""

    name: ClassVar[str] = "overlap"
    columns: ClassVar[tuple[str, ...] | None] = ("expert_ids", "token_id")

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """Co-occurrence of experts, and the token types of each."""
        return cooccurrence(context) | token_usage(context)

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """By `layer, expert, other_expert`: the measures of `table.MEASURES`, each also with `_chance`."""
        usage = statistics["tokens_input"]
        assert isinstance(usage, TokenUsage)
        warn_of_pooled(usage)
        together = statistics["cooccurrence"].compute()
        table = xr.merge([together, usage.vocabulary_overlap()], combine_attrs="drop_conflicts")
        names = [f"{name}{suffix}" for name in MEASURES for suffix in ("", "_chance")]
        return table[["num_tokens", "num_selected", *names]]

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`overlap`: a row per layer and measure. `overlap_pairs`: each layer's pairs furthest above independence."""
        return {"overlap": summary_frame(table), "overlap_pairs": pairs_frame(table)}

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """`overlap`: every measure for every pair of experts, (layer, expert, other expert)."""
        return {"overlap": {"layers": table["layer"].values, **{str(n): v.values for n, v in table.data_vars.items()}}}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """Spread over pairs per layer, both readings; a heat map per layer for each reading."""
        from moescope.analyses.overlap import figures as draw

        yield "overlap_by_layer", partial(draw.by_layer, table, context)
        yield "overlap_occurrences", partial(draw.occurrences, table, context)
        yield "overlap_vocabulary", partial(draw.vocabulary, table, context)
