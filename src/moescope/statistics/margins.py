"""How confidently each expert is selected: weight, probability, rank, and margin to the next unselected expert."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from moescope.records import Routing
from moescope.statistics.base import Statistic
from moescope.statistics.entropy import boundary, second_largest, selected_by, sum_by
from moescope.statistics.variables import variable

# name: (unit, definition)
MEASURES = {
    "selection_weight": ("weight", "weight applied to the expert, mean over its tokens"),
    "selection_probability": ("probability", "p_te, mean over the expert's tokens"),
    "selection_margin": ("probability", "largest p minus second largest, mean over the expert's tokens"),
    "selection_boundary_margin": (
        "{selects_by}",
        "lowest selected minus highest unselected value, mean over the expert's tokens; selection is by {selects_by}",
    ),
    "selection_margin_mean": (
        "{selects_by}",
        "selection margin: the expert's value minus the highest unselected one, mean over its tokens; selection is by "
        "{selects_by}",
    ),
}
_OF_BOUNDARIES = ("selection_boundary_margin", "selection_margin_mean")


class SelectionMargins(Statistic[Routing]):
    """Sums over each expert's tokens of weight, probability and margins, and how often it is ranked first.

    The margins are those of `RouterEntropy`, here by selected expert instead of by layer and domain. Tokens without an
    expert that could have been selected but was not are left out of the two measures that need one.

    Args:
        layers: MoE layers looked at.
        num_experts: E.
        selects_by: In words, what the family selects by: the unit of the two margins at the boundary.
        device: Where the state lives.
    """

    needs_logits = True

    def __init__(
        self,
        *,
        layers: Sequence[int],
        num_experts: int,
        selects_by: str = "probability",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(layers=list(layers), device=device, num_experts=num_experts, selects_by=selects_by)
        self.num_experts, self.selects_by = num_experts, selects_by
        shape = (len(self.layers), num_experts)
        for name in ("num_selected_LE", "num_first_LE", "num_bounded_LE"):
            self._declare(name, shape)
        self._declare("sums_LEX", (*shape, len(MEASURES)), torch.float64)

    def update(self, record: Routing) -> None:
        """Takes in one layer's routing of one batch."""
        position, ids_TK = self._position[record.layer], record.expert_ids_TK
        if not ids_TK.shape[0]:
            return
        largest_TK = record.largest_probabilities_TK
        second_T = largest_TK[:, 1] if largest_TK.shape[1] > 1 else second_largest(record.probabilities_TE)
        lowest_T, unselected_T, bounded_T = boundary(record)
        values_TE = selected_by(record)
        values_TK = record.selected_probabilities_TK if values_TE is None else values_TE.gather(1, ids_TK)
        values_TKX = torch.stack(
            [
                record.weights_TK,
                record.selected_probabilities_TK,
                (largest_TK[:, 0] - second_T)[:, None].expand_as(ids_TK),
                (lowest_T - unselected_T).masked_fill(~bounded_T, 0.0)[:, None].expand_as(ids_TK),
                (values_TK - unselected_T[:, None]).masked_fill(~bounded_T[:, None], 0.0),
            ],
            dim=-1,
        )
        experts_A = ids_TK.reshape(-1)
        self._combine("sums_LEX", sum_by(experts_A, values_TKX.flatten(0, 1).double(), self.num_experts), position)
        for name, ids in (
            ("num_selected_LE", experts_A),
            ("num_first_LE", ids_TK[:, 0]),
            ("num_bounded_LE", ids_TK[bounded_T].reshape(-1)),
        ):
            self._combine(name, torch.bincount(ids, minlength=self.num_experts), position)

    def compute(self) -> xr.Dataset:
        """By `layer, expert`: the measures of `MEASURES`, first_rank_share, num_selected; NaN where never selected."""
        state = {name: tensor.cpu().numpy() for name, tensor in self.totals().items()}
        dims = ("layer", "expert")
        selected_LE = state["num_selected_LE"]
        known_LE = np.where(selected_LE > 0, selected_LE, np.nan)
        bounded_LE = np.where(state["num_bounded_LE"] > 0, state["num_bounded_LE"], np.nan)
        table = xr.Dataset(coords={"layer": self.layers, "expert": np.arange(self.num_experts)})
        table["num_selected"] = variable(dims, selected_LE.copy(), "tokens", "N_e: tokens routed to the expert")
        table["first_rank_share"] = variable(
            dims,
            state["num_first_LE"] / known_LE,
            "share of its tokens",
            "tokens for which the expert has the largest weight / N_e",
        )
        for column, (name, texts) in enumerate(MEASURES.items()):
            units, definition = (text.format(selects_by=self.selects_by) for text in texts)
            number_LE = bounded_LE if name in _OF_BOUNDARIES else known_LE
            table[name] = variable(dims, state["sums_LEX"][..., column] / number_LE, units, definition)
        return table
