"""Figures of similarity: by layer, small heat maps of all layers, large ones with dendrogram and beside baselines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moescope.analyses.similarity.table import BASELINE
from moescope.figures import caption, charts, style, styled
from moescope.figures.experts import cluster_order, dendrogram, matrix_panels, quantiles_over_pairs, spread

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from moescope.analyses.base import Drawing

NAMES = {
    "cka": "debiased CKA",
    "deconfounded_cka": "deconfounded CKA",
    "linear_cka": "linear CKA (biased)",
    "cosine": "cosine",
    "centered_cosine": "centered cosine",
}
GUARDS = {"cka": "deconfounded_cka", "cosine": "centered_cosine"}
"""The measure beside each that removes its most frequent confounder: shared inputs; a common mean output."""
MOST_LARGE = 3
"""Layers that have large heat maps: all, or the first, the middle and the last; a page of small ones shows all."""


def drawings(table: xr.Dataset, about: str, measures: Sequence[str], mode: str) -> Iterator[Drawing]:
    """All figures of a run.

    Args:
        table: The similarities.
        about: Model, tokens and corpus, for the line below.
        measures: Measures of the table, the one that pairs are ranked by first.
        mode: "all" or "routed".
    """
    layers, measure = table["layer"].values.tolist(), measures[0]
    count = len(layers)
    if count > 1:
        yield "similarity_by_layer", partial(by_layer, table, about, measures)
    if count > MOST_LARGE:
        yield "similarity_all_layers", partial(all_layers, table, about, measure)
    for position in range(count) if count <= MOST_LARGE else (0, count // 2, count - 1):
        at = table.isel(layer=position)
        yield f"similarity_layer_{layers[position]}", partial(clustered_map, at, about, measure, mode)
        if mode == "all":
            yield f"similarity_layer_{layers[position]}_controls", partial(beside_baselines, at, about, measure)


def _off_diagonal(matrix_EE: NDArray[np.floating], order: Sequence[int]) -> NDArray[np.floating]:
    shown_EE = matrix_EE[np.ix_(order, order)].copy()
    np.fill_diagonal(shown_EE, np.nan)
    return shown_EE


def _limits(matrices: Sequence[NDArray[np.floating]]) -> tuple[float, float, float | None]:
    """Ends of a color scale that outliers do not stretch, and its center: 0 where much lies on both sides of it.

    A few slightly negative values get the palest color: a scale of their own would paint them as dark as the highest.
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
def all_layers(table: xr.Dataset, about: str, measure: str) -> Figure:
    """A small heat map per layer: above the diagonal as measured, below it the baseline, in one order."""
    matrices, orders, titles = [], [], []
    baseline = measure + BASELINE in table
    for position, layer in enumerate(table["layer"].values.tolist()):
        at = table.isel(layer=position)
        order, _ = cluster_order(at[measure].values)
        shown_EE = _off_diagonal(at[measure].values, order)
        if baseline:
            below = np.tril_indices(len(order), -1)
            shown_EE[below] = _off_diagonal(at[measure + BASELINE].values, order)[below]
        matrices.append(shown_EE)
        orders.append(order)
        titles.append(f"layer {layer}")
    vmin, vmax, center = _limits(matrices)
    words = "above the diagonal as measured, below it the random-weight baseline; " if baseline else ""
    return matrix_panels(
        matrices,
        titles,
        about,
        label=NAMES[measure],
        labels=(orders, orders),
        xlabel="experts, similar ones adjacent",
        ylabel="experts, in the same order",
        vmin=vmin,
        vmax=vmax,
        center=center,
        note=f"{words}each layer has its own order; colors end at 0.5 and 99.5 % of pairs"
        f"{'; gray: no value' if any(_missing(matrix_EE) for matrix_EE in matrices) else ''}",
    )


@styled
def clustered_map(at: xr.Dataset, about: str, measure: str, mode: str) -> Figure:
    """One layer's heat map in the order of the dendrogram on its left."""
    order, tree = cluster_order(at[measure].values)
    matrix_EE = _off_diagonal(at[measure].values, order)
    vmin, vmax, center = _limits([matrix_EE])
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
        center=center,
        colorbar=False,
    )
    charts.panel_colorbar(mesh, [ax], NAMES[measure])
    note = f"{_sample(at, mode)}; distance: 1 - {NAMES[measure]}, average linkage; diagonal left out"
    caption(fig, about, f"{note}{_missing(matrix_EE)}; colors end at 0.5 and 99.5 % of pairs")
    return fig


@styled
def beside_baselines(at: xr.Dataset, about: str, measure: str) -> Figure:
    """One layer's measure, and the one that removes its most frequent confounder, each beside its baseline."""
    order, _ = cluster_order(at[measure].values)
    shown: dict[str, str] = {}
    for name in (measure, GUARDS[measure]):
        shown |= {NAMES[name]: name, f"{NAMES[name]}, random weights": name + BASELINE}
    shown = {title: name for title, name in shown.items() if name in at}
    matrices = [_off_diagonal(at[name].values, order) for name in shown.values()]
    vmin, vmax, center = _limits(matrices)
    fig, axes = charts.small_multiples(len(shown), columns=2, panel_height=2.95, around=0.35)
    for ax, title, matrix_EE in zip(axes, shown, matrices, strict=True):
        finite = matrix_EE[np.isfinite(matrix_EE)]
        mean = f": mean {finite.mean():.2f}" if finite.size else ""
        mesh = charts.heatmap(
            ax, matrix_EE, label=NAMES[measure], title=title + mean, vmin=vmin, vmax=vmax, center=center,
            colorbar=False,
        )  # fmt: skip
        ax.set_aspect("equal")
        ax.set_xticks([])
        ax.set_yticks([])
    charts.panel_colorbar(mesh, axes, "similarity")
    fig.supxlabel(f"experts of layer {int(at['layer'])}, all panels in the order of the first")
    baseline = any(name.endswith(BASELINE) for name in shown.values())
    words = (
        "; random weights: the same experts on the same inputs, weights resampled at equal scale" if baseline else ""
    )
    caption(fig, about, f"{_sample(at, 'all')}; diagonal left out{words}")
    return fig


@styled
def by_layer(table: xr.Dataset, about: str, measures: Sequence[str]) -> Figure:
    """The median pair and the spread over pairs of each measure over layers, beside the baseline's."""
    shown = [name for name in measures if name not in ("linear_cka", "cosine" if "cka" in measures else "")]
    i_P, j_P = np.triu_indices(table.sizes["expert"], 1)
    fig, axes = style.figure("page" if len(shown) > 1 else "column", 2.3, 1, len(shown), squeeze=False)
    for ax, measure in zip(axes[0], shown, strict=True):
        for suffix, name, color in (
            ("", "pairs of experts", style.COLORS[0]),
            (BASELINE, "random-weight baseline", style.NEUTRAL),
        ):
            if measure + suffix in table:
                quantiles = quantiles_over_pairs(table[measure + suffix].values[:, i_P, j_P])
                spread(ax, table["layer"].values, *quantiles, name=name, color=color, dashed=bool(suffix))
        charts.label(ax, x="layer", y="similarity" if ax is axes[0][0] else None, title=NAMES[measure])
    limits = [ax.get_ylim() for ax in axes[0]]
    for ax in axes[0]:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    handles, names = axes[0][0].get_legend_handles_labels()
    charts.top_legend(fig, handles, names)
    caption(fig, about, "lines: median pair; bands: 5-95 % of pairs")
    return fig


def _sample(at: xr.Dataset, mode: str) -> str:
    if mode == "routed":
        shared = at["num_shared"].values[np.triu_indices(at.sizes["expert"], 1)]
        return f"each pair on the tokens routed to both: {int(np.median(shared)):,} in the median pair"
    return f"all experts on the same {int(at['num_samples']):,} tokens of {int(at['num_documents']):,} documents"


def _missing(matrix_EE: NDArray[np.floating]) -> str:
    missing = ~np.isfinite(matrix_EE)
    np.fill_diagonal(missing, False)
    return f"; gray: no value, {int(missing.sum()) // 2:,} pairs" if missing.any() else ""
