"""Running text whose tokens are shaded by a value: monospaced, wrapped, nothing hidden and nothing interpreted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import LoadFlags
from matplotlib.patches import Rectangle

from moescope.figures import style
from moescope.figures.style import styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ft2font import FT2Font

MONOSPACED = "DejaVu Sans Mono"  # ships with matplotlib
LINE_SPACING = 1.55
ELLIPSIS = "…"


@cache
def _font(family: str) -> FT2Font:
    return get_font(findfont(FontProperties(family=family)))


@cache
def _advance(character: str, family: str) -> float:
    """Width of a character in em."""
    font = _font(family)
    glyph = font.load_char(ord(character), flags=LoadFlags.NO_HINTING | LoadFlags.NO_SCALE)
    return float(glyph.horiAdvance / font.units_per_EM)


@cache
def drawable(text: str, family: str = MONOSPACED) -> str:
    """Text in which characters that the font has no glyph for are written as code points, ⟨U+6F22⟩."""
    font = _font(family)
    return "".join(
        character if font.get_char_index(ord(character)) else f"⟨U+{ord(character):04X}⟩" for character in text
    )


def text_width(text: str, size: float, family: str = MONOSPACED) -> float:
    """Width in points of drawable text."""
    return size * sum(_advance(character, family) for character in text)


def fitting(text: str, size: float, width: float, family: str = MONOSPACED) -> str:
    """Drawable text, cut with … where it is wider than `width` points."""
    text = drawable(text, family)
    if text_width(text, size, family) <= width:
        return text
    room = width - text_width(ELLIPSIS, size, family)
    kept, used = [], 0.0
    for character in text:
        used += text_width(character, size, family)
        if used > room:
            break
        kept.append(character)
    return "".join(kept) + ELLIPSIS


def wrapped(text: str, size: float, width: float, family: str = MONOSPACED, most_lines: int = 2) -> list[str]:
    """Drawable text as lines of at most `width` points, broken at spaces; the last is cut where more would follow."""
    lines: list[str] = []
    for word in drawable(text, family).split(" "):
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and (len(lines) == most_lines or text_width(longer, size, family) <= width):
            lines[-1] = longer
        else:
            lines.append(word)
    return [fitting(line, size, width, family) for line in lines]


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
        text = fitting(token, size, width)
        across = text_width(text, size)
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
