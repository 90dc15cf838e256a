"""What tests of figures share: what a caption needs, texts that cover each other, the numbers drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

GROUPS = {
    "novels": "prose",
    "drama": "prose",
    "wikipedia": "reference",
    "python": "code",
    "javascript": "code",
    "mathematics": "formal",
    "russian": "languages",
}


def context(name: str = "allenai/OLMoE-1B-7B-0924") -> str:
    """The line below a figure, as `Context.caption` has it."""
    return f"{name} · 1,234,567 tokens · embedded"


def texts_of(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that shows, with its place in pixels, once the figure is laid out."""
    FigureCanvasAgg(figure).draw()
    ticks = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            scale = axis.get_transform().transform
            start, end = sorted(scale([low, high]))
            slack = 1e-9 * (end - start)
            shown = [tick for tick in axis.get_major_ticks() if start - slack <= scale(tick.get_loc()) <= end + slack]
            every = {label for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)}
            ticks |= every - {label for tick in shown for label in (tick.label1, tick.label2)}
    found = []
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text not in ticks:
            extent = text.get_window_extent()
            if extent.width > 0 and (text.axes is None or text.axes.get_visible()):
                found.append((text.get_text(), extent))
    return found


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other by more than a pixel."""
    texts = texts_of(figure)
    pairs = []
    for position, (name, box) in enumerate(texts):
        for other, other_box in texts[position + 1 :]:
            width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            if width > 1 and height > 1:
                pairs.append((name, other))
    return pairs


def outside(figure: Figure) -> list[str]:
    """Texts that stick out of the figure by more than a pixel."""
    page = figure.bbox
    return [
        name
        for name, box in texts_of(figure)
        if box.x0 < page.x0 - 1 or box.x1 > page.x1 + 1 or box.y0 < page.y0 - 1 or box.y1 > page.y1 + 1
    ]


def drawn(figure: Figure) -> list[str]:
    """Renders it and returns the texts in it, none of which covers another or leaves the page."""
    assert overlaps(figure) == []
    assert outside(figure) == []
    return [text for text, _ in texts_of(figure)]


def numbers_of(figure: Figure) -> np.ndarray:
    """Every finite number drawn: of lines, cells, points (both coordinates) and bars (both lengths)."""
    found: list[Any] = []
    for ax in figure.axes:
        for line in ax.lines:
            found += [line.get_xdata(), line.get_ydata()]
        for drawn in (*ax.collections, *ax.images):
            if drawn.get_array() is not None:
                found.append(np.ma.filled(np.ma.asarray(drawn.get_array(), dtype=float), np.nan))
            if hasattr(drawn, "get_offsets"):
                found.append(np.ma.filled(np.ma.asarray(drawn.get_offsets(), dtype=float), np.nan))
        found += [[bar.get_width(), bar.get_height()] for bar in ax.patches if isinstance(bar, Rectangle)]
    numbers = np.concatenate([np.zeros(0), *(np.asarray(part, dtype=float).ravel() for part in found)])
    return numbers[np.isfinite(numbers)]


def undrawn(figure: Figure, values: ArrayLike) -> list[float]:
    """Which of these numbers the figure does not draw; what is no number is not looked for."""
    wanted = np.asarray(values, dtype=float).ravel()
    wanted = wanted[np.isfinite(wanted)]
    assert wanted.size, "no number to look for"
    drawn = numbers_of(figure)
    return [value for value in wanted.tolist() if not np.isclose(drawn, value, rtol=1e-6, atol=1e-9).any()]
