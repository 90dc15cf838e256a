"""Router confidence: entropy, margins and related measures of each token, as means, quantiles and histograms.

For token t with router probabilities `p_te`, selected experts `S_t` and applied weights `w_tk`, natural logarithms:

| measure | definition |
|---|---|
| entropy | `-sum_e p_te ln p_te`, nats; normalized by `ln E` |
| selected entropy | the same of `w_tk / sum_k w_tk`; normalized by `ln K` |
| top-1 probability | `max_e p_te` |
| top-K mass | sum of `p_te` over `S_t` |
| margin | `p_(0) - p_(1)`, the two largest |
| boundary margin | lowest selected minus highest unselected value of what the family selects by |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from moescope.errors import UsageError
from moescope.measures.clustered import not_distinguishable_groups
from moescope.measures.constants import ALL
from moescope.measures.histogram import Axis, LinearAxis, LogAxis, count, lower_edges, moments, quantiles
from moescope.measures.resampling import groups
from moescope.records import Routing
from moescope.statistics.base import Statistic
from moescope.statistics.variables import variable

if TYPE_CHECKING:
    import xarray as xr


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

# name: (unit, definition)
MEASURES = {
    "entropy": ("nats", "-sum_e p_e ln p_e over all experts"),
    "selected_entropy": ("nats", "-sum_k v_k ln v_k over the K applied weights divided by their sum"),
    "top1_probability": ("probability", "largest p_e"),
    "topk_mass": ("probability", "sum of p_e over the K selected experts"),
    "margin": ("probability", "largest p_e minus second largest"),
    "boundary_margin": ("{selects_by}", "lowest selected minus highest unselected value; selection is by {selects_by}"),
}

NUM_GROUPS = 20
"""Groups of documents that a jackknife leaves out, one at a time."""
GROUPED = ("entropies", "tokens")
_PROBABILITY_SUM_TOLERANCE = 0.02  # bfloat16 probabilities of many experts add up to 1 within this


class RouterEntropy(Statistic[Routing]):
    """Sums and histograms of the router's entropy, margins and top probabilities, by layer and domain.

    `compute` gives, with dims `layer` and `domain` (whose first entry, "all", pools the tokens of all domains):
    `num_tokens`, `num_documents`; of each measure (see the module) `*_mean`, `*_std` (of the tokens, divided by n) and
    `*_quantile` (with dim `quantile`: 5, 25, 50, 75, 95 %); `normalized_entropy_*` and `normalized_selected_entropy_*`
    (NaN where K is 1); `boundary_tie_share`, the share of tokens whose boundary margin is exactly 0; and `*_counts`,
    histograms with dim `*_bin`, whose coordinate is the lower edge of each bin: the first (-inf) counts values below
    the axis, the last those above it.

    A quantile is exact to a histogram bin: of the entropies 1/512 of their range, of the top-1 probability and the
    top-K mass 1/256, of the margins 1/16 of their value (down to 2^-24; below they read 0).

    Tokens without any expert that could have been selected but was not (`selection_values_TE` of -inf, or K = E) have
    no boundary margin and are left out of it.

    Args:
        layers: Decoder block indices of the layers to look at.
        num_experts: E.
        num_experts_per_token: K.
        domains: Names of the domains; `domain_ids_B` of the records index them.
        selects_by: In words, what the family selects by: the unit of the boundary margin.
        seed: Of the groups of documents.
        device: Where the state is kept.
    """

    needs_logits = True

    def __init__(
        self,
        *,
        layers: list[int],
        num_experts: int,
        num_experts_per_token: int,
        domains: Sequence[str],
        selects_by: str = "probability",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            layers=layers,
            device=device,
            num_experts=num_experts,
            num_experts_per_token=num_experts_per_token,
            domains=list(domains),
            selects_by=selects_by,
            seed=seed,
        )
        self.num_experts, self.num_experts_per_token = num_experts, num_experts_per_token
        self.domains, self.selects_by = list(domains), selects_by
        self.axes: dict[str, Axis] = {
            "entropy": LinearAxis(0.0, math.log(max(2, num_experts)), 512),
            "selected_entropy": LinearAxis(0.0, math.log(max(2, num_experts_per_token)), 512),
            "top1_probability": LinearAxis(0.0, 1.0, 256),
            "topk_mass": LinearAxis(0.0, 1.0, 256),
            "margin": LogAxis(-24, 1, 16),
            "boundary_margin": LogAxis(-24, 8, 16),
        }
        lengths = [axis.num_bins + 2 for axis in self.axes.values()]
        self._starts = np.cumsum([0, *lengths]).tolist()
        size = (len(layers), len(domains))
        self._declare("tokens_LD", size)
        self._declare("documents_LD", size)
        # last dimension: the measures, in order, and one more in each of the two that counts boundaries: how many
        # tokens have one, how many of these are ties
        self._declare("sums_LDX", (*size, len(MEASURES) + 1), torch.float64)
        self._declare("squares_LDX", (*size, len(MEASURES) + 1), torch.float64)
        # of groups of documents: what it takes to tell whether two entropies differ
        self._declare("group_entropies_LDG", (*size, NUM_GROUPS), torch.float64)
        self._declare("group_tokens_LDG", (*size, NUM_GROUPS))
        self._declare("counts_LDX", (*size, self._starts[-1]))  # all histograms, end to end
        self._declare("probability_like_L", (len(layers),))
        self._declare("nan_L", (len(layers),))

    def update(self, record: Routing) -> None:
        """Takes in one layer's routing of one batch.

        Raises:
            KeyError: The layer is not one of this statistic's.
        """
        layer = self._position[record.layer]
        tokens, num_domains = record.tokens, len(self.domains)
        if tokens.num_tokens == 0:
            return
        values, has_boundary_T = self._values(record)
        values_TX = torch.stack([*values.values(), has_boundary_T], dim=1).double()
        squares_TX = values_TX.square()
        squares_TX[:, -1] = has_boundary_T & (values["boundary_margin"] == 0)
        sums_DX = sum_by(tokens.domain_ids_T, torch.cat([values_TX, squares_TX], dim=1), num_domains)
        self._combine("sums_LDX", sums_DX[:, : values_TX.shape[1]], layer)
        self._combine("squares_LDX", sums_DX[:, values_TX.shape[1] :], layer)

        groups_B = groups(tokens.document_hashes_B, NUM_GROUPS, seed=self.parameters["seed"])
        places_T = (tokens.domain_ids_B * NUM_GROUPS + groups_B)[tokens.rows_T]
        ones_T = torch.ones_like(values_TX[:, 0])
        grouped_X2 = sum_by(places_T, torch.stack([values_TX[:, 0], ones_T], dim=1), num_domains * NUM_GROUPS)
        self._combine("group_entropies_LDG", grouped_X2[:, 0].view(num_domains, -1), layer)
        self._combine("group_tokens_LDG", grouped_X2[:, 1].view(num_domains, -1).round().long(), layer)

        length = self._starts[-1]
        cells = [axis.cells(values[name]) + start for (name, axis), start in self._axes_and_starts()]
        offsets_T = tokens.domain_ids_T.to(torch.int32) * length
        cells_XT = torch.stack(cells) + offsets_T
        cells_XT[-1].masked_fill_(~has_boundary_T, num_domains * length)  # a cell after the last, dropped
        counts = count(cells_XT, num_domains * length + 1)[:-1]
        self._combine("counts_LDX", counts.view(num_domains, length), layer)

        present_B = torch.zeros_like(tokens.document_hashes_B).index_fill_(0, tokens.rows_T, 1)
        counted_D = torch.zeros(2, num_domains, dtype=torch.int64, device=present_B.device)
        counted_D[0].index_add_(0, tokens.domain_ids_T, torch.ones_like(tokens.domain_ids_T))
        counted_D[1].index_add_(0, tokens.domain_ids_B, present_B)
        self._combine("tokens_LD", counted_D[0], layer)
        self._combine("documents_LD", counted_D[1], layer)

    def _axes_and_starts(self) -> list[tuple[tuple[str, Axis], int]]:
        return list(zip(self.axes.items(), self._starts, strict=False))

    def _values(self, record: Routing) -> tuple[dict[str, Tensor], Tensor]:
        """Each measure of each token, float32 or float64, and whether it has a boundary (if not, its margin is 0)."""
        assert record.logits_TE is not None
        probabilities_TE = record.probabilities_TE
        selected_TK = record.selected_probabilities_TK
        largest_TK = record.largest_probabilities_TK
        top1_T = largest_TK[:, 0]
        second_T = largest_TK[:, 1] if largest_TK.shape[1] > 1 else second_largest(probabilities_TE)

        highest_T = record.logits_TE.amax(dim=-1)
        self._count_implausible(record.logits_TE, highest_T, self._position[record.layer])
        if record.scoring == "softmax":
            # -sum p ln p with ln p = (z - max z) + ln p_max: no logarithm of T x E numbers, no cancellation
            shifted_TE = (record.logits_TE - highest_T[:, None]).clamp_(min=-200.0)  # exp(-200) is 0 in float32
            entropy_T = -(shifted_TE.mul_(probabilities_TE).sum(dim=-1)).double() - top1_T.double().log()
        else:
            logarithms_TE = probabilities_TE.clamp_min(1e-38).log_()
            entropy_T = -logarithms_TE.mul_(probabilities_TE).sum(dim=-1).double()
        weights_TK = record.weights_TK.double().clamp_min(0)
        shares_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True).clamp_min(1e-300)
        selected_entropy_T = -(shares_TK * shares_TK.clamp_min(1e-300).log()).sum(dim=-1)

        lowest_T, unselected_T, has_boundary_T = boundary(record)
        return {
            "entropy": entropy_T.clamp_(0, math.log(self.num_experts)),
            "selected_entropy": selected_entropy_T.clamp_(0, math.log(self.num_experts_per_token)),
            "top1_probability": top1_T,
            "topk_mass": selected_TK.sum(dim=-1),
            "margin": top1_T - second_T,
            "boundary_margin": (lowest_T - unselected_T).masked_fill_(~has_boundary_T, 0.0),
        }, has_boundary_T

    def _count_implausible(self, logits_TE: Tensor, highest_T: Tensor, layer: int) -> None:
        """Counts tokens whose "logits" could be probabilities, and those whose logits are not numbers."""
        sums_T = logits_TE.sum(dim=-1)
        probability_like_T = (sums_T - 1).abs() <= _PROBABILITY_SUM_TOLERANCE
        probability_like_T &= (highest_T <= 1) & (logits_TE.amin(dim=-1) >= 0)
        self._combine("probability_like_L", probability_like_T.sum(), layer)
        self._combine("nan_L", sums_T.isnan().sum(), layer)

    def compute(self) -> xr.Dataset:
        """Means, standard deviations, quantiles and histograms; see the class.

        Raises:
            UsageError: What was recorded as logits are probabilities, or not numbers.
        """
        import xarray as xr

        self._check()
        state = {name: tensor.cpu().numpy() for name, tensor in self.totals().items()}
        state = {
            name: np.concatenate([array.sum(axis=1, keepdims=True), array], axis=1)
            for name, array in state.items()
            if array.ndim > 1
        }
        tokens_LD = state["tokens_LD"]
        dims = ("layer", "domain")
        table = xr.Dataset(
            coords={
                "layer": ("layer", self.layers, {"definition": "decoder block index in the checkpoint"}),
                "domain": [ALL, *self.domains],
                "quantile": list(QUANTILES),
            },
            attrs={
                "num_experts": self.num_experts,
                "num_experts_per_token": self.num_experts_per_token,
                "selects_by": self.selects_by,
            },
        )
        table["num_tokens"] = variable(dims, tokens_LD, "tokens", "tokens counted")
        table["num_documents"] = variable(dims, state["documents_LD"], "documents", "documents with a token counted")
        boundaries_LD = state["sums_LDX"][..., -1]
        for position, ((name, axis), start) in enumerate(self._axes_and_starts()):
            counts = state["counts_LDX"][..., start : start + axis.num_bins + 2]
            number_LD = boundaries_LD if name == "boundary_margin" else tokens_LD
            mean, std = moments(state["sums_LDX"][..., position], state["squares_LDX"][..., position], number_LD)
            unit, definition = (words.format(selects_by=self.selects_by) for words in MEASURES[name])
            _add(table, name, mean, std, quantiles(counts, axis.edges, QUANTILES), unit, definition)
            table.coords[f"{name}_bin"] = lower_edges(axis.edges)
            histogram = f"histogram, by the bins' lower edges, of: {definition}"
            table[f"{name}_counts"] = variable((*dims, f"{name}_bin"), counts, "tokens", histogram)
        self._add_normalized(table)
        with np.errstate(invalid="ignore"):
            ties = state["squares_LDX"][..., -1] / np.where(boundaries_LD > 0, boundaries_LD, np.nan)
        totals = self.totals()
        for dim, axes in (("layer", (1,)), ("domain", (0,))):
            # of layers over all domains; of domains over all layers
            sums_RG, tokens_RG = (totals[f"group_{name}_LDG"].sum(dim=axes).cpu().numpy() for name in GROUPED)
            tied_R = not_distinguishable_groups(sums_RG, tokens_RG)
            tied_R = tied_R if dim == "layer" else np.append(False, tied_R)
            definition = (
                f"mean entropy is not shown to lie below that of the {dim} of the highest (jackknife, Bonferroni)"
            )
            table[f"entropy_tied_{dim}"] = variable(dim, tied_R, "yes or no", definition)
        table["boundary_tie_share"] = variable(
            dims, ties, "share of tokens", "tokens whose boundary margin is exactly 0"
        )
        return table

    def _add_normalized(self, table: xr.Dataset) -> None:
        for name, choices, symbol in (
            ("entropy", self.num_experts, "ln E"),
            ("selected_entropy", self.num_experts_per_token, "ln K"),
        ):
            maximum = math.log(choices) if choices > 1 else math.nan
            mean, std, quantile = (table[f"{name}_{part}"].values / maximum for part in ("mean", "std", "quantile"))
            definition = f"{name.replace('_', ' ')} / {symbol}"
            _add(table, f"normalized_{name}", mean, std, quantile, f"share of {symbol}", definition)

    def _check(self) -> None:
        counts = (self.state["tokens_LD"].sum(dim=1), self.state["probability_like_L"], self.state["nan_L"])
        for layer, tokens, num_probability_like, num_nan in zip(self.layers, *counts, strict=True):
            if tokens and num_probability_like == tokens:
                raise UsageError(
                    f'the "logits" of layer {layer} lie in 0..1 and sum to 1 on each of {tokens} tokens: these are '
                    "probabilities, and a second softmax would flatten every result",
                    expected="the router's logits, before any softmax",
                    remedy="use transformers 5.10 or later (5.0 to 5.5 return probabilities under the name "
                    "router_logits), or have the model's router return its logits",
                )
            if num_nan:
                raise UsageError(
                    f"the router logits of layer {layer} are not numbers (NaN) on {num_nan} of {tokens} tokens",
                    expected="finite logits",
                    remedy="load the model with another `dtype`: float32, or bfloat16 instead of float16",
                )


def _add(
    table: xr.Dataset, name: str, mean: np.ndarray, std: np.ndarray, quantile: np.ndarray, unit: str, definition: str
) -> None:
    dims = ("layer", "domain")
    table[f"{name}_mean"] = variable(dims, mean, unit, f"mean over tokens of: {definition}")
    table[f"{name}_std"] = variable(dims, std, unit, f"standard deviation over tokens of: {definition}")
    table[f"{name}_quantile"] = variable((*dims, "quantile"), quantile, unit, f"quantiles over tokens of: {definition}")


def boundary(record: Routing) -> tuple[Tensor, Tensor, Tensor]:
    """Lowest selected and highest unselected value of what the family selects by, and whether both exist; (T,) each."""
    values_TE = selected_by(record)
    if values_TE is None:
        lowest_T, unselected_T = record.selected_probabilities_TK.amin(dim=-1), record.largest_unselected_T
        return lowest_T, unselected_T, unselected_T >= 0
    lowest_T = values_TE.gather(1, record.expert_ids_TK).amin(dim=-1)
    unselected_T = values_TE.masked_fill(record.selected_TE > 0, -torch.inf).amax(dim=-1)
    return lowest_T, unselected_T, (unselected_T > -torch.inf) & (lowest_T > -torch.inf)


def selected_by(record: Routing) -> Tensor | None:
    """What the family selects by, for each token and expert; None where that is the probability itself."""
    if record.selection_values_TE is None and record.scoring == "sigmoid":
        assert record.logits_TE is not None
        return record.logits_TE.sigmoid()
    return record.selection_values_TE


def second_largest(values_TE: Tensor) -> Tensor:
    """The second largest of each row (the largest again where it occurs twice)."""
    if values_TE.shape[1] < 2:
        return torch.zeros_like(values_TE[:, 0])
    return values_TE.scatter(1, values_TE.argmax(dim=-1, keepdim=True), -1.0).amax(dim=-1)


def sum_by(domain_ids_T: Tensor, values_TX: Tensor, num_domains: int) -> Tensor:
    """Sums of rows by domain, float64, in the same order on every run."""
    if values_TX.is_cuda:  # index_add_ on a GPU adds in any order
        of_domain_DT = domain_ids_T[None, :] == torch.arange(num_domains, device=values_TX.device)[:, None]
        return of_domain_DT.to(values_TX.dtype) @ values_TX
    return values_TX.new_zeros(num_domains, values_TX.shape[1]).index_add_(0, domain_ids_T, values_TX)
