"""Figures of maps: outputs by group of domains and by expert, each expert alone, mean outputs, recovery by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from moescope.figures import caption, charts, style, styled
from moescope.figures.experts import DASHES

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from moescope.analyses.base import Drawing
    from moescope.context import Context

PALE = "#c9c9c9"
LABEL_SIZE = 6.0
MOST_TILES = 144
MOST_ROUNDS = 600
COLORS = {"expert": style.COLORS[0], "domain": style.COLORS[1]}


def drawings(table: xr.Dataset, context: Context) -> Iterator[Drawing]:
    """All figures of a run."""
    layers = [layer for layer in table["layer"].values.tolist() if (table["point_layer"].values == layer).any()]
    for layer in layers:
        yield f"map_layer_{layer}", partial(outputs, table, layer, context)
        yield f"map_each_expert_layer_{layer}", partial(each_expert, table, layer, context)
    if np.isfinite(table["mean_x"].values).any():
        yield "map_means", partial(means, table, context)
    if layers:
        yield "map_recovery", partial(recovered, table, context.caption)


def group_of(context: Context) -> tuple[dict[str, str], dict[str, str]]:
    """What each domain is colored by (its group; itself, where few domains have no groups), and the colors."""
    if context.groups:
        groups = {domain: context.groups.get(domain, "other") for domain in context.domains}
        return groups, style.group_colors(groups)
    if len(context.domains) <= len(style.COLORS):
        named = {domain: domain for domain in context.domains}
        return named, dict(zip(context.domains, style.COLORS, strict=False))
    return dict.fromkeys(context.domains, "all domains"), {"all domains": style.COLORS[0]}


@styled
def outputs(table: xr.Dataset, layer: int, context: Context) -> Figure:
    """One layer's outputs twice: colored by group of domains, and with each expert's number at its median."""
    at = table.isel(point=np.flatnonzero(table["point_layer"].values == layer))
    xy = np.column_stack([at["x"].values, at["y"].values])
    quality = table.sel(layer=layer)
    groups, colors = group_of(context)
    kinds = np.array([groups[domain] for domain in at["point_domain"].values.tolist()])
    fig, (left, right) = style.figure("page", 3.35, 1, 2, sharex=True, sharey=True)
    size = float(np.clip(9000 / max(len(xy), 1), 1.5, 14))
    order = np.random.default_rng(0).permutation(len(xy))  # else the last group would lie on top of all others
    left.scatter(*xy[order].T, s=size, c=[colors[kind] for kind in kinds[order]], linewidths=0, alpha=0.75,
                 rasterized=True)  # fmt: skip
    right.scatter(*xy.T, s=size, color=PALE, linewidths=0, alpha=0.8, rasterized=True)
    for ax in (left, right):
        _bare(ax, xy)
    charts.label(
        left,
        title=_title("colored by group of domains" if context.groups else "colored by domain", quality, "domain"),
    )
    charts.label(right, title=_title("numbers: experts, at their median", quality, "expert"))
    _legend(fig, colors)
    experts = at["point_expert"].values
    named = np.unique(experts).tolist()
    _numbers(right, named, np.array([np.median(xy[experts == expert], axis=0) for expert in named]), (3.1, 2.8))
    projection = _projection(quality)
    caption(
        fig,
        context.caption,
        f"layer {layer}: {len(xy):,} outputs of {len(named)} experts, at most {table.attrs['num_samples']} each, on "
        f"{int(quality['num_documents'])} documents; {projection}; recovered: by vote of the "
        f"{int(quality['num_neighbors'])} nearest of other documents, full space; chance: the most frequent",
    )
    return fig


@styled
def each_expert(table: xr.Dataset, layer: int, context: Context) -> Figure:
    """A small map of each expert: its outputs colored by group of domains, over all experts' in gray."""
    at = table.isel(point=np.flatnonzero(table["point_layer"].values == layer))
    xy = np.column_stack([at["x"].values, at["y"].values])
    experts, domains = at["point_expert"].values, at["point_domain"].values.tolist()
    groups, colors = group_of(context)
    named = np.unique(experts).tolist()
    shown = named[:MOST_TILES]
    across = math.ceil(math.sqrt(len(shown)))
    down = math.ceil(len(shown) / across)
    tile = (style.PAGE_WIDTH - 0.1) / across
    fig, ax = style.figure("page", down * tile * 0.86 + 0.3)
    low, high = xy.min(axis=0), xy.max(axis=0)
    unit = (xy - low) / np.where(high > low, high - low, 1.0) * [0.88, 0.78] + [0.06, 0.05]
    corner = {expert: np.array([number % across, down - 1 - number // across]) for number, expert in enumerate(shown)}
    # One picture of all outputs, repeated: as many points again for each expert would take minutes to draw.
    counts, *_ = np.histogram2d(unit[:, 0], unit[:, 1], bins=90, range=[[0, 1], [0, 1]])
    shade = np.where(counts.T > 0, 0.55, 0.0)
    gray = np.full((down * shade.shape[0], across * shade.shape[1], 4), 0.72)
    gray[..., 3] = np.tile(shade, (down, across))
    for blank in range(len(shown), across * down):  # in the last row
        gray[: shade.shape[0], (blank % across) * shade.shape[1] : (blank % across + 1) * shade.shape[1], 3] = 0.0
    ax.imshow(gray, extent=(0, across, 0, down), origin="lower", zorder=1, interpolation="nearest")
    own = np.isin(experts, shown)
    moved = unit[own] + np.array([corner[expert] for expert in experts[own]])
    dot = float(np.clip(2.4 * (8 / across) ** 2, 0.8, 9))
    ax.scatter(*moved.T, s=dot, c=[colors[groups[domain]] for domain, mine in zip(domains, own, strict=True) if mine],
               linewidths=0, rasterized=True, zorder=2)  # fmt: skip
    for expert, (left, bottom) in corner.items():
        ax.text(left + 0.04, bottom + 0.97, str(expert), fontsize=LABEL_SIZE + 0.5, va="top", color=style.INK)
    for edge in range(across + 1):
        ax.axvline(edge, color="#e3e3e3", linewidth=0.5)
    for edge in range(down + 1):
        ax.axhline(edge, color="#e3e3e3", linewidth=0.5)
    ax.set_xlim(0, across)
    ax.set_ylim(0, down)
    ax.set_aspect("auto")
    ax.axis("off")
    _legend(fig, colors)
    left_out = f"; the first {len(shown)} of {len(named)} experts" if len(shown) < len(named) else ""
    caption(fig, context.caption, f"layer {layer}: one map for each expert, by number; dots: its outputs, at most "
            f"{table.attrs['num_samples']}, colored by group of the token's domain; gray: all experts' outputs; "
            f"{_projection(table.sel(layer=layer))}{left_out}")  # fmt: skip
    return fig


@styled
def means(table: xr.Dataset, context: Context) -> Figure:
    """Experts by their mean outputs, a panel for each layer."""
    layers = table["layer"].values.tolist()
    groups, colors = group_of(context)
    across = min(2, len(layers))
    down = math.ceil(len(layers) / across)
    fig, grid = style.figure("page", 2.9 * down + 0.3, down, across, squeeze=False)
    for ax in grid.flat[len(layers) :]:
        ax.set_visible(False)
    for ax, layer in zip(grid.flat, layers, strict=False):
        at = table.sel(layer=layer)
        xy = np.column_stack([at["mean_x"].values, at["mean_y"].values])
        seen = np.flatnonzero(np.isfinite(xy).all(axis=1))
        share = float(at["means_variance_explained_xy"])
        charts.label(
            ax, title=f"layer {layer}: {100 * share:.0f} % of the variance" if len(seen) else f"layer {layer}: no map"
        )
        if not len(seen):
            ax.axis("off")
            continue
        tints = [style.ink(colors[groups[domain]]) for domain in at["top_domain"].values[seen].tolist()]
        _bare(ax, xy[seen])
        _numbers(ax, seen.tolist(), xy[seen], (3.1 if across == 2 else 6.4, 2.5), tints)
    _legend(fig, colors)
    note = (
        "numbers: experts, at the first two principal components of the directions of their mean outputs; colored by "
    )
    caption(
        fig, context.caption, f"{note}the group of the domain that selects the expert most; lines: numbers moved aside"
    )
    return fig


@styled
def recovered(table: xr.Dataset, about: str) -> Figure:
    """How often neighbors recover expert and domain, by layer, beside chance."""
    fig, ax = style.figure("column", 2.4)
    layers = table["layer"].values
    for kind, color in COLORS.items():
        if not np.isfinite(table[f"{kind}_accuracy"].values).any():
            continue
        percents = {what: 100 * table[f"{kind}_{what}"].values for what in ("accuracy", "ci_low", "ci_high", "chance")}
        charts.band(ax, layers, percents["ci_low"], percents["ci_high"], color=color)
        charts.lines(ax, layers, {kind: percents["accuracy"]}, colors={kind: color}, legend=False)
        ax.plot(layers, percents["chance"], color=color, linestyle=DASHES, linewidth=1.0,
                marker="_" if len(layers) == 1 else "")  # fmt: skip
    ax.plot([], [], color=style.NEUTRAL, linestyle=DASHES, label="chance")
    ax.set_ylim(0, 100)
    charts.label(ax, x="layer", y="recovered (% of outputs)")
    charts.legend_above(ax)
    most = int(table["num_neighbors"].max())
    note = f"by a vote of the {most} nearest outputs of other documents, in the full space; bands: 95 % intervals over "
    caption(fig, about, f"{note}documents; chance: the most frequent expert or domain (majority-class baseline)")
    return fig


def _title(words: str, quality: xr.Dataset, kind: str) -> str:
    accuracy, chance = (100 * float(quality[f"{kind}_{what}"]) for what in ("accuracy", "chance"))
    if math.isnan(accuracy):
        return words
    return f"{words}\n{kind} recovered: {accuracy:.0f} % (chance {chance:.1f} %)"


def _projection(quality: xr.Dataset) -> str:
    """How a layer was projected, and the trustworthiness of that."""
    value = float(quality["trustworthiness"])
    trust = "" if math.isnan(value) else f", trustworthiness {value:.2f}"
    what = "their directions" if str(quality["metric"].item()) == "cosine" else "them"
    if str(quality["method"].item()) == "pca":
        return f"PCA of {what}, {100 * float(quality['variance_explained_xy']):.0f} % of the variance{trust}"
    return (
        f"UMAP of {int(quality['num_components'])} principal components of {what} "
        f"({100 * float(quality['variance_explained']):.0f} % of the variance){trust}"
    )


def _bare(ax: Axes, xy: NDArray[np.floating]) -> None:
    """No ticks: coordinates on a map have no unit; limits with a margin."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color("#d5d5d5")
    low, high = xy.min(axis=0), xy.max(axis=0)
    margin = np.where(high > low, 0.05 * (high - low), 1.0)
    ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
    ax.set_ylim(low[1] - margin[1], high[1] + margin[1])


def _legend(fig: Figure, colors: Mapping[str, str]) -> None:
    handles = [Line2D([], [], marker="s", linestyle="", color=color, label=name) for name, color in colors.items()]
    charts.top_legend(fig, handles, handletextpad=0.1, handlelength=0.8)


def _numbers(
    ax: Axes,
    names: Sequence[int],
    xy: NDArray[np.floating],
    inches: tuple[float, float],
    colors: Sequence[str] | None = None,
) -> None:
    """Writes numbers at coordinates, moved aside where they would cover each other, with a line to the coordinates."""
    low = np.array([ax.get_xlim()[0], ax.get_ylim()[0]])
    span = np.array([ax.get_xlim()[1], ax.get_ylim()[1]]) - low
    size = np.array(inches)
    home = (xy - low) / span * size
    widths = np.array([0.052 * len(str(name)) + 0.03 for name in names]) * LABEL_SIZE / 6
    moved = apart(home, np.column_stack([widths, np.full(len(widths), 0.095 * LABEL_SIZE / 6)]), size)
    for number, name in enumerate(names):
        target, shown = home[number] / size * span + low, moved[number] / size * span + low
        if np.hypot(*(moved[number] - home[number])) > 0.09:
            ax.plot(*zip(target, shown, strict=True), color=style.NEUTRAL, linewidth=0.35, zorder=3, marker="o",
                    markersize=1.2, markevery=[0])  # fmt: skip
        ax.text(
            shown[0], shown[1], str(name), fontsize=LABEL_SIZE, ha="center", va="center", zorder=4,
            color=colors[number] if colors else style.INK, weight="bold" if colors else "normal",
            path_effects=[withStroke(linewidth=1.4, foreground="white")],
        )  # fmt: skip


def apart(
    centers: NDArray[np.floating], boxes: NDArray[np.floating], limits: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Boxes moved, as little as possible, until none covers another and none leaves the page.

    Args:
        centers: (n, 2) where the boxes' centers should be.
        boxes: (n, 2) their widths and heights.
        limits: (2,) size of the page.

    Returns:
        (n, 2); boxes that overlap after `MOST_ROUNDS` rounds stay where they are.
    """
    moved = centers + np.random.default_rng(0).normal(scale=1e-4, size=centers.shape)
    reach = (boxes[:, None] + boxes[None]) / 2
    for _ in range(MOST_ROUNDS):
        offset = moved[:, None] - moved[None]
        overlap = reach - np.abs(offset)
        np.einsum("iik->ik", overlap)[:] = -1.0
        covers = (overlap > 0).all(axis=2)
        if not covers.any():
            break
        # Each pair is pushed along the axis in which it takes less.
        along = overlap.argmin(axis=2)
        push = np.zeros_like(offset)
        rows, columns = np.nonzero(covers)
        axis = along[rows, columns]
        push[rows, columns, axis] = 0.55 * overlap[rows, columns, axis] * np.sign(offset[rows, columns, axis])
        moved = np.clip(moved + push.sum(axis=1), boxes / 2, limits - boxes / 2)
    return moved
