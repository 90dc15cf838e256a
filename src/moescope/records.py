"""What one forward pass leaves behind, and THE legend of shapes for the whole project.

A tensor's name ends in its shape, one letter a dimension:

    T  tokens counted in a batch (padding and special tokens never are)
    B  documents (rows) in a batch; each document has one window, so one row
    S  padded length of a batch
    L  MoE layers looked at          E  routed experts of a layer
    K  experts per token             M  model width
    F  expert width                  V  vocabulary
    D  domains                       A  assignments, T x K of them, sorted by expert
    R  replicates (bootstrap, null)  H  halves of the documents, always 2

So `logits_TE` has a row for each token and a column for each expert. `num_` is a count, `_ids` are indices from 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Which tokens one forward pass saw, and where they come from.

    Attributes:
        token_ids_T: Input token ids, int64.
        next_token_ids_T: The true next token of the same document, int64; -1 where the window ends.
        positions_T: Position of each token in its document, from the document's start, int64.
        rows_T: Row of the batch (0..B) each token belongs to, int64.
        document_hashes_B: A stable 64-bit hash of each document's id, int64.
        domain_ids_B: Index of each document's domain in the corpus' list, int64.
        predicted_token_ids_T: The model's most probable next token, int64; None until the pass has ended, or where no
            one asked for predictions.
    """

    token_ids_T: Tensor
    next_token_ids_T: Tensor
    positions_T: Tensor
    rows_T: Tensor
    document_hashes_B: Tensor
    domain_ids_B: Tensor
    predicted_token_ids_T: Tensor | None = None

    @cached_property
    def domain_ids_T(self) -> Tensor:
        """Index of each token's domain, int64."""
        return self.domain_ids_B[self.rows_T]

    @property
    def num_tokens(self) -> int:
        """Number of tokens counted."""
        return self.token_ids_T.shape[0]

    @property
    def num_documents(self) -> int:
        """Number of documents in the batch."""
        return self.document_hashes_B.shape[0]


@dataclass(frozen=True)
class Confidence:
    """What is known of a router's probabilities, one value per token; float32 or float64, None where it is not known.

    Attributes:
        entropy_T: `-sum_e p_te ln p_te`, nats.
        top1_probability_T: The largest `p_te`.
        topk_mass_T: Sum of `p_te` over the selected experts.
        margin_T: The largest `p_te` minus the second largest.
        boundary_margin_T: Lowest selected minus highest unselected value of what the family selects by; NaN where no
            expert could have been selected but was not.
    """

    entropy_T: Tensor | None = None
    top1_probability_T: Tensor | None = None
    topk_mass_T: Tensor | None = None
    margin_T: Tensor | None = None
    boundary_margin_T: Tensor | None = None


@dataclass(frozen=True)
class Routing:
    """What the router of one layer decided for one batch: read from the model, never recomputed.

    Attributes:
        tokens: The tokens it decided about.
        layer: The decoder block's index in the checkpoint.
        expert_ids_TK: Selected experts, int64, sorted by applied weight, ties to the lower id: column is rank.
        weights_TK: The weight the model really applies to each, float32, in the same order.
        logits_TE: The router's logits, float32. None when the record is handed on after the forward pass (see
            `Statistic.needs_predictions`): keeping them for all layers would cost tokens x experts x layers.
        scoring: How the family turns logits into scores: "softmax" or "sigmoid".
        selection_values_TE: What the family selects by, where that is not the probability itself (a bias-corrected
            score; -inf for experts that group-limited selection excludes). None: selection is by probability.
        previous: The routing of the same batch at the previous layer looked at; its `previous` is None. None at the
            first layer looked at.
        inputs_TM: What the experts of this layer were given, in the model's dtype; None unless a statistic asks.
        confidence: Of routing that was recorded earlier, without logits: what is known of its probabilities. Its
            weights are NaN where they were not recorded.
        ranked: Whether the order of the experts is that of their weights; some recordings keep only the set.
    """

    tokens: TokenBatch
    layer: int
    expert_ids_TK: Tensor
    weights_TK: Tensor
    num_experts: int
    logits_TE: Tensor | None = None
    scoring: str = "softmax"
    selection_values_TE: Tensor | None = None
    previous: Routing | None = field(default=None, repr=False)
    inputs_TM: Tensor | None = field(default=None, repr=False)
    confidence: Confidence | None = field(default=None, repr=False)
    ranked: bool = True

    @cached_property
    def probabilities_TE(self) -> Tensor:
        """`p_te`: softmax of the logits over all experts, float32; for a sigmoid router its scores over their sum."""
        if self.logits_TE is None:
            raise RuntimeError("this record carries no logits: it was handed on after the forward pass")
        if self.scoring == "softmax":
            return torch.softmax(self.logits_TE, dim=-1)
        scores_TE = torch.sigmoid(self.logits_TE)
        return scores_TE / scores_TE.sum(dim=-1, keepdim=True)

    @cached_property
    def selected_probabilities_TK(self) -> Tensor:
        """`p_te` of the selected experts, by rank, float32."""
        return self.probabilities_TE.gather(1, self.expert_ids_TK)

    @cached_property
    def largest_unselected_T(self) -> Tensor:
        """Largest `p_te` among the experts that were not selected, float32; negative where all were selected."""
        return torch.sub(self.probabilities_TE, self.selected_TE, alpha=2.0).amax(dim=-1)

    @cached_property
    def largest_probabilities_TK(self) -> Tensor:
        """The K largest `p_te` of each token, descending, whether or not the family selected those experts."""
        num_ranks = self.expert_ids_TK.shape[1]
        if (
            self.probabilities_TE.is_cuda
        ):  # where topk is cheap and asking whether it is needed would wait for the device
            return self.probabilities_TE.topk(num_ranks, dim=-1).values
        largest_TK = self.selected_probabilities_TK.sort(dim=-1, descending=True).values
        others = (self.largest_unselected_T > largest_TK[:, -1]).nonzero().squeeze(1)
        if others.shape[0]:
            largest_TK[others] = self.probabilities_TE[others].topk(num_ranks, dim=-1).values
        return largest_TK

    @cached_property
    def selected_TE(self) -> Tensor:
        """1.0 where the expert was selected, else 0.0, float32: counts become matrix products."""
        selected_TE = self.weights_TK.new_zeros((self.expert_ids_TK.shape[0], self.num_experts))
        return selected_TE.scatter_(1, self.expert_ids_TK, 1.0)


@dataclass(frozen=True)
class ExpertOutputs:
    """Each expert's own output on its own tokens, before the routing weight.

    Attributes:
        routing: The routing these outputs belong to.
        outputs_AM: Outputs of all assignments, in the model's dtype, sorted by expert.
        token_rows_A: For each row the token's index 0..T, int64.
        ranks_A: For each row the rank 0..K of the expert for that token, int64.
        offsets_E1: Expert e's rows are `offsets_E1[e]:offsets_E1[e + 1]`; length E + 1, a plain list of ints.
    """

    routing: Routing
    outputs_AM: Tensor
    token_rows_A: Tensor
    ranks_A: Tensor
    offsets_E1: list[int]

    @cached_property
    def weights_A(self) -> Tensor:
        """Applied weight of each assignment, float32."""
        return self.routing.weights_TK[self.token_rows_A, self.ranks_A]

    @cached_property
    def norms_A(self) -> Tensor:
        """`‖o‖` of each assignment, float32."""
        norms_A: Tensor = torch.linalg.vector_norm(self.outputs_AM, dim=-1, dtype=torch.float32)
        return norms_A

    def of(self, expert: int) -> tuple[Tensor, Tensor, Tensor]:
        """One expert's `(outputs_nM, token_rows_n, weights_n)`."""
        rows = slice(self.offsets_E1[expert], self.offsets_E1[expert + 1])
        return self.outputs_AM[rows], self.token_rows_A[rows], self.weights_A[rows]
