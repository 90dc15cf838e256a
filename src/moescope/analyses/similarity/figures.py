"""Figures of similar experts: over layers, small heat maps of all, large ones with dendrogram beside their controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.collections import LineCollection
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from moescope.figures.experts import matrix_panels, quantiles_over_pairs, spread
from moescope.figures import caption, charts, style, styled

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from moescope.context import Context

NAMES = {
    "cka": "debiased CKA",
    "deconfounded_cka": "deconfounded CKA",
    "linear_cka": "linear CKA (biased)",
    "cosine": "cosine",
    "centred_cosine": "centred cosine",
}


MOST_LARGE = 3
"""Layers that have large heat maps: all, or the first, the middle and the last; a page of small ones shows all."""


def draw(table: xr.Dataset, context: Context, measures: Sequence[str], mode: str) -> Iterator[tuple[str, Figure]]:
    """All figures of a run; the first measure is the one asked for."""
    num_layers, measure = table.sizes["layer"], measures[0]
    if num_layers > 1:
        yield "similarity_by_layer", _by_layer(table, context, measures)
    large = range(num_layers) if num_layers <= MOST_LARGE else (0, num_layers // 2, num_layers - 1)
    if num_layers > MOST_LARGE:
        yield "similarity_all_layers", _all_layers(table, context, measure)
    for position in large:
        at = table.isel(layer=position)
        layer = int(at["layer"])
        order, tree = clustered(at[measure].values)
        yield f"similarity_layer_{layer}", _clustered_map(at, context, measure, order, tree, mode)
        if mode == "all":
            yield f"similarity_layer_{layer}_controls", _beside_controls(at, context, measure, order)


def clustered(similarity_EE: NDArray[np.floating]) -> tuple[list[int], NDArray[np.floating] | None]:
    """Experts in the order of a dendrogram's leaves, and the tree; gaps come last and are not in it.

    Average linkage on `1 - similarity`, leaves ordered so that neighbours are as alike as can be. No tree of fewer than
    three experts.
    """
    known = np.flatnonzero(np.isfinite(np.diagonal(similarity_EE)))
    missing = [expert for expert in range(len(similarity_EE)) if expert not in set(known.tolist())]
    if len(known) < 3:
        return [*known.tolist(), *missing], None
    values = similarity_EE[np.ix_(known, known)]
    finite = np.isfinite(values)
    values = np.where(finite, values, np.median(values[finite]))  # pairs that share no token: nothing is known
    distance = np.clip(1 - (values + values.T) / 2, 0, None)
    np.fill_diagonal(distance, 0.0)
    condensed = squareform(distance, checks=False)
    tree = hierarchy.linkage(condensed, "average")
    if len(known) <= 256:
        tree = hierarchy.optimal_leaf_ordering(tree, condensed)
    return [*known[hierarchy.leaves_list(tree)].tolist(), *missing], tree


@styled
def dendrogram(ax: Axes, tree: NDArray[np.floating] | None, num_rows: int) -> None:
    """The tree to the left of a heat map's rows, row 0 on top; its root on the left."""
    ax.set_ylim(num_rows, 0)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    if tree is None:
        ax.set_visible(False)
        return
    drawn = hierarchy.dendrogram(tree, no_plot=True)
    # scipy puts leaf i at 5 + 10 i
    lines = [
        np.column_stack([distance, np.asarray(place) / 10])
        for place, distance in zip(drawn["icoord"], drawn["dcoord"], strict=True)
    ]
    ax.add_collection(LineCollection(lines, colors=style.INK, linewidths=0.6))
    low, high = float(tree[:, 2].min()), float(tree[:, 2].max())
    margin = 0.05 * (high - low) or 0.05
    ax.set_xlim(high + margin, max(0.0, low - 2 * margin))
    ax.locator_params(axis="x", nbins=3)


def _off_diagonal(matrix_EE: NDArray[np.floating], order: Sequence[int]) -> NDArray[np.floating]:
    shown = matrix_EE[np.ix_(order, order)].copy()
    np.fill_diagonal(shown, np.nan)
    return shown


def _limits(matrices: Sequence[NDArray[np.floating]]) -> tuple[float, float, float | None]:
    """Ends of a colour scale that outliers do not stretch; even around 0 where much lies on both sides of it.

    A few slightly negative values get the palest colour: a scale of their own would paint them as dark as the highest.
    """
    finite = np.concatenate([matrix[np.isfinite(matrix)] for matrix in matrices])
    if not finite.size:
        return 0.0, 1.0, None
    low, high = (float(value) for value in np.quantile(finite, (0.005, 0.995)))
    if low < -0.25 * high:
        reach = max(-low, high)
        return -reach, reach, 0.0
    return min(0.0, low), high, None


@styled
def _all_layers(table: xr.Dataset, context: Context, measure: str) -> Figure:
    """A small heat map per layer: above the diagonal as measured, below it the control, in one order."""
    matrices, orders, titles = [], [], []
    control = f"{measure}_redrawn" in table
    for position, layer in enumerate(table["layer"].values.tolist()):
        at = table.isel(layer=position)
        order, _ = clustered(at[measure].values)
        shown_EE = _off_diagonal(at[measure].values, order)
        if control:
            below = np.tril_indices(len(order), -1)
            shown_EE[below] = _off_diagonal(at[f"{measure}_redrawn"].values, order)[below]
        matrices.append(shown_EE)
        orders.append(order)
        titles.append(f"layer {layer}")
    vmin, vmax, centre = _limits(matrices)
    words = "above the diagonal as measured, below it the same experts with re-drawn weights; " if control else ""
    return matrix_panels(
        matrices,
        titles,
        context.caption,
        label=NAMES[measure],
        labels=(orders, orders),
        xlabel="experts, those alike side by side",
        ylabel="experts, in the same order",
        vmin=vmin,
        vmax=vmax,
        centre=centre,
        note=f"{words}each layer has its own order; colours end at 0.5 and 99.5 % of pairs"
        f"{'; grey: no number' if any(_grey(matrix_EE) for matrix_EE in matrices) else ''}",
    )


@styled
def _clustered_map(
    at: xr.Dataset,
    context: Context,
    measure: str,
    order: list[int],
    tree: NDArray[np.floating] | None,
    mode: str,
) -> Figure:
    matrix_EE = _off_diagonal(at[measure].values, order)
    vmin, vmax, centre = _limits([matrix_EE])
    fig, (left, ax) = style.figure("page", 6.3, 1, 2, width_ratios=[1, 6.2])
    dendrogram(left, tree, len(order))
    charts.label(left, x="distance")
    mesh = charts.heatmap(
        ax,
        matrix_EE,
        label=NAMES[measure],
        rows=order,
        columns=order,
        xlabel="expert, in the order of the dendrogram",
        title=f"layer {int(at['layer'])}: {NAMES[measure]} of experts' outputs",
        vmin=vmin,
        vmax=vmax,
        centre=centre,
        colourbar=False,
    )
    charts.panel_colourbar(mesh, [ax], NAMES[measure])
    caption(fig, context.caption, f"{_sample(at, mode)}; distance: 1 - {NAMES[measure]}, average linkage; diagonal left out"
            f"{_grey(matrix_EE)}; colours end at 0.5 and 99.5 % of pairs")  # fmt: skip
    return fig


@styled
def _beside_controls(at: xr.Dataset, context: Context, measure: str, order: list[int]) -> Figure:
    """The measure, and the one that takes away its commonest false reason, each beside experts that learnt nothing."""
    second = {"cka": "deconfounded_cka", "cosine": "centred_cosine"}[measure]
    shown: dict[str, str] = {}
    for name in (measure, second):
        shown |= {NAMES[name]: name, f"{NAMES[name]}, re-drawn": f"{name}_redrawn"}
    shown = {title: name for title, name in shown.items() if name in at}
    matrices = [_off_diagonal(at[name].values, order) for name in shown.values()]
    vmin, vmax, centre = _limits(matrices)
    fig, axes = charts.small_multiples(len(shown), columns=2, panel_height=2.95, around=0.35)
    for ax, title, matrix_EE in zip(axes, shown, matrices, strict=True):
        finite = matrix_EE[np.isfinite(matrix_EE)]
        mean = f": mean {finite.mean():.2f}" if finite.size else ""
        mesh = charts.heatmap(
            ax, matrix_EE, label=NAMES[measure], title=title + mean, vmin=vmin, vmax=vmax, centre=centre,
            colourbar=False,
        )  # fmt: skip
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks([])
    charts.panel_colourbar(mesh, axes, "similarity")
    fig.supxlabel(f"experts of layer {int(at['layer'])}, all panels in the order of the first")
    control = any(name.endswith("_redrawn") for name in shown.values())
    words = "; re-drawn: the same experts on the same inputs, weights drawn anew with equal scale" if control else ""
    caption(fig, context.caption, f"{_sample(at, 'all')}; diagonal left out{words}")
    return fig


@styled
def _by_layer(table: xr.Dataset, context: Context, measures: Sequence[str]) -> Figure:
    shown = [name for name in measures if name not in ("linear_cka", "cosine" if "cka" in measures else "")]
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    fig, axes = style.figure("page" if len(shown) > 1 else "column", 2.3, 1, len(shown), squeeze=False)
    for ax, measure in zip(axes[0], shown, strict=True):
        for suffix, name, colour in (
            ("", "pairs of experts", style.COLOURS[0]),
            ("_redrawn", "the same experts with re-drawn weights", style.NEUTRAL),
        ):
            if measure + suffix in table:
                quantiles = quantiles_over_pairs(table[measure + suffix].values[:, i_P, j_P])
                spread(ax, table["layer"].values, *quantiles, name=name, colour=colour, dashed=bool(suffix))
        charts.label(ax, x="layer", y="similarity" if ax is axes[0][0] else None, title=NAMES[measure])
    limits = [ax.get_ylim() for ax in axes[0]]
    for ax in axes[0]:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    handles, names = axes[0][0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=len(names))
    caption(fig, context.caption, "lines: median pair; bands: 5-95 % of pairs")
    return fig


def _sample(at: xr.Dataset, mode: str) -> str:
    if mode == "routed":
        shared = at["num_shared"].values[np.triu_indices(at.sizes["expert"], 1)]
        return f"each pair on the tokens routed to both: {int(np.median(shared)):,} in the median pair"
    return f"all experts on the same {int(at['num_samples']):,} tokens of {int(at['num_documents']):,} documents"


def _grey(matrix_EE: NDArray[np.floating]) -> str:
    missing = ~np.isfinite(matrix_EE)
    np.fill_diagonal(missing, False)
    return f"; grey: no number, {int(missing.sum()) // 2:,} pairs" if missing.any() else ""
