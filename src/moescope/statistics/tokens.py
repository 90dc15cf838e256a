"""Which token types are routed to each expert: vocabulary specialization, vocabulary overlap, top tokens."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from moescope.errors import UsageError
from moescope.measures.independence import expected_maximum_share, expected_minimum_sum
from moescope.records import Routing
from moescope.statistics import cells
from moescope.statistics.base import Statistic
from moescope.statistics.variables import variable

Reading = Literal["input", "predicted", "next"]
Ranks = Literal["all", "first"]

READINGS = {
    "input": "the input token",
    "predicted": "the model's most probable next token",
    "next": "the true next token",
}


MAX_BYTES = 2**30
"""Largest state; where a table of all cells takes more, cells are kept singly as far as they fit."""

EXPERTS_AT_ONCE = 64


class TokenUsage(Statistic[Routing]):
    """`N_xe`: how often expert e was selected for tokens of type x, per layer.

    Source: OLMoE Eq. 8 (arXiv 2409.02060); ours takes the maximum over experts for each token type and averages over
    types, as OLMoE's Table 8 does. State is one dense table, allocated up front: layers x vocabulary x experts x 4
    bytes, whatever the number of tokens. Where that is more than 1 GiB, it is a list of the cells (type, expert) that
    are not 0, of 1 GiB. As long as they fit the counts are the same; beyond, the types of the largest ids are pooled
    (see `moescope.statistics.cells`): they count in `N` and `N_e`, and are left out of averages over types, of top
    tokens and of the vocabularies compared.

    Args:
        layers: MoE layers looked at.
        num_experts: E.
        num_experts_per_token: K of the model.
        vocab_size: V.
        reading: Which token of a position is x: "input", "predicted" (the model's most probable next token) or "next"
            (the true next token; positions without one are not counted).
        ranks: "all" counts all K selected experts, "first" only the one with the greatest weight.
        min_count: Token types seen less often are left out of averages and of lifts.
        max_cells: Cells of each layer that are kept singly; None: all where a table of them takes up to 1 GiB, else as
            many as take 1 GiB.
        device: Where the state lives.

    Raises:
        UsageError: A reading or ranks that do not exist.
    """

    def __init__(
        self,
        *,
        layers: list[int],
        num_experts: int,
        num_experts_per_token: int,
        vocab_size: int,
        reading: Reading = "input",
        ranks: Ranks = "all",
        min_count: int = 10,
        max_cells: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if reading not in get_args(Reading) or ranks not in get_args(Ranks):
            raise UsageError(
                f"`reading={reading!r}`, `ranks={ranks!r}`",
                expected=f"a reading of {', '.join(get_args(Reading))}; ranks of {', '.join(get_args(Ranks))}",
            )
        super().__init__(
            layers=layers,
            device=device,
            num_experts=num_experts,
            num_experts_per_token=num_experts_per_token,
            vocab_size=vocab_size,
            reading=reading,
            ranks=ranks,
            min_count=min_count,
            max_cells=max_cells,
        )
        self.num_experts = num_experts
        self.vocab_size = vocab_size
        self.reading = reading
        self.min_count = max(int(min_count), 1)
        self.num_ranks = num_experts_per_token if ranks == "all" else 1
        self.needs_predictions = reading == "predicted"
        if max_cells is None and 4 * len(self.layers) * vocab_size * num_experts > MAX_BYTES:
            max_cells = cells.num_cells(len(self.layers), MAX_BYTES, vocab_size, num_experts)
        self.is_dense = max_cells is None
        if max_cells is None:
            self._declare("counts_LVE", (len(self.layers), vocab_size, num_experts), torch.int32)
        else:
            for name, (shape, dtype) in cells.declared(len(self.layers), max_cells, vocab_size, num_experts).items():
                self.state[name] = cells.zeros(shape, dtype, self.device)

    @classmethod
    def from_counts(
        cls,
        rows_N4: NDArray[np.integer] | Tensor,
        *,
        num_experts_per_token: int,
        layers: list[int],
        num_experts: int,
        min_count: int = 10,
        vocab_size: int | None = None,
        reading: Reading = "input",
        ranks: Ranks = "all",
    ) -> Self:
        """Makes the statistic of known counts.

        Args:
            rows_N4: Rows of layer position (index into `layers`), expert, token id, count; repeated cells add up.
            num_experts_per_token: K of the model.
            layers: Decoder block index of each position.
            num_experts: E.
            min_count: See the class.
            vocab_size: V; by default the greatest token id + 1.
            reading: See the class.
            ranks: "first" if the counts are of the highest-ranked expert only.

        Raises:
            UsageError: Rows of another shape, or an index out of range.
        """
        rows_N4 = torch.as_tensor(np.asarray(rows_N4, dtype=np.int64))
        if rows_N4.ndim != 2 or rows_N4.shape[1] != 4:
            raise UsageError(
                f"rows of shape {tuple(rows_N4.shape)}", expected="(n, 4): layer position, expert, token id, count"
            )
        if vocab_size is None:
            vocab_size = int(rows_N4[:, 2].max()) + 1 if len(rows_N4) else 1
        limits = torch.tensor([len(layers), num_experts, vocab_size, 2**31])
        wrong = ((rows_N4 < 0) | (rows_N4 >= limits)).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            name = ("layer position", "expert", "token id", "count")[column]
            raise UsageError(
                f"{name} {int(rows_N4[row, column])} in row {row}", expected=f"0 to {int(limits[column]) - 1}"
            )
        statistic = cls(
            layers=layers,
            num_experts=num_experts,
            num_experts_per_token=num_experts_per_token,
            vocab_size=vocab_size,
            reading=reading,
            ranks=ranks,
            min_count=min_count,
        )
        position_N, expert_N, token_N, count_N = rows_N4.unbind(1)
        cells_N = (position_N * vocab_size + token_N) * num_experts + expert_N
        statistic._add(cells_N, count_N)
        return statistic

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
        if self.is_dense or type(other) is not type(self) or other.parameters != self.parameters:
            return super().merge(other)
        cells.merge(self.state, other.state, self.vocab_size)
        return self

    def update(self, record: Routing) -> None:
        """Counts each token's type with each of its experts."""
        position = self._position[record.layer]
        expert_ids_TK = record.expert_ids_TK[:, : self.num_ranks].to(self.device)
        if self.reading == "input":
            type_ids_T: Tensor | None = record.tokens.token_ids_T
        elif self.reading == "next":
            type_ids_T = record.tokens.next_token_ids_T
        else:
            type_ids_T = record.tokens.predicted_token_ids_T
        if type_ids_T is None:
            raise RuntimeError("predicted tokens are not known: they are computed after the forward pass, on request")
        type_ids_T = type_ids_T.to(self.device)
        ones_T = torch.ones(type_ids_T.shape[0], dtype=torch.int32, device=self.device)
        if self.reading == "next":  # where there is no next token, nothing is added to type 0
            ones_T, type_ids_T = (type_ids_T >= 0).to(torch.int32), type_ids_T.clamp(min=0)
        cells_TK = (position * self.vocab_size + type_ids_T[:, None]) * self.num_experts + expert_ids_TK
        self._add(cells_TK.reshape(-1), ones_T[:, None].expand_as(cells_TK).reshape(-1))

    def compute(self) -> xr.Dataset:
        """Vocabulary specialization `mean_x max_e N_xe / N_x` per layer, and its value under independent routing.

        The average is over token types with `N_x >= min_count`. Independent routing: each expert is selected for
        each occurrence with its layer frequency `N_e / N`, so `N_xe` is Binomial(N_x, N_e / N); see
        `moescope.measures.independence.expected_maximum_share`.

        Returns:
            By `layer`: vocabulary_specialization, vocabulary_specialization_chance, num_types (averaged over),
            num_tokens (all positions counted), num_tokens_pooled (of these, of types not counted singly),
            num_types_seen.
        """
        num_layers = len(self.layers)
        value_L = np.full(num_layers, np.nan)
        num_tokens_L = np.zeros(num_layers, dtype=np.int64)
        num_seen_L = np.zeros(num_layers, dtype=np.int64)
        num_pooled_L = np.zeros(num_layers, dtype=np.int64)
        frequencies_LE = np.full((num_layers, self.num_experts), np.nan)
        occurrences: list[NDArray[np.float64]] = []
        for position in range(num_layers):
            _, counts_UE, totals_U, pooled_E = self._seen(position)
            num_seen_L[position] = len(totals_U)
            num_pooled_L[position] = round(pooled_E.sum() / self.num_ranks)
            num_tokens_L[position] = round(totals_U.sum()) + num_pooled_L[position]
            counted_U = totals_U >= self.min_count
            occurrences.append(totals_U[counted_U])
            if counted_U.any():
                frequencies_LE[position] = self._frequencies(counts_UE, totals_U, pooled_E)
                value_L[position] = (counts_UE[counted_U].max(axis=1) / totals_U[counted_U]).mean()
        distinct_U = np.unique(np.concatenate([np.empty(0), *occurrences]))
        shares_LU = expected_maximum_share(np.ceil(distinct_U).astype(np.int64), frequencies_LE)
        independent_L = np.full(num_layers, np.nan)
        for position, totals in enumerate(occurrences):
            if len(totals):
                independent_L[position] = shares_LU[position, np.searchsorted(distinct_U, totals)].mean()
        which = f"x is {READINGS[self.reading]}; experts counted: {self.num_ranks} per token"
        definition = f"max_e N_xe / N_x, averaged over token types x seen at least {self.min_count} times; {which}"
        return xr.Dataset(
            {
                "vocabulary_specialization": variable("layer", value_L, "1", definition),
                "vocabulary_specialization_chance": variable(
                    "layer", independent_L, "1", "the same, expected if N_xe were Binomial(N_x, N_e / N)"
                ),
                "num_types": variable(
                    "layer",
                    np.array([len(totals) for totals in occurrences], dtype=np.int64),
                    "token types",
                    f"token types seen at least {self.min_count} times",
                ),
                "num_types_seen": variable("layer", num_seen_L, "token types", "token types seen and counted singly"),
                "num_tokens": variable("layer", num_tokens_L, "tokens", "positions counted"),
                "num_tokens_pooled": variable("layer", num_pooled_L, "tokens", "of these, of types not counted singly"),
            },
            coords={"layer": self.layers},
            attrs={"min_count": self.min_count, "reading": self.reading, "num_ranks": self.num_ranks},
        )

    def top_tokens(self, num_tokens: int = 10) -> xr.Dataset:
        """Each expert's token types, by lift and by count.

        `lift = (N_xe / N_x) / (N_e / N)`, among types with `N_x >= min_count`; ties (many types are always routed to
        one expert) go to the more frequent type, then to the lower id. By count any type qualifies. The first by lift
        is selected among thousands: it is a description of this sample, not an estimate.

        Returns:
            By `layer, expert, order ("lift" | "count"), place`: token_id (-1 where there are fewer), num_selected
            (N_xe), num_occurrences (N_x), lift.
        """
        shape = (len(self.layers), self.num_experts, 2, num_tokens)
        token_ids = np.full(shape, -1, dtype=np.int64)
        selected, occurrences = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        lift = np.full(shape, np.nan)
        for position in range(len(self.layers)):
            ids_U, counts_UE, totals_U, pooled_E = self._seen(position)
            if not len(ids_U):
                continue
            frequent_first = np.lexsort((ids_U, -totals_U))
            ids_U, counts_UE, totals_U = ids_U[frequent_first], counts_UE[frequent_first], totals_U[frequent_first]
            frequencies_E = self._frequencies(counts_UE, totals_U, pooled_E)
            rare_U = totals_U < self.min_count
            for first in range(0, self.num_experts, EXPERTS_AT_ONCE):  # a vocabulary by all experts takes gigabytes
                some = slice(first, first + EXPERTS_AT_ONCE)
                counts_Ue = counts_UE[:, some]
                shares_Ue = counts_Ue / totals_U[:, None]
                for order, key_Ue in enumerate((np.where(rare_U[:, None], 0.0, shares_Ue), counts_Ue)):
                    best_Pe = np.argsort(-key_Ue, axis=0, kind="stable")[:num_tokens]
                    taken_Pe = np.take_along_axis(key_Ue, best_Pe, axis=0) > 0
                    at = (position, some, order, slice(len(best_Pe)))
                    token_ids[at] = np.where(taken_Pe, ids_U[best_Pe], -1).T
                    selected[at] = (np.take_along_axis(counts_Ue, best_Pe, axis=0) * taken_Pe).T
                    occurrences[at] = (np.ceil(totals_U[best_Pe]) * taken_Pe).T
                    with np.errstate(invalid="ignore", divide="ignore"):
                        lift_Pe = np.take_along_axis(shares_Ue, best_Pe, axis=0) / frequencies_E[some]
                    lift[at] = np.where(taken_Pe, lift_Pe, np.nan).T
        dims = ("layer", "expert", "order", "rank")
        return xr.Dataset(
            {
                "token_id": variable(dims, token_ids, "index", "token type; -1: none"),
                "num_selected": variable(dims, selected, "tokens", "N_xe"),
                "num_occurrences": variable(dims, occurrences, "tokens", "N_x"),
                "lift": variable(dims, lift, "1", "(N_xe / N_x) / (N_e / N)"),
            },
            coords={
                "layer": self.layers,
                "expert": np.arange(self.num_experts),
                "order": ["lift", "count"],
                "rank": np.arange(num_tokens),
            },
            attrs={"min_count": self.min_count, "reading": self.reading, "num_ranks": self.num_ranks},
        )

    def vocabulary_overlap(self) -> xr.Dataset:
        """Weighted Jaccard of two experts' token types, `Σ_x min(n_xi, n_xj) / Σ_x max(n_xi, n_xj)`.

        Over all token types, `n_xe = N_xe`. Experts of unequal load cannot reach 1, nor can they under independent
        routing: there `n_xe` is Binomial(N_x, N_e / N), and the value shown is the ratio of the expected sums.

        Returns:
            By `layer, expert, other_expert`: weighted_jaccard, weighted_jaccard_chance. The diagonal is 1; NaN
            where neither expert was ever selected.
        """
        shape = (len(self.layers), self.num_experts, self.num_experts)
        value_LEE, independent_LEE = np.full(shape, np.nan), np.full(shape, np.nan)
        for position in range(len(self.layers)):
            _, counts_UE, totals_U, pooled_E = self._seen(position)
            if not len(totals_U):
                continue
            counts_EU = np.ascontiguousarray(counts_UE.T)
            load_E = counts_EU.sum(axis=1, dtype=np.int64)
            minimum_EE = np.zeros((self.num_experts, self.num_experts))
            for expert in range(self.num_experts):
                shared_O = np.minimum(counts_EU[expert], counts_EU[expert:]).sum(axis=1, dtype=np.int64)
                minimum_EE[expert, expert:] = minimum_EE[expert:, expert] = shared_O
            trials_U, num_types_U = np.unique(np.ceil(totals_U).astype(np.int64), return_counts=True)
            frequencies_E = self._frequencies(counts_UE, totals_U, pooled_E)
            expected_EE = expected_minimum_sum(trials_U, num_types_U, frequencies_E)
            both_EE = load_E[:, None] + load_E
            with np.errstate(invalid="ignore"):
                value_LEE[position] = minimum_EE / (both_EE - minimum_EE)
                independent_LEE[position] = expected_EE / (both_EE - expected_EE)
        dims = ("layer", "expert", "other_expert")
        definition = f"Σ_x min(n_xi, n_xj) / Σ_x max(n_xi, n_xj) over token types; x is {READINGS[self.reading]}"
        return xr.Dataset(
            {
                "weighted_jaccard": variable(dims, value_LEE, "1", definition),
                "weighted_jaccard_chance": variable(
                    dims, independent_LEE, "1", "ratio of the sums expected if n_xe were Binomial(N_x, N_e / N)"
                ),
            },
            coords={
                "layer": self.layers,
                "expert": np.arange(self.num_experts),
                "other_expert": np.arange(self.num_experts),
            },
        )

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
        return loads_E / (totals_U.sum() + pooled_E.sum() / self.num_ranks)

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
