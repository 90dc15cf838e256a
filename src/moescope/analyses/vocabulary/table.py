"""Vocabulary specialization as a table of all readings, and as rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from moescope.analyses.vocabulary.findings import READING_NAMES
from moescope.context import Context
from moescope.models.token_text import token_texts
from moescope.statistics.tokens import TokenUsage
from moescope.statistics.variables import variable

if TYPE_CHECKING:
    from moescope.statistics.base import Statistic

MIN_COUNT = 10
"""Token types seen less often are left out of averages and lifts, as in OLMoE's Table 8."""
TOP_TOKENS = 10
SELECTION_HALF = "_selection_half"
"""What the key of a reading's counts on half 0 of the documents ends in."""


def table_of(statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
    """By `layer, reading, ranks`: specialization and its value under independent routing; top tokens of experts."""
    readings = [reading for reading in READING_NAMES if f"tokens_{reading}" in statistics]
    kinds = ["top-K", "top-1"] if "tokens_input_top1" in statistics else ["top-K"]
    table = xr.Dataset(
        coords={"layer": list(context.layers), "reading": readings, "ranks": kinds}, attrs={"min_count": MIN_COUNT}
    )
    tops = []
    for reading in readings:
        for ranks in kinds:
            usage = statistics.get(f"tokens_{reading}" if ranks == "top-K" else f"tokens_{reading}_top1")
            if not isinstance(usage, TokenUsage):
                continue
            selection = statistics.get(f"tokens_{reading}{SELECTION_HALF}") if ranks == "top-K" else None
            held_out = usage.held_out(selection if isinstance(selection, TokenUsage) else None)
            for name, values_L in usage.compute().assign(held_out.data_vars).data_vars.items():
                if name not in table:
                    nothing = np.full((len(context.layers), len(readings), len(kinds)), _nothing(values_L.dtype))
                    attrs = {**values_L.attrs, "definition": str(values_L.attrs["definition"]).split("; x is")[0]}
                    table[name] = (("layer", "reading", "ranks"), nothing, attrs)
                table[name].loc[{"reading": reading, "ranks": ranks}] = values_L.values
            if ranks == "top-K":
                tops.append(usage.top_tokens(TOP_TOKENS))
    top = xr.concat(tops, xr.Variable("reading", readings), combine_attrs="drop_conflicts")
    ids = top["token_id"].values
    texts = token_texts(context.model.tokenizer, np.unique(ids[ids >= 0]).tolist()) | {-1: ""}
    tokens = np.array([texts[token_id] for token_id in ids.ravel().tolist()], dtype=np.str_).reshape(ids.shape)
    top["token"] = variable(
        [str(name) for name in top["token_id"].dims], tokens, "text", "the token type, made visible"
    )
    return table.assign(top.data_vars).assign_coords(top.coords)


def vocabulary_frame(table: xr.Dataset) -> pd.DataFrame:
    """A row per layer, reading and ranks that were counted."""
    counts = ["num_tokens", "num_types_seen", "num_types"]
    shares = ["vocabulary_specialization", "vocabulary_specialization_chance"]
    shares += [f"evaluation_half_{name}" for name in [*shares, "num_types"]]
    frame = table[counts + shares].to_dataframe(dim_order=["layer", "reading", "ranks"]).reset_index()
    frame = frame[frame["num_tokens"] > 0].reset_index(drop=True)
    frame.insert(5, "min_count", table.attrs["min_count"])
    return frame


def top_tokens_frame(table: xr.Dataset) -> pd.DataFrame:
    """A row per layer, expert, reading, order ("lift" or "count") and rank in that order."""
    columns = ["token_id", "token", "num_selected", "num_occurrences", "lift"]
    dims = ["layer", "expert", "reading", "order", "rank"]
    top = table[columns].to_dataframe(dim_order=dims).reset_index()
    return top[top["token_id"] >= 0].reset_index(drop=True)


def _nothing(dtype: np.dtype) -> float | int:
    """What stands where nothing was counted."""
    return np.nan if np.issubdtype(dtype, np.floating) else 0
