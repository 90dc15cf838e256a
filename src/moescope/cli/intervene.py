"""`moescope intervene`: the effect of scaling, setting, ablating or replacing experts on a prompt's next tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter, validators

from moescope.cli.capture import DEFAULT_FOLDER, command_line, kept, load, may_download, nearby, raise_failures
from moescope.cli.intervene_terminal import print_study
from moescope.cli.options import AT_LEAST_ONE, InterveneOptions
from moescope.cli.terminal import print_line, quiet, working
from moescope.errors import MoescopeError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from moescope.analyses.intervention.study import Study
    from moescope.interventions import Change

PROMPT = Group("Prompt", sort_key=-3)
CHANGE = Group("Change", sort_key=-2)
READING = Group("Reading", sort_key=-1)
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
    renormalize: Annotated[bool, Parameter(negative="", show_default=False, group=CHANGE)] = False,
    positions: Annotated[list[str] | None, Parameter(consume_multiple=(1, None), negative="", group=CHANGE)] = None,
    generate: Annotated[int, Parameter(validator=validators.Number(gte=0), group=READING)] = 0,
    top: Annotated[int, Parameter(validator=AT_LEAST_ONE, group=READING)] = 10,
    controls: Annotated[int, Parameter(validator=AT_LEAST_ONE, group=READING)] = 20,
    seed: Annotated[int, Parameter(validator=validators.Number(gte=0), group=READING)] = 0,
    options: InterveneOptions | None = None,
) -> None:
    """Intervention: what scaling or ablating experts does to the next tokens of a prompt.

    As in moescope intervene --prompt "Data collected by Barack Obama" --target-index 4 --layer 1 --expert 9 --set 0.2.
    Prints the prompt's tokens with the experts that they select, and the effects; writes tables (.csv, .parquet),
    figures (.pdf, .png), intervene.json and a manifest to the folder --out.

    **Weights**: those applied, after the family's renormalization and scaling.

    **KL**: Σ p ln(p / q) of the next-token distributions without (p) and with (q) the change, in nats, at the target
    and every later token.

    **Control**: the same change of random experts of the same layer that are selected about as often, in 4,000 tokens
    of the embedded corpus: median and 5 to 95 % of them. Scaling has no effect on experts that no changed token
    selects, which are most of them; the token's other selected experts are then a second control.

    Args:
        prompt: Text to read.
        target_index: Token of the prompt that is changed, and from which on effects are read, from 0; negative counts
            from the end.
        layer: MoE layer of the expert; or several, one for each expert.
        expert: Expert to change; or several together, all of one layer or each of its own.
        scale: Multiply its weight by this where it is selected; several: a sweep.
        to: Set its weight to this, also where it is not selected: it takes the slot of the selected expert with the
            least weight. Several: a sweep. Default, if no change is named: 0 0.05 0.1 0.2 0.5 1.
        ablate: Weight 0 where it is selected, the others unchanged.
        replace: It cannot be selected, and the router selects and weights again, as if it did not exist.
        renormalize: The token's weights keep their former sum.
        positions: Tokens that are changed, as in --positions 3 4, or all, also those that are generated. Default: the
            target.
        generate: Tokens to continue the prompt by, greedily, with and without the change.
        top: Most probable next tokens to compare.
        controls: Random experts in the control; fewer where the layer does not have that many.
        seed: Seed of the control's experts, and of the text that their usage is counted in.
        options: Which model, where results are written.
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
    indices = _indices(positions, target_index)
    if not prompt.strip():
        raise UsageError("the prompt is empty", expected='a text, as in --prompt "Data collected by"')

    def changes(value: float | None) -> list[Change]:
        from moescope.interventions import Ablate, Replace, Scale, Set

        more: dict[str, Any] = {"positions": indices, "renormalize": renormalize}
        if kind == "--scale":
            return [Scale(layer, expert, value or 0.0, **more) for layer, expert in targets]
        if kind == "--ablate":
            return [Ablate(layer, expert, **more) for layer, expert in targets]
        if kind == "--replace":
            return [Replace(layer, expert, **more) for layer, expert in targets]
        return [Set(layer, expert, value or 0.0, **more) for layer, expert in targets]

    failures: list[MoescopeError] = []
    with quiet(verbose=options.verbose, downloads=may_download(options)):
        study, path = _run(
            options,
            failures,
            prompt,
            lambda: [(value, changes(value)) for value in values or (None,)],
            target=target_index,
            top=top,
            generate=generate,
            controls=controls,
            seed=seed,
        )
        print_study(study)
        print_line(f"Results: {nearby(path)}")
    raise_failures(failures)


def _run(
    options: InterveneOptions,
    failures: list[MoescopeError],
    prompt: str,
    variants: Callable[[], list[tuple[float | None, list[Change]]]],
    **more: Any,
) -> tuple[Study, Path]:
    with working("starting"):
        from moescope.analyses.intervention.analysis import compare
        from moescope.results import ResultsFolder

    folder = ResultsFolder(options.out, default=DEFAULT_FOLDER / "intervene", force=options.force)
    model = load(options)
    with working("running the prompt, with and without changes"):
        study = compare(model, prompt, variants(), command_line=command_line(), **more)
    with kept(failures), folder, working("writing results, drawing figures"):
        study.write(folder)
    return study, folder.path


def pairs(layers: Sequence[int], experts: Sequence[int]) -> list[tuple[int, int]]:
    """Layer and expert of each expert named: all of one layer, or each of its own.

    Raises:
        UsageError: Another number of layers than of experts, or an expert named twice.
    """
    if len(layers) == 1:
        layers = [layers[0]] * len(experts)
    if len(layers) != len(experts):
        raise UsageError(
            f"{len(layers)} layers for {len(experts)} experts",
            expected="one layer for all experts, or one for each, as in --layer 1 7 --expert 9 3",
        )
    targets = list(zip(layers, experts, strict=True))
    twice = [pair for index, pair in enumerate(targets) if pair in targets[:index]]
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


def _indices(positions: Sequence[str] | None, target: int) -> list[int] | None:
    """The positions to change; None for all."""
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
