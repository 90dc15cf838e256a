"""Vocabulary specialization: how far single token types belong to single experts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.base import Analysis, Drawing, Given
from moescope.context import Context
from moescope.figures.experts import against_independent, shared_legend
from moescope.errors import MoescopeWarning
from moescope.figures import caption, style
from moescope.models.token_text import token_texts
from moescope.statistics.tokens import Reading, TokenUsage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from moescope.statistics.base import Statistic

MIN_COUNT = 10
"""Token types seen less often are left out of averages and lifts, as in OLMoE's Table 8."""
TOP_TOKENS = 10
MOST_BYTES = 8 * 2**30
"""Tables of layers x vocabulary x experts beyond this are left out, the least asked for first."""

READING_NAMES = {"input": "input token", "predicted": "predicted next token", "next": "true next token"}


def token_usage(context: Context, reading: Reading = "input", *, top1: bool = False) -> dict[str, Statistic]:
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
        device=model.device,
    )
    return {f"tokens_{reading}_top1" if top1 else f"tokens_{reading}": statistic}


class Vocabulary(Analysis):
    """Readings: the input token, the model's most probable next token, the true next token; top-K and top-1."""

    name = "vocabulary"
    summary = "Vocabulary specialization: how far single token types belong to single experts."

    def statistics(self, context: Context) -> dict[str, Statistic]:
        """One table of counts per reading and ranks; predicted tokens only where the whole depth runs."""
        model = context.model
        each = len(context.layers) * model.vocab_size * model.num_experts * 4
        wanted = [
            (reading, top1)
            for top1 in ((False, True) if model.num_experts_per_token > 1 else (False,))
            for reading in get_args(Reading)
            if reading != "predicted" or context.predictions
        ]
        kept = wanted[: max(1, MOST_BYTES // each)]
        if len(kept) < len(wanted):
            left_out = [f"{READING_NAMES[r]}, {'top-1' if top1 else 'top-K'}" for r, top1 in wanted[len(kept) :]]
            warnings.warn(
                f"{len(left_out)} of {len(wanted)} vocabulary readings are left out ({'; '.join(left_out)}): each "
                f"takes {each / 2**30:.1f} GiB for {len(context.layers)} layers; ask for fewer layers to have them all",
                MoescopeWarning,
                stacklevel=2,
            )
        statistics: dict[str, Statistic] = {}
        for reading, top1 in kept:
            statistics |= token_usage(context, reading, top1=top1)
        return statistics

    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """By `layer, reading, ranks`: specialization and its value under independent routing; top tokens of experts.

        A reading that was left out has no tokens and no value.
        """
        readings = [reading for reading in READING_NAMES if f"tokens_{reading}" in statistics]
        kinds = ["top-K", "top-1"] if "tokens_input_top1" in statistics else ["top-K"]
        table = xr.Dataset(
            coords={"layer": list(context.layers), "reading": readings, "ranks": kinds},
            attrs={"min_count": MIN_COUNT},
        )
        tops = []
        for reading in readings:
            for ranks in kinds:
                usage = statistics.get(f"tokens_{reading}" if ranks == "top-K" else f"tokens_{reading}_top1")
                if not isinstance(usage, TokenUsage):
                    continue
                for name, values_L in usage.compute().data_vars.items():
                    if name not in table:
                        nothing = np.full((len(context.layers), len(readings), len(kinds)), _nothing(values_L.dtype))
                        about = {**values_L.attrs, "definition": str(values_L.attrs["definition"]).split("; x is")[0]}
                        table[name] = (("layer", "reading", "ranks"), nothing, about)
                    table[name].loc[{"reading": reading, "ranks": ranks}] = values_L.values
                if ranks == "top-K":
                    tops.append(usage.top_tokens(TOP_TOKENS))
        top = xr.concat(tops, xr.Variable("reading", readings), combine_attrs="drop_conflicts")
        ids = top["token_id"].values
        texts = token_texts(context.model.tokenizer, np.unique(ids[ids >= 0]).tolist()) | {-1: ""}
        words = np.array([texts[token_id] for token_id in ids.ravel().tolist()], dtype=np.str_).reshape(ids.shape)
        top["token"] = (top["token_id"].dims, words, {"units": "text", "definition": "the token type, made visible"})
        return table.assign(top.data_vars).assign_coords(top.coords)

    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """`vocabulary`: a row per layer, reading, ranks. `vocabulary_top_tokens`: the tokens of each expert."""
        counts = ["num_tokens", "num_types_seen", "num_types"]
        shares = ["vocabulary_specialization", "vocabulary_specialization_independent"]
        frame = table[counts + shares].to_dataframe(dim_order=["layer", "reading", "ranks"]).reset_index()
        frame = frame[frame["num_tokens"] > 0].reset_index(drop=True)
        frame.insert(5, "min_count", MIN_COUNT)
        columns = ["token_id", "token", "num_selected", "num_occurrences", "lift"]
        dims = ["layer", "expert", "reading", "order", "place"]
        top = table[columns].to_dataframe(dim_order=dims).reset_index()
        return {"vocabulary": frame, "vocabulary_top_tokens": top[top["token_id"] >= 0].reset_index(drop=True)}

    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """Specialization per layer by reading, beside independent routing."""
        kinds = table["ranks"].values.tolist()
        fig, axes = style.figure("page" if len(kinds) > 1 else "column", 2.5, 1, len(kinds), squeeze=False)
        readings = table["reading"].values.tolist()
        for ax, ranks in zip(axes[0], kinds, strict=True):
            at = table.sel(ranks=ranks)
            measured, independent = (
                {READING_NAMES[r]: at[f"vocabulary_specialization{suffix}"].sel(reading=r).values for r in readings}
                for suffix in ("", "_independent")
            )
            which = (
                f"all {context.model.num_experts_per_token} selected experts" if ranks == "top-K" else "first rank only"
            )
            against_independent(
                ax, table["layer"].values, measured, independent, title=f"{ranks}: {which}", legend=False,
                ylabel="specialization (share)" if ax is axes[0][0] else None,
            )  # fmt: skip
            ax.set_ylim(0, 1.02)
        shared_legend(fig, [READING_NAMES[reading] for reading in readings])
        left_out = "" if context.predictions else "; predicted tokens not computed (the model was not run to its end)"
        caption(
            fig,
            context.caption,
            f"mean, over token types seen at least {MIN_COUNT} times, of the largest share one expert has{left_out}",
        )
        yield "vocabulary_specialization", fig


def _nothing(dtype: np.dtype) -> float | int:
    """What stands where nothing was counted."""
    return np.nan if np.issubdtype(dtype, np.floating) else 0
