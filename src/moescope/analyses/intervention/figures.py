"""Figures of interventions on a prompt: the sweep, KL by position, and the next tokens, each with its controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from moescope.figures import caption, charts, style, styled
from moescope.figures.experts import DASHES, evenly
from moescope.interventions.changes import Set

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moescope.analyses.base import Drawing
    from moescope.analyses.intervention.table import PromptEffects

MOST_TOKENS = 6
MOST_BARS = 12
MOST_PANELS = 8
MOST_TICKS = 24
CONTROL = "matched experts"
OTHERS = "token's other experts"


def figures(effects: PromptEffects, model: str) -> Iterator[Drawing]:
    """The figures of a study: file name without suffix, and the function that draws it.

    Args:
        effects: What was measured.
        model: The model's name, for the captions.
    """
    if len(effects.effects) > 1 and all(effect.value is not None for effect in effects.effects):
        yield "sweep", partial(_sweep, effects, model)
    if len(effects.effects) == 1:
        yield "next_tokens", partial(_next_tokens, effects, model)
    if len(effects.positions) > 1:
        yield "kl_by_position", partial(_by_position, effects, model)


def _print(fig: Figure, study: PromptEffects, model: str, note: str) -> None:
    text = study.prompt.text.replace("\n", "↵")
    shown = text if len(text) <= 60 else text[:57] + "..."
    experts = ", ".join(f"expert {expert} of layer {layer}" for layer, expert in study.targets)
    caption(fig, f'{model} · {len(study.prompt):,} tokens · prompt "{shown}"', f"{experts} · {note}")


def _about_controls(study: PromptEffects) -> str:
    if not study.draws:
        return "no controls"
    text = f"{CONTROL}: the same change of {len(study.draws)} random experts matched by usage, median and 5-95 %"
    active = max(effect.num_active for effect in study.effects)
    if active < len(study.draws):
        text += f" ({active} of them have an effect: no changed token selects the others)"
    if study.effects[0].other:
        text += f"; {OTHERS}: the same change of the {len(study.effects[0].other)} others it selects, median and range"
    return text


def _target(study: PromptEffects) -> str:
    return f"token {study.target} ({study.target_token})"


@styled
def _sweep(study: PromptEffects, model: str) -> Figure:
    """KL at the target, and the probability of its top next tokens, over the weight or the factor."""
    fig, (left, right) = style.figure("page", 2.5, ncols=2)
    order = sorted(range(len(study.effects)), key=lambda index: study.effects[index].value or 0.0)
    values = [study.effects[index].value or 0.0 for index in order]
    at_target = study.kl[study.kl["position"] == study.target].iloc[order]
    is_set = isinstance(study.effects[0].changes[0], Set)
    xlabel = "applied weight" if is_set else "factor on the weight"
    null = _null_value(study)
    _with_controls(left, values, at_target, "changed", null if not is_set else None, null)
    charts.label(left, x=xlabel, y="KL(base ‖ changed) (nats)", title=f"KL at {_target(study)}")
    for color, slot in zip(style.COLORS, _top_slots(study), strict=False):
        name = study.texts[int(study.token_ids[0][slot])]
        probabilities = [math.exp(study.effects[index].changed.log_probabilities[0][slot]) for index in order]
        before = math.exp(study.base.log_probabilities[0][slot])
        right.plot(*_with_point(values, probabilities, null, before), color=color)
        right.plot(values, probabilities, marker="o", color=color, label=name, linestyle="-" if null is None else "")
        if study.draws:
            medians = [
                float(np.median([np.exp(each.log_probabilities[0][slot]) for each in study.effects[index].matched]))
                for index in order
            ]
            right.plot(
                *_with_point(values, medians, None if is_set else null, before),
                color=color,
                linestyle=DASHES,
                linewidth=0.8,
                zorder=1,
            )
    charts.label(right, x=xlabel, y="probability", title="Most probable next tokens")
    marks = list(study.base_weights.values()) if is_set else [1.0]
    for ax in (left, right):
        for number, mark in enumerate(marks):
            name = "base weight" if is_set else "no change"
            if is_set and len(marks) == 1 and mark == 0:
                name += " (not selected)"
            label = name if ax is left and number == 0 else None
            ax.axvline(mark, color=style.INK, linewidth=0.7, linestyle=(0, (1, 1.5)), label=label, zorder=1)
        ax.grid(axis="y")
        ax.set_ylim(bottom=0)
        charts.legend_above(ax)
    dashed = f"; dashed on the right: median of {CONTROL}" if study.draws else ""
    _print(fig, study, model, _about_controls(study) + dashed)
    return fig


def _null_value(study: PromptEffects) -> float | None:
    """The value at which a sweep changes nothing; None if it is not known, or among those swept."""
    changes = study.effects[0].changes
    if not isinstance(changes[0], Set):
        value = 1.0
    elif len(changes) == 1 and changes[0].indices in ((study.target,), (study.target - len(study.prompt),)):
        value = study.prompt.weight(*study.targets[0], study.target) or math.nan
    else:
        return None
    return None if math.isnan(value) or any(effect.value == value for effect in study.effects) else value


def _with_point(
    x: Sequence[float], y: Sequence[float], at: float | None, value: float
) -> tuple[list[float], list[float]]:
    """The points of a line, with one more whose value is known without a pass."""
    points = sorted([*zip(x, y, strict=True), *([] if at is None else [(at, value)])])
    return [float(point[0]) for point in points], [float(point[1]) for point in points]


def _with_controls(
    ax: Axes,
    x: Sequence[float],
    rows: pd.DataFrame,
    name: str,
    null_of_controls: float | None = None,
    null: float | None = None,
) -> None:
    """A line of KL, and lines and bands of both kinds of control; `null`: the value without effect, if known."""
    for columns, label, color in (
        (("kl_control_q05", "kl_control_median", "kl_control_q95"), CONTROL, style.NEUTRAL),
        (("other_choices_kl_low", "other_choices_kl_median", "other_choices_kl_high"), OTHERS, style.COLORS[1]),
    ):
        if rows[columns[1]].notna().any():
            low, middle, high = (_with_point(x, rows[column], null_of_controls, 0.0) for column in columns)
            ax.plot(*middle, color=color, linestyle=DASHES, zorder=2, label=label)
            charts.band(ax, low[0], low[1], high[1], color=color)
    ax.plot(*_with_point(x, rows["kl"], null, 0.0), color=style.COLORS[0], zorder=3)
    ax.plot(
        x,
        rows["kl"],
        marker="o" if len(x) <= 40 else "",
        color=style.COLORS[0],
        label=name,
        zorder=3,
        linestyle="-" if null is None else "",
    )


def _top_slots(study: PromptEffects) -> list[int]:
    """The next tokens at the target that are most probable anywhere in the sweep, as indices into `token_ids[0]`."""
    highest = np.max(
        [study.base.log_probabilities[0], *(effect.changed.log_probabilities[0] for effect in study.effects)], axis=0
    )
    return [int(slot) for slot in np.argsort(-highest, kind="stable")[:MOST_TOKENS]]


@styled
def _by_position(study: PromptEffects, model: str) -> Figure:
    """KL at the target and every later position, a panel for each effect."""
    shown = [effect for effect in study.effects if (effect.changed.kl_P > 0).any()] or list(study.effects)
    shown = [shown[index] for index in evenly(len(shown), MOST_PANELS)]
    columns = min(len(shown), 3 if len(study.positions) <= MOST_TICKS else 2)
    fig, axes = charts.small_multiples(
        len(shown), columns=columns, panel_height=1.35, around=0.9, sharex=True, sharey=False
    )
    positions = list(study.positions)
    for ax, effect in zip(axes, shown, strict=True):
        rows = study.kl.iloc[study.effects.index(effect) * len(positions) :][: len(positions)]
        _with_controls(ax, positions, rows, "changed")
        ax.set_ylim(bottom=0)
        ax.grid(axis="y")
        ax.set_title(effect.description if len(study.effects) > 1 else "")
        if len(positions) <= MOST_TICKS:
            charts.name_ticks(ax, "x", positions, [study.prompt.tokens[position] for position in positions], room=60.0)
            ax.tick_params(axis="x", labelrotation=90)
    handles, names = axes[0].get_legend_handles_labels()
    charts.top_legend(fig, handles, names)
    fig.supylabel("KL(base ‖ changed) (nats)")
    if len(positions) > MOST_TICKS:
        fig.supxlabel("position")
    change = "" if len(study.effects) > 1 else f"{shown[0].description} · "
    _print(fig, study, model, change + _about_controls(study))
    return fig


@styled
def _next_tokens(study: PromptEffects, model: str) -> Figure:
    """Log-probability of the target's top next tokens before and after, and its change beside the controls'."""
    rows = study.next_tokens
    rows = rows[rows["position"] == study.target].sort_values("probability_before", ascending=False)
    rows = rows.head(MOST_BARS)
    names = list(rows["next_token"])
    heights = np.arange(len(rows))
    fig, (left, right) = style.figure(
        "page", style.height_for(len(rows), per_row=0.17, around=0.9), ncols=2, sharey=True
    )
    left.hlines(heights, rows["probability_before"], rows["probability_after"], color=style.NEUTRAL, linewidth=0.8)
    left.plot(rows["probability_before"], heights, "o", color=style.NEUTRAL, label="before")
    left.plot(rows["probability_after"], heights, "o", color=style.COLORS[0], label="after")
    left.set_xscale("log")
    charts.log_ticks(left, "x")
    charts.name_ticks(left, "y", heights.tolist(), names)
    left.set_ylim(len(rows) - 0.5, -0.5)
    charts.label(left, x="probability", title=f"Next token at {_target(study)}")
    right.axvline(0, color=style.NEUTRAL, linewidth=0.6)
    right.plot(rows["log_probability_change"], heights, "o", color=style.COLORS[0], label=study.effects[0].description)
    if study.draws:
        right.hlines(
            heights,
            rows["log_probability_change_control_q05"],
            rows["log_probability_change_control_q95"],
            color=style.NEUTRAL,
            alpha=0.35,
            linewidth=5,
        )
        right.plot(
            rows["log_probability_change_control_median"],
            heights,
            "|",
            color=style.NEUTRAL,
            markersize=6,
            label=CONTROL,
        )
    if study.effects[0].other:
        spans = rows["other_choices_change_low"], rows["other_choices_change_high"]
        right.hlines(heights, *spans, color=style.COLORS[1], linewidth=0.8, label=OTHERS)
    right.xaxis.set_major_locator(MaxNLocator(5))
    charts.label(right, x="change of log-probability (nats)", title="Change")
    for ax in (left, right):
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        charts.legend_above(ax)
    _print(fig, study, model, _about_controls(study))
    return fig
