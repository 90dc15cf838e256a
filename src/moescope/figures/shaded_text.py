"""Running text whose tokens are shaded by a value: monospaced, wrapped, nothing hidden and nothing interpreted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.patches import Rectangle

from moescope.figures import style
from moescope.figures.fonts import MONOSPACED, fitting, text_width
from moescope.figures.style import styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE_SPACING = 1.55


@styled
def shaded_text(
    ax: Axes,
    tokens: Sequence[str],
    values: Sequence[float],
    *,
    at: tuple[float, float],
    width: float,
    highest: float,
    target: int | None = None,
    size: float = 6.0,
    most_lines: int = 2,
) -> float:
    """Draws tokens side by side into axes whose unit is the point, y downwards; wraps between tokens.

    Args:
        ax: Where to draw.
        tokens: Each token's text; spaces and line breaks must have been made visible.
        values: One each: the shade; 0 has none.
        at: Left and upper end of the first line, points.
        width: Where lines end, points from the left end.
        highest: Value of the darkest shade.
        target: Place of the token that is framed.
        size: Of the print, points.
        most_lines: Further lines are left out; the line with the target is always among those drawn.

    Returns:
        y of the lower end of the last line.
    """
    lines: list[list[tuple[int, str, float, float]]] = [[]]
    x = 0.0
    for place, token in enumerate(tokens):
        text = fitting(token, size, width, MONOSPACED)
        across = text_width(text, size, MONOSPACED)
        if lines[-1] and x + across > width:
            lines.append([])
            x = 0.0
        lines[-1].append((place, text, x, across))
        x += across
    home = next((n for n, line in enumerate(lines) if target in [place for place, *_ in line]), 0)
    first = min(max(0, home - most_lines + 1), max(0, len(lines) - most_lines))
    left, top = at
    height = size * LINE_SPACING
    shades = colormaps[style.SEQUENTIAL]
    for row, line in enumerate(lines[first : first + most_lines]):
        y = top + row * height
        for place, text, start, across in line:
            share = min(1.0, values[place] / highest) if highest > 0 else 0.0
            color = shades(0.12 + 0.83 * share) if share > 0 else None
            if color is not None:
                ax.add_patch(Rectangle((left + start, y), across, height * 0.94, facecolor=color, linewidth=0))
            if place == target:
                ax.add_patch(
                    Rectangle((left + start, y), across, height * 0.94, fill=False, edgecolor=style.INK, linewidth=0.7)
                )
            dark = color is not None and 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2] < 0.45
            ax.text(
                left + start, y + height * 0.70, text, family=MONOSPACED, fontsize=size, va="baseline",
                color="white" if dark else style.INK,
            )  # fmt: skip
    return top + len(lines[first : first + most_lines]) * height
