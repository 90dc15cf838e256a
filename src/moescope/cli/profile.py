"""`moescope profile`: who an expert is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from moescope.cli.capture import run_analyses
from moescope.cli.options import AT_LEAST_ONE, CaptureOptions
from moescope.cli.terminal import say, show
from moescope.errors import UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from moescope.analyses.base import Analysis
    from moescope.analyses.profile.schema import ExpertProfile

WHO = Group.create_ordered("Which experts")
MOST_SHOWN = 4
"""Profiles printed; the others are in the folder."""


def profile(
    *,
    layer: Annotated[list[int] | None, Parameter(consume_multiple=(1, None), negative="", group=WHO)] = None,
    expert: Annotated[
        list[int] | None,
        Parameter(name=["--expert", "--expert-id"], consume_multiple=(1, None), negative="", group=WHO),
    ] = None,
    every: Annotated[bool, Parameter(name="--all", negative="", show_default=False, group=WHO)] = False,
    contexts: Annotated[int, Parameter(validator=AT_LEAST_ONE, group=WHO)] = 8,
    neighbours: Annotated[bool, Parameter(group=WHO)] = True,
    effects: Annotated[bool, Parameter(group=WHO)] = True,
    options: CaptureOptions | None = None,
) -> None:
    """Profile: who an expert is: what it takes, where it acts most, what it puts out, what is like it.

    As in moescope profile --layer 1 --expert 9. Writes profiles/L01E09.json, by the schema docs/profile.schema.json,
    and a page about the expert (.pdf, .png) to the folder --out; with --all, in the same one pass over the text, a line
    for every expert in profiles/profiles.jsonl and an index of them.

    **Statistical label**: the domain, or group of domains, and the token types that best tell an expert's tokens from
    others', chosen on one half of the documents. Its balanced accuracy on the other half says how well they do: 0.5 is
    a coin, 1 is perfect. It says what goes with the expert, not what the expert does.

    **Contexts**: the places where the expert's output is longest after its weight, w ‖o‖, at most one of a document.

    **Lift**: how many times as often as over all text an expert is selected for a domain's tokens, or a token type.

    The whole model is run, so that a profile holds predicted tokens, what the expert's output promotes, and what
    ablating it does; --no-predictions stops after the deepest layer.

    Args:
        layer: The expert's layer, a decoder block numbered from 0; or several. The same as --layers.
        expert: The expert, numbered from 0; or several, of each layer.
        every: All experts of the layers. The default where no --expert is named.
        contexts: Contexts to keep of each expert.
        neighbours: Find the experts most like each by output (all are run on 2,048 tokens) and by weight.
        effects: Estimate what ablating each does to the loss, by a backward pass over 40,000 tokens.
        options: Which model, text, layers, folder.
    """
    options = options or CaptureOptions()
    if layer is not None and options.layers is not None:
        raise UsageError("--layer was given with --layers", remedy="name all layers with one of them")
    if expert is not None and every:
        raise UsageError("--expert was given with --all", remedy="name the experts you want, or all")
    options = replace(
        options,
        layers=layer if layer is not None else options.layers,
        predictions=options.predictions if options.predictions is not None else True,
    )
    chosen = tuple(dict.fromkeys(expert)) if expert is not None else None

    def asked() -> list[Analysis]:
        from moescope.analyses.profile.analysis import Profile

        return [Profile(experts=chosen, num_contexts=contexts, neighbours=neighbours, effects=effects)]

    run_analyses(asked, options, command="profile", finish=summarise)


def summarise(folder: Path) -> None:
    """Prints the profiles of a folder that were asked for one by one."""
    from moescope.analyses.profile.analysis import FOLDER
    from moescope.analyses.profile.schema import ExpertProfile

    files = sorted((folder / FOLDER).glob("L*.json"))
    for file in files[:MOST_SHOWN]:
        for line in lines(ExpertProfile.model_validate_json(file.read_text(encoding="utf-8"))):
            show(line)
        say("")
    if len(files) > MOST_SHOWN:
        say(f"and {len(files) - MOST_SHOWN} more in {folder / FOLDER}\n")


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
        said = percent if share else number
        return "" if low is None or high is None else f" (95 % interval {said(low).removesuffix(' %')} to {said(high)})"

    if label is None:
        add("statistical label", f"none: {profile.missing['label']}")
    else:
        add("statistical label", label.text)
        add("", f"balanced accuracy {number(label.balanced_accuracy)}{reach(label.ci_low, label.ci_high)}; a coin: 0.5")
    add(
        "selected for",
        f"{percent(usage.selection_frequency)} of {profile.sample.num_tokens:,} tokens"
        f"{reach(usage.ci_low, usage.ci_high, share=True)}; uniform {percent(usage.uniform_baseline)}",
    )
    domains = sorted((domain for domain in profile.domains if domain.lift), key=lambda domain: -(domain.lift or 0))[:4]
    add("domains, by lift", ", ".join(f"{domain.name} ×{number(domain.lift)}" for domain in domains))
    for name, kind in (("takes", profile.tokens.input), ("predicted there", profile.tokens.predicted)):
        if kind is not None:
            add(f"{name}, by lift", "  ".join(token.text for token in kind.by_lift))
    if profile.promoted is not None:
        add("its output promotes", "  ".join(token.text for token in profile.promoted.promoted))
    together = [f"{other.expert} ×{number(other.lift)}" for other in profile.coactivated[:5]]
    add("selected with", ", ".join(together))
    for name, near in (
        ("alike, by output", profile.nearest_by_output),
        ("alike, by weight", profile.nearest_by_weight),
    ):
        if near is not None:
            add(name, ", ".join(f"{other.expert} ({number(other.similarity)})" for other in near.nearest[:5]))
    if usage.num_selected:
        add(
            "margin, own lead",
            f"{number(profile.router.margin)}, {number(profile.router.lead)} ({profile.router.selects_by})",
        )
    if profile.effect is not None:
        effect = profile.effect
        add(
            "Δ loss when ablated",
            f"{number(effect.delta_loss)} {effect.units}{reach(effect.ci_low, effect.ci_high)}, {effect.method}",
        )
    if profile.contexts:
        first = profile.contexts[0]
        add("puts out most at", "".join(first.tokens[: first.target]) + f" »{first.tokens[first.target]}« "
            + "".join(first.tokens[first.target + 1 :]))  # fmt: skip
    elif "contexts" in profile.missing:
        add("contexts", profile.missing["contexts"])
    return made
