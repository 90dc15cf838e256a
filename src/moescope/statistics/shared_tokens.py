"""Routed mode: similarity of the outputs of two experts on the tokens that were routed to both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from moescope.measures.jackknife import NUM_GROUPS, interval
from moescope.measures.resampling import groups
from moescope.records import ExpertOutputs
from moescope.statistics.base import Statistic
from moescope.statistics.variables import variable

_CHUNK_BYTES = 64 * 2**20


class SharedTokens(Statistic[ExpertOutputs]):
    """Mean over tokens t with i and j both in S_t of `cos(o_i(x_t), o_j(x_t))`, and each expert's mean `|o_e(x)|`.

    Outputs are taken before the routing weight, on the tokens routed to the experts; all pairs of each
    token's K experts count. Interval: delete-one jackknife over `num_groups` hash groups of documents.

    Args:
        layers: MoE layers.
        num_experts: E.
        num_experts_per_token: K.
        num_groups: Groups of documents; 1 for no interval. State is 16 E^2 bytes for each group and layer.
        seed: Deals documents into groups.
        device: Device of the state.
    """

    needs_outputs = True

    def __init__(
        self,
        *,
        layers: Sequence[int],
        num_experts: int,
        num_experts_per_token: int,
        num_groups: int = NUM_GROUPS,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            layers=list(layers),
            device=device,
            num_experts=num_experts,
            num_experts_per_token=num_experts_per_token,
            num_groups=num_groups,
            seed=seed,
        )
        self.num_experts, self.num_groups, self.seed = num_experts, num_groups, seed
        num_layers = len(self.layers)
        pairs = (num_layers, num_groups, num_experts, num_experts)
        self._declare("num_tokens_L", (num_layers,))
        self._declare("num_selected_LE", (num_layers, num_experts))
        self._declare("norm_sum_LE", (num_layers, num_experts), torch.float64)
        self._declare("num_shared_LGEE", pairs)
        self._declare("cosine_sum_LGEE", pairs, torch.float64)

    def update(self, record: ExpertOutputs) -> None:
        """Takes in one layer's expert outputs of one batch."""
        routing, tokens = record.routing, record.routing.tokens
        position = self._position[routing.layer]
        self._combine("num_tokens_L", torch.tensor(tokens.num_tokens), position)
        if not tokens.num_tokens:
            return
        num_ranks = routing.expert_ids_TK.shape[1]
        rows_A = (record.token_rows_A * num_ranks + record.ranks_A).argsort()
        groups_T = groups(tokens.document_hashes_B, self.num_groups, seed=self.seed)[tokens.rows_T]
        chunk = max(1, _CHUNK_BYTES // (4 * num_ranks * record.outputs_AM.shape[1]))
        for start in range(0, tokens.num_tokens, chunk):
            ids_tK = routing.expert_ids_TK[start : start + chunk]
            rows_a = rows_A[start * num_ranks : (start + chunk) * num_ranks]
            outputs_tKM = record.outputs_AM[rows_a].float().view(*ids_tK.shape, -1)
            self._count(position, outputs_tKM, ids_tK, groups_T[start : start + chunk])

    def _count(self, position: int, outputs_tKM: Tensor, ids_tK: Tensor, groups_t: Tensor) -> None:
        norms_tK = outputs_tKM.double().norm(dim=-1)
        known_tK = norms_tK > 0
        ids_a = ids_tK.reshape(-1)
        self._combine("num_selected_LE", torch.bincount(ids_a, minlength=self.num_experts), position)
        norm_sum_E = torch.bincount(ids_a, norms_tK.reshape(-1), minlength=self.num_experts)
        self._combine("norm_sum_LE", norm_sum_E, position)
        directions_tKM = outputs_tKM / norms_tK.clamp(min=torch.finfo(torch.float64).tiny).float().unsqueeze(-1)
        cosines_tKK = (directions_tKM @ directions_tKM.mT).double()
        both_tKK = known_tK.unsqueeze(2) & known_tK.unsqueeze(1)  # an output of zeros has no direction
        cells_tKK = (groups_t[:, None, None] * self.num_experts + ids_tK[:, :, None]) * self.num_experts
        cells = (cells_tKK + ids_tK[:, None, :])[both_tKK]
        shape = self.state["num_shared_LGEE"].shape[1:]
        size = self.num_groups * self.num_experts**2
        self._combine("num_shared_LGEE", torch.bincount(cells, minlength=size).view(shape), position)
        sums_GEE = torch.bincount(cells, cosines_tKK[both_tKK], minlength=size).view(shape)
        self._combine("cosine_sum_LGEE", sums_GEE, position)

    def compute(self) -> xr.Dataset:
        """By `layer, expert, other_expert`: `cosine` with `cosine_ci_low`, `cosine_ci_high`, and `num_shared`.

        Also by `layer, expert`: `output_norm`, `num_selected`. NaN where nothing was shared or selected.
        """
        shared_LGEE, sums_LGEE = self.state["num_shared_LGEE"].cpu(), self.totals()["cosine_sum_LGEE"].cpu()
        shared_LEE, sums_LEE = shared_LGEE.sum(1), sums_LGEE.sum(1)
        cosine_LEE = sums_LEE / shared_LEE  # 0 / 0 is NaN: a gap
        without_GLEE = ((sums_LEE.unsqueeze(1) - sums_LGEE) / (shared_LEE.unsqueeze(1) - shared_LGEE)).transpose(0, 1)
        low_LEE, high_LEE = interval(cosine_LEE, without_GLEE, shared_LGEE.transpose(0, 1) > 0)
        norms_LE = self.totals()["norm_sum_LE"].cpu() / self.state["num_selected_LE"].cpu()
        by_pair, by_expert = ("layer", "expert", "other_expert"), ("layer", "expert")
        words = "cosine of two experts' outputs, mean over the tokens routed to both; diagonal 1"
        jackknife = f"95 % interval, delete-one jackknife over {self.num_groups} hash groups of documents"
        norm, experts = "mean |o_e(x)| over the tokens routed to the expert", np.arange(self.num_experts)
        num_tokens_L, num_selected_LE = self.state["num_tokens_L"].cpu(), self.state["num_selected_LE"].cpu()
        return xr.Dataset(
            {
                "num_tokens": variable("layer", num_tokens_L.numpy(), "tokens", "tokens counted"),
                "num_selected": variable(by_expert, num_selected_LE.numpy(), "tokens", "tokens routed to the expert"),
                "output_norm": variable(by_expert, norms_LE.numpy(), "norm of a hidden state", norm),
                "num_shared": variable(by_pair, shared_LEE.numpy(), "tokens", "tokens routed to both experts"),
                "cosine": variable(by_pair, cosine_LEE.numpy(), "cosine", words),
                "cosine_ci_low": variable(by_pair, low_LEE.numpy(), "cosine", f"lower end, {jackknife}"),
                "cosine_ci_high": variable(by_pair, high_LEE.numpy(), "cosine", f"upper end, {jackknife}"),
            },
            coords={"layer": self.layers, "expert": experts, "other_expert": experts},
        )
