"""How often each expert is selected, by domain, with intervals and nulls over documents.

Source of the measures: Muennighoff et al. 2024, "OLMoE" (arXiv 2409.02060), section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from moescope.errors import UsageError, numeric, of_type, whole_number, whole_numbers
from moescope.measures.constants import NUM_PERMUTATIONS
from moescope.measures.resampling import document_order, halves
from moescope.records import Routing, TokenBatch
from moescope.statistics.samples.documents import DocumentCounts, documents_per_domain
from moescope.statistics.usage_table import UsageCounts, usage_table

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import ArrayLike


class ExpertUsage(DocumentCounts):
    """Counts of selected experts by layer, domain and half of the documents, and what their uncertainty is made of.

    With `N_d` tokens of domain d, `N_ed` of them with expert e among the K selected: the counts `N_ed` and all that
    follows from them (`compute` lists it). Documents are the unit of all uncertainty:

    * sums of squares and products of the documents' counts and tokens give the standard errors of frequencies,
      specializations and lifts, exactly and from one pass;
    * the counts of a hash sample of the documents of each domain, of all of them where they fit, give the null of
      divergence and mutual information: labels permuted over documents.

    Another hash splits the documents into two halves: half 0 selects findings, half 1 evaluates them.

    State, for L layers, D domains, E experts, B documents of each domain: `4 L D E (14 + B)` bytes and little more,
    whatever the number of tokens: 40 MB for 16 layers, 22 domains, 64 experts (a file of it takes a fraction, see
    `moescope.statistics.storage`).

    A token counts once for each of its K experts; padding and special tokens are not in the records. A document is one
    row of one batch.

    Args:
        layers: Decoder block indices of the layers to look at.
        num_experts: E.
        num_experts_per_token: K.
        domains: Names of the domains; `domain_ids_B` of the records index them.
        device: Where the state is kept.
        seed: Chooses halves, sample and permutations.
        num_null: Permutations of the null; 0 for no nulls.
        num_documents: B, documents of each domain that the null is made of; None: see `documents_per_domain`.

    Raises:
        UsageError: No domain.
    """

    needs_logits = True

    def __init__(
        self,
        *,
        layers: list[int],
        num_experts: int,
        num_experts_per_token: int,
        domains: Sequence[str],
        device: torch.device | str = "cpu",
        seed: int = 0,
        num_null: int = NUM_PERMUTATIONS,
        num_documents: int | None = None,
    ) -> None:
        if not domains:
            raise UsageError("`domains` is empty", expected="one or more")
        layers, num_experts = whole_numbers(layers, "layers"), whole_number(num_experts, "num_experts")
        if num_documents is None:
            num_documents = documents_per_domain(len(layers), len(domains), num_experts) if num_null else 0
        super().__init__(
            layers=layers,
            device=device,
            num_experts=num_experts,
            num_experts_per_token=num_experts_per_token,
            domains=list(domains),
            seed=seed,
            num_null=num_null,
            num_documents=num_documents,
        )
        self.num_experts = num_experts
        self.num_experts_per_token = num_experts_per_token
        self.domains = list(domains)
        self.seed = seed
        by_domain = (len(self.layers), 2, len(self.domains))
        for name in ("counts", "count_squares", "products"):
            self._declare(f"{name}_LHDE", (*by_domain, num_experts))
        for name in ("tokens", "token_squares", "documents"):
            self._declare(f"{name}_LHD", by_domain)
        self._declare("probabilities_LDE", (len(self.layers), len(self.domains), num_experts), torch.float64)
        self._declare_documents(len(self.domains), num_documents, num_experts)
        self._drawn: _Drawn | None = None

    def update(self, record: Routing) -> None:
        """Takes in one layer's routing of one batch.

        Raises:
            KeyError: The layer is not one of this statistic's.
        """
        layer = self._position[record.layer]
        if record.tokens.num_tokens == 0:
            return
        if self._drawn is None or self._drawn.tokens is not record.tokens:
            self._drawn = self._draw(record.tokens)
        drawn = self._drawn
        num_documents, num_domains = drawn.lengths_B.shape[0], len(self.domains)
        # Float32 is exact below 2^24 tokens of a document.
        counts_BE = torch.zeros((num_documents, self.num_experts), device=self.device)
        counts_BE.index_add_(0, drawn.rows_T, record.selected_TE.to(counts_BE))
        counts_BE = counts_BE.long()

        for name, values_BE in (
            ("counts_LHDE", counts_BE),
            ("count_squares_LHDE", counts_BE**2),
            ("products_LHDE", counts_BE * drawn.lengths_B[:, None]),
        ):
            self._combine(name, self._by_cell(values_BE, drawn.cells_B), layer)
        for name, values_B in (
            ("tokens_LHD", drawn.lengths_B),
            ("token_squares_LHD", drawn.lengths_B**2),
            ("documents_LHD", (drawn.lengths_B > 0).long()),
        ):
            self._combine(name, self._by_cell(values_B, drawn.cells_B), layer)
        if record.logits_TE is not None:  # routing that was recorded earlier has none
            probabilities_BE = torch.zeros_like(counts_BE, dtype=torch.float64)
            probabilities_BE.index_add_(0, drawn.rows_T, record.probabilities_TE.to(probabilities_BE))
            domains_DE = probabilities_BE.new_zeros((num_domains, self.num_experts))
            domains_DE.index_add_(0, drawn.cells_B % num_domains, probabilities_BE)
            self._combine("probabilities_LDE", domains_DE, layer)
        read_b = drawn.read_b
        self._take_documents(layer, drawn.order_B[read_b], drawn.cells_B[read_b] % num_domains, counts_BE[read_b])

    def _by_cell(self, values_BX: Tensor, cells_B: Tensor) -> Tensor:
        """Sums over the documents of each half and domain."""
        num_domains = len(self.domains)
        sums = values_BX.new_zeros((2 * num_domains, *values_BX.shape[1:])).index_add_(0, cells_B, values_BX)
        return sums.view(2, num_domains, *values_BX.shape[1:])

    def _draw(self, tokens: TokenBatch) -> _Drawn:
        """All that does not depend on the layer, once per batch."""
        hashes_B, domain_ids_B, rows_T = (
            tensor.to(self.device) for tensor in (tokens.document_hashes_B, tokens.domain_ids_B, tokens.rows_T)
        )
        lengths_B = torch.zeros_like(domain_ids_B).index_add_(0, rows_T, torch.ones_like(rows_T))
        return _Drawn(
            tokens=tokens,
            rows_T=rows_T,
            cells_B=halves(hashes_B, seed=self.seed) * len(self.domains) + domain_ids_B,
            lengths_B=lengths_B,
            order_B=document_order(hashes_B, seed=self.seed),
            read_b=lengths_B.nonzero().squeeze(1),
        )

    def compute(self) -> xr.Dataset:
        """All measures of usage and specialization; see `moescope.statistics.usage_table.usage_table`."""
        return usage_table(
            UsageCounts(
                **{name: tensor.cpu().numpy() for name, tensor in self.totals().items()},
                layers=self.layers,
                domains=self.domains,
                num_experts_per_token=self.num_experts_per_token,
                num_null=self.parameters["num_null"],
                seed=self.seed,
            )
        )

    @classmethod
    def from_counts(
        cls,
        counts_LDE: ArrayLike,
        tokens_D: ArrayLike,
        *,
        num_experts_per_token: int,
        layers: Sequence[int],
        domains: Sequence[str],
    ) -> Self:
        """A statistic from known counts, for instance published ones.

        Nothing is known of documents: intervals, nulls and what needs router probabilities are NaN, and `compute()`
        says so in its attrs.

        Args:
            counts_LDE: Tokens of each domain that selected each expert, (layers, domains, experts).
            tokens_D: Tokens of each domain.
            num_experts_per_token: K.
            layers: Decoder block indices of the layers.
            domains: Names of the domains.

        Raises:
            UsageError: Shapes that disagree, or counts of a layer and domain that do not add up to K x its tokens.
        """
        counts, tokens = numeric(counts_LDE, "counts_LDE"), numeric(tokens_D, "tokens_D")
        num_experts_per_token = whole_number(num_experts_per_token, "num_experts_per_token")
        layers = whole_numbers(layers, "layers")
        of_type(domains, (list, tuple), "domains", "a list of names")
        shape = (len(layers), len(domains))
        if counts.ndim != 3 or counts.shape[:2] != shape or tokens.shape != shape[1:]:
            raise UsageError(
                f"counts of shape {counts.shape}, tokens of shape {tokens.shape}",
                expected=f"({shape[0]} layers, {shape[1]} domains, experts) and ({shape[1]} domains,)",
            )
        whole_counts, whole_tokens = counts.astype(np.int64), tokens.astype(np.int64)
        if (whole_counts < 0).any() or (whole_counts != counts).any() or (whole_tokens != tokens).any():
            raise UsageError("some counts are negative or not whole numbers", expected="numbers of tokens")
        sums_LD = whole_counts.sum(axis=2)
        wrong = np.argwhere(sums_LD != num_experts_per_token * whole_tokens)
        if len(wrong):
            layer, domain = wrong[0]
            raise UsageError(
                f"layer {layers[layer]}, domain {domains[domain]!r}: counts add up to {sums_LD[layer, domain]}",
                expected=f"{num_experts_per_token} experts x {whole_tokens[domain]} tokens",
                remedy="give counts of all selected experts, and the number of tokens they were counted on",
            )
        if (whole_counts > whole_tokens[None, :, None]).any():
            raise UsageError(
                "an expert was selected more often than there are tokens", expected="each expert once per token"
            )
        statistic = cls(
            layers=list(layers),
            num_experts=counts.shape[2],
            num_experts_per_token=num_experts_per_token,
            domains=domains,
            num_null=0,
        )
        # all in half 0, as if one document: the halves of known counts are not known
        statistic._combine("counts_LHDE", torch.from_numpy(whole_counts), np.s_[:, 0])
        statistic._combine("tokens_LHD", torch.from_numpy(whole_tokens).expand(shape), np.s_[:, 0])
        return statistic


@dataclass(frozen=True)
class _Drawn:
    """What one batch brings to every layer, of its B documents.

    Attributes:
        tokens: The batch; kept so that it cannot be mistaken for a later one at the same address.
        rows_T: Each token's document.
        cells_B: Each document's half x D + domain.
        lengths_B: Tokens of each document.
        order_B: The hash that documents are sampled by.
        read_b: Indices of the documents with a token.
    """

    tokens: TokenBatch
    rows_T: Tensor
    cells_B: Tensor
    lengths_B: Tensor
    order_B: Tensor
    read_b: Tensor
