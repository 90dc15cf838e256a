"""One look for every figure: sizes, fonts, colors, the small print below.

Figures are `matplotlib.figure.Figure` objects made without pyplot, so they need no display, leak no window, and leave
the reader's own matplotlib settings as they were. Text is drawn as text: a dollar sign in a model's name or in a token
is a dollar sign, never mathematics.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast

import matplotlib
import matplotlib.style
from cycler import cycler
from matplotlib.artist import allow_rasterization
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, Formatter

from moescope.figures.description import description
from moescope.figures.fonts import MONOSPACED, SANS, drawable, families, has_postscript_outlines, wrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from matplotlib.backend_bases import RendererBase
    from matplotlib.legend import Legend

COLUMN_WIDTH = 3.3
"""Inches: one column of a two-column page."""
PAGE_WIDTH = 6.8
"""Inches: the whole width of the page."""
POINTS = 72.0
"""Points of an inch."""
DPI = 240
"""Pixels per inch of PNGs, and of heat maps inside PDFs."""
FONT_SIZE = 8.0
SMALL_FONT_SIZE = 7.0
PRINT_FONT_SIZE = 5.5

SEQUENTIAL = "YlGnBu"
"""Color map for quantities from low (pale) to high (dark); its lightness falls steadily, so it survives gray print."""
DIVERGING = "RdBu_r"
"""Color map for quantities around a center: blue below, white at, red above."""
MISSING = "#d5d5d5"
"""Color of cells that hold no number."""
INK = "#222222"
NEUTRAL = "#6e6e6e"
"""For what has no group, and for baselines."""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
"""Eight colors that people with any common color blindness tell apart (Okabe and Ito 2008)."""
GROUP_COLORS = dict(zip(("prose", "reference", "code", "formal", "languages"), COLORS, strict=False))
"""Color of each group of domains; other groups get the remaining colors, see `group_colors`."""

_STYLE: dict[str, Any] = {
    "font.family": [SANS],  # ships with matplotlib: the same figure on every machine
    "font.size": FONT_SIZE,
    "text.parse_math": False,
    "text.color": INK,
    "axes.titlesize": FONT_SIZE,
    "axes.titlelocation": "left",
    "axes.titlepad": 4.0,
    "axes.titley": 1.0,  # no axis is on top, and to look for one takes a tenth of the drawing
    "axes.labelsize": FONT_SIZE,
    "axes.labelpad": 3.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLORS),
    "grid.linewidth": 0.4,
    "grid.color": "#e3e3e3",
    "xtick.labelsize": SMALL_FONT_SIZE,
    "ytick.labelsize": SMALL_FONT_SIZE,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.0,
    "patch.linewidth": 0.6,
    "legend.fontsize": SMALL_FONT_SIZE,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.borderaxespad": 0.2,
    "figure.titlesize": FONT_SIZE,
    "figure.labelsize": FONT_SIZE,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": DPI,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
}

_P = ParamSpec("_P")
_R = TypeVar("_R")


@contextmanager
def context() -> Iterator[None]:
    """The style inside a `with` block, on top of matplotlib's defaults; whatever was set before is back afterwards."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def styled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Runs a function, or each step of a generator function, inside `context`.

    Put it on code that calls matplotlib directly (`ax.text`, `ax.set_title`); what this package draws has it already.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stepwise(*args: _P.args, **kwargs: _P.kwargs) -> Any:
            steps = function(*args, **kwargs)
            while True:
                with context():  # closed before each yield: the caller's code must not run in our style
                    try:
                        item = next(steps)
                    except StopIteration:
                        return
                yield item

        return cast("Callable[_P, _R]", stepwise)

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with context():
            return function(*args, **kwargs)

    return wrapped


class StyledFigure(Figure):
    """A figure that is laid out and saved in this style, whoever saves it: text in PDFs stays text.

    Text may be in any script: before it is drawn, fonts are added for what the base font lacks (see `fonts`).
    """

    _print_height = 0.0  # of the small print, as a share of the figure's height
    _shared_xlabel: Text | None = None

    suptitle = styled(Figure.suptitle)
    supylabel = styled(Figure.supylabel)

    @styled
    def legend(self, *args: Any, **kwargs: Any) -> Legend:  # type: ignore[override]
        """Like `Figure.legend`."""
        return super().legend(*args, **kwargs)

    @styled
    def supxlabel(self, t: str, **kwargs: Any) -> Text:
        """Like `Figure.supxlabel`, above the small print."""
        # with y given, the layout leaves the label's place to us
        self._shared_xlabel = super().supxlabel(t, y=0.0, **kwargs)
        self.make_room(self._print_height)
        return self._shared_xlabel

    def make_room(self, share: float) -> None:
        """Keeps the lowest `share` of the figure, and the shared axis' name above it, free of axes."""
        self._print_height = share
        height = float(self.get_size_inches()[1])
        if self._shared_xlabel is not None:
            self._shared_xlabel.set_y(share + 0.02 / height)
            share += (0.03 + FONT_SIZE * 1.35 / 72) / height
        engine = self.get_layout_engine()
        if isinstance(engine, ConstrainedLayoutEngine):
            engine.set(rect=(0, share, 1, 1 - share))

    @allow_rasterization
    def draw(self, renderer: RendererBase) -> None:
        """Like `Figure.draw`, in any script."""
        self.find_fonts()
        with self._empty_labels_stay():
            super().draw(renderer)

    @contextmanager
    def _empty_labels_stay(self) -> Iterator[None]:
        """No axis' name that is empty is moved below the tick labels: to measure them is a sixth of the drawing."""
        empty: list[Any] = [
            axis for ax in self.axes for axis in (ax.xaxis, ax.yaxis)
            if not axis.label.get_text() and getattr(axis, "_autolabelpos", False)
        ]  # fmt: skip
        for axis in empty:
            axis._autolabelpos = False
        try:
            yield
        finally:
            for axis in empty:
                axis._autolabelpos = True

    def find_fonts(self) -> set[str]:
        """Adds fonts to texts that need them, writes code points where there are none; the families added."""
        added: set[str] = set()
        for text in self._texts():
            content, base = text.get_text(), text.get_fontfamily()[0]
            if content.isascii() or base not in (SANS, MONOSPACED):
                continue
            lines = [drawable(line, base) for line in content.split("\n")]
            text.set_text("\n".join(lines))
            names = families(lines, base)
            if len(names) > 1:
                text.set_fontfamily(names)
                added.update(names[1:])
        for ax in self.axes:
            for axis in (ax.xaxis, ax.yaxis):
                kinds: list[tuple[Literal["major", "minor"], Formatter]] = [
                    ("major", axis.get_major_formatter()),
                    ("minor", axis.get_minor_formatter()),
                ]
                for which, formatter in kinds:
                    if not isinstance(formatter, FixedFormatter) or all(str(name).isascii() for name in formatter.seq):
                        continue
                    formatter.seq = [drawable(str(name)) for name in formatter.seq]
                    names = families(formatter.seq)
                    if len(names) > 1:
                        axis.set_tick_params(which=which, labelfontfamily=names)
                        added.update(names[1:])
        return added

    def _texts(self) -> Iterator[Text]:
        """All texts but tick labels: those are made anew whenever the figure is drawn."""
        legends = [*self.legends, *(legend for ax in self.axes if (legend := ax.get_legend()) is not None)]
        for legend in legends:
            yield from legend.get_texts()
        yield from self.texts
        for ax in self.axes:
            yield from (child for child in ax.get_children() if isinstance(child, Text))
            yield from (ax.xaxis.label, ax.yaxis.label)

    @styled
    def savefig(self, fname: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Like `Figure.savefig`; the file holds no date, so the same figure is the same bytes."""
        kind = kwargs.get("format") or Path(str(fname)).suffix.lstrip(".").lower()
        if kind == "pdf":
            kwargs.setdefault("metadata", {"CreationDate": None})
            if any(has_postscript_outlines(family) for family in self.find_fonts()):
                # Their outlines can't be embedded as TrueType. matplotlib 3.11 reads ps.fonttype for PDFs' subsets too.
                matplotlib.rcParams.update({"pdf.fonttype": 3, "ps.fonttype": 3})
        if kind == "png":
            kwargs["metadata"] = {"Description": description(self)} | (kwargs.get("metadata") or {})
        engine = self.get_layout_engine()
        if engine is None or kwargs.get("bbox_inches") is not None:
            super().savefig(fname, **kwargs)
            return
        # matplotlib would draw the whole figure once more to lay it out.
        self._lay_out(kwargs.get("dpi", DPI))
        self.set_layout_engine("none")
        try:
            super().savefig(fname, **kwargs)
        finally:
            self.set_layout_engine(engine)

    def _lay_out(self, dpi: float) -> None:
        engine, before = self.get_layout_engine(), self.dpi
        if engine is None or not isinstance(dpi, int | float):
            return
        self.find_fonts()
        self.dpi = dpi
        try:
            with self._empty_labels_stay():
                engine.execute(self)
        finally:
            self.dpi = before


@styled
def figure(
    width: Literal["column", "page"] = "column",
    height: float | None = None,
    nrows: int = 1,
    ncols: int = 1,
    **subplots: Any,
) -> tuple[Figure, Any]:
    """A figure 3.3 (`column`) or 6.8 (`page`) inches wide and its axes.

    Args:
        width: "column" or "page".
        height: Inches without the small print; None: two thirds of the width, a third where it spans the page, for
            each row of axes.
        nrows: Rows of axes.
        ncols: Columns of axes.
        **subplots: Handed to `Figure.subplots` (`sharex`, `sharey`, `width_ratios`, `squeeze`, ...).

    Returns:
        The figure and its axes: one `Axes`, or an array of them, as `Figure.subplots` gives them.
    """
    inches = COLUMN_WIDTH if width == "column" else PAGE_WIDTH
    if height is None:
        height = (inches * 2 / 3 if width == "column" else inches / 3) * nrows
    layout = ConstrainedLayoutEngine(h_pad=0.04, w_pad=0.04, hspace=0.02, wspace=0.02)
    fig = StyledFigure(figsize=(inches, height), layout=layout)
    return fig, fig.subplots(nrows, ncols, **subplots)


def height_for(num_rows: int, per_row: float = 0.135, around: float = 0.65) -> float:
    """Inches of height at which `num_rows` labeled rows are all readable, with `around` for axis, title, legend."""
    return max(1.6, num_rows * per_row + around)


@styled
def caption(fig: Figure, about: str, note: str = "") -> None:
    """Writes the small print below the figure: what it is about, then `note`; the figure grows by it.

    Args:
        fig: A figure of `figure`.
        about: Model, tokens and corpus, as `Context.caption` has them.
        note: What else a reader must know to use the numbers, e.g. "bands: 5-95 % of tokens".
    """
    inches, height = (float(size) for size in fig.get_size_inches())
    width = 0.94 * inches * POINTS - 3  # on screens, letters of this size are up to 6 % wider than in print
    lines = wrapped(f"{about} · {note}" if note else about, PRINT_FONT_SIZE, width, most_lines=None)
    room = (len(lines) * PRINT_FONT_SIZE * 1.25 + 4) / 72
    height += room
    fig.set_size_inches(inches, height)
    fig.text(
        0.03 / inches, 2 / 72 / height, "\n".join(lines), fontsize=PRINT_FONT_SIZE, color=NEUTRAL, linespacing=1.15,
        ha="left", va="bottom", in_layout=False,
    )  # fmt: skip
    if isinstance(fig, StyledFigure):
        fig.make_room(room / height)


def group_colors(groups: Mapping[str, str]) -> dict[str, str]:
    """Color of each group that occurs in `groups` (domain -> group), in the fixed order, others after.

    A ninth group and all after it are neutral: eight is what can be told apart.
    """
    present = list(dict.fromkeys(groups.values()))
    known = [group for group in GROUP_COLORS if group in present]
    others = [group for group in present if group not in GROUP_COLORS]
    spare = [*COLORS[len(GROUP_COLORS) :], *[color for g, color in GROUP_COLORS.items() if g not in present]]
    colors = {group: GROUP_COLORS[group] for group in known}
    return colors | {group: spare[i] if i < len(spare) else NEUTRAL for i, group in enumerate(others)}


def ink(color: str) -> str:
    """The color, darkened until text in it is readable on white (contrast of at least 4.5, as WCAG AA asks)."""
    rgb = to_rgb(color)
    while True:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        if 1.05 / (luminance + 0.05) >= 4.5:
            return str(to_hex(rgb))
        rgb = tuple(0.95 * c for c in rgb)  # type: ignore[assignment]
