"""`moescope profile`: all that a run knows of single experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from moescope.analyses import registry
from moescope.cli.options import CaptureOptions
from moescope.cli.questions import question
from moescope.cli.terminal import print_line, show

if TYPE_CHECKING:
    from rich.text import Text

    from moescope.analyses.profile.schema import ExpertProfile

MOST_SHOWN = 4
"""Profiles printed; the others are in the folder."""


def whole_depth(options: CaptureOptions) -> CaptureOptions:
    """Runs the whole model unless told otherwise: profiles hold predicted and promoted tokens, and effects."""
    return options if options.predictions is not None else replace(options, predictions=True)


def print_profiles(folder: Path) -> None:
    """Prints the profiles of a folder that were asked for by expert."""
    from moescope.analyses.profile.analysis import FOLDER
    from moescope.analyses.profile.schema import ExpertProfile

    files = sorted((folder / FOLDER).glob("L*.json"))
    for file in files[:MOST_SHOWN]:
        for line in lines(ExpertProfile.model_validate_json(file.read_text(encoding="utf-8"))):
            show(line)
        print_line("")
    if len(files) > MOST_SHOWN:
        print_line(f"and {len(files) - MOST_SHOWN} more in {folder / FOLDER}\n")


def lines(profile: ExpertProfile) -> list[Text]:
    """A profile in a few lines. `Text` holds text: nothing in a token is taken for markup."""
    from rich.text import Text

    from moescope.results.text import number, percent

    usage, label = profile.usage, profile.label
    made = [Text(f"Expert {profile.expert} of layer {profile.layer} · {profile.model.name}", style="bold")]

    def add(name: str, text: str) -> None:
        if text:
            made.append(Text(f"  {name:<26}", style="dim").append(Text(text, style="default")))

    def reach(low: float | None, high: float | None, share: bool = False) -> str:
        shown = percent if share else number
        return "" if low is None or high is None else f" (95 % CI {shown(low).removesuffix(' %')} to {shown(high)})"

    if label is None:
        add("statistical label", f"none: {profile.missing['label']}")
    else:
        add("statistical label", label.text)
        add("", f"balanced accuracy {number(label.balanced_accuracy)}{reach(label.ci_low, label.ci_high)}; chance: 0.5")
    add(
        "selected for",
        f"{percent(usage.selection_frequency)} of {profile.sample.num_tokens:,} tokens"
        f"{reach(usage.ci_low, usage.ci_high, share=True)}; uniform {percent(usage.uniform_baseline)}",
    )
    domains = sorted((domain for domain in profile.domains if domain.lift), key=lambda domain: -(domain.lift or 0))[:4]
    add("domains, by lift", ", ".join(f"{domain.name} ×{number(domain.lift)}" for domain in domains))
    for name, kind in (("input tokens", profile.tokens.input), ("predicted tokens", profile.tokens.predicted)):
        if kind is not None:
            add(f"{name}, by lift", "  ".join(token.text for token in kind.by_lift))
    if profile.promoted is not None:
        add("promoted tokens", "  ".join(token.text for token in profile.promoted.promoted))
    together = [f"{other.expert} ×{number(other.lift)}" for other in profile.coactivated[:5]]
    add("selected with", ", ".join(together))
    for name, near in (
        ("similar output", profile.nearest_by_output),
        ("similar weights", profile.nearest_by_weight),
    ):
        if near is not None:
            add(name, ", ".join(f"{other.expert} ({number(other.similarity)})" for other in near.nearest[:5]))
    if usage.num_selected:
        add(
            "margin, selection margin",
            f"{number(profile.router.margin)}, {number(profile.router.selection_margin)} ({profile.router.selects_by})",
        )
    if profile.effect is not None:
        effect = profile.effect
        measured = effect.measured
        if measured is not None:
            add(
                "Δ loss when ablated",
                f"{number(measured.delta_loss)} {effect.units}{reach(measured.ci_low, measured.ci_high)}, measured on "
                f"held-out documents; {effect.method} on them: {number(measured.estimate)}",
            )
        else:
            estimate = f"{number(effect.delta_loss)} {effect.units}{reach(effect.ci_low, effect.ci_high)}"
            add("Δ loss when ablated", f"{estimate}, {effect.method}")
    if profile.contexts:
        first = profile.contexts[0]
        add("top context", "".join(first.tokens[: first.target]) + f" »{first.tokens[first.target]}« "
            + "".join(first.tokens[first.target + 1 :]))  # fmt: skip
    elif "contexts" in profile.missing:
        add("contexts", profile.missing["contexts"])
    return made


profile = question(registry.entry("profile"), prepare=whole_depth, finish=print_profiles)
