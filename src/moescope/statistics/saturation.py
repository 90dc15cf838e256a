"""How early in training the router's decisions were made: agreement of a checkpoint with the final model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr

from moescope.errors import UsageError
from moescope.records import ExpertOutputs, Routing, TokenBatch
from moescope.statistics.base import Statistic


@dataclass(frozen=True)
class RoutingPair:
    """What two models' routers decided for the same tokens in the same layer.

    Attributes:
        checkpoint: Routing of the earlier model.
        final: Routing of the model it became.
    """

    checkpoint: Routing
    final: Routing

    @property
    def layer(self) -> int:
        """The layer, of both."""
        return self.checkpoint.layer

    @property
    def tokens(self) -> TokenBatch:
        """The tokens, of both."""
        return self.checkpoint.tokens


class RouterSaturation(Statistic):
    """`(1/N) Σ_t |S_t ∩ S'_t| / K` of a checkpoint's selected experts and the final model's, per layer.

    Source: OLMoE Eq. 5 (arXiv 2409.02060). Also for the first-ranked expert alone (the share of tokens where it is the
    same), and beside both their chance level and their value under independent routing.

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
        self._declare("shared_L", (len(self.layers),))
        self._declare("top1_shared_L", (len(self.layers),))
        self._declare("tokens_L", (len(self.layers),))
        for model in ("checkpoint", "final"):
            self._declare(f"{model}_counts_LE", (len(self.layers), num_experts))
            self._declare(f"{model}_top1_counts_LE", (len(self.layers), num_experts))

    def update(self, record: Routing | ExpertOutputs | RoutingPair) -> None:
        """Counts agreement over one batch; takes a `RoutingPair`.

        Raises:
            UsageError: The two routings are not of the same layer, tokens and number of experts.
        """
        assert isinstance(record, RoutingPair)
        checkpoint, final = record.checkpoint, record.final
        position = self._position[record.layer]
        if (
            final.layer != checkpoint.layer
            or final.expert_ids_TK.shape != checkpoint.expert_ids_TK.shape
            or final.num_experts != checkpoint.num_experts
        ):
            raise UsageError(
                f"routings of layers {checkpoint.layer} and {final.layer}, shapes "
                f"{tuple(checkpoint.expert_ids_TK.shape)} and {tuple(final.expert_ids_TK.shape)}, "
                f"{checkpoint.num_experts} and {final.num_experts} experts",
                expected="two models' routings of the same tokens in the same layer",
            )
        ours_TE, theirs_TE = checkpoint.selected_TE.to(self.device), final.selected_TE.to(self.device)
        ours_T, theirs_T = (routing.expert_ids_TK[:, 0].to(self.device) for routing in (checkpoint, final))
        self._combine("shared_L", (ours_TE * theirs_TE).sum(dtype=torch.float64), at=position)
        self._combine("top1_shared_L", (ours_T == theirs_T).sum(), at=position)
        self._combine("tokens_L", torch.tensor(ours_T.shape[0], device=self.device), at=position)
        self._combine("checkpoint_counts_LE", ours_TE.sum(dim=0, dtype=torch.float64), at=position)
        self._combine("final_counts_LE", theirs_TE.sum(dim=0, dtype=torch.float64), at=position)
        for model, first_T in (("checkpoint", ours_T), ("final", theirs_T)):
            counts_E = torch.bincount(first_T, minlength=self.num_experts)
            self._combine(f"{model}_top1_counts_LE", counts_E, at=position)

    def compute(self) -> xr.Dataset:
        """Saturation per layer: of the K selected experts (topk) and of the first-ranked one (top1).

        Chance is `K / E` and `1 / E`: two routers that choose evenly and know nothing of each other. Under independent
        routing at both models' own selection frequencies it is `Σ_e f_e f'_e / K`, which is higher where both
        favour the same experts.

        Returns:
            By `layer`: topk_saturation, top1_saturation, each also with `_chance` and `_independent`; num_tokens.
        """
        state = {name: tensor.cpu().numpy() for name, tensor in self.state.items()}
        tokens_L = state["tokens_L"]
        variables: dict[str, tuple[Any, ...]] = {}
        readings = (
            ("topk", "", self.num_experts_per_token, "mean over tokens of |S_t ∩ S'_t| / K"),
            ("top1", "top1_", 1, "share of tokens whose first-ranked expert is the same"),
        )
        for name, prefix, num_ranks, definition in readings:
            with np.errstate(invalid="ignore", divide="ignore"):
                value_L = state[f"{prefix}shared_L"] / (num_ranks * tokens_L)
                ours_LE = state[f"checkpoint_{prefix}counts_LE"] / tokens_L[:, None]
                theirs_LE = state[f"final_{prefix}counts_LE"] / tokens_L[:, None]
            variables |= {
                f"{name}_saturation": ("layer", value_L, {"units": "1", "definition": definition}),
                f"{name}_saturation_chance": (
                    "layer",
                    np.full(len(self.layers), num_ranks / self.num_experts),
                    {"units": "1", "definition": "the same for two routers that choose evenly and independently"},
                ),
                f"{name}_saturation_independent": (
                    "layer",
                    (ours_LE * theirs_LE).sum(axis=1) / num_ranks,
                    {"units": "1", "definition": "the same for independent routers with both selection frequencies"},
                ),
            }
        variables["num_tokens"] = ("layer", tokens_L.copy(), {"units": "tokens", "definition": "tokens counted"})
        return xr.Dataset(variables, coords={"layer": self.layers})
