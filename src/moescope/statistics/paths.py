"""Expert paths: which experts of the next layer the tokens of an expert are routed to."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from moescope.errors import UsageError
from moescope.measures.independence import expected_mutual_information
from moescope.records import Routing
from moescope.statistics.base import Statistic
from moescope.statistics.variables import Variable, variable

# P counts pairs of consecutive layers looked at: one less than layers.


class ExpertPaths(Statistic[Routing]):
    """Tokens with expert e' at one layer and e at the next layer looked at.

    Counted over all K x K pairs of selected experts, and for the first-ranked expert of each layer only.

    Args:
        layers: MoE layers looked at, in the order of the forward pass.
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
        num_pairs = max(len(self.layers) - 1, 0)
        self._declare("counts_PEE", (num_pairs, num_experts, num_experts))
        self._declare("top1_counts_PEE", (num_pairs, num_experts, num_experts))

    @classmethod
    def from_counts(
        cls,
        top1_counts_PEE: NDArray[np.integer] | Tensor,
        counts_PEE: NDArray[np.integer] | Tensor | None = None,
        *,
        num_experts_per_token: int,
        layers: list[int],
    ) -> Self:
        """Makes the statistic of known counts.

        Args:
            top1_counts_PEE: Tokens by first-ranked expert of one layer and of the next; a matrix for each
                consecutive pair of `layers`.
            counts_PEE: The same over all K x K pairs of selected experts; None if not known, which leaves those
                measures NaN.
            num_experts_per_token: K.
            layers: Layer numbers, one more than matrices.

        Raises:
            UsageError: Counts of another shape.
        """
        top1_PEE = torch.as_tensor(np.asarray(top1_counts_PEE, dtype=np.int64))
        expected = (len(layers) - 1, top1_PEE.shape[-1], top1_PEE.shape[-1])
        statistic = cls(layers=layers, num_experts=expected[-1], num_experts_per_token=num_experts_per_token)
        for name, counts in (("top1_counts_PEE", top1_PEE), ("counts_PEE", counts_PEE)):
            if counts is None:
                continue
            tensor = torch.as_tensor(np.asarray(counts, dtype=np.int64))
            if tensor.shape != expected:
                raise UsageError(f"{name} of shape {tuple(tensor.shape)}", expected=f"{expected} for layers {layers}")
            statistic._combine(name, tensor)
        return statistic

    def update(self, record: Routing) -> None:
        """Counts pairs of an expert of the previous layer and one of this layer; the first layer has none.

        Raises:
            RuntimeError: The record's previous layer is not the one before it in `layers`.
        """
        position = self._position[record.layer]
        if position == 0:
            return
        previous = record.previous
        if previous is None or previous.layer != self.layers[position - 1]:
            found = "no layer" if previous is None else f"layer {previous.layer}"
            raise RuntimeError(f"{found} before layer {record.layer}, expected layer {self.layers[position - 1]}")
        before_TE = previous.selected_TE.to(record.selected_TE.device)
        # A product of zeros and ones in float32 is exact up to 16 million tokens a batch.
        self._combine("counts_PEE", (before_TE.T @ record.selected_TE).to(self.device), at=position - 1)
        if not record.ranked:
            return
        first_T = previous.expert_ids_TK[:, 0].to(record.expert_ids_TK.device)
        flows_X = torch.bincount(
            first_T * self.num_experts + record.expert_ids_TK[:, 0], minlength=self.num_experts * self.num_experts
        )
        flows_EE = flows_X.view(self.num_experts, self.num_experts)
        self._combine("top1_counts_PEE", flows_EE.to(self.device), at=position - 1)

    def compute(self) -> xr.Dataset:
        """Transition probabilities, flows, and mutual information between consecutive layers.

        With `n_ab` tokens that have expert a at one layer and b at the next, `N` tokens:

        - transition: `P(b | a) = n_ab / n_a`; over all pairs its rows sum to K, for first ranks to 1. Its lift is
          `P(b | a) / (n_b / N)`: 1 if the layers were independent.
        - normalized mutual information: `I / ((H + H') / 2)`, the arithmetic mean of both layers' entropies, as
          scikit-learn does by default. `I` and `H` are of the joint distribution `n_ab / N` for first ranks, and of
          `n_ab / (N K²)`, one expert drawn from each token's sets, for all pairs. The latter stays well below 1 even if
          two layers always selected the same sets; compare it with itself only.
        - its value under independent routing: the same formula with the mutual information expected if one layer's
          tokens were shuffled. Finite counts alone give that much, about `(E - K)² / (2 N K²)` nats.

        Returns:
            By `layer, expert, next_expert` (`layer` is the earlier one, coordinate `next_layer` the later): num_paths,
            transition, lift, and the same with `top1_` in front. By `layer`: nmi, nmi_chance, top1_nmi,
            top1_nmi_chance, num_tokens. NaN where an expert was never selected.
        """
        dims = ("layer", "expert", "next_expert")
        variables: dict[str, Variable] = {}
        readings = (
            ("", "counts_PEE", self.num_experts_per_token, "all K x K pairs of selected experts"),
            ("top1_", "top1_counts_PEE", 1, "first-ranked experts only"),
        )
        num_tokens_P = np.zeros(max(len(self.layers) - 1, 0), dtype=np.int64)
        for prefix, name, num_ranks, which in readings:
            counts_PEE = self.state[name].cpu().numpy()
            from_PE = counts_PEE.sum(axis=2) / num_ranks
            to_PE = counts_PEE.sum(axis=1) / num_ranks
            tokens_P = from_PE.sum(axis=1) / num_ranks
            num_tokens_P = np.maximum(num_tokens_P, np.rint(tokens_P).astype(np.int64))
            with np.errstate(invalid="ignore", divide="ignore"):
                transition_PEE = counts_PEE / from_PE[:, :, None]
                lift_PEE = transition_PEE / (to_PE / tokens_P[:, None])[:, None, :]
            pairs = zip(counts_PEE, from_PE, to_PE, tokens_P, strict=True)
            nmi_P2 = np.array([_normalized_information(*pair, num_ranks) for pair in pairs]).reshape(-1, 2)
            transition = f"P(expert at the next layer | expert at this one); {which}"
            information = f"mutual information / mean entropy of the two layers; {which}"
            shuffled = f"the same, expected if one layer's tokens were shuffled; {which}"
            variables |= {
                f"{prefix}num_paths": variable(dims, counts_PEE, "tokens", f"n_ab; {which}"),
                f"{prefix}transition": variable(dims, transition_PEE, "1", transition),
                f"{prefix}lift": variable(dims, lift_PEE, "1", f"P(b | a) / (selection frequency of b); {which}"),
                f"{prefix}nmi": variable("layer", nmi_P2[:, 0], "1", information),
                f"{prefix}nmi_chance": variable("layer", nmi_P2[:, 1], "1", shuffled),
            }
        variables["num_tokens"] = variable("layer", num_tokens_P, "tokens", "tokens counted")
        experts = np.arange(self.num_experts)
        return xr.Dataset(
            variables,
            coords={
                "layer": self.layers[:-1],
                "next_layer": ("layer", np.array(self.layers[1:], dtype=np.int64)),
                "expert": experts,
                "next_expert": experts,
            },
        )


def _normalized_information(
    counts_EE: NDArray[np.integer],
    from_E: NDArray[np.float64],
    to_E: NDArray[np.float64],
    num_tokens: float,
    num_ranks: int,
) -> tuple[float, float]:
    """Normalized mutual information of one pair of layers, and its value expected if tokens were shuffled."""
    if not num_tokens:
        return np.nan, np.nan
    joint_EE = counts_EE / counts_EE.sum()
    before_E, after_E = joint_EE.sum(axis=1), joint_EE.sum(axis=0)
    information = special.rel_entr(joint_EE, np.outer(before_E, after_E)).sum()
    mean_entropy = (special.entr(before_E).sum() + special.entr(after_E).sum()) / 2
    if mean_entropy <= 0:  # one expert is selected for every token in both layers: no information
        return np.nan, np.nan
    shuffled = expected_mutual_information(np.rint(from_E), np.rint(to_E), round(num_tokens)) / num_ranks**2
    return information / mean_entropy, shuffled / mean_entropy
