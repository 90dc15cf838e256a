"""A sample of whole documents with the experts their tokens selected at every layer: for tests over documents.

Whether routing depends on a token's type, on the domain or on the layer before can be tested only where the tokens of a
document stay together, since they are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from moescope.measures.resampling import groups, halves, sample_hashes
from moescope.records import Routing, TokenBatch
from moescope.statistics.samples.base import EMPTY, Sample
from moescope.statistics.variables import variable

NUM_TOKENS = 200_000
"""Tokens kept: all of a run of 100,000."""
NUM_GROUPS = 20
"""Groups of documents that a jackknife leaves out, one at a time."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RoutedDocuments:
    """The sample: whole documents, in ascending order of hash, each token after the one before it; numpy arrays.

    Attributes:
        layers: Layers, ascending.
        num_experts: E.
        documents_N: Index of each token's document, from 0.
        positions_N: Position in the document.
        domain_ids_N: Index of its domain.
        token_ids_N: Input token ids.
        next_token_ids_N: The true next token; -1 where the window ends.
        halves_N: Half of the documents that it is of, 0 or 1.
        groups_N: One of `NUM_GROUPS` groups of documents.
        expert_ids_LNK: Experts selected at each layer, by rank.
    """

    layers: Sequence[int]
    num_experts: int
    documents_N: Ints
    positions_N: Ints
    domain_ids_N: Ints
    token_ids_N: Ints
    next_token_ids_N: Ints
    halves_N: Ints
    groups_N: Ints
    expert_ids_LNK: NDArray[np.integer]

    @property
    def num_tokens(self) -> int:
        """Tokens kept."""
        return len(self.documents_N)

    def num_documents(self, half: int | None = None) -> int:
        """Documents kept, of one half or of both."""
        return len(np.unique(self.documents_N if half is None else self.documents_N[self.halves_N == half]))

    def selected_NE(self, layer: int) -> NDArray[np.float32]:
        """1.0 where the token selected the expert at that layer."""
        selected_NE = np.zeros((self.num_tokens, self.num_experts), dtype=np.float32)
        np.put_along_axis(selected_NE, self.expert_ids_NK(layer), 1.0, axis=1)
        return selected_NE

    def expert_ids_NK(self, layer: int) -> Ints:
        """The experts selected at that layer, by rank."""
        expert_ids_NK: Ints = self.expert_ids_LNK[list(self.layers).index(layer)].astype(np.int64)
        return expert_ids_NK


@dataclass(frozen=True)
class _Plan:
    """How a batch's tokens change the sample: decided once, for all layers.

    Attributes:
        tokens: The batch; kept so that it cannot be mistaken for a later one at the same address.
        rows: Tokens of the batch that are candidates, in order.
        sources_N: For each place of the sample what goes there: a place from 0, or N and more, a candidate; None where
            nothing changes.
    """

    tokens: TokenBatch
    rows: Tensor
    sources_N: Tensor | None


class RoutedTokens(Sample[Routing]):
    """Keeps the tokens of the documents with the smallest hash of seed and document, as many documents as fit.

    All tokens whose (document's hash, position) is among the N smallest are kept; the last document may be cut, and
    `sample` leaves it out. A document is one row of one batch. The sample of two corpora is that of both together.

    State: `N (44 + L K b)` bytes, b = 1 up to 256 experts and 2 beyond, whatever the number of tokens (34 MB for 16
    layers, 200,000 tokens, K = 8).

    Args:
        layers: MoE layers looked at.
        num_experts: E.
        num_experts_per_token: K.
        num_samples: N.
        seed: Chooses the documents, the halves and the groups.
        device: Where the sample lies.
    """

    needs_documents = True

    def __init__(
        self,
        *,
        layers: Sequence[int],
        num_experts: int,
        num_experts_per_token: int,
        num_samples: int = NUM_TOKENS,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            layers=list(layers),
            device=device,
            num_experts=num_experts,
            num_experts_per_token=num_experts_per_token,
            num_samples=num_samples,
            seed=seed,
        )
        self.num_experts, self.seed = num_experts, seed
        self._declare("num_tokens_L", (len(self.layers),))
        self._declare_places("hashes_N", (num_samples,), empty=EMPTY)
        for name in ("document_hashes_N", "positions_N", "token_ids_N", "next_token_ids_N"):
            self._declare_places(name, (num_samples,))
        self._declare_places("domain_ids_N", (num_samples,), torch.int32)
        of_ids = torch.uint8 if num_experts <= 256 else torch.int16
        self._declare_places("expert_ids_LNK", (len(self.layers), num_samples, num_experts_per_token), of_ids)
        self._plan: _Plan | None = None

    def update(self, record: Routing) -> None:
        """Takes in one layer's routing of one batch; all layers of a batch come before the next batch."""
        tokens, layer = record.tokens, self._position[record.layer]
        self._combine("num_tokens_L", torch.tensor(tokens.num_tokens), layer)
        if tokens.num_tokens == 0:
            return
        if self._plan is None or self._plan.tokens is not tokens:
            self._plan = self._planned(tokens)
        if self._plan.sources_N is not None:
            _place(self.state["expert_ids_LNK"][layer], record.expert_ids_TK[self._plan.rows], self._plan.sources_N)

    def _planned(self, tokens: TokenBatch) -> _Plan:
        """Finds those of a batch's tokens that belong to the sample, and places all of them but their experts."""
        documents_T = tokens.document_hashes_B[tokens.rows_T]
        hashes_T = sample_hashes(documents_T, torch.zeros_like(documents_T), seed=self.seed)
        candidates = (hashes_T < self.state["hashes_N"][-1].to(hashes_T)).nonzero().squeeze(1)
        rows = candidates[_order(hashes_T[candidates], tokens.positions_T[candidates])]
        sources_N = self._sources(hashes_T[rows])
        values = {
            "hashes_N": hashes_T,
            "document_hashes_N": documents_T,
            "positions_N": tokens.positions_T,
            "token_ids_N": tokens.token_ids_T,
            "next_token_ids_N": tokens.next_token_ids_T,
            "domain_ids_N": tokens.domain_ids_T,
        }
        if sources_N is not None:
            for name, values_T in values.items():
                _place(self.state[name], values_T[rows], sources_N)
        return _Plan(tokens, rows, sources_N)

    def _sources(self, hashes: Tensor) -> Tensor | None:
        """What goes to each place, where both what is kept and the candidates lie in ascending order."""
        kept_N = self.state["hashes_N"]
        size, hashes = kept_N.shape[0], hashes.to(kept_N)
        targets = torch.searchsorted(kept_N, hashes, right=True) + torch.arange(len(hashes), device=kept_N.device)
        targets = targets[targets < size]
        if not len(targets):
            return None
        new_N = torch.zeros(size, dtype=torch.bool, device=kept_N.device)
        new_N[targets] = True
        sources_N = torch.empty_like(kept_N)
        sources_N[targets] = size + torch.arange(len(targets), device=kept_N.device)
        sources_N[~new_N] = torch.arange(size - len(targets), device=kept_N.device)
        return sources_N

    def _merge_places(self, others: Mapping[str, Tensor]) -> None:
        self._plan = None
        size = int((others["hashes_N"] < EMPTY).sum())
        sources_N = self._sources(others["hashes_N"][:size])
        if sources_N is None:
            return
        for name, values in others.items():
            if name != "expert_ids_LNK":
                _place(self.state[name], values[:size], sources_N)
                continue
            for layer_NK, other_NK in zip(self.state[name], values, strict=True):
                _place(layer_NK, other_NK[:size], sources_N)

    def sample(self) -> RoutedDocuments:
        """What is kept, without a document that was cut."""
        hashes_N = self.state["hashes_N"]
        size = int((hashes_N < EMPTY).sum())
        if size and int(self.state["num_tokens_L"].max()) > size:
            size = int((hashes_N[:size] < hashes_N[size - 1]).sum())

        def kept(name: str) -> Ints:
            return self.state[name][:size].cpu().numpy().astype(np.int64)

        documents_N = kept("document_hashes_N")
        starts_N = np.ones(len(documents_N), dtype=np.int64)
        starts_N[1:] = documents_N[1:] != documents_N[:-1]
        return RoutedDocuments(
            layers=self.layers,
            num_experts=self.num_experts,
            documents_N=np.cumsum(starts_N) - 1,
            positions_N=kept("positions_N"),
            domain_ids_N=kept("domain_ids_N"),
            token_ids_N=kept("token_ids_N"),
            next_token_ids_N=kept("next_token_ids_N"),
            halves_N=halves(documents_N, seed=self.seed),
            groups_N=groups(documents_N, NUM_GROUPS, seed=self.seed),
            expert_ids_LNK=self.state["expert_ids_LNK"][:, :size].cpu().numpy(),
        )

    def compute(self) -> xr.Dataset:
        """Tokens and documents kept, and by `layer` the tokens counted."""
        sample = self.sample()
        return xr.Dataset(
            {
                "num_tokens": variable("layer", self.state["num_tokens_L"].cpu().numpy(), "tokens", "tokens counted"),
                "num_samples": variable((), np.int64(sample.num_tokens), "tokens", "tokens of the documents kept"),
                "num_documents": variable((), np.int64(sample.num_documents()), "documents", "documents kept whole"),
            },
            coords={"layer": self.layers},
        )


def _order(hashes: Tensor, positions: Tensor) -> Tensor:
    """Ascending order of (hash, position)."""
    by_position = positions.argsort(stable=True)
    return by_position[hashes[by_position].argsort(stable=True)]


def _place(kept_N: Tensor, candidates: Tensor, sources_N: Tensor) -> None:
    """Fills every place of the sample from what is kept and the candidates."""
    kept_N.copy_(torch.cat([kept_N, candidates.to(kept_N)])[sources_N])
