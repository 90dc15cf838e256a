"""Sizes, colors, small print, and that a reader's own matplotlib settings stay as they were."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from moescope.figures import caption, charts, figure, style, styled
from tests.figures.drawing import context, texts_of

# Machado, Oliveira, Fernandes 2009, severity 1.0, on linear RGB
COLOR_BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color: object) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    t = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", COLOR_BLINDNESS)
def test_groups_are_told_apart_with_any_eyes(kind: str) -> None:
    seen = [lab(np.array(COLOR_BLINDNESS[kind]) @ linear(color)) for color in style.COLORS]
    nearest = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))
    assert nearest > 12  # 2.3 is just noticeable side by side


def test_text_in_any_group_color_is_readable_on_white() -> None:
    for color in (*style.COLORS, style.NEUTRAL):
        luminance = float(TO_XYZ[1] @ linear(style.ink(color)))
        assert 1.05 / (luminance + 0.05) >= 4.5
    assert style.ink("#000000") == "#000000"


@pytest.mark.parametrize("name", [style.SEQUENTIAL, style.DIVERGING])
def test_color_maps_survive_gray_print(name: str) -> None:
    lightness = np.array([lab(linear(color))[0] for color in matplotlib.colormaps[name](np.linspace(0, 1, 64))])
    if name == style.SEQUENTIAL:
        assert (np.diff(lightness) < 0).all()
    else:
        assert (np.diff(lightness[:32]) > 0).all()
        assert (np.diff(lightness[33:]) < 0).all()


def test_a_readers_own_settings_neither_change_nor_matter(tmp_path: Path) -> None:
    mine = {"font.size": 31.0, "figure.facecolor": "black", "text.color": "yellow", "pdf.fonttype": 3}
    with matplotlib.rc_context(mine):
        fig, ax = figure()
        charts.lines(ax, [0, 1], {"a": [0, 1]}, xlabel="layer", ylabel="y", title="title")
        fig.supxlabel("shared")
        caption(fig, context())
        fig.savefig(tmp_path / "theirs.png")
        fig.savefig(tmp_path / "theirs.pdf")
        assert {name: matplotlib.rcParams[name] for name in mine} == mine
    fig, ax = figure()
    charts.lines(ax, [0, 1], {"a": [0, 1]}, xlabel="layer", ylabel="y", title="title")
    fig.supxlabel("shared")
    caption(fig, context())
    fig.savefig(tmp_path / "plain.png")
    fig.savefig(tmp_path / "plain.pdf")
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"theirs.{suffix}").read_bytes() == (tmp_path / f"plain.{suffix}").read_bytes()


def test_styled_functions_and_generators_leave_no_trace_between_steps() -> None:
    before = matplotlib.rcParams["font.size"]
    seen = []

    @styled
    def once() -> float:
        return float(matplotlib.rcParams["font.size"])

    @styled
    def steps() -> Iterator[float]:
        for _ in range(3):
            yield float(matplotlib.rcParams["font.size"])

    assert once() == style.FONT_SIZE
    for size in steps():
        seen.append((size, matplotlib.rcParams["font.size"]))
    assert seen == [(style.FONT_SIZE, before)] * 3


def test_the_caption_says_model_tokens_and_corpus_and_is_given_room() -> None:
    fig, ax = figure()
    charts.lines(ax, [0, 1], {"a": [0, 1]}, xlabel="layer", ylabel="y")
    caption(fig, context(), "note " * 40)
    texts = dict(texts_of(fig))
    small = next(text for text in texts if text.startswith("allenai"))
    assert small.replace("\n", " ").startswith("allenai/OLMoE-1B-7B-0924 · 1,234,567 tokens · embedded · note")
    assert small.count("\n") >= 2
    assert texts["layer"].y0 > texts[small].y1
    assert texts[small].x1 <= fig.bbox.x1


def test_a_name_without_spaces_longer_than_the_line_is_broken() -> None:
    fig, ax = figure()
    charts.lines(ax, [0, 1], {"a": [0, 1]}, xlabel="layer", ylabel="y")
    caption(fig, context("/somewhere/" + "very-long-folder-name/" * 12))
    assert max(box.x1 for _, box in texts_of(fig)) <= fig.bbox.x1


def test_groups_have_their_colors_and_a_ninth_is_neutral() -> None:
    colors = style.group_colors({f"d{number}": f"g{number}" for number in range(10)})
    assert len(set(list(colors.values())[:8])) == 8
    assert list(colors.values())[8:] == [style.NEUTRAL] * 2
    assert style.group_colors({"a": "code", "b": "prose"}) == {
        "prose": style.GROUP_COLORS["prose"],
        "code": style.GROUP_COLORS["code"],
    }
    mixed = style.group_colors({"a": "novel", "b": "code"})
    assert mixed["code"] == style.GROUP_COLORS["code"] != mixed["novel"]


def test_every_row_of_a_tall_figure_has_room() -> None:
    assert style.height_for(22) > style.height_for(10) >= style.height_for(1) > 1
