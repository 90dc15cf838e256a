"""Every chart form, drawn: saved with fonts as text, labeled, and without texts that cover each other."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from moescope.figures import caption, charts, figure, style
from tests.figures.drawing import GROUPS, context, outside, overlaps, texts_of

DOMAINS = list(GROUPS)


def heatmap_of_domains() -> Figure:
    values = np.random.default_rng(0).random((len(DOMAINS), 64))
    values[2, 5] = np.nan
    fig, ax = figure("page", style.height_for(len(DOMAINS)))
    charts.heatmap(
        ax, values, rows=DOMAINS, label="domain specialization", xlabel="expert", groups=GROUPS, row_gaps=[2, 3, 5, 6]
    )
    charts.group_legend(fig, GROUPS)
    return fig


def heatmap_of_layers() -> Figure:
    fig, ax = figure("column", 2.8)
    values = np.random.default_rng(1).gamma(2, 0.5, (48, 128))
    charts.heatmap(ax, values, label="lift (ratio)", center=1.0, xlabel="expert", ylabel="layer", title="lift")
    return fig


def heatmap_of_words_both_ways() -> Figure:
    fig, ax = figure("column", 3.4)
    values = np.random.default_rng(2).random((7, 7))
    charts.heatmap(ax, values, rows=DOMAINS, columns=DOMAINS, label="overlap", groups=GROUPS)
    return fig


def one_color_bar_for_panels() -> Figure:
    fig, axes = charts.small_multiples(3)
    for number, ax in enumerate(axes):
        values = np.random.default_rng(number).random((8, 8))
        mesh = charts.heatmap(ax, values, label="", vmin=0, vmax=1, title=f"layer {number}", colorbar=False)
    charts.panel_colorbar(mesh, axes, "co-activation")
    fig.supxlabel("expert")
    return fig


def lines_with_bands() -> Figure:
    fig, ax = figure()
    layers = np.arange(48)
    series = {"mean over all experts": np.sin(layers / 9) + 2, "median": np.cos(layers / 9) + 2}
    bands = {"median": (series["median"] - 0.2, series["median"] + 0.2)}
    charts.lines(
        ax, layers, series, bands=bands, xlabel="layer", ylabel="entropy (nats)", baseline=("uniform, ln 64", 4.16)
    )
    return fig


def lines_of_one_layer() -> Figure:
    fig, ax = figure()
    charts.lines(ax, [7], {"mean": [2.0]}, bands={"mean": ([1.5], [2.5])}, xlabel="layer", ylabel="entropy (nats)")
    return fig


def logarithmic_lines() -> Figure:
    fig, (left, right) = figure("page", 2.4, 1, 2)
    charts.lines(left, range(9), {"a": 10.0 ** -np.arange(9)}, xlabel="rank", ylabel="mean weight", log_y=True)
    charts.lines(right, range(9), {"a": np.linspace(1, 7, 9)}, xlabel="rank", ylabel="mean weight", log_y=True)
    return fig


def histogram_linear() -> Figure:
    fig, ax = figure()
    values = np.random.default_rng(3).normal(size=1000)
    counts, edges = np.histogram(values, 40)
    charts.histogram(ax, edges, counts, xlabel="router logit", ylabel="tokens", name="layer 1")
    charts.histogram(ax, edges, counts[::-1], filled=False, steps=False, color=style.COLORS[1], name="layer 2")
    charts.label(ax, title="logits")
    charts.legend_above(ax)
    return fig


def histogram_logarithmic() -> Figure:
    fig, ax = figure()
    edges = np.logspace(-7, 0, 50)
    counts = np.random.default_rng(4).poisson(3, 49)
    charts.histogram(ax, edges, counts, xlabel="probability", ylabel="values", log_x=True, log_y=True)
    return fig


def bars_with_intervals() -> Figure:
    fig, ax = figure("column", style.height_for(len(DOMAINS)))
    values = np.linspace(0.1, 0.9, len(DOMAINS))
    low = np.where(values > 0.5, np.nan, values - 0.05)
    charts.bars(
        ax, DOMAINS, values, low=low, high=values + 0.05, xlabel="selection frequency", groups=GROUPS,
        baseline=("uniform, K/E", 0.125), title="expert 9 of layer 1",
    )  # fmt: skip
    return fig


def multiples() -> Figure:
    fig, axes = charts.small_multiples(13)
    for number, ax in enumerate(axes):
        charts.histogram(ax, np.arange(11), np.arange(10) + number, title=f"layer {number}")
    fig.supxlabel("router entropy (nats)")
    fig.supylabel("density of tokens (1/nat)")
    return fig


def lines_by_depth() -> Figure:
    fig, axes = figure("page", 4.0, 2, 2)
    layers = list(range(3, 60))
    for ax in axes.flat:
        series = {str(layer): np.arange(8) * layer for layer in layers}
        colors = {str(layer): color for layer, color in charts.depth_colors(layers).items()}
        charts.lines(ax, range(8), series, colors=colors, legend=False, xlabel="rank", ylabel="mean logit")
    charts.depth_key(fig, axes, layers)
    return fig


CHARTS: list[Callable[[], Figure]] = [
    heatmap_of_domains,
    heatmap_of_layers,
    heatmap_of_words_both_ways,
    one_color_bar_for_panels,
    lines_with_bands,
    lines_of_one_layer,
    logarithmic_lines,
    histogram_linear,
    histogram_logarithmic,
    bars_with_intervals,
    multiples,
    lines_by_depth,
]


@pytest.fixture(params=CHARTS, ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Callable[[], Figure]:
    return request.param


def captioned(make: Callable[[], Figure]) -> Figure:
    fig = make()
    caption(
        fig, context(), "bands: 5-95 % of tokens; a note long enough that it has to go over more than one line " * 2
    )
    return fig


@pytest.mark.filterwarnings("error")
def test_it_is_saved_with_its_fonts_as_text(make: Callable[[], Figure], tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    fig = captioned(make)
    for suffix in ("pdf", "png"):
        fig.savefig(tmp_path / f"figure.{suffix}")
    assert dict(matplotlib.rcParams) == before
    pdf = (tmp_path / "figure.pdf").read_bytes()
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"/Type3" not in pdf  # glyphs drawn as shapes
    assert b"/ToUnicode" in pdf
    width, height = fig.get_size_inches()
    assert width in (style.COLUMN_WIDTH, style.PAGE_WIDTH)
    image = imread(tmp_path / "figure.png")
    assert image.shape[:2] == pytest.approx((height * style.DPI, width * style.DPI), abs=1)
    assert (image[0, 0, :3] == 1).all()


def test_texts_neither_cover_each_other_nor_leave_the_page(make: Callable[[], Figure]) -> None:
    fig = captioned(make)
    assert overlaps(fig) == []
    assert outside(fig) == []


def test_axes_say_what_they_are(make: Callable[[], Figure]) -> None:
    fig = make()
    shared = fig.get_supxlabel()
    for ax in fig.axes:
        if ax.get_visible():
            color_bar = ax.get_label() == "<colorbar>"
            labeled_rows = ax.get_yticklabels() and not ax.get_yticklabels()[0].get_text().isdigit()
            assert ax.get_xlabel() or shared or color_bar or labeled_rows
            assert not color_bar or ax.get_ylabel()


def test_the_same_figure_is_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for suffix in ("pdf", "png"):
            captioned(heatmap_of_domains).savefig(tmp_path / f"{name}.{suffix}")
    for suffix in ("pdf", "png"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_heatmap_cells_have_the_colors_of_their_values() -> None:
    fig, ax = figure()
    mesh = charts.heatmap(ax, [[0.0, 1.0], [2.0, np.nan]], label="x", center=1.0)
    assert tuple(fig.get_size_inches()) == pytest.approx((3.3, 2.2))
    fig.draw_without_rendering()
    colors = [to_hex(color) for color in mesh.get_facecolors()[:3]]
    scale = matplotlib.colormaps[style.DIVERGING]
    assert colors == [to_hex(scale(0.0)), to_hex(scale(0.5)), to_hex(scale(1.0))]
    assert mesh.get_array().mask.ravel().tolist() == [False, False, False, True]
    assert ax.get_ylim() == (2.0, 0.0)  # row 0 on top


@pytest.mark.parametrize("values", [np.full((3, 3), np.nan), np.zeros((3, 3)), np.full((2, 5), 0.7)], ids=str)
@pytest.mark.parametrize("center", [None, 0.0, 1.0])
@pytest.mark.filterwarnings("error")
def test_heatmaps_of_nothing_and_of_one_value_are_drawn(
    values: np.ndarray, center: float | None, tmp_path: Path
) -> None:
    fig, ax = figure()
    charts.heatmap(ax, values, label="x", center=center, xlabel="expert", ylabel="layer")
    fig.savefig(tmp_path / "figure.png")


def test_labels_are_thinned_to_those_there_is_room_for() -> None:
    fig, ax = figure("column", 2.4)
    charts.heatmap(ax, np.zeros((200, 256)), label="x", xlabel="expert", ylabel="layer")
    rows = [text.get_text() for text in ax.get_yticklabels()]
    assert rows[0] == "0"
    assert 4 <= len(rows) <= 25
    steps = {int(b) - int(a) for a, b in itertools.pairwise(rows)}
    assert len(steps) == 1
    assert overlaps(fig) == []


def test_layers_that_are_not_neighbors_keep_their_numbers() -> None:
    fig, ax = figure()
    charts.lines(ax, [1, 7, 15], {"mean": [1, 2, 3]}, xlabel="layer", ylabel="entropy (nats)")
    fig.draw_without_rendering()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "7", "15"]


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    fig, ax = figure()
    charts.bars(ax, ["a$x$", r"\frac{1}", "<b>", "x_1^2"], [1, 2, 3, 4], xlabel=r"cost ($)")
    caption(fig, context(r"model $\alpha$ & <i>co</i>"))
    fig.savefig(tmp_path / "figure.pdf")
    written = {text for text, _ in texts_of(fig)}
    assert {"a$x$", r"\frac{1}", "<b>", "x_1^2", "cost ($)"} <= written
    assert any(r"model $\alpha$ & <i>co</i>" in text for text in written)


def test_domains_are_ordered_by_group_and_colored_by_it() -> None:
    domains = ["python", "odd", "novels", "russian", "drama", "strange"]
    groups = GROUPS | {"strange": "a new group"}
    order = charts.domain_order(domains, groups)
    assert [domains[position] for position in order] == ["novels", "drama", "python", "russian", "strange", "odd"]
    assert charts.domain_order(domains, {}) == list(range(6))
    fig, ax = figure("column", 3.0)
    charts.bars(ax, domains, range(6), xlabel="x", groups=groups)
    fig.draw_without_rendering()
    colors = {text.get_text(): text.get_color() for text in ax.get_yticklabels()}
    assert colors["novels"] == colors["drama"] != colors["python"]
    assert colors["odd"] == style.INK


def test_depth_colors_run_from_pale_to_dark() -> None:
    colors = [matplotlib.colors.to_rgb(color) for color in charts.depth_colors([3, 5, 9, 30]).values()]
    lightness = [sum(color) for color in colors]
    assert lightness == sorted(lightness, reverse=True)
    assert len(set(colors)) == 4


def test_powers_of_ten_are_written_in_plain_characters() -> None:
    fig, ax = figure()
    charts.histogram(ax, np.logspace(-6, 1, 20), np.ones(19), xlabel="p", ylabel="n", log_x=True)
    fig.draw_without_rendering()
    written = {text for text, _ in texts_of(fig)}
    assert {"1"} < {text for text in written if re.fullmatch(r"1|10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]*", text)}
    assert not any("$" in text for text in written)


@pytest.mark.parametrize("ends", [(0.6, 1.05), (0.105, 0.145), (0.02, 0.4), (3, 70), (1e-7, 1), (1e-40, 1)])
def test_a_logarithmic_axis_of_any_length_has_a_few_ticks(ends: tuple[float, float]) -> None:
    fig, ax = figure()
    charts.lines(ax, [0, 1], {"a": ends}, xlabel="rank", ylabel="mean weight", log_y=True)
    assert overlaps(fig) == []
    low, high = ax.get_ylim()
    written = [tick.label1.get_text() for tick in ax.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert 2 <= len(written) <= 9
    assert len(set(written)) == len(written)


def test_pdf_text_can_be_searched(tmp_path: Path) -> None:
    """The character map of the embedded font knows the letters of the labels."""
    fig, ax = figure()
    charts.lines(ax, [0, 1], {"a": [0, 1]}, xlabel="layer", ylabel="Q")
    fig.savefig(tmp_path / "figure.pdf")
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", (tmp_path / "figure.pdf").read_bytes(), re.DOTALL)
    maps = b""
    for stream in streams:
        try:
            plain = zlib.decompress(stream)
        except zlib.error:
            continue
        maps += plain if b"beginbfrange" in plain or b"beginbfchar" in plain else b""
    assert b"<0051>" in maps.upper()  # Q
