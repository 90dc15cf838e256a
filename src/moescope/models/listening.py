"""From what the seam sees (all tokens of a batch, the family's order) to records (kept tokens, sorted by weight)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moescope.errors import ModelError
from moescope.models.experts import SortedOutputs
from moescope.models.routers import RouterRule
from moescope.models.seam import ExpertCall
from moescope.records import ExpertOutputs, Routing, TokenBatch


@dataclass
class RecordMaker:
    """The listener of a forward pass: makes the records of each layer and hands them on.

    Attributes:
        tokens: The kept tokens.
        keep_T: Their rows in the flattened batch; None where every row is kept.
        rules: Each layer's routing rule.
        device: Where records go.
        num_experts: E.
        num_experts_per_token: K.
        on_routing: Takes each layer's `Routing`.
        on_outputs: Takes each layer's `ExpertOutputs`, or None.
        needs_logits: Whether records carry logits and selection values.
        needs_inputs: Whether records carry the experts' inputs.
    """

    tokens: TokenBatch
    keep_T: Tensor | None
    rules: dict[int, RouterRule]
    device: torch.device
    num_experts: int
    num_experts_per_token: int
    on_routing: Callable[[Routing], None]
    on_outputs: Callable[[ExpertOutputs], None] | None
    needs_logits: bool
    needs_inputs: bool
    previous: Routing | None = None
    heard: list[int] = field(default_factory=list)

    @property
    def wants_outputs(self) -> bool:
        """Whether someone listens to the experts' outputs."""
        return self.on_outputs is not None

    def __call__(self, call: ExpertCall, outputs: SortedOutputs | None) -> None:
        """Makes the records of one layer and hands them on."""
        self._check(call)
        self.heard.append(call.layer)
        ids_TK, weights_TK, ranks_TK = by_weight(
            self._kept(call.expert_ids_NK), self._kept(call.weights_NK).to(torch.float32)
        )
        logits_TE = values_TE = None
        rule = self.rules[call.layer]
        if self.needs_logits and call.logits_NE is not None:
            logits_TE = self._kept(call.logits_NE).to(torch.float32)
            values_TE = None if rule.selects_by_score else rule.selection_values(logits_TE).to(self.device)
            logits_TE = logits_TE.to(self.device)
        routing = Routing(
            tokens=self.tokens,
            layer=call.layer,
            expert_ids_TK=ids_TK.to(self.device),
            weights_TK=weights_TK.to(self.device),
            num_experts=self.num_experts,
            logits_TE=logits_TE,
            scoring=rule.scoring,
            selection_values_TE=values_TE,
            previous=self.previous,
            inputs_TM=self._kept(call.hidden_NM).to(self.device) if self.needs_inputs else None,
        )
        self.on_routing(routing)
        if self.on_outputs is not None and outputs is not None:
            self.on_outputs(self._outputs(routing, outputs, ranks_TK, call.hidden_NM.shape[0]))
        self.previous = as_previous(routing)

    def check_all_heard(self, layers: Sequence[int]) -> None:
        """Refuses a pass in which a layer's experts were not called, or not once.

        Raises:
            ModelError: Says which.
        """
        if self.heard != list(layers):
            raise ModelError(
                f"in a forward pass the experts of layers {self.heard} were called",
                expected=f"one call of each of layers {list(layers)}, in this order",
                remedy="the model was changed after it was loaded: load it again",
            )

    def _check(self, call: ExpertCall) -> None:
        """Refuses a call that does not fit the model's facts, before anything is counted."""
        ids_NK = call.expert_ids_NK
        shape = (call.hidden_NM.shape[0], self.num_experts_per_token)
        # On an accelerator the question whether ids are in range would wait for it; there, indexing asserts it.
        outside = ids_NK.device.type == "cpu" and bool(((ids_NK < 0) | (ids_NK >= self.num_experts)).any())
        if ids_NK.shape != shape or call.weights_NK.shape != shape or outside:
            found = f"ids {int(ids_NK.min())} to {int(ids_NK.max())}" if outside else f"shape {tuple(ids_NK.shape)}"
            raise ModelError(
                f"the experts of layer {call.layer} were called with {found}",
                expected=f"{shape[1]} of experts 0-{self.num_experts - 1} for each of {shape[0]} tokens",
                remedy="what changes the routing must keep to the model's numbers of experts; a model whose structure "
                "was changed is to be loaded again",
            )

    def _kept(self, rows_Nx: Tensor) -> Tensor:
        return rows_Nx if self.keep_T is None else rows_Nx.index_select(0, self.keep_T.to(rows_Nx.device))

    def _outputs(
        self, routing: Routing, outputs: SortedOutputs, ranks_TK: Tensor | None, num_rows: int
    ) -> ExpertOutputs:
        outputs_AM, token_rows_A, slots_A = outputs.outputs_AM, outputs.token_rows_A, outputs.slots_A
        offsets_E1 = outputs.offsets_E1
        if self.keep_T is not None:
            position_N = torch.full((num_rows,), -1, device=token_rows_A.device)
            keep_T = self.keep_T.to(token_rows_A.device)
            position_N[keep_T] = torch.arange(keep_T.shape[0], device=keep_T.device)
            position_A = position_N[token_rows_A]
            kept_A = position_A >= 0
            before_A1 = torch.nn.functional.pad(kept_A.cumsum(0), (1, 0))
            offsets_E1 = before_A1[torch.tensor(offsets_E1, device=before_A1.device)].tolist()
            rows = kept_A.nonzero().squeeze(1)
            outputs_AM, token_rows_A, slots_A = outputs_AM[rows], position_A[rows], slots_A[rows]
        ranks_A = slots_A if ranks_TK is None else ranks_TK[token_rows_A, slots_A]
        return ExpertOutputs(
            routing=routing,
            outputs_AM=outputs_AM.to(self.device),
            token_rows_A=token_rows_A.to(self.device),
            ranks_A=ranks_A.to(self.device),
            offsets_E1=offsets_E1,
        )


def by_weight(ids_TK: Tensor, weights_TK: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sorts each token's experts by weight, largest first, ties to the lower id.

    Returns:
        Ids, weights, and the rank of each original slot; None for the ranks where all was sorted already.
    """
    ahead_TK = (weights_TK[:, :-1] > weights_TK[:, 1:]) | (
        (weights_TK[:, :-1] == weights_TK[:, 1:]) & (ids_TK[:, :-1] < ids_TK[:, 1:])
    )
    # Most families sort already, which is cheap to see on a CPU; on an accelerator the question would stall it.
    if ids_TK.device.type == "cpu" and bool(ahead_TK.all()):
        return ids_TK, weights_TK, None
    by_id_TK = ids_TK.argsort(dim=1)
    order_TK = by_id_TK.gather(1, weights_TK.gather(1, by_id_TK).argsort(dim=1, descending=True, stable=True))
    ranks_TK = torch.empty_like(order_TK).scatter_(
        1, order_TK, torch.arange(order_TK.shape[1], device=order_TK.device).expand_as(order_TK)
    )
    return ids_TK.gather(1, order_TK), weights_TK.gather(1, order_TK), ranks_TK


def as_previous(routing: Routing) -> Routing:
    """The record as the next layer's `previous`: no chain behind it, no logits, what was computed from it kept."""
    kept = Routing(
        tokens=routing.tokens,
        layer=routing.layer,
        expert_ids_TK=routing.expert_ids_TK,
        weights_TK=routing.weights_TK,
        num_experts=routing.num_experts,
        scoring=routing.scoring,
    )
    if "selected_TE" in vars(routing):
        vars(kept)["selected_TE"] = routing.selected_TE
    return kept
