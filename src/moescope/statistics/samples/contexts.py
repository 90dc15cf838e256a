"""Top contexts of each expert: the n tokens with the largest weighted output, with the text around them.

An expert adds `w_te o_e(x_t)` to the residual stream for token t; what is ranked here is how long that is, `w ‖o‖`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from moescope.measures.resampling import sample_hashes
from moescope.records import ExpertOutputs, TokenBatch
from moescope.statistics.samples.base import EMPTY, Sample

NO_TOKEN = -1
"""Token id of a place of the window that lies outside the document's window."""


class TopContexts(Sample[ExpertOutputs]):
    """For each layer and expert the C tokens with the largest `w ‖o‖`, one of a document, and what stands around them.

    One of a document, because the first eight of all tokens are often eight times the same line of one text. A document
    is one row of one batch; the one of its tokens kept for an expert is that with the largest value. Ties go to the
    smaller hash of (seed, document, position), so the answer does not depend on batches, order, or parts.

    State, with W places in a window (`before`, the token itself, `after`): `L E C (40 + 8 W)` bytes, whatever the
    number of tokens (2 MB for 16 layers, 64 experts, 8 contexts of 25 tokens).

    Args:
        layers: MoE layers looked at.
        num_experts: E.
        num_contexts: C.
        before: Tokens of the same document shown before the one that counts.
        after: Tokens shown after it.
        seed: Breaks ties.
        device: Where the state lives.
    """

    needs_outputs = True

    def __init__(
        self,
        *,
        layers: Sequence[int],
        num_experts: int,
        num_contexts: int = 8,
        before: int = 16,
        after: int = 8,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            layers=list(layers),
            device=device,
            num_experts=num_experts,
            num_contexts=num_contexts,
            before=before,
            after=after,
            seed=seed,
        )
        self.num_experts, self.num_contexts, self.seed = num_experts, num_contexts, seed
        self.window = range(-before, after + 1)
        places, width = (len(self.layers), num_experts, num_contexts), len(self.window)
        self._declare("num_selected_LE", places[:2])
        self._declare_places("hashes_LEC", places, empty=EMPTY)
        for name in ("document_hashes_LEC", "domain_ids_LEC", "positions_LEC"):
            self._declare_places(name, places)
        for name in ("values_LEC", "weights_LEC"):
            self._declare_places(name, places, torch.float32)
        self._declare_places("token_ids_LECW", (*places, width), torch.int32)
        self._declare_places("values_LECW", (*places, width), torch.float32)
        self._order: _Order | None = None

    def update(self, record: ExpertOutputs) -> None:
        """Takes in one layer's expert outputs of one batch."""
        position, tokens = self._position[record.routing.layer], record.routing.tokens
        counts_E = torch.tensor(record.offsets_E1, device=self.device).diff()
        self._combine("num_selected_LE", counts_E, position)
        if not tokens.num_tokens:
            return
        if self._order is None or self._order.tokens is not tokens:
            self._order = _Order.of(tokens, self.seed)
        order = self._order
        experts_A = torch.repeat_interleave(counts_E, output_size=record.token_rows_A.shape[0])
        values_A = record.weights_A.abs() * record.norms_A
        floor_E = torch.where(
            self.state["hashes_LEC"][position, :, -1] < EMPTY, self.state["values_LEC"][position, :, -1], -1.0
        )
        # In a long corpus hardly any value still reaches what is kept: the rest is done for those few.
        rows = (values_A >= floor_E[experts_A]).nonzero().squeeze(1)
        cells = experts_A[rows] * tokens.num_documents + tokens.rows_T[record.token_rows_A[rows]]
        highest = values_A.new_full((self.num_experts * tokens.num_documents,), -1.0)
        highest.scatter_reduce_(0, cells, values_A[rows], "amax")
        rows = rows[values_A[rows] == highest[cells]]
        if not rows.shape[0]:
            return
        tokens_X, experts_X = record.token_rows_A[rows], experts_A[rows]
        norms_TK = torch.empty_like(record.routing.weights_TK)
        norms_TK[record.token_rows_A, record.ranks_A] = values_A

        def windows(chosen: Tensor) -> tuple[Tensor, Tensor]:
            around_XW, inside_XW = order.around(tokens_X[chosen], self.window)
            own_XWK = record.routing.expert_ids_TK[around_XW] == experts_X[chosen][:, None, None]
            shades_XW = (norms_TK[around_XW] * (own_XWK & inside_XW[..., None])).sum(dim=-1)
            return tokens.token_ids_T[around_XW].masked_fill(~inside_XW, NO_TOKEN), shades_XW

        candidates = {
            "hashes": order.hashes_T[tokens_X],
            "document_hashes": tokens.document_hashes_B[tokens.rows_T[tokens_X]],
            "domain_ids": tokens.domain_ids_T[tokens_X],
            "positions": tokens.positions_T[tokens_X],
            "values": values_A[rows],
            "weights": record.weights_A[rows],
        }
        self._keep(position, experts_X, candidates, windows)

    def _merge_places(self, others: Mapping[str, Tensor]) -> None:
        for position in range(len(self.layers)):
            held = (others["hashes_LEC"][position].flatten() < EMPTY).nonzero().squeeze(1)
            candidates = {name: others[f"{name}_LEC"][position].flatten()[held] for name in _PLACES}
            ids_XW, shades_XW = (
                others[f"{name}_LECW"][position].flatten(0, 1)[held] for name in ("token_ids", "values")
            )
            self._keep(
                position,
                held // self.num_contexts,
                candidates,
                lambda chosen, ids_XW=ids_XW, shades_XW=shades_XW: (ids_XW[chosen], shades_XW[chosen]),
            )

    def _keep(self, position: int, experts_X: Tensor, candidates: dict[str, Tensor], windows: Any) -> None:
        """Of what is kept and the candidates, keeps each expert's C largest, one of a document.

        `windows` gives token ids and shades around those candidates that it is told: only around those that stay.
        """
        if not experts_X.shape[0]:
            return
        kept = {name: self.state[f"{name}_LEC"][position].flatten() for name in _PLACES}
        held = (kept["hashes"] < EMPTY).nonzero().squeeze(1)
        both = {name: torch.cat([kept[name][held], candidates[name]]) for name in _PLACES}
        experts = torch.cat([held // self.num_contexts, experts_X])

        order = both["hashes"].argsort(stable=True)
        order = order[both["values"][order].argsort(descending=True, stable=True)]
        first = _first_of_each(experts[order], both["document_hashes"][order])
        order = order[first]
        order = order[experts[order].argsort(stable=True)]
        starts_E = torch.searchsorted(experts[order], torch.arange(self.num_experts, device=order.device))
        ranks = torch.arange(order.shape[0], device=order.device) - starts_E[experts[order]]
        order, ranks = order[ranks < self.num_contexts], ranks[ranks < self.num_contexts]

        to = experts[order] * self.num_contexts + ranks
        for name in _PLACES:
            place = self.state[f"{name}_LEC"][position].view(-1)
            place.fill_(EMPTY if name == "hashes" else 0)
            place[to] = both[name][order]
        old = order < held.shape[0]
        made = windows(order[~old] - held.shape[0])
        for name, new in zip(("token_ids", "values"), made, strict=True):
            place = self.state[f"{name}_LECW"][position].view(-1, len(self.window))
            before = place[held[order[old]]]
            place.zero_()
            place[to[old]], place[to[~old]] = before, new.to(place.dtype)

    def compute(self) -> xr.Dataset:
        """By `layer, expert, context` (largest first) and `window` (0 is the token that counts).

        Returns:
            context_value, context_weight, context_domain_id, context_position, context_document_hash; by `window` too
            window_token_id (-1: outside the document) and window_value; by `layer, expert` num_contexts, num_selected.
            NaN and -1 where there are fewer.
        """
        state = {name: tensor.cpu().numpy() for name, tensor in self.state.items()}
        held_LEC = state["hashes_LEC"] < EMPTY
        dims = ("layer", "expert", "context")
        size = "w ‖o‖: length of the expert's output after the applied weight"
        variables: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]] = {}
        for name, key, nothing, units, definition in (
            ("context_value", "values_LEC", np.nan, "model units", size),
            ("context_weight", "weights_LEC", np.nan, "weight", "weight applied to the expert there"),
            ("context_domain_id", "domain_ids_LEC", -1, "index", "domain of the document"),
            ("context_position", "positions_LEC", -1, "tokens", "place of the token in its document, from 0"),
            ("context_document_hash", "document_hashes_LEC", 0, "hash", "hash of the document's id"),
        ):
            values_LEC = np.where(held_LEC, state[key], nothing).astype(state[key].dtype)
            variables[name] = (dims, values_LEC, {"units": units, "definition": definition})
        ids_LECW = np.where(held_LEC[..., None], state["token_ids_LECW"], NO_TOKEN).astype(np.int32)
        outside = ids_LECW == NO_TOKEN
        variables["window_token_id"] = (
            (*dims, "window"),
            ids_LECW,
            {"units": "index", "definition": "token; -1 outside the stretch of the document that was read"},
        )
        variables["window_value"] = (
            (*dims, "window"),
            np.where(outside, np.nan, state["values_LECW"]).astype(np.float32),
            {"units": "model units", "definition": f"{size}; 0 where the token did not select the expert"},
        )
        pairs = ("layer", "expert")
        variables["num_contexts"] = (
            pairs,
            held_LEC.sum(axis=-1),
            {"units": "contexts", "definition": "contexts kept, one of a document"},
        )
        variables["num_selected"] = (
            pairs,
            state["num_selected_LE"].copy(),
            {"units": "tokens", "definition": "N_e: tokens routed to the expert"},
        )
        return xr.Dataset(
            variables,
            coords={
                "layer": self.layers,
                "expert": np.arange(self.num_experts),
                "context": np.arange(self.num_contexts),
                "window": list(self.window),
            },
        )


_PLACES = ("hashes", "document_hashes", "domain_ids", "positions", "values", "weights")
"""State that belongs together: one context's place in each."""


def _first_of_each(experts: Tensor, documents: Tensor) -> Tensor:
    """Ascending indices of the first row of each (expert, document)."""
    order = documents.argsort(stable=True)
    order = order[experts[order].argsort(stable=True)]
    new = torch.ones(order.shape[0], dtype=torch.bool, device=order.device)
    new[1:] = (experts[order].diff() != 0) | (documents[order].diff() != 0)
    return order[new].sort().values


@dataclass(frozen=True)
class _Order:
    """The tokens of one batch in reading order; the same for every layer.

    Attributes:
        tokens: The batch; kept so that it cannot be mistaken for a later one at the same address.
        order_T: Tokens, document by document, by position.
        place_T: Place of each token in that order.
        hashes_T: Hash of seed, document and position.
    """

    tokens: TokenBatch
    order_T: Tensor
    place_T: Tensor
    hashes_T: Tensor

    @classmethod
    def of(cls, tokens: TokenBatch, seed: int) -> Self:
        order_T = tokens.positions_T.argsort(stable=True)
        order_T = order_T[tokens.rows_T[order_T].argsort(stable=True)]
        place_T = torch.empty_like(order_T)
        place_T[order_T] = torch.arange(order_T.shape[0], device=order_T.device)
        hashes_T = sample_hashes(tokens.document_hashes_B[tokens.rows_T], tokens.positions_T, seed=seed)
        return cls(tokens, order_T, place_T, hashes_T)

    def around(self, tokens_X: Tensor, window: range) -> tuple[Tensor, Tensor]:
        """Indices of the tokens around each of some, and whether they are of the same document."""
        offsets_W = torch.arange(window.start, window.stop, device=tokens_X.device)
        places_XW = self.place_T[tokens_X][:, None] + offsets_W
        clamped_XW = places_XW.clamp(0, self.order_T.shape[0] - 1)
        around_XW = self.order_T[clamped_XW]
        rows_T = self.tokens.rows_T
        return around_XW, (clamped_XW == places_XW) & (rows_T[around_XW] == rows_T[tokens_X][:, None])
