"""Contribution of each routed expert to its layer's output: norm, saliency, share, and mean output, by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from moescope.errors import UsageError
from moescope.measures.jackknife import NUM_GROUPS, interval
from moescope.measures.resampling import groups
from moescope.records import ExpertOutputs
from moescope.statistics import exact
from moescope.statistics.base import Statistic
from moescope.statistics.variables import Variable, variable

_CHUNK_BYTES = {"cpu": 2**20}
"""Outputs brought into the order of tokens at a time; on a CPU, as many as its caches hold."""
_OTHER_CHUNK_BYTES = 64 * 2**20

MEANS = {
    "weight": ("weight_mean", "weight", "mean weight applied to the expert, over the tokens routed to it"),
    "norm": ("output_norm_mean", "norm of a hidden state", "mean |o_e(x)|, before the weight, over those tokens"),
    "saliency": (
        "saliency_mean",
        "norm of a hidden state",
        "mean w_te |o_e(x)| over the tokens routed to the expert (REAP, arXiv 2510.13999)",
    ),
    "share": (
        "output_share_mean",
        "share",
        "mean of w_te <o_e(x_t), y_t> / |y_t|^2 over the tokens routed to the expert, y_t the sum of the token's "
        "weighted routed outputs; a token's K shares sum to 1",
    ),
}
"""What is summed over an expert's tokens: name of the mean, unit, definition."""
_EXPERT = ("layer", "expert")
_DOMAIN = ("layer", "domain", "expert")


class ExpertContribution(Statistic[ExpertOutputs]):
    """Norm, weight, saliency and share of every routed expert's output, its mean output, by layer and domain.

    With `o_e(x)` an expert's output before its weight, `w_te` the weight applied and `y_t = sum_e w_te o_e(x_t)` over
    the K experts of token t (shared experts, where a family has them, are no part of it):

    * norm: `|o_e(x_t)|`
    * saliency: `w_te |o_e(x_t)|` (router-weighted expert activation; Lasby et al. 2025, "REAP", arXiv 2510.13999)
    * share: `w_te <o_e(x_t), y_t> / |y_t|^2`, the part of the projection onto the output: a token's K shares sum to 1,
      and one is negative where an expert's output opposes the others'. 0 where `y_t` is 0.
    * mean output: the sum of `o_e(x_t)` over its number, M numbers an expert.

    Each is averaged over the tokens routed to the expert; the share also over all tokens, which sums to 1 over a
    layer's experts. Products in float32, sums in float64. Intervals: delete-one jackknife over `num_groups` hash groups
    of documents.

    Args:
        layers: MoE layers.
        num_experts: E.
        model_width: M.
        domains: Names of the domains; `domain_ids_B` of the records index them.
        num_groups: G, groups of documents.
        seed: Assigns documents to groups.
        device: Device of the state: `8 L E (M + 5 D + 5 G)` bytes.
    """

    needs_outputs = True

    def __init__(
        self,
        *,
        layers: Sequence[int],
        num_experts: int,
        model_width: int,
        domains: Sequence[str],
        num_groups: int = NUM_GROUPS,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if not domains:
            raise UsageError("there is no domain to count", expected="one or more")
        super().__init__(
            layers=list(layers),
            device=device,
            num_experts=num_experts,
            model_width=model_width,
            domains=list(domains),
            num_groups=num_groups,
            seed=seed,
        )
        self.num_experts, self.num_groups, self.seed = num_experts, num_groups, seed
        self.domains = list(domains)
        num_layers = len(self.layers)
        for letter, size in (("D", len(self.domains)), ("G", num_groups)):
            self._declare(f"num_tokens_L{letter}", (num_layers, size))
            self._declare(f"num_selected_L{letter}E", (num_layers, size, num_experts))
            for name in MEANS:
                self._declare(f"{name}_sum_L{letter}E", (num_layers, size, num_experts), torch.float64)
        self._declare("output_sum_LEM", (num_layers, num_experts, model_width), torch.float64)

    def update(self, record: ExpertOutputs) -> None:
        """Takes in one layer's expert outputs of one batch."""
        tokens = record.routing.tokens
        position = self._position[record.routing.layer]
        if not tokens.num_tokens:
            return
        summed_EM = torch.stack(
            [record.outputs_AM[start:end].sum(0, dtype=torch.float64) for start, end in pairwise(record.offsets_E1)]
        )
        self._combine("output_sum_LEM", summed_EM, position)
        num_documents = tokens.num_documents
        cells_A = (record.routing.expert_ids_TK + self.num_experts * tokens.rows_T.unsqueeze(1)).reshape(-1)
        cells = (num_documents, self.num_experts)
        sums_BE = {"num_selected": torch.bincount(cells_A, minlength=cells[0] * cells[1]).view(cells)}
        for name, values_TK in zip(MEANS, self._measured(record), strict=True):
            counted = torch.bincount(cells_A, values_TK.double().reshape(-1), minlength=cells[0] * cells[1])
            sums_BE[f"{name}_sum"] = counted.view(cells)
        lengths_B = torch.bincount(tokens.rows_T, minlength=num_documents)
        groups_B = groups(tokens.document_hashes_B, self.num_groups, seed=self.seed)
        for letter, ids_B in (("D", tokens.domain_ids_B), ("G", groups_B)):
            size = self.state[f"num_tokens_L{letter}"].shape[1]
            self._combine(f"num_tokens_L{letter}", lengths_B.new_zeros(size).index_add_(0, ids_B, lengths_B), position)
            for name, values_BE in sums_BE.items():
                summed = values_BE.new_zeros((size, self.num_experts)).index_add_(0, ids_B, values_BE)
                self._combine(f"{name}_L{letter}E", summed, position)

    def _measured(self, record: ExpertOutputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weight, norm, saliency and share of each token's K experts, float32 (T, K), in the order of `MEANS`."""
        weights_TK = record.routing.weights_TK
        num_tokens, num_ranks = weights_TK.shape
        order_A = record.token_rows_A * num_ranks + record.ranks_A
        rows_A = torch.empty_like(order_A)
        rows_A[order_A] = torch.arange(len(order_A), device=order_A.device)
        along = []
        budget = _CHUNK_BYTES.get(record.outputs_AM.device.type, _OTHER_CHUNK_BYTES)
        chunk = max(1, budget // (4 * num_ranks * record.outputs_AM.shape[1]))
        for start in range(0, num_tokens, chunk):
            weights_tK = weights_TK[start : start + chunk]
            rows_a = rows_A[start * num_ranks : (start + chunk) * num_ranks]
            outputs_tKM = record.outputs_AM[rows_a].float().view(*weights_tK.shape, -1)
            sums_tM1 = (weights_tK.unsqueeze(1) @ outputs_tKM).mT
            along.append((outputs_tKM @ sums_tM1).squeeze(2))
        norms_A = torch.linalg.vector_norm(record.outputs_AM, dim=1, dtype=torch.float32)
        norms_TK = norms_A[rows_A].view_as(weights_TK)
        parts_TK = (weights_TK * torch.cat(along)).double()
        totals_T1 = parts_TK.sum(1, keepdim=True)  # |y_t|^2, as the sum of its parts, so that shares sum to 1
        shares_TK = torch.where(totals_T1 > 0, parts_TK / totals_T1, 0.0)
        return weights_TK, norms_TK, weights_TK * norms_TK, shares_TK

    def mean_outputs(self, layer: int) -> Tensor:
        """Mean output of each expert over the tokens routed to it, before the weight, float64 (E, M); NaN for none."""
        position = self._position[layer]
        return exact.value(self.state["output_sum_LEM"][position]) / self.state["num_selected_LDE"][position].sum(
            0
        ).unsqueeze(1)

    def compute(self) -> xr.Dataset:
        """By `layer, expert`: `num_selected`, each of `MEANS` with `_ci_low`, `_ci_high`, and `output_share` likewise.

        `selection_half_output_share` and `evaluation_half_output_share` are from two halves of the documents: what was
        selected as the largest on one is shown as measured on the other.

        Also by `layer, domain, expert`: `num_selected_by_domain` and each of `MEANS` with `_by_domain`; by `layer`
        (and `domain`): `num_tokens`. NaN where no token was routed to the expert.
        """
        state = {name: tensor.cpu() for name, tensor in self.totals().items()}
        return xr.Dataset(
            self._counts(state) | self._by_expert(state) | self._halves(state) | self._by_domain(state),
            coords={"layer": self.layers, "domain": self.domains, "expert": np.arange(self.num_experts)},
        )

    def _counts(self, state: Mapping[str, Tensor]) -> dict[str, Variable]:
        tokens_LG, selected_LGE = state["num_tokens_LG"], state["num_selected_LGE"]
        by_domain = "tokens of the domain routed to the expert"
        return {
            "num_tokens": variable("layer", tokens_LG.sum(1).numpy(), "tokens", "tokens counted"),
            "num_selected": variable(_EXPERT, selected_LGE.sum(1).numpy(), "tokens", "tokens routed to the expert"),
            "num_tokens_by_domain": variable(
                ("layer", "domain"), state["num_tokens_LD"].numpy(), "tokens", "tokens counted of the domain"
            ),
            "num_selected_by_domain": variable(_DOMAIN, state["num_selected_LDE"].numpy(), "tokens", by_domain),
        }

    def _by_expert(self, state: Mapping[str, Tensor]) -> dict[str, Variable]:
        """Means with their intervals."""
        jackknife = f"95 % interval, delete-one jackknife over {self.num_groups} hash groups of documents"
        selected_LGE = state["num_selected_LGE"]
        ratios = {
            name: (state[f"{key}_sum_LGE"], selected_LGE, units, words) for key, (name, units, words) in MEANS.items()
        }
        words = "mean share of the output over all tokens, 0 for those not routed to the expert; sums to 1 over experts"
        tokens_LGE = state["num_tokens_LG"].unsqueeze(2).expand_as(selected_LGE)
        ratios["output_share"] = state["share_sum_LGE"], tokens_LGE, "share", words
        variables = {}
        for name, (sums_LGE, counts_LGE, units, definition) in ratios.items():
            mean_LE, low_LE, high_LE = _with_interval(sums_LGE, counts_LGE)
            variables[name] = variable(_EXPERT, mean_LE.numpy(), units, definition)
            variables[f"{name}_ci_low"] = variable(_EXPERT, low_LE.numpy(), units, f"low end, {jackknife}")
            variables[f"{name}_ci_high"] = variable(_EXPERT, high_LE.numpy(), units, f"high end, {jackknife}")
        return variables

    def _halves(self, state: Mapping[str, Tensor]) -> dict[str, Variable]:
        """Output shares of two halves of the groups of documents."""
        half = self.num_groups // 2
        tokens_LG = state["num_tokens_LG"]
        tokens_LGE = tokens_LG.unsqueeze(2).expand_as(state["num_selected_LGE"])
        num_tokens_L = tokens_LG[:, half:].sum(1).numpy()
        definition = "tokens counted of the documents of the evaluation half"
        variables = {"evaluation_half_num_tokens": variable("layer", num_tokens_L, "tokens", definition)}
        for prefix, chosen in (("selection_half", slice(0, half)), ("evaluation_half", slice(half, None))):
            sums_LGE, counts_LGE = state["share_sum_LGE"][:, chosen], tokens_LGE[:, chosen]
            definition = f"output_share on {counts_LGE.shape[1]} of the {self.num_groups} groups of documents"
            names = [f"{prefix}_output_share{end}" for end in ("", "_ci_low", "_ci_high")]
            for name, values_LE in zip(names, _with_interval(sums_LGE, counts_LGE), strict=True):
                variables[name] = variable(_EXPERT, values_LE.numpy(), "share", definition)
        return variables

    def _by_domain(self, state: Mapping[str, Tensor]) -> dict[str, Variable]:
        variables = {}
        for key, (name, units, definition) in MEANS.items():
            means_LDE = (state[f"{key}_sum_LDE"] / state["num_selected_LDE"]).numpy()
            variables[f"{name}_by_domain"] = variable(_DOMAIN, means_LDE, units, f"{definition}; by domain")
        return variables


def _with_interval(sums_LGE: Tensor, counts_LGE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ratio of sums over groups, and the ends of its interval."""
    mean_LE = sums_LGE.sum(1) / counts_LGE.sum(1)
    without_LGE = (sums_LGE.sum(1, keepdim=True) - sums_LGE) / (counts_LGE.sum(1, keepdim=True) - counts_LGE)
    return mean_LE, *interval(mean_LE, without_LGE.transpose(0, 1), counts_LGE.transpose(0, 1) > 0)
