"""How one answer about experts goes with another: rank correlations between the tables of a run.

A relation is one line of `RELATIONS`; it is measured in every run that has both its tables. Two measures of experts are
compared over experts, two of pairs of experts over pairs; within each layer, since layers differ in everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from moescope.figures.experts import DASHES
from moescope.figures import caption, charts, style, styled
from moescope.measures.correlation import ExpertCorrelation, correlate_experts, pooled

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moescope.context import Context

PAIRS, EXPERTS = "pairs", "experts"
_DIMENSIONS = {PAIRS: ("layer", "expert", "other_expert"), EXPERTS: ("layer", "expert")}
_COLUMNS = {
    "value": "rank_correlation",
    "low": "ci_low",
    "high": "ci_high",
    "null_low": "null_low",
    "null_high": "null_high",
    "p_value": "p_value",
    "num_experts": "num_experts",
    "num_values": "num_values",
}


@dataclass(frozen=True)
class Relation:
    """Two measures that may have to do with each other.

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
    Relation("matched weights, output cosine", "weights.joined_matched_cosine", "similarity.centred_cosine"),
    Relation("router rows, output CKA", "weights.router_cosine", "similarity.cka"),
    Relation("router rows, output cosine", "weights.router_cosine", "similarity.centred_cosine"),
    Relation("router rows, matched weights", "weights.router_cosine", "weights.joined_matched_cosine"),
    Relation("output CKA, co-activation", "similarity.cka", "coactivation.lift"),
    Relation("output cosine, co-activation", "similarity.centred_cosine", "coactivation.lift"),
    Relation("matched weights, co-activation", "weights.joined_matched_cosine", "coactivation.lift"),
    Relation("router rows, co-activation", "weights.router_cosine", "coactivation.lift"),
    Relation("router row norm, usage", "weights.router_norm", "usage.selection_frequency"),
    Relation("weight norm, usage", "weights.joined_norm", "usage.selection_frequency"),
    Relation("effective rank, usage", "weights.up_effective_rank", "usage.selection_frequency"),
    Relation("weight norm, saliency", "weights.joined_norm", "contribution.saliency_mean"),
    Relation("effective rank, effect", "weights.up_effective_rank", "atlas.delta_loss", {"domain": "all"}),
]


@dataclass(frozen=True)
class Related:
    """A relation as measured.

    Attributes:
        relation: Which.
        unit: "pairs" of experts, or "experts".
        layers: By layer.
        overall: The mean over layers.
    """

    relation: Relation
    unit: str
    layers: dict[int, ExpertCorrelation]
    overall: ExpertCorrelation


def relate(
    tables: Mapping[str, xr.Dataset], *, relations: Sequence[Relation] = RELATIONS, seed: int = 0
) -> list[Related]:
    """Measures those relations that the tables have both measures of, and both for experts or both for pairs."""
    found = []
    for relation in relations:
        first, second = (_measure(tables, name, relation.at) for name in (relation.first, relation.second))
        if first is None or second is None or first.dims != second.dims:
            continue
        unit = next(unit for unit, dimensions in _DIMENSIONS.items() if dimensions == first.dims)
        layers = [int(layer) for layer in first["layer"].values if layer in second["layer"].values]
        by_layer = {
            layer: correlate_experts(first.sel(layer=layer).values, second.sel(layer=layer).values, seed=seed)
            for layer in layers
        }
        overall = pooled(list(by_layer.values()))
        if overall.num_values and not np.isnan(overall.value):
            found.append(Related(relation, unit, by_layer, overall))
    return found


def _measure(tables: Mapping[str, xr.Dataset], name: str, at: Mapping[str, object]) -> xr.DataArray | None:
    """A variable as (layer, expert) or (layer, expert, other expert); None where no table has it so."""
    table, _, variable = name.partition(".")
    if table not in tables or variable not in tables[table]:
        return None
    values = tables[table][variable]
    for dimension, label in at.items():
        if dimension in values.dims:
            if label not in values[dimension].values:
                return None
            values = values.sel({dimension: label})
    for dimensions in _DIMENSIONS.values():
        if set(values.dims) == set(dimensions):
            return values.transpose(*dimensions)
    return None


def frames(found: Sequence[Related]) -> dict[str, pd.DataFrame]:
    """`relations`: a row per relation and layer. `relations_pooled`: a row per relation, means over layers."""
    by_layer, overall = [], []
    for related in found:
        relation = related.relation
        what = {"relation": relation.name, "first": relation.first, "second": relation.second, "unit": related.unit}
        by_layer += [what | {"layer": layer} | _row(value) for layer, value in related.layers.items()]
        known = [value for value in related.layers.values() if not np.isnan(value.value)]
        above = sum(value.value > value.null_high for value in known)
        below = sum(value.value < value.null_low for value in known)
        counts = {"num_layers": len(known), "num_layers_above_null": above, "num_layers_below_null": below}
        overall.append(what | counts | _row(related.overall))
    return {"relations": pd.DataFrame(by_layer), "relations_pooled": pd.DataFrame(overall)} if found else {}


def _row(correlation: ExpertCorrelation) -> dict[str, float | int]:
    values = {name: getattr(correlation, name) for name in _COLUMNS}
    return {column: values[name] for name, column in _COLUMNS.items()}


@styled
def figure(found: Sequence[Related], context: Context) -> Figure:
    """A panel for each relation: correlation by layer with its interval, on the band of its null."""
    fig, axes = charts.small_multiples(len(found), columns=min(3, len(found)), panel_height=1.25, around=0.55)
    for ax, related in zip(axes, found, strict=True):
        _panel(ax, related)
    handles, names = axes[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=len(names))
    fig.supxlabel("layer")
    fig.supylabel("rank correlation (Spearman)")
    caption(fig, context.caption, "over pairs of experts, or over experts, of a layer; bars: 95 % intervals over experts; "
            "in each title the mean over layers with its interval")  # fmt: skip
    return fig


def _panel(ax: Axes, related: Related) -> None:
    layers = np.array(list(related.layers), dtype=float)
    columns = {
        name: np.array([getattr(value, name) for value in related.layers.values()])
        for name in ("value", "low", "high", "null_low", "null_high")
    }
    charts.band(ax, layers, columns["null_low"], columns["null_high"], colour=style.NEUTRAL, label="experts permuted")
    ax.axhline(0, color=style.NEUTRAL, linewidth=0.6, linestyle=DASHES)
    ax.vlines(layers, columns["low"], columns["high"], color=style.COLOURS[0], linewidth=0.9, alpha=0.7)
    series = {"measured": columns["value"]}
    charts.lines(ax, layers, series, colours={"measured": style.COLOURS[0]}, legend=False, ylim=(-1, 1))
    overall = related.overall
    mean = f"{overall.value:.2f} ({overall.low:.2f} to {overall.high:.2f})"
    charts.label(ax, title=f"{related.relation.name}\n{mean}")
    if len(layers) == 1:
        ax.set_xlim(layers[0] - 1, layers[0] + 1)
