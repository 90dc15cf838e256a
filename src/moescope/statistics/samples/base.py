"""Bounded samples that merge: state that is kept or replaced, never summed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from moescope.measures.resampling import sample_hashes
from moescope.records import Routing, TokenBatch
from moescope.statistics.base import Record, Statistic

EMPTY = torch.iinfo(torch.int64).max
"""Hash of an empty place."""


class Sample(Statistic[Record]):
    """A statistic that has a sample: tensors with places for what is kept, declared with `_declare_places`.

    All other state is sums.
    """

    def __init__(self, *, layers: list[int], device: torch.device | str = "cpu", **parameters: Any) -> None:
        super().__init__(layers=layers, device=device, **parameters)
        self._places: list[str] = []

    def _declare_places(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.int64, *, empty: int = 0
    ) -> None:
        """Declares what is kept in each place, and what an empty place holds."""
        self.state[name] = torch.full(shape, empty, dtype=dtype, device=self.device)
        self._places.append(name)

    def merge(self, other: Self) -> Self:
        """Adds another part's counts and sample: of both samples, what a sample of both parts' text would have kept.

        Raises:
            UsageError: The two were made with different parameters.
        """
        super().merge(other)
        self._merge_places({name: other.state[name].to(self.device) for name in self._places})
        return self

    def _sums(self) -> list[Tensor]:
        return [tensor for name, tensor in self.state.items() if name not in self._places]

    @abstractmethod
    def _merge_places(self, others: Mapping[str, Tensor]) -> None:
        """Takes in another's places, by their names in the state."""

    def _combine(self, name: str, increment: Tensor, at: Any = ...) -> None:
        # Places can't be added one tensor at a time: `_merge_places` takes them together.
        if name not in self._places:
            super()._combine(name, increment, at)


class SmallestHashes(Sample[Routing]):
    """Keeps, in each of some groups (the first axis of every place), what has the N smallest hashes.

    The N smallest of independent uniform hashes are a simple random sample without replacement ("bottom-k" sampling;
    Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches"), and the N smallest of two such samples are that
    of both corpora together. The places declared first hold the hashes.
    """

    def _merge_places(self, others: Mapping[str, Tensor]) -> None:
        hashes_GN = others[self._places[0]]
        for group, hashes_N in enumerate(hashes_GN):
            rows = (hashes_N < EMPTY).nonzero().squeeze(1)
            self._keep(group, {name: place[group][rows] for name, place in others.items()})

    def _keep(self, group: int, candidates: Mapping[str, Tensor]) -> None:
        """Of those kept so far and the candidates (by the names of places), keeps the smallest hashes."""
        hashes = candidates[self._places[0]]
        if not hashes.shape[0]:
            return
        kept_N = self.state[self._places[0]][group]
        # Records may come from another device than the sample lies on.
        order_N = torch.cat([kept_N, hashes.to(kept_N)]).argsort(stable=True)[: kept_N.shape[0]]
        for name in self._places:
            place = self.state[name][group]
            place.copy_(torch.cat([place, candidates[name].to(place)])[order_N])


class SmallestTokens(SmallestHashes):
    """Keeps, of each layer, the N tokens with the smallest hash of seed, document and position.

    A subclass takes `num_samples` and `seed`; after `super().__init__` it declares with `_declare_place` what it wants
    to know of them.
    """

    def __init__(self, *, num_samples: int, seed: int, **parameters: Any) -> None:
        super().__init__(num_samples=num_samples, seed=seed, **parameters)
        self.num_samples, self.seed = num_samples, seed
        self._declare("num_tokens_L", (len(self.layers),))
        self._declare_places("hashes_LN", (len(self.layers), num_samples), empty=EMPTY)

    def _declare_place(self, name: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
        """Declares what is kept of each token, in `shape`; `name` ends in LN and that shape."""
        self._declare_places(name, (len(self.layers), self.num_samples, *shape), dtype)

    def _take(self, layer: int, tokens: TokenBatch, places: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        """Takes in a batch's tokens; each function gives its place's values for the tokens with those indices."""
        position = self._position[layer]
        self._combine("num_tokens_L", torch.tensor(tokens.num_tokens), position)
        documents_T = tokens.document_hashes_B[tokens.rows_T]
        hashes_T = sample_hashes(documents_T, tokens.positions_T, seed=self.seed)
        # In a long corpus hardly any token is still small enough: the others are not copied.
        rows = (hashes_T < self.state["hashes_LN"][position].max()).nonzero().squeeze(1)
        self._keep(position, {"hashes_LN": hashes_T[rows]} | {name: values(rows) for name, values in places.items()})

    def sample_size(self, layer: int) -> int:
        """Tokens kept of a layer: fewer than N where the corpus is shorter."""
        return int((self.state["hashes_LN"][self._position[layer]] < EMPTY).sum())
