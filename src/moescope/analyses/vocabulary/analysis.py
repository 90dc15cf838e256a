"""Vocabulary specialization: how far single token types are routed to single experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar, get_args

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.analyses.vocabulary.dependence import dependence, dependence_frame
from moescope.analyses.vocabulary.findings import READING_NAMES
from moescope.analyses.vocabulary.table import MIN_COUNT, SELECTION_HALF, table_of, top_tokens_frame, vocabulary_frame
from moescope.context import Context
from moescope.errors import warn
from moescope.statistics.samples.routed import RoutedTokens, routed_tokens
from moescope.statistics.tokens import Reading, TokenUsage

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from moescope.statistics.base import Statistic

MOST_BYTES = 8 * 2**30
"""Counts of layers x vocabulary x experts beyond this are left out, the last readings first."""


def token_usage(
    context: Context, reading: Reading = "input", *, top1: bool = False, half: int | None = None
) -> dict[str, Statistic]:
    """The token usage of one reading under the key that analyses share it by."""
    model = context.model
    statistic = TokenUsage(
        layers=list(context.layers),
        num_experts=model.num_experts,
        num_experts_per_token=model.num_experts_per_token,
        vocab_size=model.vocab_size,
        reading=reading,
        ranks="first" if top1 else "all",
        min_count=MIN_COUNT,
        half=half,
        seed=context.seed,
        device=model.device,
    )
    return {f"tokens_{reading}{'_top1' if top1 else ''}{'' if half is None else SELECTION_HALF}": statistic}


class Vocabulary(Analysis):
    """Readings: the input token, the model's most probable next token, the true next token; top-K and top-1."""

    name: ClassVar[str] = "vocabulary"

    def left_out(self, context: Context) -> Iterator[str]:
        """Predicted tokens, where the model is not run to its end."""
        if not context.predictions:
            yield "predicted tokens are left out: with `layers` the model is not run to its end (`predictions` does)"

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """One table of counts per reading and ranks, and per reading one of half 0 of the documents.

        Predicted tokens only where the whole depth runs. And whole documents, to test the dependence on the token type
        on.
        """
        model = context.model
        num_bytes = len(context.layers) * model.vocab_size * model.num_experts * 4
        readings = [reading for reading in get_args(Reading) if reading != "predicted" or context.predictions]
        kinds = (False, True) if model.num_experts_per_token > 1 else (False,)
        wanted: list[tuple[Reading, bool, int | None]] = [(r, top1, None) for top1 in kinds for r in readings]
        wanted += [(reading, False, 0) for reading in readings]
        num_counted = max(1, MOST_BYTES // num_bytes)
        left_out = [
            f"{READING_NAMES[r]}, {'top-1' if top1 else 'top-K'}{'' if half is None else ', held-out documents'}"
            for r, top1, half in wanted[num_counted:]
        ]
        if left_out:
            warn(
                f"{len(left_out)} of {len(wanted)} vocabulary readings are left out ({'; '.join(left_out)}): each "
                f"takes {num_bytes / 2**30:.1f} GiB for {len(context.layers)} layers; choose fewer `layers`",
                stacklevel=2,
            )
        statistics: dict[str, Statistic] = {**routed_tokens(context)}
        for reading, top1, half in wanted[:num_counted]:
            statistics |= token_usage(context, reading, top1=top1, half=half)
        return statistics

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """By `layer, reading, ranks`: specialization and its value under independent routing; top tokens of experts.

        A reading that was left out has no tokens and no value.
        """
        table, documents = table_of(statistics, context), statistics["routed_tokens"]
        assert isinstance(documents, RoutedTokens)
        found = dependence(documents.sample())
        found = found.reindex(reading=table["reading"].values, fill_value={"dependence_tied": False})
        return table.assign(found.data_vars).assign_attrs(found.attrs)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`vocabulary`: a row per layer, reading, ranks. `vocabulary_top_tokens`: the tokens of each expert.

        `vocabulary_dependence`: a row per layer and reading, on held-out documents.
        """
        return {
            "vocabulary": vocabulary_frame(table),
            "vocabulary_dependence": dependence_frame(table),
            "vocabulary_top_tokens": top_tokens_frame(table),
        }

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[Drawing]:
        """Specialization per layer by reading, beside independent routing."""
        from moescope.analyses.vocabulary import figures as draw

        yield "vocabulary_specialization", partial(draw.specialization, table, context)
