"""Router saturation: agreement of a checkpoint's routing with the final model's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from moescope.errors import UsageError
from moescope.records import Routing, TokenBatch
from moescope.statistics.base import Statistic
from moescope.statistics.variables import Variable, variable


@dataclass(frozen=True)
class RoutingPair:
    """The routing of two models for the same tokens in the same layer.

    Attributes:
        checkpoint: Routing of the earlier model.
        final: Routing of the final model.
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


class RouterSaturation(Statistic[RoutingPair]):
    """`(1/N) Σ_t |S_t ∩ S'_t| / K` of a checkpoint's selected experts and the final model's, per layer.

    Source: OLMoE Eq. 5 (arXiv 2409.02060). Also for the first-ranked expert alone (the share of tokens where it is the
    same); both with their chance level and their value under independent routing.

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

    def update(self, record: RoutingPair) -> None:
        """Counts agreement over one batch, a `RoutingPair`.

        Raises:
            UsageError: The two routings are not of the same layer, tokens and number of experts.
        """
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

        Chance is `K / E` and `1 / E`: two routers that select each expert equally often and independently of each
        other. Under independent routing at both models' own selection frequencies it is `Σ_e f_e f'_e / K`, which is
        higher where both favor the same experts.

        Returns:
            By `layer`: topk_saturation, top1_saturation, each also with `_chance` and `_independent`; num_tokens.
        """
        state = {name: tensor.cpu().numpy() for name, tensor in self.state.items()}
        tokens_L = state["tokens_L"]
        variables: dict[str, Variable] = {}
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
                f"{name}_saturation": variable("layer", value_L, "1", definition),
                f"{name}_saturation_chance": variable(
                    "layer",
                    np.full(len(self.layers), num_ranks / self.num_experts),
                    "1",
                    "the same for two independent routers that select each expert equally often",
                ),
                f"{name}_saturation_independent": variable(
                    "layer",
                    (ours_LE * theirs_LE).sum(axis=1) / num_ranks,
                    "1",
                    "the same for independent routers with both models' selection frequencies",
                ),
            }
        variables["num_tokens"] = variable("layer", tokens_L.copy(), "tokens", "tokens counted")
        return xr.Dataset(variables, coords={"layer": self.layers})
