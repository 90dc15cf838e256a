"""Which experts are selected together: co-activation, lift, and overlap of the tokens routed to them."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from moescope.errors import UsageError
from moescope.measures.independence import pair_probabilities
from moescope.records import Routing
from moescope.statistics.base import Statistic
from moescope.statistics.variables import variable


class ExpertCooccurrence(Statistic[Routing]):
    """`N_ij`: tokens for which experts i and j are both selected, over ALL pairs of S_t, per layer.

    The diagonal is `N_i`. Source of co-activation: OLMoE Eq. 6 (arXiv 2409.02060); OLMoE's own script counts pairs of
    adjacent ranks only, ours all K (K - 1) / 2.

    Args:
        layers: MoE layers looked at.
        num_experts: E.
        num_experts_per_token: K.
        device: Where the state lives.
    """

    def __init__(
        self,
        *,
        layers: list[int],
        num_experts: int,
        num_experts_per_token: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            layers=layers, device=device, num_experts=num_experts, num_experts_per_token=num_experts_per_token
        )
        self.num_experts = num_experts
        self.num_experts_per_token = num_experts_per_token
        self._declare("counts_LEE", (len(self.layers), num_experts, num_experts))
        self._declare("tokens_L", (len(self.layers),))

    @classmethod
    def from_counts(
        cls,
        counts_LEE: NDArray[np.integer] | Tensor,
        tokens_L: NDArray[np.integer] | Tensor,
        *,
        num_experts_per_token: int,
        layers: list[int],
    ) -> Self:
        """Makes the statistic of known counts.

        Args:
            counts_LEE: `N_ij`, symmetric, `N_i` on the diagonal.
            tokens_L: Tokens counted in each layer.
            num_experts_per_token: K.
            layers: Decoder block index of each matrix.

        Raises:
            UsageError: Counts of another shape, or not symmetric.
        """
        counts_LEE = torch.as_tensor(np.asarray(counts_LEE, dtype=np.int64))
        expected = (len(layers), counts_LEE.shape[-1], counts_LEE.shape[-1])
        if counts_LEE.shape != expected or not torch.equal(counts_LEE, counts_LEE.mT):
            raise UsageError(
                f"counts of shape {tuple(counts_LEE.shape)}", expected=f"shape {expected}, symmetric in the experts"
            )
        statistic = cls(layers=layers, num_experts=expected[-1], num_experts_per_token=num_experts_per_token)
        statistic._combine("counts_LEE", counts_LEE)
        statistic._combine("tokens_L", torch.as_tensor(np.asarray(tokens_L, dtype=np.int64)))
        return statistic

    def update(self, record: Routing) -> None:
        """Counts every pair of each token's experts."""
        position = self._position[record.layer]
        # A product of zeros and ones in float32 is exact up to 16 million tokens a batch.
        together_EE = record.selected_TE.T @ record.selected_TE
        self._combine("counts_LEE", together_EE.to(self.device), at=position)
        self._combine("tokens_L", torch.tensor(record.expert_ids_TK.shape[0]), at=position)

    def compute(self) -> xr.Dataset:
        """Co-activation, lift and token overlap of every pair of experts, and their values under independent routing.

        Independent routing: every token draws K distinct experts with the layer's selection frequencies and no other
        structure; see `moescope.measures.independence.pair_probabilities`. Its expected
        `N_ij` enters the same formulas, at the same `N_i` and `N_j`.

        Returns:
            By `layer, expert, other_expert` (i, j): num_together, coactivation, lift, jaccard, overlap_coefficient, and
            all but the first also with `_chance`. By `layer, expert`: num_selected. By `layer`: num_tokens. NaN
            where an expert was never selected.
        """
        pairs_LEE = self.state["counts_LEE"].cpu().numpy()
        tokens_L = self.state["tokens_L"].cpu().numpy()
        selected_LE = np.diagonal(pairs_LEE, axis1=1, axis2=2).copy()
        with np.errstate(invalid="ignore", divide="ignore"):
            frequencies_LE = selected_LE / tokens_L[:, None]
        expected_LEE = np.full(pairs_LEE.shape, np.nan)
        for position, tokens in enumerate(tokens_L):
            if tokens:
                chance_EE = pair_probabilities(frequencies_LE[position], self.num_experts_per_token)
                expected_LEE[position] = tokens * chance_EE
        dims = ("layer", "expert", "other_expert")
        variables = {
            "num_together": variable(dims, pairs_LEE, "tokens", "N_ij: tokens routed to both experts"),
            "num_selected": variable(("layer", "expert"), selected_LE, "tokens", "N_i: tokens routed to the expert"),
            "num_tokens": variable("layer", tokens_L.copy(), "tokens", "tokens counted"),
        }
        observed = _measures(pairs_LEE, selected_LE, tokens_L)
        independent = _measures(expected_LEE, selected_LE, tokens_L)
        for name, (values_LEE, definition) in observed.items():
            variables[name] = variable(dims, values_LEE, "1", definition)
            variables[f"{name}_chance"] = variable(
                dims,
                independent[name][0],
                "1",
                f"{definition}, with the N_ij expected if each token drew K distinct experts by their selection "
                "frequencies alone",
            )
        experts = np.arange(self.num_experts)
        return xr.Dataset(variables, coords={"layer": self.layers, "expert": experts, "other_expert": experts})


def _measures(
    pairs_LEE: NDArray[np.floating] | NDArray[np.integer],
    selected_LE: NDArray[np.integer],
    tokens_L: NDArray[np.integer],
) -> dict[str, tuple[NDArray[np.float64], str]]:
    """The four measures of pairs, with their definitions."""
    first_LEE = selected_LE[:, :, None].astype(np.float64)
    second_LEE = selected_LE[:, None, :].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "coactivation": (pairs_LEE / first_LEE, "N_ij / N_i"),
            "lift": (tokens_L[:, None, None] * pairs_LEE / (first_LEE * second_LEE), "N N_ij / (N_i N_j)"),
            "jaccard": (pairs_LEE / (first_LEE + second_LEE - pairs_LEE), "N_ij / (N_i + N_j - N_ij)"),
            "overlap_coefficient": (pairs_LEE / np.minimum(first_LEE, second_LEE), "N_ij / min(N_i, N_j)"),
        }
