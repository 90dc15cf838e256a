"""The table of relations: rank correlations of two measures by layer and pooled, and its rows.

A relation is one line of `RELATIONS`; it is measured in every run that has both its tables. Two measures of experts are
compared over experts, two of pairs of experts over pairs; within each layer, since layers differ in all measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr

from moescope.measures.correlation import ExpertCorrelation, correlate_experts, pooled
from moescope.statistics.variables import variable

_DIMENSIONS = {"pairs": ("layer", "expert", "other_expert"), "experts": ("layer", "expert")}
_COLUMNS = {
    "value": ("rank_correlation", "-1 to 1", "Spearman's rank correlation of the two measures"),
    "low": ("ci_low", "-1 to 1", "lower end of its 95 % interval, delete-one-expert jackknife"),
    "high": ("ci_high", "-1 to 1", "upper end of its 95 % interval, delete-one-expert jackknife"),
    "null_low": ("null_low", "-1 to 1", "lower end of the middle 95 % of values with the experts of one permuted"),
    "null_high": ("null_high", "-1 to 1", "upper end of the middle 95 % of values with the experts of one permuted"),
    "p_value": ("p_value", "share", "share of permutations, the measured value included, at least as far from 0"),
    "num_experts": ("num_experts", "experts", "experts compared"),
    "num_values": ("num_values", "experts or pairs", "experts, or pairs of experts, that have both measures"),
}
"""Attribute of `ExpertCorrelation` -> column, units, definition."""
POOLED = "pooled_"


@dataclass(frozen=True)
class Relation:
    """Two measures that may be related.

    Attributes:
        name: Short, in words: for tables and titles of panels.
        first: `table.variable`.
        second: `table.variable`.
        at: Where a variable has further dimensions (a domain), the label to take along each.
    """

    name: str
    first: str
    second: str
    at: Mapping[str, object] = field(default_factory=dict)


RELATIONS = [
    Relation("matched weights, output CKA", "weights.joined_matched_cosine", "similarity.cka"),
    Relation("matched weights, output cosine", "weights.joined_matched_cosine", "similarity.centered_cosine"),
    Relation("router rows, output CKA", "weights.router_cosine", "similarity.cka"),
    Relation("router rows, output cosine", "weights.router_cosine", "similarity.centered_cosine"),
    Relation("router rows, matched weights", "weights.router_cosine", "weights.joined_matched_cosine"),
    Relation("output CKA, co-activation", "similarity.cka", "coactivation.lift"),
    Relation("output cosine, co-activation", "similarity.centered_cosine", "coactivation.lift"),
    Relation("matched weights, co-activation", "weights.joined_matched_cosine", "coactivation.lift"),
    Relation("router rows, co-activation", "weights.router_cosine", "coactivation.lift"),
    Relation("router row norm, usage", "weights.router_norm", "usage.selection_frequency"),
    Relation("weight norm, usage", "weights.joined_norm", "usage.selection_frequency"),
    Relation("effective rank, usage", "weights.up_effective_rank", "usage.selection_frequency"),
    Relation("weight norm, saliency", "weights.joined_norm", "contribution.saliency_mean"),
    Relation("effective rank, effect", "weights.up_effective_rank", "atlas.delta_loss", {"domain": "all"}),
]


def relate(tables: Mapping[str, xr.Dataset], *, relations: Sequence[Relation] = RELATIONS, seed: int = 0) -> xr.Dataset:
    """Measures those relations that the tables have both measures of, and both for experts or both for pairs.

    Args:
        tables: Tables by the name of their analysis.
        relations: What to relate.
        seed: Of permutations and groups.

    Returns:
        See `Relations.table`; `first`, `second` and `unit` ("pairs" of experts, or "experts") are coordinates of
        `relation`. A layer that one of the tables lacks has NaN and counts of 0.
    """
    measured: list[tuple[Relation, str, dict[int, ExpertCorrelation]]] = []
    for relation in relations:
        first, second = (_measure(tables, name, relation.at) for name in (relation.first, relation.second))
        if first is None or second is None or first.dims != second.dims:
            continue
        unit = next(unit for unit, dimensions in _DIMENSIONS.items() if dimensions == first.dims)
        by_layer = {
            int(layer): correlate_experts(first.sel(layer=layer).values, second.sel(layer=layer).values, seed=seed)
            for layer in first["layer"].values
            if layer in second["layer"].values
        }
        if any(correlation.num_values and not math.isnan(correlation.value) for correlation in by_layer.values()):
            measured.append((relation, unit, by_layer))
    if not measured:
        return xr.Dataset()
    layers = sorted({layer for _, _, by_layer in measured for layer in by_layer})
    overall = [pooled(list(by_layer.values())) for _, _, by_layer in measured]
    variables = {}
    for attribute, (column, units, definition) in _COLUMNS.items():
        missing = 0 if attribute.startswith("num_") else math.nan
        values_RL = [
            [getattr(by_layer[layer], attribute) if layer in by_layer else missing for layer in layers]
            for _, _, by_layer in measured
        ]
        variables[column] = variable(("relation", "layer"), np.array(values_RL), units, definition)
        values_R = np.array([getattr(correlation, attribute) for correlation in overall])
        over_layers = "sum over layers" if attribute.startswith("num_") else "of the mean of artanh over layers"
        variables[POOLED + column] = variable("relation", values_R, units, f"{definition}; {over_layers}")
    texts = {
        "relation": [relation.name for relation, _, _ in measured],
        "first": [relation.first for relation, _, _ in measured],
        "second": [relation.second for relation, _, _ in measured],
        "unit": [unit for _, unit, _ in measured],
    }
    coords = {name: ("relation", np.array(values, dtype=np.str_)) for name, values in texts.items()}
    return xr.Dataset(variables, coords={**coords, "layer": layers})


def _measure(tables: Mapping[str, xr.Dataset], name: str, at: Mapping[str, object]) -> xr.DataArray | None:
    """A variable as (layer, expert) or (layer, expert, other expert); None where no table has it so."""
    table, _, variable_name = name.partition(".")
    if table not in tables or variable_name not in tables[table]:
        return None
    values = tables[table][variable_name]
    for dimension, label in at.items():
        if dimension in values.dims:
            if label not in values[dimension].values:
                return None
            values = values.sel({dimension: label})
    for dimensions in _DIMENSIONS.values():
        if set(values.dims) == set(dimensions):
            return values.transpose(*dimensions)
    return None


def layer_rows(table: xr.Dataset) -> pd.DataFrame:
    """A row per relation and layer that has values."""
    rows = []
    for relation in table["relation"].values.tolist():
        about, at = _about(table, relation), table.sel(relation=relation)
        for layer in table["layer"].values.tolist():
            row = {column: at[column].sel(layer=layer).item() for column, _, _ in _COLUMNS.values()}
            if row["num_values"]:
                rows.append(about | {"layer": layer} | row)
    return pd.DataFrame(rows)


def pooled_rows(table: xr.Dataset) -> pd.DataFrame:
    """A row per relation: means over layers, and at how many layers the value lies outside the null."""
    rows = []
    for relation in table["relation"].values.tolist():
        at = table.sel(relation=relation)
        value_L = at["rank_correlation"].values
        counts = {
            "num_layers": int(np.isfinite(value_L).sum()),
            "num_layers_above_null": int((value_L > at["null_high"].values).sum()),
            "num_layers_below_null": int((value_L < at["null_low"].values).sum()),
        }
        values = {column: at[POOLED + column].item() for column, _, _ in _COLUMNS.values()}
        rows.append(_about(table, relation) | counts | values)
    return pd.DataFrame(rows)


def _about(table: xr.Dataset, relation: str) -> dict[str, str]:
    at = table.sel(relation=relation)
    return {"relation": relation, **{name: str(at[name].item()) for name in ("first", "second", "unit")}}
