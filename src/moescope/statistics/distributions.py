"""Distributions of router logits, probabilities and weights: histograms, and means by rank."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moescope.measures.histogram import Axis, LinearAxis, LogAxis, count, lower_edges, merge_bins, moments, quantiles
from moescope.records import Routing
from moescope.statistics.base import Statistic
from moescope.statistics.variables import variable

if TYPE_CHECKING:
    import xarray as xr


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# name: (unit, what each value is, what rank means)
QUANTITIES = {
    "logit": ("logit", "router logit z_te, every token and expert", "selected experts by applied weight"),
    "probability": ("probability", "p_te, every token and expert", "selected experts by applied weight"),
    "renormalized": ("probability", "the K largest p_te divided by their sum", "these K by p_te"),
    "weight": ("weight", "weight w_tk that the model applies", "selected experts by applied weight"),
}

_SHARES = LogAxis(-40, 8, 64)
_LINEAR_BINS = 128


class RoutingDistributions(Statistic[Routing]):
    """Histograms over tokens and experts of router logits, probabilities and applied weights, by layer.

    `compute` gives for each of `logit`, `probability`, `renormalized` (the K largest probabilities divided by their
    sum) and `weight` (as applied): `*_counts`, a histogram with dims `layer` and `*_bin`, whose coordinate is the
    lower edge of each bin (the first, -inf, counts values below the axis, the last those above it); `*_mean`, `*_std`
    (divided by n), `*_quantile`; and `*_by_rank`, the mean at each rank 0..K. The logits' bins are 1/16 wide from -64
    to 64. The others lie on a logarithmic axis from 2^-40 to 2^8, each octave in 64 bins, so a quantile is exact to
    1/64 of its value; `probability_linear_counts` and `renormalized_linear_counts` are the same counts in 128 equal
    bins from 0 to 1.

    Args:
        layers: Decoder block indices of the layers to look at.
        num_experts: E.
        num_experts_per_token: K.
        device: Where the state is kept.
    """

    needs_logits = True

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
        self.num_experts, self.num_experts_per_token = num_experts, num_experts_per_token
        self.axes: dict[str, Axis] = {"logit": LinearAxis(-64.0, 64.0, 2048, closed=False)}
        self.axes |= dict.fromkeys(("probability", "renormalized", "weight"), _SHARES)
        num_layers = len(layers)
        self._declare("tokens_L", (num_layers,))
        for name, axis in self.axes.items():
            self._declare(f"{name}_counts_LX", (num_layers, axis.num_bins + 2))
            self._declare(f"{name}_moments_LX", (num_layers, 2), torch.float64)  # sum, sum of squares
            self._declare(f"{name}_sums_LK", (num_layers, num_experts_per_token), torch.float64)

    def update(self, record: Routing) -> None:
        """Takes in one layer's routing of one batch.

        Raises:
            KeyError: The layer is not one of this statistic's.
        """
        layer = self._position[record.layer]
        if record.tokens.num_tokens == 0:
            return
        assert record.logits_TE is not None
        logits_TE, largest_TK = record.logits_TE, record.largest_probabilities_TK
        renormalized_TK = largest_TK / largest_TK.sum(dim=-1, keepdim=True)
        quantities = {
            "logit": (logits_TE, logits_TE.gather(1, record.expert_ids_TK)),
            "probability": (record.probabilities_TE, record.selected_probabilities_TK),
            "renormalized": (renormalized_TK, renormalized_TK),
            "weight": (record.weights_TK, record.weights_TK),
        }
        for name, (values, ranked_TK) in quantities.items():
            axis = self.axes[name]
            self._combine(f"{name}_counts_LX", count(axis.cells(values), axis.num_bins + 2), layer)
            self._combine(f"{name}_moments_LX", _moments(values), layer)
            self._combine(f"{name}_sums_LK", ranked_TK.sum(dim=0, dtype=torch.float64), layer)
        self._combine("tokens_L", torch.tensor(record.tokens.num_tokens, device=self.device), layer)

    def compute(self) -> xr.Dataset:
        """Histograms, moments, quantiles and means by rank; see the class."""
        import numpy as np
        import xarray as xr

        state = {name: tensor.cpu().numpy() for name, tensor in self.totals().items()}
        tokens_L = state["tokens_L"]
        table = xr.Dataset(
            coords={
                "layer": ("layer", self.layers, {"definition": "decoder block index in the checkpoint"}),
                "rank": np.arange(self.num_experts_per_token),
                "quantile": list(QUANTILES),
            },
            attrs={"num_experts": self.num_experts, "num_experts_per_token": self.num_experts_per_token},
        )
        table["num_tokens"] = variable("layer", tokens_L, "tokens", "tokens counted")
        for name, (unit, definition, rank) in QUANTITIES.items():
            counts, edges = state[f"{name}_counts_LX"], self.axes[name].edges
            per_token = self.num_experts if name in ("logit", "probability") else self.num_experts_per_token
            sums_L, squares_L = state[f"{name}_moments_LX"].T
            mean, std = moments(sums_L, squares_L, tokens_L * per_token)
            table[f"{name}_mean"] = variable("layer", mean, unit, f"mean of: {definition}")
            table[f"{name}_std"] = variable("layer", std, unit, f"standard deviation of: {definition}")
            table[f"{name}_quantile"] = variable(
                ("layer", "quantile"), quantiles(counts, edges, QUANTILES), unit, f"quantiles of: {definition}"
            )
            by_rank, _ = moments(state[f"{name}_sums_LK"], 0.0, tokens_L[:, None])
            table[f"{name}_by_rank"] = variable(
                ("layer", "rank"), by_rank, unit, f"mean by rank of: {definition}; rank: {rank}"
            )
            histogram = f"histogram, by the bins' lower edges, of: {definition}"
            table.coords[f"{name}_bin"] = lower_edges(edges)
            table[f"{name}_counts"] = variable(("layer", f"{name}_bin"), counts, "values", histogram)
            if unit == "probability":
                linear = np.linspace(0, 1, _LINEAR_BINS + 1)
                # the last bin includes 1 itself, the only value in the first fine bin above it
                merged = merge_bins(counts, edges, np.append(linear[:-1], 1 + 1 / _SHARES.per_octave))
                table.coords["linear_bin"] = lower_edges(linear)
                table[f"{name}_linear_counts"] = variable(("layer", "linear_bin"), merged, "values", histogram)
        return table


def _moments(values: Tensor) -> Tensor:
    """Sum and sum of squares: each row in float32, the rows in float64, so that parts add up in any order."""
    sums = torch.stack([values.sum(dim=-1), (values * values).sum(dim=-1)])
    return sums.sum(dim=-1, dtype=torch.float64)
