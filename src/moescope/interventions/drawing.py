"""Figures of interventions on a prompt: the sweep, KL by position, and the next tokens; controls in each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from moescope.figures import caption, charts, style, styled
from moescope.interventions.changes import Set

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moescope.interventions.studies import Study

DASHES = (0, (3, 1.5))
MOST_TOKENS = 6
MOST_BARS = 12
MOST_PANELS = 8
MOST_WORDS = 24
CONTROL = "matched experts"
OTHERS = "other choices"


@dataclass(frozen=True)
class _Small:
    """What the small print says."""

    model: Any
    num_tokens: int
    corpus_name: str


def figures(study: Study) -> Iterator[tuple[str, Figure]]:
    """The figures there are of a study, by file name without suffix."""
    if len(study.effects) > 1 and all(effect.value is not None for effect in study.effects):
        yield "sweep", _sweep(study)
    if len(study.effects) == 1:
        yield "next_tokens", _next_tokens(study)
    if len(study.positions) > 1:
        yield "kl_by_position", _by_position(study)


def _print(fig: Figure, study: Study, note: str) -> None:
    text = study.prompt.text.replace("\n", "↵")
    shown = text if len(text) <= 60 else text[:57] + "..."
    who = ", ".join(f"expert {expert} of layer {layer}" for layer, expert in study.targets)
    caption(fig, _Small(study.model, len(study.prompt), f'prompt "{shown}"'), f"{who} · {note}")


def _about_controls(study: Study) -> str:
    if not study.draws:
        return "no controls"
    words = f"{CONTROL}: the same done to {len(study.draws)} random experts matched by usage, median and 5-95 %"
    acting = max(effect.num_acting for effect in study.effects)
    if acting < len(study.draws):
        words += f" (it does something to {acting}: the others were not chosen)"
    if study.effects[0].chosen:
        words += f"; {OTHERS}: the same done to the {len(study.effects[0].chosen)} others it chose, median and range"
    return words


def _target(study: Study) -> str:
    return f"token {study.target} ({study.target_token})"


@styled
def _sweep(study: Study) -> Figure:
    """KL at the target, and the probability of its top next tokens, over the weight or the factor."""
    fig, (left, right) = style.figure("page", 2.5, ncols=2)
    order = sorted(range(len(study.effects)), key=lambda place: study.effects[place].value or 0.0)
    values = [study.effects[place].value or 0.0 for place in order]
    at_target = study.kl[study.kl["position"] == study.target].iloc[order]
    is_set = isinstance(study.effects[0].changes[0], Set)
    xlabel = "applied weight" if is_set else "factor on the weight"
    known = _no_change(study)
    _beside_controls(left, values, at_target, "changed", known if not is_set else None, known)
    charts.label(left, x=xlabel, y="KL(base ‖ changed) (nats)", title=f"KL at {_target(study)}")
    places = _leading(study)
    for colour, slot in zip(style.COLOURS, places, strict=False):
        name = study.texts[int(study.token_ids[0][slot])]
        probabilities = [math.exp(study.effects[place].changed.log_probabilities[0][slot]) for place in order]
        before = math.exp(study.base.log_probabilities[0][slot])
        right.plot(*_with_point(values, probabilities, known, before), color=colour)
        right.plot(values, probabilities, marker="o", color=colour, label=name, linestyle="-" if known is None else "")
        if study.draws:
            medians = [
                float(np.median([np.exp(each.log_probabilities[0][slot]) for each in study.effects[place].matched]))
                for place in order
            ]
            right.plot(
                *_with_point(values, medians, None if is_set else known, before),
                color=colour,
                linestyle=DASHES,
                linewidth=0.8,
                zorder=1,
            )
    charts.label(right, x=xlabel, y="probability", title="Most probable next tokens")
    marks = list(study.base_weights.values()) if is_set else [1.0]
    for ax in (left, right):
        for number, mark in enumerate(marks):
            words = "base weight" if is_set else "no change"
            if is_set and len(marks) == 1 and mark == 0:
                words += " (not chosen)"
            named = words if ax is left and number == 0 else None
            ax.axvline(mark, color=style.INK, linewidth=0.7, linestyle=(0, (1, 1.5)), label=named, zorder=1)
        ax.grid(axis="y")
        ax.set_ylim(bottom=0)
        charts.legend_above(ax)
    dashed = f"; dashed on the right: median of {CONTROL}" if study.draws else ""
    _print(fig, study, _about_controls(study) + dashed)
    return fig


def _no_change(study: Study) -> float | None:
    """The value at which a sweep is known to change nothing; None if there is none, or it is among those swept."""
    changes = study.effects[0].changes
    if not isinstance(changes[0], Set):
        value = 1.0
    elif len(changes) == 1 and changes[0].places in ((study.target,), (study.target - len(study.prompt),)):
        value = study.prompt.weight(*study.targets[0], study.target) or math.nan
    else:
        return None
    return None if math.isnan(value) or any(effect.value == value for effect in study.effects) else value


def _with_point(
    x: Sequence[float], y: Sequence[float], at: float | None, value: float
) -> tuple[list[float], list[float]]:
    """The points of a line, with one more where it is known without having been run."""
    points = sorted([*zip(x, y, strict=True), *([] if at is None else [(at, value)])])
    return [float(point[0]) for point in points], [float(point[1]) for point in points]


def _beside_controls(
    ax: Axes,
    x: Sequence[float],
    rows: pd.DataFrame,
    name: str,
    still_for_controls: float | None = None,
    still: float | None = None,
) -> None:
    """A line of KL, and lines and bands of both kinds of control; `still`: where no change is known to be made."""
    for prefix, words, colour in (
        ("control_kl", CONTROL, style.NEUTRAL),
        ("other_choices_kl", OTHERS, style.COLOURS[1]),
    ):
        if rows[f"{prefix}_median"].notna().any():
            low, middle, high = (
                _with_point(x, rows[f"{prefix}_{which}"], still_for_controls, 0.0)
                for which in ("low", "median", "high")
            )
            ax.plot(*middle, color=colour, linestyle=DASHES, zorder=2, label=words)
            charts.band(ax, low[0], low[1], high[1], colour=colour)
    ax.plot(*_with_point(x, rows["kl"], still, 0.0), color=style.COLOURS[0], zorder=3)
    ax.plot(
        x,
        rows["kl"],
        marker="o" if len(x) <= 40 else "",
        color=style.COLOURS[0],
        label=name,
        zorder=3,
        linestyle="-" if still is None else "",
    )


def _leading(study: Study) -> list[int]:
    """The next tokens at the target that are most probable anywhere in the sweep, as places among those looked at."""
    highest = np.max(
        [study.base.log_probabilities[0], *(effect.changed.log_probabilities[0] for effect in study.effects)], axis=0
    )
    return [int(place) for place in np.argsort(-highest, kind="stable")[:MOST_TOKENS]]


@styled
def _by_position(study: Study) -> Figure:
    """KL at the target and every later position, a panel for each effect."""
    shown = [effect for effect in study.effects if (effect.changed.kl_P > 0).any()] or list(study.effects)
    if len(shown) > MOST_PANELS:
        shown = [shown[place] for place in np.linspace(0, len(shown) - 1, MOST_PANELS).round().astype(int)]
    columns = min(len(shown), 3 if len(study.positions) <= MOST_WORDS else 2)
    fig, axes = charts.small_multiples(
        len(shown), columns=columns, panel_height=1.35, around=0.9, sharex=True, sharey=False
    )
    positions = list(study.positions)
    for ax, effect in zip(axes, shown, strict=True):
        rows = study.kl.iloc[study.effects.index(effect) * len(positions) :][: len(positions)]
        _beside_controls(ax, positions, rows, "changed")
        ax.set_ylim(bottom=0)
        ax.grid(axis="y")
        ax.set_title(effect.words if len(study.effects) > 1 else "")
        if len(positions) <= MOST_WORDS:
            ax.set_xticks(positions, [study.prompt.tokens[position] for position in positions], rotation=90)
    handles, names = axes[0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=len(names), columnspacing=1.2)
    fig.supylabel("KL(base ‖ changed) (nats)")
    if len(positions) > MOST_WORDS:
        fig.supxlabel("position")
    words = "" if len(study.effects) > 1 else f"{shown[0].words} · "
    _print(fig, study, words + _about_controls(study))
    return fig


@styled
def _next_tokens(study: Study) -> Figure:
    """Log-probability of the target's top next tokens before and after, and its change beside the controls'."""
    rows = study.next_tokens
    rows = rows[rows["position"] == study.target].sort_values("probability_before", ascending=False)
    rows = rows.head(MOST_BARS)
    names = list(rows["next_token"])
    places = np.arange(len(rows))
    fig, (left, right) = style.figure(
        "page", style.height_for(len(rows), per_row=0.17, around=0.9), ncols=2, sharey=True
    )
    left.hlines(places, rows["probability_before"], rows["probability_after"], color=style.NEUTRAL, linewidth=0.8)
    left.plot(rows["probability_before"], places, "o", color=style.NEUTRAL, label="before")
    left.plot(rows["probability_after"], places, "o", color=style.COLOURS[0], label="after")
    left.set_xscale("log")
    charts.log_ticks(left, "x")
    left.set_yticks(places, names)
    left.set_ylim(len(rows) - 0.5, -0.5)
    charts.label(left, x="probability", title=f"Next token at {_target(study)}")
    right.axvline(0, color=style.NEUTRAL, linewidth=0.6)
    right.plot(rows["log_probability_change"], places, "o", color=style.COLOURS[0], label=study.effects[0].words)
    if study.draws:
        right.hlines(
            places,
            rows["control_change_low"],
            rows["control_change_high"],
            color=style.NEUTRAL,
            alpha=0.35,
            linewidth=5,
        )
        right.plot(rows["control_change_median"], places, "|", color=style.NEUTRAL, markersize=6, label=CONTROL)
    if study.effects[0].chosen:
        spans = rows["other_choices_change_low"], rows["other_choices_change_high"]
        right.hlines(places, *spans, color=style.COLOURS[1], linewidth=0.8, label=OTHERS)
    right.xaxis.set_major_locator(MaxNLocator(5))
    charts.label(right, x="change of log-probability (nats)", title="Change")
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        charts.legend_above(ax)
    _print(fig, study, _about_controls(study))
    return fig
