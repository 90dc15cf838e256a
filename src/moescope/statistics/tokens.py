"""Which token types are routed to each expert: vocabulary specialization, vocabulary overlap, top tokens."""

from __future__ import annotations

from typing import Literal, Self, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from moescope.errors import UsageError
from moescope.measures.independence import expected_chosen_share, expected_maximum_share, expected_minimum_sum
from moescope.measures.resampling import halves
from moescope.records import Routing
from moescope.statistics.type_counts import TypeCounts
from moescope.statistics.variables import variable

Reading = Literal["input", "predicted", "next"]
Ranks = Literal["all", "first"]

READINGS = {
    "input": "the input token",
    "predicted": "the model's most probable next token",
    "next": "the true next token",
}


EXPERTS_AT_ONCE = 64


class TokenUsage(TypeCounts):
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
        half: Half of the documents that is counted, 0 or 1; None: all of them.
        seed: Divides documents into halves.
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
        half: int | None = None,
        seed: int = 0,
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
            half=half,
            seed=seed,
        )
        self.half, self.seed = half, seed
        self.num_experts = num_experts
        self.vocab_size = vocab_size
        self.reading = reading
        self.min_count = max(int(min_count), 1)
        self.num_ranks = num_experts_per_token if ranks == "all" else 1
        self.needs_predictions = reading == "predicted"
        self._declare_counts(max_cells)

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
        if self.half is not None:
            halves_B = halves(record.tokens.document_hashes_B, seed=self.seed)
            ones_T = ones_T * (halves_B[record.tokens.rows_T] == self.half).to(ones_T)
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

    def held_out(self, selection: Self | None) -> xr.Dataset:
        """Vocabulary specialization on held-out documents: the expert of each type is that of the selection half.

        Of each token type with `min_count` occurrences in each half of the documents: the expert selected for most of
        them on half 0 (ties: the lower id), its share of those on half 1; the mean over types. Under independent
        routing any expert may be it, frequent ones rather (`expected_chosen_share`; for it occurrences above 99 are
        rounded down to two digits).

        Args:
            selection: The same of half 0 of the documents; None: nothing is known.

        Returns:
            By `layer`: evaluation_half_vocabulary_specialization, its `_chance`, evaluation_half_num_types.
        """
        shape = len(self.layers)
        value_L, chance_L = np.full(shape, np.nan), np.full(shape, np.nan)
        num_types_L = np.zeros(shape, dtype=np.int64)
        for position in range(shape if selection is not None else 0):
            ids_U, counts_UE, totals_U, pooled_E = self._seen(position)
            ids_S, chosen_SE, totals_S, _ = selection._seen(position)  # type: ignore[union-attr]
            # Of half of the documents more types may be counted singly than of all.
            single_S = np.isin(ids_S, ids_U)
            ids_S, chosen_SE, totals_S = ids_S[single_S], chosen_SE[single_S], totals_S[single_S]
            at_S = np.searchsorted(ids_U, ids_S)
            held_SE, held_S = counts_UE[at_S] - chosen_SE, totals_U[at_S] - totals_S
            often_S = (totals_S >= self.min_count) & (held_S >= self.min_count)
            if not often_S.any():
                continue
            best_s = chosen_SE[often_S].argmax(axis=1)
            shares_s = held_SE[often_S, best_s] / held_S[often_S]
            value_L[position], num_types_L[position] = shares_s.mean(), len(shares_s)
            trials_s = totals_S[often_S].astype(np.int64)
            step_s = 10 ** np.maximum(np.floor(np.log10(trials_s)) - 1, 0)
            trials_U, back_s = np.unique((trials_s // step_s * step_s).astype(np.int64), return_inverse=True)
            frequencies_E = self._frequencies(counts_UE, totals_U, pooled_E)
            chance_L[position] = expected_chosen_share(trials_U, frequencies_E)[back_s].mean()
        half = f"token types x seen at least {self.min_count} times in each half; x is {READINGS[self.reading]}"
        name = "evaluation_half_vocabulary_specialization"
        return xr.Dataset(
            {
                name: variable(
                    "layer",
                    value_L,
                    "1",
                    "share of a type's occurrences on half 1 of the documents of the expert that was selected for most "
                    f"of them on half 0, averaged over {half}",
                ),
                f"{name}_chance": variable(
                    "layer", chance_L, "1", f"the same, expected if N_xe were Binomial(N_x, N_e / N), over {half}"
                ),
                "evaluation_half_num_types": variable("layer", num_types_L, "token types", half),
            },
            coords={"layer": self.layers},
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
