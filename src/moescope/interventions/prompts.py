"""A prompt as the model reads it: tokens, the experts they chose, and what makes sense to ask about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from moescope.errors import ModelError, UsageError
from moescope.interventions.changes import Ablate, Change, Scale
from moescope.models.token_text import token_texts
from moescope.records import Routing, TokenBatch

if TYPE_CHECKING:
    from moescope.models import MoEModel


@dataclass(frozen=True)
class Prompt:
    """A text and what the model's tokenizer and routers made of it.

    Attributes:
        text: As it was given.
        token_ids: As the tokenizer makes them by default, with what it adds.
        tokens: Each token's text, spaces and line breaks visible.
        expert_ids: Layer -> the experts each token chose, int64 (S, K), by applied weight.
        weights: Layer -> their weights, float32 (S, K).
    """

    text: str
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    expert_ids: dict[int, Tensor]
    weights: dict[int, Tensor]

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def listed(self) -> str:
        """The tokens with their indices, in one line; the middle is left out of long ones."""
        words = [f"{index} {token}" for index, token in enumerate(self.tokens)]
        return ", ".join(words if len(words) <= 40 else [*words[:20], "...", *words[-20:]])

    def position(self, index: int, what: str = "target index") -> int:
        """An index into the prompt, from 0; negative ones count from its end.

        Raises:
            UsageError: It is past the prompt.
        """
        if not -len(self) <= index < len(self):
            raise UsageError(
                f"{what} {index} is past the prompt, which has {len(self)} tokens: {self.listed}",
                expected=f"0 to {len(self) - 1}, or -{len(self)} to -1 from the end",
            )
        return index % len(self)

    def weight(self, layer: int, expert: int, position: int) -> float | None:
        """The weight a token gave an expert; None if it did not choose it."""
        hits_K = self.expert_ids[layer][position] == expert
        return float(self.weights[layer][position][hits_K]) if bool(hits_K.any()) else None

    def chosen(self, layer: int, position: int) -> list[int]:
        """The experts a token chose, by weight."""
        return [int(expert) for expert in self.expert_ids[layer][position]]

    def frame(self) -> pd.DataFrame:
        """One row for each token, layer and rank: `index, token, layer, rank, expert, weight`."""
        rows = [
            (index, token, layer, rank, int(self.expert_ids[layer][index, rank]), float(weights_SK[index, rank]))
            for layer, weights_SK in self.weights.items()
            for index, token in enumerate(self.tokens)
            for rank in range(weights_SK.shape[1])
        ]
        return pd.DataFrame(rows, columns=["index", "token", "layer", "rank", "expert", "weight"])


def read_prompt(model: MoEModel, text: str, layers: Sequence[int], num_more: int = 0) -> Prompt:
    """Makes tokens of a prompt and has the model route them.

    Args:
        model: The model, all of it.
        text: The prompt.
        layers: Layers whose routing is wanted.
        num_more: Tokens that will be generated after it.

    Raises:
        ModelError: The model is not complete.
        UsageError: The prompt is empty, or longer than the model can read; a layer that is not loaded.
    """
    if not model.complete:
        raise ModelError(
            f"{model.name} was loaded without its head: it predicts no tokens", remedy="load it without `layers`"
        )
    token_ids = [int(token_id) for token_id in model.tokenizer(text)["input_ids"]] if text else []
    if not token_ids:
        raise UsageError("the prompt is empty", expected="a text of at least one token")
    limit = model.max_positions
    if limit is not None and len(token_ids) + num_more > limit:
        more = f" and {num_more} more are to be generated" if num_more else ""
        raise UsageError(
            f"the prompt has {len(token_ids):,} tokens{more}; {model.name} reads at most {limit:,}",
            remedy="shorten it" + (", or generate fewer" if num_more else ""),
        )
    texts = token_texts(model.tokenizer, token_ids)
    records: list[Routing] = []
    ids_T = torch.tensor(token_ids, device=model.device)
    none_T = torch.zeros_like(ids_T)
    tokens = TokenBatch(
        token_ids_T=ids_T,
        next_token_ids_T=torch.cat([ids_T[1:], ids_T.new_full((1,), -1)]),
        positions_T=torch.arange(len(ids_T), device=model.device),
        rows_T=none_T,
        document_hashes_B=none_T[:1],
        domain_ids_B=none_T[:1],
    )
    model.listen(
        ids_T.unsqueeze(0), tokens, tokens.positions_T, layers=layers, on_routing=records.append, needs_logits=False
    )
    return Prompt(
        text=text,
        token_ids=tuple(token_ids),
        tokens=tuple(texts[token_id] for token_id in token_ids),
        expert_ids={record.layer: record.expert_ids_TK.cpu() for record in records},
        weights={record.layer: record.weights_TK.cpu() for record in records},
    )


def check_against(prompt: Prompt, changes: Sequence[Change], num_more: int = 0) -> None:
    """Refuses changes that can't do anything to this prompt.

    Raises:
        UsageError: A position past the prompt and what is generated after it; scaling or ablating an expert that none
            of the tokens chose.
    """
    for change in changes:
        places = range(len(prompt)) if change.places is None else change.places
        later = [place for place in places if len(prompt) <= place < len(prompt) + num_more]
        here = [prompt.position(place, "position") for place in places if place not in later]
        if later or (num_more and change.places is None) or not isinstance(change, Scale | Ablate):
            continue
        if all(prompt.weight(change.layer, change.expert, place) is None for place in here):
            raise _not_chosen(prompt, change, here)


def _not_chosen(prompt: Prompt, change: Change, places: Sequence[int]) -> UsageError:
    verb = "scale" if isinstance(change, Scale) else "ablate"
    if len(places) == 1:
        who = f"token {places[0]} ({prompt.tokens[places[0]]})"
        ids_K, weights_K = prompt.expert_ids[change.layer][places[0]], prompt.weights[change.layer][places[0]]
        did = ", ".join(f"{int(e)} ({float(w):.3g})" for e, w in zip(ids_K, weights_K, strict=True))
        expected = f"one of those it chose (with their weights): {did}"
    else:
        who = "none of the tokens"
        did = ", ".join(map(str, sorted({expert for place in places for expert in prompt.chosen(change.layer, place)})))
        expected = f"one of those they chose: {did}"
    found = f"{who} did not choose" if len(places) == 1 else f"{who} chose"
    return UsageError(
        f"{found} expert {change.expert} at layer {change.layer}: there is nothing to {verb}",
        expected=expected,
        remedy="--set (`Set`) forces an expert on a token that did not choose it",
    )
