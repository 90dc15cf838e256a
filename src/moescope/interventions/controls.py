"""Controls of an effect: the same change of random experts of the same layer, matched by usage."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.errors import UsageError
from moescope.interventions.changes import Change

if TYPE_CHECKING:
    from moescope.context import ModelInfo
    from moescope.corpora import Corpus, Sampler
    from moescope.models import MoEModel
    from moescope.records import Routing

NUM_CONTROLS = 20
"""Experts drawn as controls, where the layer has that many."""
POOL = 1.5
"""Controls are drawn among this many times as many experts, those nearest in usage."""
USAGE_TOKENS = 4_000
"""Tokens of text in which usage is counted."""

Target = tuple[int, int]
"""A layer and one of its experts."""


@dataclass(frozen=True)
class Usage:
    """How often each expert is selected in a sample of text.

    Attributes:
        counts: Layer -> `N_e`, int64 (E,).
        num_tokens: `N`, tokens counted.
        corpus: Source of the tokens.
        sampler: The sample of tokens.
        model: The model as it was, with what was in force on it.
    """

    counts: Mapping[int, NDArray[np.int64]]
    num_tokens: int
    corpus: Corpus
    sampler: Sampler
    model: ModelInfo

    def check_same_model(self, model: MoEModel) -> None:
        """Refuses counts of another model, or of this one with other changes in force.

        Raises:
            UsageError: Says which it is.
        """
        now = model.info
        if self.model != now:
            same = replace(self.model, interventions=(), changes=()) == replace(now, interventions=(), changes=())
            what = f"{now.name} with other changes in force" if same else self.model.name
            raise UsageError(
                f"`usage` was counted on {what}",
                expected=f"counts of {now.name} as it is now",
                remedy="leave `usage` out: it is then counted anew",
            )

    def frequency(self, layer: int, expert: int) -> float:
        """`N_e / N`."""
        return float(self.counts[layer][expert]) / max(1, self.num_tokens)


def count_usage(
    model: MoEModel,
    layers: Sequence[int],
    *,
    corpus: Corpus | None = None,
    num_tokens: int = USAGE_TOKENS,
    seed: int = 0,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> Usage:
    """Counts how often each expert is selected, in one pass that ends at the deepest of the layers.

    Interventions in force are in force here too: the counts are those of the changed model.

    Args:
        model: The model.
        layers: MoE layers.
        corpus: Text; None for the embedded corpus.
        num_tokens: Tokens to count.
        seed: Chooses documents and windows.
        batch_tokens: Padded tokens in a batch.
        progress: Called after each batch with the number of tokens counted in it.
    """
    from moescope.corpora import Sampler, load_corpus

    corpus = corpus or load_corpus("embedded")
    chosen = model.check_layers(layers)
    sampler = Sampler(
        corpus,
        model.tokenizer,
        num_tokens=max(num_tokens, len(corpus.domains)),
        seed=seed,
        max_positions=model.max_positions,
        batch_tokens=batch_tokens,
    )
    counts = {layer: torch.zeros(model.num_experts, dtype=torch.int64, device=model.device) for layer in chosen}

    def on_routing(routing: Routing) -> None:
        counts[routing.layer] += torch.bincount(routing.expert_ids_TK.flatten(), minlength=model.num_experts)

    for batch in sampler:
        placed = batch.to(model.device)
        model.listen(
            placed.input_ids_BS,
            placed.tokens,
            placed.keep_T,
            layers=chosen,
            on_routing=on_routing,
            needs_logits=False,
        )
        if progress is not None:
            progress(placed.tokens.num_tokens)
    counted = {layer: counts_E.cpu().numpy() for layer, counts_E in counts.items()}
    return Usage(counted, int(sampler.num_tokens_D.sum()), corpus, sampler, model.info)


def matched_experts(
    counts_E: NDArray[np.int64], expert: int, *, num: int = NUM_CONTROLS, exclude: Sequence[int] = (), seed: int = 0
) -> list[int]:
    """Random experts of a layer whose usage is near that of a given one.

    They are drawn without replacement among the `1.5 num` other experts of nearest usage, by the ratio of `N_e + 1`; of
    equally near ones those of lower ids.

    Args:
        counts_E: How often each expert of the layer is selected.
        expert: The expert to match.
        num: Number of experts; fewer where the layer does not have that many.
        exclude: Experts never to draw.
        seed: Seed of the draw, together with `expert`.
    """
    pool = _pool(counts_E, expert, num, exclude)
    generator = np.random.default_rng([seed, expert])
    return [int(drawn) for drawn in generator.permutation(pool)[:num]]


def matched_draws(
    counts: Mapping[int, NDArray[np.int64]], targets: Sequence[Target], *, num: int = NUM_CONTROLS, seed: int = 0
) -> list[dict[Target, int]]:
    """Controls for several experts at once: each draw has for every target a matched expert of its layer.

    No draw has an expert twice or one of the targets, and no two draws are equal; there may thus be fewer than `num`.

    Args:
        counts: Layer -> how often each of its experts is selected.
        targets: Layer and expert of each target.
        num: Number of draws.
        seed: Seed of the draws.
    """
    targets = list(dict.fromkeys(targets))
    taken = {layer: [expert for other, expert in targets if other == layer] for layer, _ in targets}
    if len(targets) == 1:
        (layer, expert), *_ = targets
        return [{targets[0]: drawn} for drawn in matched_experts(counts[layer], expert, num=num, seed=seed)]
    pools = {target: _pool(counts[target[0]], target[1], num, taken[target[0]]) for target in targets}
    generator = np.random.default_rng([seed, *(number for target in targets for number in target)])
    draws: dict[tuple[int, ...], dict[Target, int]] = {}
    for _ in range(50 * num):
        draw: dict[Target, int] = {}
        for target in targets:
            used = [expert for (layer, _), expert in draw.items() if layer == target[0]]
            left = np.setdiff1d(pools[target], used)
            if not left.size:
                break
            draw[target] = int(generator.choice(left))
        else:
            draws.setdefault(tuple(draw.values()), draw)
        if len(draws) == num:
            break
    return list(draws.values())


def on_others(changes: Sequence[Change], draw: Mapping[Target, int]) -> list[Change]:
    """The same changes of the experts of a draw."""
    return [replace(change, expert=draw[change.layer, change.expert]) for change in changes]


def _pool(counts_E: NDArray[np.int64], expert: int, num: int, exclude: Sequence[int]) -> NDArray[np.int64]:
    counts_E = np.asarray(counts_E, dtype=float)
    distance_E = np.abs(np.log((counts_E + 1) / (counts_E[expert] + 1)))
    distance_E[[expert, *exclude]] = np.inf
    nearest = np.argsort(distance_E, kind="stable")[: math.ceil(POOL * num)]
    return nearest[np.isfinite(distance_E[nearest])]
