"""How many labels an axis has room for, and how they are written: what `charts` needs to stay readable when small."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.ticker import FixedFormatter, FixedLocator

from moescope.figures import style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

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


def cell_labels(ax: Axes, axis: Literal["x", "y"], count: int, names: Sequence[Any] | NDArray[Any] | None) -> None:
    """Labels the cells along an axis: smaller letters first, then every second, fourth, ... where there is no room."""
    texts = [str(name) for name in (range(count) if names is None else names)]
    words = any(not text.lstrip("-").isdigit() for text in texts)
    length = axis_inches(ax, axis)
    upright = axis == "x" and not words
    per_label = 0.06 * max((len(text) for text in texts), default=1) + 0.09 if upright else 0.102
    small = not upright and per_label * count > length
    step = stride(count, length, 0.086 if small else per_label)
    positions = range(0, count, step)
    which = ax.xaxis if axis == "x" else ax.yaxis
    which.set_major_locator(FixedLocator([position + 0.5 for position in positions]))
    # not set_ticklabels: it makes every tick at once, and again when the figure is drawn elsewhere
    which.set_major_formatter(FixedFormatter([texts[position] for position in positions]))
    if small:
        which.set_tick_params(labelsize=6)
    if axis == "x" and words:
        which.set_tick_params(labelrotation=90)


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
