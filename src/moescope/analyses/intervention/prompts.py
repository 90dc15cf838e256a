"""A prompt as the model reads it: tokens, the experts that they select, and which changes act on them."""

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
    """A text, its tokens and their routing.

    Attributes:
        text: The text as given.
        token_ids: Its tokens by the tokenizer's defaults, with special tokens that it adds.
        tokens: Each token's text, spaces and line breaks visible.
        expert_ids: Layer -> the experts that each token selects, int64 (S, K), by applied weight.
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
        """The tokens with their indices, in one line; of a long prompt the first and last 20."""
        tokens = [f"{index} {token}" for index, token in enumerate(self.tokens)]
        return ", ".join(tokens if len(tokens) <= 40 else [*tokens[:20], "...", *tokens[-20:]])

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
        """A token's weight for an expert; None if it does not select it."""
        hits_K = self.expert_ids[layer][position] == expert
        return float(self.weights[layer][position][hits_K]) if bool(hits_K.any()) else None

    def selected(self, layer: int, position: int) -> list[int]:
        """The experts that a token selects, by weight."""
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
    """Tokenizes a prompt and routes it through the model.

    Args:
        model: The model, all of it.
        text: The prompt.
        layers: Layers whose routing is read.
        num_more: Tokens that will be generated after it.

    Raises:
        ModelError: The model is not complete.
        UsageError: The prompt is empty, or longer than the model can read; or a layer is not loaded.
    """
    if not model.complete:
        raise ModelError(
            f"{model.name} was loaded without its head and predicts no tokens", remedy="load it without `layers`"
        )
    token_ids = [int(token_id) for token_id in model.tokenizer(text)["input_ids"]] if text else []
    if not token_ids:
        raise UsageError("the prompt is empty", expected="a text of one token or more")
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
    """Refuses changes that have no effect on this prompt.

    Raises:
        UsageError: A position past the prompt and what is generated after it; scaling or ablating an expert that none
            of the tokens selects.
    """
    for change in changes:
        positions = range(len(prompt)) if change.indices is None else change.indices
        later = [position for position in positions if len(prompt) <= position < len(prompt) + num_more]
        here = [prompt.position(position, "position") for position in positions if position not in later]
        if later or (num_more and change.indices is None) or not isinstance(change, Scale | Ablate):
            continue
        if all(prompt.weight(change.layer, change.expert, position) is None for position in here):
            raise _not_selected(prompt, change, here)


def _not_selected(prompt: Prompt, change: Change, positions: Sequence[int]) -> UsageError:
    verb = "scale" if isinstance(change, Scale) else "ablate"
    if len(positions) == 1:
        at = positions[0]
        ids_K, weights_K = prompt.expert_ids[change.layer][at], prompt.weights[change.layer][at]
        listed = ", ".join(f"{int(e)} ({float(w):.3g})" for e, w in zip(ids_K, weights_K, strict=True))
        found, expected = f"token {at} ({prompt.tokens[at]}) does not select", f"one that it selects (weight): {listed}"
    else:
        selected = sorted({expert for position in positions for expert in prompt.selected(change.layer, position)})
        found, expected = "none of the tokens selects", f"one that they select: {', '.join(map(str, selected))}"
    return UsageError(
        f"{found} expert {change.expert} at layer {change.layer}: there is nothing to {verb}",
        expected=expected,
        remedy="use `Set` (--set), which assigns an expert also to tokens that do not select it",
    )
