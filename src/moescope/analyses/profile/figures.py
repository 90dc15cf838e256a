"""A page about one expert, and the balanced accuracy of all labels by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Rectangle

from moescope.figures import caption, charts, style, styled
from moescope.figures.experts import quantiles_over_pairs, spread
from moescope.figures.fonts import MONOSPACED, fitting, shortened, text_width, wrapped
from moescope.figures.shaded_text import LINE_SPACING, shaded_text
from moescope.measures.constants import MIN_DOCUMENTS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moescope.analyses.profile.schema import Effect, ExpertProfile
    from moescope.context import Context

POINTS = 72.0
MARGIN = 6.0
WIDTH = style.PAGE_WIDTH * POINTS
SMALL = 6.0
ROW = 9.2
"""Points from one line of a list to the next."""
KEY_WIDTH = 190.0
MOST_DOMAINS = 30
LIST_ROWS = 8


@styled
def page(profile: ExpertProfile, context: Context) -> Figure:
    """An expert's label, domains with intervals, tokens, nearest experts and top contexts."""
    head = _head(profile)
    domains = _shown_domains(profile, context)
    top = 30.0 + 10.4 * len(head)
    key = _key(context)
    middle = max(len(domains) * 9.4 + 28.0 + ROW * len(key), 2 * (LIST_ROWS * ROW + 26.0))
    below = top + middle + 8.0
    height = below + 22.0 + sum(_context_height(profile, place) for place in range(len(profile.contexts)))
    fig = style.StyledFigure(figsize=(style.PAGE_WIDTH, height / POINTS))
    caption(fig, context.caption, _note(profile))
    inches = float(fig.get_size_inches()[1])
    whole = fig.add_axes((0.0, 1 - height / POINTS / inches, 1.0, height / POINTS / inches))
    whole.set_xlim(0, WIDTH)
    whole.set_ylim(height, 0)
    whole.set_axis_off()

    name = fitting(f"Expert {profile.expert} of layer {profile.layer} · {profile.model.name}", 11, WIDTH - 12)
    whole.text(MARGIN, 17, name, fontsize=11, weight="bold")
    for row, (text, color) in enumerate(head):
        whole.text(MARGIN, 30 + 10.4 * row, text, fontsize=7, color=color)

    def place(left: float, width: float, first: float, last: float) -> Axes:
        bottom = 1 - last / POINTS / inches
        return fig.add_axes((left / WIDTH, bottom, width / WIDTH, (last - first) / POINTS / inches))

    _draw_domains(place, profile, domains, context, top)
    for row, groups in enumerate(key):
        x = MARGIN
        for name, color in groups:
            y = top + 12.0 + 9.4 * len(domains) + 22.0 + ROW * row
            whole.add_patch(Rectangle((x, y - 4.0), 4.5, 4.5, facecolor=color, linewidth=0))
            whole.text(x + 7.0, y, name, fontsize=SMALL)
            x += _key_width(name)
    _draw_lists(whole, profile, top)
    _draw_contexts(whole, profile, below)
    return fig


def _key(context: Context) -> list[list[tuple[str, str]]]:
    """The groups of domains and their colors, in rows that fit below the bars."""
    rows: list[list[tuple[str, str]]] = []
    used = KEY_WIDTH
    for group, color in style.group_colors(context.groups).items():
        name = shortened(group, SMALL, 80)
        if used + _key_width(name) > KEY_WIDTH:
            rows.append([])
            used = 0.0
        rows[-1].append((name, color))
        used += _key_width(name)
    return rows


def _key_width(name: str) -> float:
    return text_width(name, SMALL) + 14.0


def _head(profile: ExpertProfile) -> list[tuple[str, str]]:
    """Lines under the title, with their colors."""
    label, usage, router = profile.label, profile.usage, profile.router
    lines: list[tuple[str, str]] = []
    if label is None:
        lines.append((f"no label: {profile.missing.get('label', '')}", style.INK))
    else:
        lines.append((f"statistical label: {label.text}", style.INK))
        reach = _reach(label.ci_low, label.ci_high, "{:.2f}")
        lines.append(
            (
                f"balanced accuracy {_said(label.balanced_accuracy, '{:.2f}')}"
                f"{reach} on the evaluation half of the documents; chance: 0.50",
                style.NEUTRAL,
            )
        )
    share = _said(usage.selection_frequency, "{:.1%}")
    used = (
        f"selected for {share} of tokens{_reach(usage.ci_low, usage.ci_high, '{:.1%}')}, uniform "
        f"{usage.uniform_baseline:.1%} · load {_said(usage.load, '{:.2f}')}, "
        f"rank {usage.rank + 1} of {profile.model.num_experts} by use"
    )
    lines.append((used, style.NEUTRAL))
    if usage.num_selected:
        margins = (
            f"ranked first for {_said(router.first_rank_share, '{:.0%}')} of its tokens · mean weight "
            f"{_said(router.weight, '{:.3g}')} · margin {_said(router.margin, '{:.3g}')}, boundary margin "
            f"{_said(router.boundary_margin, '{:.3g}')}, selection margin {_said(router.selection_margin, '{:.3g}')} "
            f"({router.selects_by})"
        )
        lines.append((margins, style.NEUTRAL))
    if profile.effect is not None and profile.effect.delta_loss is not None:
        effect = profile.effect
        lines.append((f"ablating it changes the loss by {_effect(effect)}", style.NEUTRAL))
    return [(line, color) for text, color in lines for line in wrapped(text, 7, WIDTH - 2 * MARGIN)]


def _effect(effect: Effect) -> str:
    """Measured first, if it was, then the estimate on the same documents."""
    if (measured := effect.measured) is None or measured.delta_loss is None:
        reach = _reach(effect.ci_low, effect.ci_high, "{:+.2g}")
        return f"{effect.delta_loss:+.2g} {effect.units}{reach} ({effect.method})"
    reach = _reach(measured.ci_low, measured.ci_high, "{:+.2g}")
    return (
        f"{measured.delta_loss:+.2g} {effect.units}{reach}, measured on {measured.num_documents} documents "
        f"({effect.method} on them: {_said(measured.estimate, '{:+.2g}')})"
    )


def _said(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _reach(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f" ({form.format(low)} to {form.format(high)})"


def _note(profile: ExpertProfile) -> str:
    notes = [
        f"bars with 95 % intervals over documents; hollow: no interval, fewer than {MIN_DOCUMENTS} documents",
        "contexts: shade is w ‖o‖ of this expert, frame the token",
    ]
    notes.append("at most one context of a document; characters that the font lacks are shown by their code point")
    if profile.nearest_by_output is not None:
        notes.append(f"selected with: lift; similar output: {profile.nearest_by_output.measure.replace('_', ' ')}")
    if profile.nearest_by_weight is not None:
        notes.append(f"similar weights: {profile.nearest_by_weight.measure.replace('_', ' ')}")
    if profile.effect is not None:
        about = profile.effect if profile.effect.measured is None else profile.effect.measured
        notes.append(f"Δ loss: nats per token, {about.definition}")
    return "; ".join(notes)


def _shown_domains(profile: ExpertProfile, context: Context) -> list[int]:
    """Indices of the domains shown, those of a group side by side; of many, those of highest lift."""
    order = charts.domain_order([domain.name for domain in profile.domains], context.groups)
    if len(order) <= MOST_DOMAINS:
        return order
    best = sorted(order, key=lambda place: -(profile.domains[place].lift or 0.0))[:MOST_DOMAINS]
    return [place for place in order if place in best]


@styled
def _draw_domains(
    place: Callable[[float, float, float, float], Axes],
    profile: ExpertProfile,
    shown: Sequence[int],
    context: Context,
    top: float,
) -> None:
    left, both = 62.0, 128.0
    first, last = top + 12.0, top + 12.0 + 9.4 * len(shown)
    domains = [profile.domains[index] for index in shown]

    def percent(values: list[float | None]) -> np.ndarray:
        return np.array([np.nan if value is None else 100 * value for value in values])

    about = profile.effect.measured or profile.effect if profile.effect is not None else None
    effects = {} if about is None else {effect.domain: effect for effect in about.domains}
    ax = place(left, both - (54.0 if effects else 0.0), first, last)
    charts.bars(
        ax,
        [domain.name for domain in domains],
        np.nan_to_num(percent([domain.domain_specialization for domain in domains])),
        xlabel="",
        low=percent([domain.ci_low for domain in domains]),
        high=percent([domain.ci_high for domain in domains]),
        groups=context.groups,
        size=SMALL,
        room=left - MARGIN - 3.0,
    )
    ax.axvline(100 * profile.usage.uniform_baseline, color=style.NEUTRAL, linewidth=0.8, linestyle=(0, (4, 2)))
    ax.set_xlim(left=0)
    ax.tick_params(axis="both", labelsize=SMALL)
    ax.set_title("% of the domain" if effects else "% of the domain's tokens", fontsize=7, loc="left", pad=3)
    if effects:
        beside = place(left + both - 46.0, 46.0, first, last)
        values = [effects[domain.name] for domain in domains]

        def thousandths(numbers: list[float | None]) -> np.ndarray:
            return np.array([np.nan if value is None else 1000 * value for value in numbers])

        charts.bars(
            beside, [""] * len(domains), np.nan_to_num(thousandths([effect.delta_loss for effect in values])),
            xlabel="", low=thousandths([effect.ci_low for effect in values]),
            high=thousandths([effect.ci_high for effect in values]), colors=style.NEUTRAL,
        )  # fmt: skip
        beside.axvline(0, color=style.INK, linewidth=0.6)
        beside.tick_params(axis="both", labelsize=SMALL)
        beside.set_title("Δ loss, 10⁻³", fontsize=7, loc="left", pad=3)


def _draw_lists(ax: Axes, profile: ExpertProfile, top: float) -> None:
    left, gap = 204.0, 7.0
    tokens = {"reads": profile.tokens.input, "predicts": profile.tokens.predicted, "comes next": profile.tokens.next}
    titles = {
        "reads": "input tokens, by lift",
        "predicts": "predicted tokens, by lift",
        "comes next": "true next tokens, by lift",
    }
    uppers = [
        (titles[key], [(token.text, token.lift or 0.0, f"×{_said(token.lift, '{:.1f}')}") for token in kind.by_lift])
        for key, kind in tokens.items()
        if kind is not None
    ]
    lowers: list[tuple[str, list[tuple[str, float, str]]]] = []
    if profile.promoted is not None:
        rows = [(token.text, token.logit, f"{token.logit:.2f}") for token in profile.promoted.promoted]
        lowers.append(("output promotes", rows))
    together = [
        (f"expert {other.expert}", other.lift or 0.0, f"×{_said(other.lift, '{:.1f}')}")
        for other in profile.coactivated
    ]
    lowers.append(("selected with", together))
    for title, kind in (("similar output", profile.nearest_by_output), ("similar weights", profile.nearest_by_weight)):
        if kind is not None:
            rows = [(f"expert {near.expert}", near.similarity, f"{near.similarity:.2f}") for near in kind.nearest]
            lowers.append((title, rows))
    y = top
    for lists in (uppers, lowers):
        width = (WIDTH - MARGIN - left - gap * (len(lists) - 1)) / max(1, len(lists))
        for column, (title, rows) in enumerate(lists):
            _list(ax, title, rows[:LIST_ROWS], left + column * (width + gap), y, width)
        y += LIST_ROWS * ROW + 26.0


@styled
def _list(ax: Axes, title: str, rows: Sequence[tuple[str, float, str]], left: float, top: float, width: float) -> None:
    """A short list with its numbers, and pale bars behind it as long as the numbers are large."""
    ax.text(left, top + 8, fitting(title, 7, width), fontsize=7)
    if not rows:
        ax.text(left, top + 12 + ROW, "none", fontsize=SMALL, color=style.NEUTRAL)
    highest = max((value for _, value, _ in rows), default=0.0)
    for row, (text, value, said) in enumerate(rows):
        y = top + 13 + row * ROW
        share = max(0.0, value / highest) if highest > 0 else 0.0
        ax.add_patch(Rectangle((left, y), width * share, ROW - 1.2, facecolor="#dcebf3", linewidth=0))
        room = width - text_width(said, SMALL, MONOSPACED) - 6
        ax.text(left + 1.5, y + 6.2, fitting(text, SMALL, room, MONOSPACED), family=MONOSPACED, fontsize=SMALL)
        ax.text(left + width - 1.5, y + 6.2, said, family=MONOSPACED, fontsize=SMALL, ha="right", color=style.NEUTRAL)


_CONTEXT_LEFT = 74.0
_CONTEXT_WIDTH = WIDTH - MARGIN - _CONTEXT_LEFT
_CONTEXT_LINES = 2


def _context_height(profile: ExpertProfile, place: int) -> float:
    tokens = profile.contexts[place].tokens
    used, lines = 0.0, 1
    for token in tokens:
        across = text_width(fitting(token, SMALL, _CONTEXT_WIDTH, MONOSPACED), SMALL, MONOSPACED)
        if used and used + across > _CONTEXT_WIDTH:
            lines, used = lines + 1, 0.0
        used += across
    return min(lines, _CONTEXT_LINES) * SMALL * LINE_SPACING + 4.0


@styled
def _draw_contexts(ax: Axes, profile: ExpertProfile, top: float) -> None:
    ax.text(MARGIN, top + 8, "top contexts, by w ‖o‖", fontsize=7)
    if not profile.contexts:
        why = profile.missing.get("contexts", "")
        ax.text(_CONTEXT_LEFT + 110, top + 8, fitting(why, 7, 380), fontsize=7, color=style.NEUTRAL)
    highest = max((value for context in profile.contexts for value in context.values), default=0.0)
    y = top + 14.0
    for place, context in enumerate(profile.contexts):
        ax.text(MARGIN, y + 6.4, shortened(context.domain, SMALL, 42), fontsize=SMALL, color=style.NEUTRAL)
        ax.text(_CONTEXT_LEFT - 5, y + 6.4, f"{context.value:.3g}", fontsize=SMALL, color=style.NEUTRAL, ha="right")
        shaded_text(
            ax, context.tokens, context.values, at=(_CONTEXT_LEFT, y), width=_CONTEXT_WIDTH, highest=highest,
            target=context.target, size=SMALL, most_lines=_CONTEXT_LINES,
        )  # fmt: skip
        y += _context_height(profile, place)


@styled
def labels(frame: pd.DataFrame, context: Context) -> Figure:
    """Balanced accuracy of the labels by layer, on the selection half and on the evaluation half."""
    layers = list(dict.fromkeys(frame["layer"].tolist()))
    fig, ax = style.figure("column", 2.4)
    for column, name, color, dashed in (
        ("balanced_accuracy", "evaluation half", style.COLORS[0], False),
        ("selection_half_balanced_accuracy", "selection half", style.NEUTRAL, True),
    ):
        values = np.stack([frame.loc[frame["layer"] == layer, column].to_numpy(float) for layer in layers])
        spread(ax, layers, *quantiles_over_pairs(values), name=name, color=color, dashed=dashed)
    ax.axhline(0.5, color=style.INK, linewidth=0.6)
    charts.label(ax, x="layer", y="balanced accuracy of labels")
    charts.legend_above(ax)
    caption(fig, context.caption, "lines: median expert; bands: 5-95 % of experts; 0.5: chance")
    return fig
