"""Shaded text: every token drawn as it is, wrapped within its width, the target always among the lines shown."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from moescope.figures import style
from moescope.figures.fonts import MONOSPACED, fitting, text_width, wrapped
from moescope.figures.shaded_text import shaded_text

HOSTILE = ["<b>", "$x^2$", "␣\\alpha", "\U000e1234", "\x07", "e\u0301", "&amp;", "_{", "%s"]


def draw(tokens, values, width=200.0, **options):
    figure = style.StyledFigure(figsize=(4, 2))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(0, 288)
    ax.set_ylim(144, 0)
    end = shaded_text(ax, tokens, values, at=(10.0, 5.0), width=width, highest=max(values, default=0.0), **options)
    return figure, ax, end


def test_text_is_text(tmp_path):
    figure, ax, _ = draw(HOSTILE, [1.0] * len(HOSTILE))
    shown = [text.get_text() for text in ax.texts]
    assert shown == ["<b>", "$x^2$", "␣\\alpha", "⟨U+E1234⟩", "⟨U+0007⟩", "e\u0301", "&amp;", "_{", "%s"]
    assert not any(text.get_parse_math() for text in ax.texts)
    figure.savefig(tmp_path / "hostile.pdf")  # "$x^2$" and "_{" would be an error as mathematics
    figure.savefig(tmp_path / "hostile.png", dpi=50)


def test_the_widths_are_those_that_are_drawn():
    for text in ("␣the", "iiiii", "WWW", "⟨U+6F22⟩"):
        figure = Figure(figsize=(4, 2), dpi=72)
        label = figure.text(0, 0, text, family="DejaVu Sans Mono", fontsize=10, parse_math=False)
        measured = label.get_window_extent(figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else
                                           __import__("matplotlib.backends.backend_agg", fromlist=["x"])
                                           .FigureCanvasAgg(figure).get_renderer()).width  # fmt: skip
        assert text_width(text, 10, MONOSPACED) == pytest.approx(measured, abs=2.5)


def test_lines_end_within_the_width_and_no_token_is_lost():
    tokens = [f"token{n}" for n in range(12)]
    _, ax, end = draw(tokens, [float(n) for n in range(12)], width=120.0, most_lines=12)
    assert [text.get_text() for text in ax.texts] == tokens
    for text in ax.texts:
        assert text.get_position()[0] + text_width(text.get_text(), 6.0, MONOSPACED) <= 130.0 + 1e-6
    rows = sorted({text.get_position()[1] for text in ax.texts})
    assert len(rows) > 2
    assert end > rows[-1]


def test_the_target_is_framed_and_always_shown():
    tokens = [f"token{n}" for n in range(40)]
    for target in (0, 20, 39):
        _, ax, _ = draw(tokens, [1.0] * 40, width=120.0, target=target, most_lines=2)
        assert f"token{target}" in [text.get_text() for text in ax.texts]
        frames = [patch for patch in ax.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
        assert len(frames) == 1


def test_zero_has_no_shade_and_more_is_darker():
    _, ax, _ = draw(["a", "b", "c"], [0.0, 1.0, 4.0])
    shades = [sum(patch.get_facecolor()[:3]) for patch in ax.patches]
    assert len(shades) == 2
    assert shades[0] > shades[1]


def test_fitting_and_wrapping():
    assert fitting("short", 6, 100) == "short"
    cut = fitting("a" * 100, 6, 50)
    assert cut.endswith("…")
    assert text_width(cut, 6) <= 50
    lines = wrapped("one two three four five six seven", 6, 40, most_lines=2)
    assert len(lines) == 2
    assert all(text_width(line, 6) <= 40 for line in lines)
