"""Vocabulary specialization: how far single token types are routed to single experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar, get_args

from moescope.analyses.base import Analysis, Drawing, Given, routed_tokens
from moescope.analyses.vocabulary.dependence import dependence, dependence_frame
from moescope.analyses.vocabulary.findings import READING_NAMES
from moescope.analyses.vocabulary.table import MIN_COUNT, SELECTION_HALF, table_of, top_tokens_frame, vocabulary_frame
from moescope.context import Context
from moescope.errors import warn
from moescope.results.text import percent
from moescope.statistics.samples.routed import RoutedTokens
from moescope.statistics.tokens import Reading, TokenUsage

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from moescope.statistics.base import Statistic

_COLUMNS = {"input": "token_id", "predicted": "predicted_token_id", "next": "next_token_id"}


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


def warn_of_pooled(usage: TokenUsage) -> None:
    """Says what part of the tokens is of types that are not counted singly, if there are any."""
    if share := usage.pooled_share():
        warn(
            f"{READING_NAMES[usage.reading]}: {percent(share)} of the positions are of token types that are not "
            "counted singly (those of the largest ids, whose counts do not fit): choose fewer `layers`",
            stacklevel=2,
        )


class Vocabulary(Analysis):
    """Readings: the input token, the model's most probable next token, the true next token; top-K and top-1."""

    name: ClassVar[str] = "vocabulary"
    columns: ClassVar[tuple[str, ...] | None] = ("expert_ids", "token_id")

    def left_out(self, context: Context) -> Iterator[str]:
        """Predicted tokens, where the model is not run to its end; what a trace does not have."""
        for column, text in (("predicted_token_id", "predicted tokens"), ("next_token_id", "true next tokens"),
                             ("ranks", "top-1 readings")):  # fmt: skip
            if not context.knows(column):
                yield f"vocabulary: {text} are left out: the trace has no column {column}"
        if context.recorded is None and not context.predictions:
            yield "predicted tokens are left out: with `layers` the model is not run to its end (`predictions` does)"

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """One table of counts per reading and ranks, and per reading one of half 0 of the documents.

        Predicted tokens only where the whole depth runs. And whole documents, to test the dependence on the token type
        on.
        """
        readings = [
            reading
            for reading in get_args(Reading)
            if (reading != "predicted" or context.predictions) and context.knows(_COLUMNS[reading])
        ]
        kinds = (False, True) if context.model.num_experts_per_token > 1 and context.knows("ranks") else (False,)
        wanted: list[tuple[Reading, bool, int | None]] = [(r, top1, None) for top1 in kinds for r in readings]
        wanted += [(reading, False, 0) for reading in readings]
        statistics: dict[str, Statistic] = {**routed_tokens(context)}
        for reading, top1, half in wanted:
            statistics |= token_usage(context, reading, top1=top1, half=half)
        return statistics

    def table(self, statistics: Mapping[str, Statistic], context: Context, given: Given = Given()) -> xr.Dataset:
        """By `layer, reading, ranks`: specialization and its value under independent routing; top tokens of experts."""
        for statistic in statistics.values():
            if isinstance(statistic, TokenUsage):
                warn_of_pooled(statistic)
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
