"""Text in any script: fonts of the system, code points where there is none, names shortened to the room there is."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure

from moescope.figures import caption, charts, figure, fonts, style
from tests.figures.drawing import outside, overlaps, texts_of

UNKNOWN = "\U000e1234"
"""Assigned to nothing, so in no font of any system."""
LONG = [
    "Culture_and_the_humanities__Games_and_Toys",
    "Culture_and_the_humanities__Performing_arts_and_Toys",
    "General_reference__Further_research_tools_and_topics",
    "web",
]


@pytest.fixture
def square_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A font installed after matplotlib made its list, with a square for the character that no other font has."""
    pen = TTGlyphPen(None)
    for number, point in enumerate([(0, 0), (0, 700), (700, 700), (700, 0)]):
        (pen.lineTo if number else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(UNKNOWN): "square"})
    builder.setupGlyf({".notdef": square, "square": square})
    builder.setupHorizontalMetrics({".notdef": (800, 0), "square": (1600, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Only Squares", "styleName": "Regular", "psName": "OnlySquares"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "squares.ttf")
    before = list(font_manager.fontManager.ttflist)
    found = font_manager.findSystemFonts()
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [*found, str(tmp_path / "squares.ttf")])
    caches = (fonts._candidates, fonts._covering, fonts._written, fonts._advance)
    for cache in caches:
        cache.cache_clear()
    yield "Only Squares"
    font_manager.fontManager.ttflist = before
    for cache in caches:
        cache.cache_clear()


def bars_of(names: list[str], groups: dict[str, str] | None = None) -> Figure:
    fig, ax = figure("column", style.height_for(len(names)))
    charts.bars(ax, names, range(1, len(names) + 1), xlabel="selection frequency", groups=groups)
    caption(fig, "a model · a corpus")
    return fig


def saved(fig: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that is missing is a warning of matplotlib's
        fig.savefig(file, format=kind, dpi=60)
    return file.getvalue()


def test_a_character_that_no_font_has_is_written_as_its_code_point() -> None:
    fig = bars_of([f"{UNKNOWN} news", "web"])
    fig.axes[0].set_title(UNKNOWN)
    assert saved(fig, "png")
    assert saved(fig, "pdf")
    assert {"⟨U+E1234⟩ news", "⟨U+E1234⟩", "web"} <= {text for text, _ in texts_of(fig)}


def test_a_font_of_the_system_draws_what_the_base_font_lacks(square_font: str) -> None:
    fig = bars_of([f"{UNKNOWN} news", "web"])
    assert saved(fig, "png")
    pdf = saved(fig, "pdf")
    assert b"OnlySquares" in pdf  # embedded
    assert b"/Type3" not in pdf
    assert f"{UNKNOWN} news" in {text for text, _ in texts_of(fig)}
    assert fonts.text_width(UNKNOWN, 10) == pytest.approx(16)
    assert fonts.families([f"a{UNKNOWN}"]) == [fonts.SANS, square_font]


def test_controls_and_directions_of_text_are_shown_and_not_followed() -> None:
    assert fonts.drawable("a\nb\u202ec") == "a⟨U+000A⟩b⟨U+202E⟩c"
    assert fonts.drawable("плюс € Ω") == "плюс € Ω"


def test_names_are_shortened_in_the_middle_and_stay_different() -> None:
    shown = fonts.short_names(LONG, 7, 70)
    assert len(set(shown)) == len(LONG)
    assert shown[-1] == "web"
    assert all(fonts.text_width(name, 7) <= 70 for name in shown)
    assert all("…" in name for name in shown[:-1])
    alike = [f"{'a' * 40}{number:02}{'b' * 40}" for number in range(30)]
    assert len(set(fonts.short_names(alike, 7, 60))) == 30
    assert fonts.short_names(["same", "same"], 7, 60) == ["same", "same"]


@pytest.mark.parametrize("width", [30, 100, 300])
def test_lines_are_wrapped_at_spaces_and_inside_words_that_are_too_long(width: float) -> None:
    text = f"one two {'very' * 30} three"
    lines = fonts.wrapped(text, 7, width, most_lines=None)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(fonts.text_width(line, 7) <= width for line in lines)


def heatmap_of(names: list[str]) -> Figure:
    fig, axes = figure("page", 2.5, 1, 2, sharey=True)
    groups = {name: f"a group with a rather long name, number {number}" for number, name in enumerate(names)}
    for ax in axes:
        mesh = charts.heatmap(
            ax, [[1.0, 2.0]] * len(names), label="x", rows=names, columns=names[:2], groups=groups, colorbar=False
        )
    charts.panel_colorbar(mesh, list(axes), "share")
    charts.group_legend(fig, groups)
    caption(fig, "a model")
    return fig


@pytest.mark.parametrize("make", [bars_of, heatmap_of])
@pytest.mark.parametrize("names", [LONG, [f"{name} {number}" for number in range(10) for name in LONG]], ids=len)
def test_long_names_leave_room_for_what_is_drawn(make, names: list[str]) -> None:
    fig = make(names)
    assert outside(fig) == []
    assert make is heatmap_of or overlaps(fig) == []
    assert min(ax.get_position().width for ax in fig.axes if ax.get_label() != "<colorbar>") > 0.2
    colored = bars_of(names, {names[0]: "prose"})
    colored.draw_without_rendering()
    assert colored.axes[0].get_yticklabels()[0].get_color() != style.INK


def test_fonts_with_postscript_outlines_are_told_from_truetype() -> None:
    assert not fonts.has_postscript_outlines(fonts.SANS)
    entry = next((e for e in font_manager.fontManager.ttflist if e.fname.endswith(".otf")), None)
    if entry is not None:
        assert fonts.has_postscript_outlines(entry.name)


def test_a_figure_says_what_it_shows() -> None:
    fig, ax = figure()
    charts.lines(ax, [0, 1], {"mean": [1, 2], "median": [2, 3]}, xlabel="layer", ylabel="entropy (nats)", title="all")
    said = fig_description(fig)
    for part in ("Line chart", "Titles: all", "layer, ", "entropy (nats)", "mean, median"):
        assert part in said
    assert fig_description(heatmap_of(LONG)).startswith("2 heat maps. ")
    assert "Color: share, 1 to 2" in fig_description(heatmap_of(LONG))
    assert "Culture_and_the_humanities__Games_and_Toys to web" in fig_description(bars_of(LONG))


def fig_description(fig: Figure) -> str:
    from PIL import Image

    return str(Image.open(io.BytesIO(saved(fig, "png"))).info["Description"])
