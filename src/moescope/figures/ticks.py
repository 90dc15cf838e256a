"""How many labels an axis has room for, and how they are written: what `charts` needs to stay readable when small."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator

from moescope.figures import style
from moescope.figures.fonts import short_names, text_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_ROW = 0.0146
"""Inches that a line of print takes, for each point of its size."""
_SIZES = (style.SMALL_FONT_SIZE, 6.0, 5.2)
"""Sizes of the labels of cells: the largest at which there is room for all."""
_ROOM = {"x": 86.0, "y": 0.3}
"""What names along an axis may take at most: points of height; a share of the figure's width."""

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def power_of_ten(value: float, _position: int | None = None) -> str:
    """10⁻³ for 0.001: a tick formatter for axes whose ticks are powers of ten."""
    if value <= 0:
        return ""
    exponent = round(math.log10(value))
    return {0: "1", 1: "10"}.get(exponent, "10" + str(exponent).translate(_SUPERSCRIPTS))


def color_scale(
    values: np.ma.MaskedArray, vmin: float | None, vmax: float | None, center: float | None
) -> tuple[Normalize, str]:
    """Norm and color map: sequential, or diverging where there is a center."""
    filled = values.compressed()
    low = vmin if vmin is not None else float(filled.min()) if filled.size else 0.0
    high = vmax if vmax is not None else float(filled.max()) if filled.size else 1.0
    if center is None:
        return Normalize(low, max(high, low + 1e-12)), style.SEQUENTIAL
    margin = max(abs(high - center), abs(center - low)) * 1e-3 or 1e-12
    return TwoSlopeNorm(center, min(low, center - margin), max(high, center + margin)), style.DIVERGING


class NamedTicks(FixedFormatter):
    """Labels of ticks that stand for things with names.

    Attributes:
        names: The full names of what the labels stand for, however those are shortened.
    """

    def __init__(self, labels: Sequence[str], names: Sequence[str]) -> None:
        super().__init__(labels)
        self.names = list(names)


def name_ticks(
    ax: Axes,
    axis: Literal["x", "y"],
    positions: Sequence[float],
    names: Sequence[str],
    details: Sequence[str] | None = None,
    *,
    size: float = style.SMALL_FONT_SIZE,
    room: float | None = None,
) -> None:
    """Labels ticks with names, shortened in the middle where they would take the room of what is drawn.

    Args:
        ax: Where.
        axis: "x" or "y".
        positions: Of the ticks.
        names: One each.
        details: What follows each name and is never shortened.
        size: Of the print, points.
        room: Longest label, points; None: 30 % of the figure's width, or 1.2 inches of its height.
    """
    if room is None:
        fig = ax.get_figure(root=True)
        width = float(fig.get_size_inches()[0]) if fig is not None else 0.0
        room = _ROOM["x"] if axis == "x" else _ROOM["y"] * style.POINTS * width
    details = details or [""] * len(names)
    room -= max((text_width(detail, size) for detail in details), default=0.0)
    shown = short_names(names, size, max(room, 6 * size))
    which = ax.xaxis if axis == "x" else ax.yaxis
    which.set_major_locator(FixedLocator(list(positions)))
    # not set_ticklabels: it makes every tick at once, and again when the figure is drawn elsewhere
    labels = [name + detail for name, detail in zip(shown, details, strict=True)]
    which.set_major_formatter(NamedTicks(labels, names))
    which.set_tick_params(labelsize=size)


def cell_labels(ax: Axes, axis: Literal["x", "y"], count: int, names: Sequence[Any] | NDArray[Any] | None) -> None:
    """Labels the cells along an axis: smaller letters first, then in two rows, then every second, fourth, ... cell."""
    texts = [str(name) for name in (range(count) if names is None else names)]
    numbers = all(text.lstrip("-").isdigit() for text in texts)
    length = axis_inches(ax, axis)
    centers = [position + 0.5 for position in range(count)]
    if axis == "x" and numbers and [int(text) for text in texts] == sorted(int(text) for text in texts):
        step = stride(count, length, 0.06 * max((len(text) for text in texts), default=1) + 0.09)
        name_ticks(ax, axis, centers[::step], texts[::step])
        return
    size = next((size for size in _SIZES if size * _ROW * count <= length), _SIZES[-1])
    each = size * _ROW
    if axis == "x":
        ax.xaxis.set_tick_params(which="both", labelrotation=90)
        if numbers and length < each * count <= 2 * length:
            name_ticks(ax, axis, centers[::2], texts[::2], size=size)
            ax.xaxis.set_minor_locator(FixedLocator(centers[1::2]))
            ax.xaxis.set_minor_formatter(FixedFormatter(texts[1::2]))
            below = max(text_width(text, size) for text in texts)
            ax.xaxis.set_tick_params(which="minor", labelsize=size, length=0, pad=4 + below)
            return
    step = stride(count, length, each)
    name_ticks(ax, axis, centers[::step], texts[::step], size=size)


def value_ticks(ax: Axes, low: float, high: float, inches: float) -> None:
    """Round values on a short horizontal axis, as many as there is room to label."""
    values = [value for value in MaxNLocator(4).tick_values(low, high) if low <= value <= high]
    digits = max((len(f"{value:.10f}".rstrip("0").partition(".")[2]) for value in values), default=0)
    texts = [f"{value:.{digits}f}" for value in values]
    widest = max((text_width(text, style.SMALL_FONT_SIZE) for text in texts), default=0.0)
    step = stride(len(values), inches, (widest + 5) / style.POINTS)
    ax.xaxis.set_major_locator(FixedLocator(values[::step]))
    ax.xaxis.set_major_formatter(FixedFormatter(texts[::step]))


def integer_ticks(x: np.ndarray, inches: float) -> list[float]:
    """Those values of x that there is room to label."""
    values = np.unique(x)
    return list(values[:: stride(len(values), inches, 0.06 * len(f"{values.max(initial=0):.0f}") + 0.12)])


def stride(count: int, inches: float, per_label: float) -> int:
    """Every how many-th label fits."""
    room = max(1, int(inches / per_label))
    return next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128, 10**9) if count <= room * step)


def axis_inches(ax: Axes, axis: Literal["x", "y"]) -> float:
    """Roughly how long an axis will be: the layout is only known when the figure is drawn."""
    fig, spec = ax.get_figure(root=True), ax.get_subplotspec()
    if fig is None or spec is None:
        return 2.0
    width, height = (float(size) for size in fig.get_size_inches())
    grid = spec.get_gridspec()
    if axis == "x":
        ratios, span, inches, around = grid.get_width_ratios(), spec.colspan, width, 0.25 * width
    else:
        ratios, span, inches, around = grid.get_height_ratios(), spec.rowspan, height, 0.5 + 0.1 * grid.nrows
    shares = np.asarray(ratios, dtype=float)
    return max(0.3, float((inches - around) * shares[span.start : span.stop].sum() / shares.sum()))
