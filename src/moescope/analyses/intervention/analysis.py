"""The public `intervene`: effects of changes on the next-token distributions of a prompt, with matched controls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moescope.analyses.intervention.prompts import Prompt, check_against, read_prompt
from moescope.analyses.intervention.study import Study
from moescope.analyses.intervention.table import Continuation, Effect, PromptEffects, PromptPass
from moescope.context import Context
from moescope.errors import UsageError, at_least, of_type, warn, whole_number
from moescope.interventions.changes import Change, Set
from moescope.interventions.controls import NUM_CONTROLS, Target, Usage, count_usage, matched_draws, on_others
from moescope.interventions.intervening import check_changes, intervening
from moescope.models.given import check_model
from moescope.models.token_text import token_texts
from moescope.results.manifest import Manifest, make_manifest

if TYPE_CHECKING:
    from moescope.models import MoEModel

Variant = tuple[float | None, Sequence[Change]]
"""The value that is swept (None without a sweep), and the changes."""


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
    """Measures the effect of some changes, all in force together, on a prompt.

    At the target and every later position: KL(base ‖ changed) `Σ_x p(x) ln(p(x) / q(x))` of the next-token
    distributions without (p) and with (q) the changes, nats; log-probability and rank of the most probable next tokens
    of either; each with the same changes of random experts of the same layers matched by usage.

        study = moescope.intervene(model, "Data collected by", [Scale(layer=1, expert=9, factor=0.0, positions=[4])])
        study.kl, study.next_tokens, study.experts       # data frames

    Args:
        model: From `load_model`, with its whole depth.
        prompt: A text, tokenized by the tokenizer's defaults.
        changes: Any number, of any layers, experts and positions.
        target: The token from which on effects are read; negative counts from the end. None: the first position that
            is changed, or the first of all.
        top: Number of most probable next tokens to compare at each position.
        generate: Number of tokens to continue the prompt by, greedily, with and without the changes; 0: none.
        controls: Number of draws of matched experts; 0: none.
        usage: Usage that experts are matched by. None: it is counted in 4,000 tokens of the embedded corpus, in each
            call; `study.usage` of an earlier call saves that pass.
        seed: Seed of the controls and of that text.

    Returns:
        The study: `.kl`, `.next_tokens`, `.experts`, `.controls`, `.frames`, `.figures`, `.manifest`, `.save(path)`.

    Raises:
        UsageError: An empty or too long prompt, a target or position past it, a layer or expert that does not exist,
            scaling or ablating an expert that none of the changed tokens selects.
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
    variants: Sequence[Variant],
    *,
    target: int | None = None,
    top: int = 10,
    generate: int = 0,
    controls: int = NUM_CONTROLS,
    usage: Usage | None = None,
    seed: int = 0,
    command_line: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Study:
    """`intervene` for several sets of changes in turn, such as one weight after another: a sweep.

    Args:
        model: See `intervene`, also for the other arguments.
        prompt: See there.
        variants: For each set of changes the value that is swept (None without a sweep) and the changes; all of the
            same experts.
        target: See there.
        top: See there.
        generate: See there.
        controls: See there.
        usage: See there.
        seed: See there.
        command_line: The command as it was typed, for the manifest.
        progress: Called with 1 after each forward pass.

    Raises:
        UsageError: See `intervene`; also variants that change different experts.
    """
    started = time.perf_counter()
    check_model(model)
    of_type(prompt, str, "prompt", "a text (str)")
    of_type(usage, (Usage, NoneType), "usage", "what `usage` of an earlier study was")
    numbers = {"top": top, "controls": controls, "generate": generate, "seed": seed}
    for name, value in (numbers if target is None else {**numbers, "target": target}).items():
        whole_number(value, name)
    model.refresh()
    if usage is not None:
        usage.check_same_model(model)
    at_least(1, top=top)
    at_least(0, controls=controls, generate=generate)
    targets = _targets(model, variants)
    layers = sorted({layer for layer, _ in targets})
    read = read_prompt(model, prompt, layers, generate)
    given = read.position(target) if target is not None else None
    for _, changes in variants:
        check_against(read, changes, generate)
    start = _first(read, variants) if given is None else given

    notes: list[str] = []
    draws: list[dict[Target, int]] = []
    if controls:
        usage = usage or count_usage(model, layers, seed=seed)
        draws = matched_draws(usage.counts, targets, num=controls, seed=seed)
        if len(draws) < controls:
            notes.append(f"{len(draws)} controls instead of {controls}: layer {layers[0]} has no more experts to draw")
            warn(notes[-1], stacklevel=2)
    pass_started = time.perf_counter()
    ids_1S = torch.tensor([read.token_ids], device=model.device)
    base, token_ids, effects = _effects(_Runner(model, ids_1S, start, progress), read, variants, draws, top)
    continuations = _continuations(model, ids_1S, variants, draws, generate) if generate else []
    pass_seconds = time.perf_counter() - pass_started
    found = PromptEffects(
        prompt=read,
        target=start,
        targets=tuple(targets),
        base=base,
        effects=tuple(effects),
        draws=tuple(draws),
        usage=usage if controls else None,
        continuations=tuple(continuations),
        token_ids=tuple(token_ids),
        texts=token_texts(model.tokenizer, np.unique(np.concatenate(token_ids)).tolist()),
        top=top,
        seed=seed,
    )
    options: dict[str, Any] = {"generate": generate, "top": top, "controls": controls}
    if command_line is not None:
        options["command_line"] = command_line
    seconds = {"pass_seconds": pass_seconds, "total_seconds": time.perf_counter() - started}
    return Study(**vars(found), manifest=_manifest(model, found, options, notes, **seconds))


def _manifest(
    model: MoEModel, found: PromptEffects, options: Mapping[str, Any], notes: Sequence[str], **seconds: float
) -> Manifest:
    """What was run; the text counted is that by which controls are matched."""
    usage = found.usage
    context = Context(
        model=model.info,
        layers=tuple(sorted({layer for layer, _ in found.targets})),
        domains=usage.corpus.labels if usage else (),
        groups=usage.corpus.label_groups if usage else {},
        corpus_name=usage.corpus.name if usage else "",
        num_tokens=usage.num_tokens if usage else 0,
        seed=found.seed,
        predictions=True,
        corpus_fingerprint=usage.corpus.fingerprint if usage else "",
    )
    prompt = f"effects are those on a prompt of {len(found.prompt)} tokens"
    sample = "; the corpus is only used to count how often experts are selected" if usage else ""
    return make_manifest(
        context,
        command="intervene",
        analyses=[],
        options={
            "prompt": found.prompt.text,
            "target_index": found.target,
            "changes": [effect.records for effect in found.effects],
            "values": [effect.value for effect in found.effects if effect.value is not None],
            **options,
        },
        corpus=usage.corpus if usage else None,
        sampler=usage.sampler if usage else None,
        notes=[prompt + sample, *notes],
        pass_seconds=seconds["pass_seconds"],
        total_seconds=seconds["total_seconds"],
    )


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


def _effects(
    runner: _Runner, prompt: Prompt, variants: Sequence[Variant], draws: Sequence[dict[Target, int]], top: int
) -> tuple[PromptPass, list[NDArray[np.int64]], list[Effect]]:
    """The base, the next tokens compared, and each variant with its controls."""
    others = _other_choices(prompt, variants)
    base_PV = runner([])
    changed = [runner(changes) for _, changes in variants]
    token_ids = _top_tokens([base_PV, *changed], top)

    def compared(logits_PV: Tensor) -> PromptPass:
        return PromptPass.of(base_PV, logits_PV, token_ids)

    effects = [
        Effect(
            value=value,
            changes=tuple(changes),
            changed=compared(changed_PV),
            matched=[compared(runner(on_others(changes, draw))) for draw in draws],
            other=[compared(runner(on_others(changes, draw))) for draw in others],
        )
        for (value, changes), changed_PV in zip(variants, changed, strict=True)
    ]
    return compared(base_PV), token_ids, effects


def _targets(model: MoEModel, variants: Sequence[Variant]) -> list[Target]:
    """The experts that are changed, the same in all variants."""
    found = [
        list(dict.fromkeys((change.layer, change.expert) for change in check_changes(model, changes)))
        for _, changes in variants
    ]
    if not found or not found[0]:
        raise UsageError("there is no change", expected="one or more of Scale, Set, Ablate, Replace")
    if any(sorted(targets) != sorted(found[0]) for targets in found):
        raise UsageError("a sweep changes different experts from one value to the next", expected="the same throughout")
    return found[0]


def _first(prompt: Prompt, variants: Sequence[Variant]) -> int:
    """The first position of the prompt that is changed."""
    positions = [change.indices for _, changes in variants for change in changes]
    if any(given is None for given in positions):
        return 0
    inside = [index % len(prompt) for given in positions for index in given or () if index < len(prompt)]
    return min(inside, default=len(prompt) - 1)


def _other_choices(prompt: Prompt, variants: Sequence[Variant]) -> list[dict[Target, int]]:
    """The other experts that the one changed token selects: a control for changes without effect on other experts."""
    changes = [change for _, given in variants for change in given]
    positions = {change.indices for change in changes}
    if len({(change.layer, change.expert) for change in changes}) > 1 or len(positions) > 1:
        return []
    first, given = changes[0], next(iter(positions))
    if any(isinstance(change, Set) for change in changes) or given is None or len(given) > 1 or given[0] >= len(prompt):
        return []
    selected = prompt.selected(first.layer, given[0])
    return [{(first.layer, first.expert): expert} for expert in selected if expert != first.expert]


def _top_tokens(logits: Sequence[Tensor], top: int) -> list[NDArray[np.int64]]:
    """For each position the ids of the `top` tokens of any of these passes, those most probable in the base first."""
    base_PV = logits[0]
    found = []
    for index in range(base_PV.shape[0]):
        ids = torch.cat([each_PV[index].topk(min(top, each_PV.shape[1])).indices for each_PV in logits]).unique()
        found.append(ids[base_PV[index][ids].argsort(descending=True, stable=True)].numpy())
    return found


def _continuations(
    model: MoEModel,
    ids_1S: Tensor,
    variants: Sequence[Variant],
    draws: Sequence[Mapping[Target, int]],
    num_tokens: int,
) -> list[Continuation]:
    """Greedy continuations: without changes, with each variant's changes, and with those of the first control."""

    def generated(changes: Sequence[Change]) -> list[int]:
        options: dict[str, Any] = {"max_new_tokens": num_tokens, "do_sample": False, "num_beams": 1}
        pad = getattr(model.hf.generation_config, "pad_token_id", None)
        if pad is None:
            eos = getattr(model.hf.generation_config, "eos_token_id", None)
            options["pad_token_id"] = eos[0] if isinstance(eos, list) else (eos if eos is not None else 0)
        with intervening(model, changes):
            out = model.generate(ids_1S, attention_mask=torch.ones_like(ids_1S), **options)
        return [int(token_id) for token_id in out[0, ids_1S.shape[1] :]]

    base = generated([])

    def compared(value: float | None, run: str, token_ids: Sequence[int]) -> Continuation:
        same = next((i for i, (a, b) in enumerate(zip(token_ids, base, strict=False)) if a != b), None)
        text = str(model.tokenizer.decode(list(token_ids), skip_special_tokens=True))
        num_as_base = min(len(token_ids), len(base)) if same is None else same
        return Continuation(value, run, text, len(token_ids), num_as_base)

    found = [compared(None, "base", base)]
    for value, changes in variants:
        found.append(compared(value, "changed", generated(changes)))
        if draws:
            found.append(compared(value, "control", generated(on_others(changes, draws[0]))))
    return found
