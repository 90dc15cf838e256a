"""Counts of token types by expert: a table of all cells, or where that is too large a list of those that are not 0."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moescope.records import Routing
from moescope.statistics import cells
from moescope.statistics.base import Statistic

MAX_BYTES = 2**30
"""Largest state; where a table of all cells takes more, cells are kept singly as far as they fit."""


class TypeCounts(Statistic[Routing]):
    """`N_xe` of each layer, in bounded memory: state, its sums and what is read of it.

    A subclass sets `vocab_size`, `num_experts` and `num_ranks`, then calls `_declare_counts`.
    """

    vocab_size: int
    num_experts: int
    num_ranks: int

    def _declare_counts(self, max_cells: int | None) -> None:
        """Declares a table, or room for a list of cells in each layer."""
        sizes = (self.vocab_size, self.num_experts)
        num_layers = len(self.layers)
        if max_cells is None and 4 * num_layers * self.vocab_size * self.num_experts > MAX_BYTES:
            max_cells = cells.num_cells(num_layers, MAX_BYTES, *sizes)
        self.is_dense = max_cells is None
        if max_cells is None:
            self._declare("counts_LVE", (num_layers, *sizes), torch.int32)
            return
        for name, (shape, dtype) in cells.declared(num_layers, max_cells, *sizes).items():
            self.state[name] = cells.zeros(shape, dtype, self.device)

    def _add(self, cells_N: Tensor, counts_N: Tensor) -> None:
        """Adds counts to cells `(layer position x V + type) x E + expert`, which may repeat."""
        self._combine("counts_LVE" if self.is_dense else cells.COUNTS, counts_N, at=cells_N)

    def _combine(self, name: str, increment: Tensor, at: Any = ...) -> None:
        """Also takes flat cell indices in `at`, which may repeat."""
        state = self.state[name]
        if not isinstance(at, Tensor):
            super()._combine(name, increment, at)
        elif self.is_dense:
            state.view(-1).index_add_(0, at, increment.to(state.dtype))
        else:
            at, increment = at.to(state.device), increment.to(state.device)
            positions_N = at // (self.vocab_size * self.num_experts)
            for position in positions_N.unique().tolist():
                here_N = positions_N == position
                keys_N = at[here_N] - position * self.vocab_size * self.num_experts
                cells.add(self.state, position, keys_N, increment[here_N], self.vocab_size)

    def merge(self, other: Self) -> Self:
        """Adds another part's counts; the same whatever the parts and their order.

        Raises:
            UsageError: The two were made with different parameters.
        """
        if self.is_dense:
            return super().merge(other)
        self._check_mergeable(other)
        provenance = self.provenance.merged(other.provenance)
        cells.merge(self.state, other.state, self.vocab_size)
        self.provenance = provenance
        return self

    def resident_bytes(self, num_tokens: int) -> int:
        """Of a list of cells, as many as the tokens can make."""
        return self.nbytes() if self.is_dense else cells.resident_bytes(self.state, num_tokens, self.num_ranks)

    def pooled_share(self) -> float:
        """Share of the positions, over all layers, whose types are not counted singly."""
        if self.is_dense:
            return 0.0
        pooled = int(self.state[cells.POOLED].sum())
        return pooled / max(1, pooled + int(self.state[cells.COUNTS].sum(dtype=torch.int64)))

    def _frequencies(
        self, counts_UE: NDArray[np.int32], totals_U: NDArray[np.float64], pooled_E: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """`N_e / N` over all types."""
        loads_E = counts_UE.sum(axis=0, dtype=np.int64) + pooled_E
        frequencies_E: NDArray[np.float64] = loads_E / (totals_U.sum() + pooled_E.sum() / self.num_ranks)
        return frequencies_E

    def _seen(self, position: int) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.float64], NDArray[np.int64]]:
        """Types counted singly in a layer: ids, counts by expert, occurrences `N_x = Σ_e N_xe / K`; pooled counts.

        Occurrences are whole numbers wherever every token has its K experts; counts from elsewhere may lack some.
        """
        if self.is_dense:
            counts_VE = self.state["counts_LVE"][position].cpu().numpy()
            ids_U, pooled_E = np.flatnonzero(counts_VE.any(axis=1)), np.zeros(self.num_experts, dtype=np.int64)
            counts_UE = counts_VE[ids_U]
        else:
            ids_U, counts_UE = (tensor.cpu().numpy() for tensor in cells.seen(self.state, position))
            pooled_E = self.state[cells.POOLED][position].cpu().numpy()
        return ids_U, counts_UE, counts_UE.sum(axis=1, dtype=np.int64) / self.num_ranks, pooled_E
