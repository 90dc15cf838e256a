"""`moescope intervene`: what happens to a prompt's next tokens when experts are turned up, down or off."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter, validators

from moescope.cli.capture import DEFAULT_FOLDER, command_line, load, may_download
from moescope.cli.intervene_terminal import tell
from moescope.cli.options import AT_LEAST_ONE, InterveneOptions, ModelOptions
from moescope.cli.terminal import quieten, say, working
from moescope.errors import UsageError

if TYPE_CHECKING:
    from moescope.interventions import Change, Study
    from moescope.results import Manifest

PROMPT = Group.create_ordered("Prompt")
CHANGE = Group.create_ordered("Change")
READING = Group.create_ordered("Reading")
SWEEP = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)


def intervene(
    *,
    prompt: Annotated[str, Parameter(group=PROMPT)],
    target_index: Annotated[int, Parameter(name=["--target-index", "--target-idx"], group=PROMPT)] = -1,
    layer: Annotated[list[int], Parameter(consume_multiple=(1, None), negative="", group=CHANGE)],
    expert: Annotated[
        list[int], Parameter(name=["--expert", "--expert-id"], consume_multiple=(1, None), negative="", group=CHANGE)
    ],
    scale: Annotated[list[float] | None, Parameter(consume_multiple=(1, None), negative="", group=CHANGE)] = None,
    to: Annotated[
        list[float] | None, Parameter(name="--set", consume_multiple=(1, None), negative="", group=CHANGE)
    ] = None,
    ablate: Annotated[bool, Parameter(negative="", show_default=False, group=CHANGE)] = False,
    replace: Annotated[bool, Parameter(negative="", show_default=False, group=CHANGE)] = False,
    renormalise: Annotated[bool, Parameter(negative="", show_default=False, group=CHANGE)] = False,
    positions: Annotated[list[str] | None, Parameter(consume_multiple=(1, None), negative="", group=CHANGE)] = None,
    generate: Annotated[int, Parameter(validator=validators.Number(gte=0), group=READING)] = 0,
    top: Annotated[int, Parameter(validator=AT_LEAST_ONE, group=READING)] = 10,
    controls: Annotated[int, Parameter(validator=AT_LEAST_ONE, group=READING)] = 20,
    seed: Annotated[int, Parameter(validator=validators.Number(gte=0), group=READING)] = 0,
    options: InterveneOptions | None = None,
) -> None:
    """Intervene: what happens to a prompt's next tokens when experts are turned up, down or off.

    As in moescope intervene --prompt "Data collected by Barack Obama" --target-index 4 --layer 1 --expert 9 --set 0.2.
    Prints the prompt's tokens with the experts they chose, and what changes; writes tables (.csv, .parquet), figures
    (.pdf, .png), intervene.json and a manifest to the folder --out.

    **Weights** are those applied, after the family's renormalising and scaling.

    **KL**: Σ p ln(p / q) of the next-token distributions without (p) and with (q) the change, in nats, at the target
    and every later token.

    **Control**: the same done to random experts of the same layer that are used about as often, in 4,000 tokens of the
    embedded corpus: median and 5 to 95 % of them. Where weights are only scaled, most of them do nothing, since the
    token did not choose them; then its other choices are a second control.

    Args:
        prompt: Text to read.
        target_index: Token of the prompt that is changed, and from which on effects are read, from 0; negative counts
            from the end.
        layer: MoE layer of the expert; or several, one for each expert.
        expert: Expert to change; or several at once, all of one layer or each of its own.
        scale: Multiply its weight by this where it is chosen; several: a sweep.
        to: Give it this weight, chosen or not: it takes the place of the chosen expert with the least weight. Several:
            a sweep. Default, where no change is named: 0 0.05 0.1 0.2 0.5 1.
        ablate: Weight 0 where it is chosen, the others unchanged.
        replace: It can't be chosen, and the router chooses and weighs again, as if it did not exist.
        renormalise: The token's weights keep their former sum.
        positions: Tokens that are changed, as in --positions 3 4, or all, also those that are generated. Default: the
            target.
        generate: Tokens to continue the prompt by, greedily, with and without the change.
        top: Most probable next tokens to compare.
        controls: Random experts in the control; fewer where the layer has not that many.
        seed: Draws them, and the text that their usage is counted in.
        options: Which model, where to leave results.
    """
    options = options or InterveneOptions()
    given = {"--scale": scale is not None, "--set": to is not None, "--ablate": ablate, "--replace": replace}
    kind = _only_one([name for name, is_given in given.items() if is_given])
    targets = pairs(layer, expert)
    values: Sequence[float] = scale or to or (SWEEP if kind is None else ())
    if len(targets) > 1 and len(values) > 1:
        raise UsageError(
            f"{len(values)} values to sweep for {len(targets)} experts",
            expected="one value, for all of them" if kind else "--scale or --set with one value, --ablate or --replace",
            remedy="sweep one expert at a time, or give one value",
        )
    places = _places(positions, target_index)
    if not prompt.strip():
        raise UsageError("the prompt is empty", expected='a text, as in --prompt "Data collected by"')

    chosen = ModelOptions(
        model=options.model,
        revision=options.revision,
        dtype=options.dtype,
        device=options.device,
        trust_remote_code=options.trust_remote_code,
    )
    quieten(verbose=options.verbose, downloads=may_download(chosen))
    started = time.perf_counter()
    with working("starting"):
        from moescope.interventions import Ablate, Replace, Scale, Set, compare
        from moescope.results import ResultsFolder

    def changes(value: float | None) -> list[Change]:
        more: dict[str, Any] = {"positions": places, "renormalise": renormalise}
        if kind == "--scale":
            return [Scale(layer, expert, value or 0.0, **more) for layer, expert in targets]
        if kind == "--ablate":
            return [Ablate(layer, expert, **more) for layer, expert in targets]
        if kind == "--replace":
            return [Replace(layer, expert, **more) for layer, expert in targets]
        return [Set(layer, expert, value or 0.0, **more) for layer, expert in targets]

    folder = ResultsFolder(options.out, default=DEFAULT_FOLDER / "intervene", force=options.force)
    model = load(chosen)
    with working("running the prompt, with and without changes"):
        study = compare(
            model,
            prompt,
            [(value, changes(value)) for value in values or (None,)],
            target=target_index,
            top=top,
            generate=generate,
            controls=controls,
            seed=seed,
        )
    settings = {
        "prompt": prompt,
        "target_index": study.target,
        "targets": [{"layer": layer, "expert": expert} for layer, expert in targets],
        "change": (kind or "--set").removeprefix("--"),
        "values": list(values),
        "positions": "all" if places is None else places,
        "renormalise": renormalise,
        "generate": generate,
        "top": top,
        "controls": controls,
        "command_line": command_line(),
    }
    with folder, working("drawing figures"):
        for name, frame in study.frames():
            folder.write_table(name, frame)
        folder.write_text("intervene.json", json.dumps(study.to_dict(), indent=2, ensure_ascii=False) + "\n")
        folder.write_figures(study.figures())
        manifest = _manifest(study, settings)
        manifest.wall_seconds = round(time.perf_counter() - started, 3)
        folder.write_manifest(manifest)
    tell(study)
    say(f"Results: {folder.path}")


def pairs(layers: Sequence[int], experts: Sequence[int]) -> list[tuple[int, int]]:
    """Layer and expert of each expert named: all of one layer, or each of its own.

    Raises:
        UsageError: As many layers as there are not experts, or one named twice.
    """
    if len(layers) == 1:
        layers = [layers[0]] * len(experts)
    if len(layers) != len(experts):
        raise UsageError(
            f"{len(layers)} layers for {len(experts)} experts",
            expected="one layer for all experts, or one for each, as in --layer 1 7 --expert 9 3",
        )
    targets = list(zip(layers, experts, strict=True))
    twice = [pair for place, pair in enumerate(targets) if pair in targets[:place]]
    if twice:
        raise UsageError(f"expert {twice[0][1]} of layer {twice[0][0]} is named twice", expected="each expert once")
    return targets


def _only_one(given: Sequence[str]) -> str | None:
    if len(given) > 1:
        raise UsageError(
            f"{' and '.join(given)} were given together",
            expected="one of --scale, --set, --ablate, --replace",
            remedy="run one after the other; or use moescope.intervene in Python, which takes any changes at once",
        )
    return given[0] if given else None


def _places(positions: Sequence[str] | None, target: int) -> list[int] | None:
    """The positions asked for; None for all."""
    if positions is None:
        return [target]
    if [word.lower() for word in positions] == ["all"]:
        return None
    try:
        return [int(word) for word in positions]
    except ValueError as error:
        raise UsageError(
            f"--positions {' '.join(positions)}", expected="token indices from 0, as in --positions 3 4; or all"
        ) from error


def _manifest(study: Study, settings: dict[str, Any]) -> Manifest:
    """What was run; the text counted is that by which controls were matched."""
    from moescope.analyses.base import Context
    from moescope.run import make_manifest

    usage = study.usage
    assert usage is not None
    context = Context(
        model=study.model,
        layers=tuple(sorted({layer for layer, _ in study.targets})),
        domains=usage.corpus.domains,
        groups=usage.corpus.groups,
        corpus_name=usage.corpus.name,
        num_tokens=usage.num_tokens,
        seed=study.seed,
        predictions=True,
    )
    notes = [f"effects are those on a prompt of {len(study.prompt)} tokens; the corpus only tells how experts are used"]
    return make_manifest(context, usage.corpus, usage.sampler, settings, [], "intervene", notes)
