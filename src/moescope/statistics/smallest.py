"""A bounded random sample that merges: the tokens with the smallest hash of seed, document and position."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from moescope.records import TokenBatch
from moescope.statistics.base import Statistic
from moescope.statistics.resampling import sample_hashes

EMPTY = torch.iinfo(torch.int64).max
"""Hash of a place that holds no token."""


class SmallestHashes(Statistic):
    """Keeps, of each layer, the N tokens with the smallest hashes, and whatever a subclass wants to know of them.

    The N smallest of independent uniform hashes are a simple random sample without replacement ("bottom-k" sampling;
    Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches"), and the N smallest of two such samples are that
    of both corpora together.

    A subclass takes `num_samples` and `seed`; after `super().__init__` it declares what it keeps with `_declare_place`.
    """

    def __init__(self, *, num_samples: int, seed: int, **parameters: Any) -> None:
        super().__init__(num_samples=num_samples, seed=seed, **parameters)
        self.num_samples, self.seed = num_samples, seed
        self._places: dict[str, str] = {}
        self._declare("num_tokens_L", (len(self.layers),))
        self._declare_place("hashes", "hashes_LN")
        self.state["hashes_LN"].fill_(EMPTY)

    def _declare_place(self, name: str, key: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
        """Declares what is kept of each token; `key` is its name in the state, ends in its shape."""
        self._places[name] = key
        self._declare(key, (len(self.layers), self.num_samples, *shape), dtype)

    def _take(self, layer: int, tokens: TokenBatch, places: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        """Takes in a batch's tokens; each function gives its place's values for the tokens with those indices."""
        position = self._position[layer]
        self._combine("num_tokens_L", torch.tensor(tokens.num_tokens), position)
        documents_T = tokens.document_hashes_B[tokens.rows_T]
        hashes_T = sample_hashes(documents_T, tokens.positions_T, seed=self.seed)
        # In a long corpus hardly any token is still small enough: the others are not copied.
        rows = (hashes_T < self.state["hashes_LN"][position].max()).nonzero().squeeze(1)
        self._keep(position, {"hashes": hashes_T[rows]} | {name: values(rows) for name, values in places.items()})

    def merge(self, other: Self) -> Self:
        """Adds another part's sample: of both, the tokens with the smallest hashes stay.

        Raises:
            UsageError: The two were made with different parameters.
        """
        # Places of a sample can't be added one tensor at a time, only counts can: `_combine` lets the rest pass.
        super().merge(other)
        for position in range(len(self.layers)):
            part = {name: other.state[key][position].to(self.device) for name, key in self._places.items()}
            rows = (part["hashes"] < EMPTY).nonzero().squeeze(1)
            self._keep(position, {name: values[rows] for name, values in part.items()})
        return self

    def _combine(self, name: str, increment: Tensor, at: Any = ...) -> None:
        if name not in self._places.values():
            super()._combine(name, increment, at)

    def _keep(self, position: int, candidates: Mapping[str, Tensor]) -> None:
        """Of those kept so far and the candidates, keeps the smallest hashes."""
        if not candidates["hashes"].shape[0]:
            return
        kept = {name: self.state[key][position] for name, key in self._places.items()}
        hashes = torch.cat([kept["hashes"], candidates["hashes"]])
        order_N = hashes.argsort(stable=True)[: self.num_samples]
        for name, place in kept.items():
            place.copy_(torch.cat([place, candidates[name].to(place.dtype)])[order_N])

    def sample_size(self, layer: int) -> int:
        """Tokens kept of a layer: fewer than N where the corpus is shorter."""
        return int((self.state["hashes_LN"][self._position[layer]] < EMPTY).sum())
