"""What changes do to a prompt: the next-token distribution at a target token and at all after it, beside controls."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moescope.errors import MoescopeWarning, UsageError
from moescope.interventions.changes import Change, Set
from moescope.interventions.controls import NUM_CONTROLS, Target, Usage, count_usage, matched_draws, on_others
from moescope.interventions.intervening import check_changes, intervening
from moescope.interventions.prompts import Prompt, check_against, read_prompt
from moescope.interventions.studies import Continuation, Effect, Outcomes, Study

if TYPE_CHECKING:
    from moescope.models import MoEModel

_usages: WeakKeyDictionary[MoEModel, dict[tuple[Any, ...], Usage]] = WeakKeyDictionary()


def intervene(
    model: MoEModel,
    prompt: str,
    changes: Sequence[Change],
    *,
    target: int | None = None,
    top: int = 10,
    generate: int = 0,
    controls: int = NUM_CONTROLS,
    usage: Usage | None = None,
    seed: int = 0,
) -> Study:
    """What some changes, all at once, do to a prompt.

    At the target and every later position: KL(base ‖ changed) `Σ_x p(x) ln(p(x) / q(x))` of the next-token
    distributions without (p) and with (q) the changes, nats; log-probability and rank of the tokens on top of either;
    each beside the same changes done to random experts of the same layers matched by usage.

        study = moescope.intervene(model, "Data collected by", [Scale(layer=1, expert=9, factor=0.0, positions=[4])])
        study.kl, study.next_tokens, study.experts       # data frames

    Args:
        model: From `load_model`, all of it.
        prompt: A text; it becomes tokens as the model's tokenizer does by default.
        changes: Any number, of any layers, experts and positions.
        target: The token from which on effects are read; negative counts from the end. None: the first position that
            is changed, or the first of all.
        top: How many of the most probable next tokens to compare, at each position.
        generate: How many tokens to continue the prompt by, greedily, with and without the changes; 0: none.
        controls: How many draws of matched experts; 0: none.
        usage: What experts are matched by; None: 4,000 tokens of the embedded corpus are run, once for a model and
            its layers.
        seed: Draws controls and that text.

    Raises:
        UsageError: An empty or too long prompt, a target or position past it, a layer or expert that does not exist,
            scaling or ablating an expert that no token concerned chose.
        ModelError: The model is not complete.
    """
    return compare(
        model,
        prompt,
        [(None, changes)],
        target=target,
        top=top,
        generate=generate,
        controls=controls,
        usage=usage,
        seed=seed,
    )


def compare(
    model: MoEModel,
    prompt: str,
    variants: Sequence[tuple[float | None, Sequence[Change]]],
    *,
    target: int | None = None,
    top: int = 10,
    generate: int = 0,
    controls: int = NUM_CONTROLS,
    usage: Usage | None = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Study:
    """`intervene` for several sets of changes in turn, such as one weight after another: a sweep.

    Args:
        model: See `intervene`, also for the other arguments.
        prompt: See there.
        variants: Each the value that is swept (None where there is none) and the changes; all of the same experts.
        target: See there.
        top: See there.
        generate: See there.
        controls: See there.
        usage: See there.
        seed: See there.
        progress: Called with 1 after each forward pass.

    Raises:
        UsageError: See `intervene`; also variants that are not about the same experts.
    """
    targets = _targets(model, variants)
    layers = sorted({layer for layer, _ in targets})
    read = read_prompt(model, prompt, layers, generate)
    given = read.position(target) if target is not None else None
    for _, changes in variants:
        check_against(read, changes, generate)
    start = _first(read, variants) if given is None else given
    if top < 1:
        raise UsageError(f"the {top} most probable tokens", expected="at least 1")

    draws: list[dict[Target, int]] = []
    if controls:
        usage = usage or usage_of(model, layers, seed)
        draws = matched_draws(usage.counts, targets, num=controls, seed=seed)
        if len(draws) < controls:
            warnings.warn(
                f"{len(draws)} controls instead of {controls}: layer {layers[0]} has no more experts to draw from",
                MoescopeWarning,
                stacklevel=2,
            )
    ids_1S = torch.tensor([read.token_ids], device=model.device)
    others = _other_choices(read, variants)
    runner = _Runner(model, ids_1S, start, progress)
    base_PV = runner([])
    changed = [runner(changes) for _, changes in variants]
    candidates = _top_tokens([base_PV, *changed], top)
    base = Outcomes.of(base_PV, base_PV, candidates)
    effects = [
        Effect(
            value=value,
            changes=tuple(changes),
            changed=Outcomes.of(base_PV, changed_PV, candidates),
            matched=[Outcomes.of(base_PV, runner(on_others(changes, draw)), candidates) for draw in draws],
            chosen=[Outcomes.of(base_PV, runner(on_others(changes, draw)), candidates) for draw in others],
        )
        for (value, changes), changed_PV in zip(variants, changed, strict=True)
    ]
    return Study(
        model=model,
        prompt=read,
        target=start,
        targets=tuple(targets),
        base=base,
        token_ids=tuple(candidates),
        effects=tuple(effects),
        draws=tuple(draws),
        usage=usage if controls else None,
        continuations=tuple(_continuations(model, ids_1S, variants, draws, generate)) if generate else (),
        top=top,
        seed=seed,
    )


def usage_of(model: MoEModel, layers: Sequence[int], seed: int = 0) -> Usage:
    """Usage in a small sample of the embedded corpus; counted once for a model, its layers and a seed."""
    known = _usages.setdefault(model, {})
    key = (tuple(layers), seed)
    if key not in known:
        known[key] = count_usage(model, layers, seed=seed)
    return known[key]


@dataclass
class _Runner:
    """Runs the prompt with changes in force; next-token logits from the target on, float32 (P, V)."""

    model: MoEModel
    ids_1S: Tensor
    start: int
    progress: Callable[[int], None] | None

    def __call__(self, changes: Sequence[Change]) -> Tensor:
        with torch.inference_mode(), intervening(self.model, changes):
            logits_PV = self.model.hf(input_ids=self.ids_1S, use_cache=False).logits[0, self.start :].float().cpu()
        if self.progress is not None:
            self.progress(1)
        return logits_PV


def _targets(model: MoEModel, variants: Sequence[tuple[float | None, Sequence[Change]]]) -> list[Target]:
    """The experts concerned, the same in all variants."""
    found = [
        list(dict.fromkeys((change.layer, change.expert) for change in check_changes(model, changes)))
        for _, changes in variants
    ]
    if not found or not found[0]:
        raise UsageError("no change was asked for", expected="at least one of Scale, Set, Ablate, Replace")
    if any(sorted(targets) != sorted(found[0]) for targets in found):
        raise UsageError("a sweep changes different experts from one value to the next", expected="the same throughout")
    return found[0]


def _first(prompt: Prompt, variants: Sequence[tuple[float | None, Sequence[Change]]]) -> int:
    """The first position of the prompt that is changed."""
    places = [change.places for _, changes in variants for change in changes]
    if any(given is None for given in places):
        return 0
    inside = [place % len(prompt) for given in places for place in given or () if place < len(prompt)]
    return min(inside, default=len(prompt) - 1)


def _other_choices(
    prompt: Prompt, variants: Sequence[tuple[float | None, Sequence[Change]]]
) -> list[dict[Target, int]]:
    """The other experts that the one token chose: a control for changes that do little to an expert not chosen."""
    changes = [change for _, given in variants for change in given]
    places = {change.places for change in changes}
    if len({(change.layer, change.expert) for change in changes}) > 1 or len(places) > 1:
        return []
    first, given = changes[0], next(iter(places))
    if any(isinstance(change, Set) for change in changes) or given is None or len(given) > 1 or given[0] >= len(prompt):
        return []
    chosen = prompt.chosen(first.layer, given[0])
    return [{(first.layer, first.expert): expert} for expert in chosen if expert != first.expert]


def _top_tokens(logits: Sequence[Tensor], top: int) -> list[NDArray[np.int64]]:
    """For each position the ids that are on top in any of these passes, those most probable in the base first."""
    base_PV = logits[0]
    found = []
    for place in range(base_PV.shape[0]):
        ids = torch.cat([each_PV[place].topk(min(top, each_PV.shape[1])).indices for each_PV in logits]).unique()
        found.append(ids[base_PV[place][ids].argsort(descending=True, stable=True)].numpy())
    return found


def _continuations(
    model: MoEModel,
    ids_1S: Tensor,
    variants: Sequence[tuple[float | None, Sequence[Change]]],
    draws: Sequence[Mapping[Target, int]],
    num_tokens: int,
) -> list[Continuation]:
    """The prompt continued greedily: as it is, with each variant's changes, and with them done to the first control."""

    def continued(changes: Sequence[Change]) -> list[int]:
        options: dict[str, Any] = {"max_new_tokens": num_tokens, "do_sample": False, "num_beams": 1}
        pad = getattr(model.hf.generation_config, "pad_token_id", None)
        if pad is None:
            eos = getattr(model.hf.generation_config, "eos_token_id", None)
            options["pad_token_id"] = eos[0] if isinstance(eos, list) else (eos if eos is not None else 0)
        with intervening(model, changes):
            out = model.generate(ids_1S, attention_mask=torch.ones_like(ids_1S), **options)
        return [int(token_id) for token_id in out[0, ids_1S.shape[1] :]]

    base = continued([])
    found = [Continuation.of(model, None, "base", base, base)]
    for value, changes in variants:
        found.append(Continuation.of(model, value, "changed", continued(changes), base))
        if draws:
            found.append(Continuation.of(model, value, "control", continued(on_others(changes, draws[0])), base))
    return found
