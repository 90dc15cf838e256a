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

from moescope.errors import UsageError
from moescope.measures.constants import NUM_BOOTSTRAP
from moescope.measures.resampling import halves, null_labels, poisson_weights
from moescope.records import Routing, TokenBatch
from moescope.statistics.base import Statistic
from moescope.statistics.usage_table import UsageCounts, usage_table

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import ArrayLike


class ExpertUsage(Statistic[Routing]):
    """Counts of selected experts by layer, domain and half of the documents, and their replicates.

    With `N_d` tokens of domain d, `N_ed` of them with expert e among the K selected: the counts `N_ed` and all that
    follows from them (`compute` lists it). Beside the counts themselves, two kinds of replicates of them, both with
    the document as unit and both drawn from hashes of documents, so that parts merge:

    * bootstrap: each document counts Poisson(1) times; gives the intervals of frequencies, specializations, lifts.
    * null: each document counts for a domain drawn from `domain_shares`; gives the range of divergence and mutual
      information where domains do not matter.

    Another hash splits the documents into two halves: half 0 selects findings, half 1 evaluates them.

    State, for L layers, D domains, E experts, R bootstrap and N null replicates: `4 L D E (2 R + N)` bytes and little
    more, whatever the number of tokens (93 MB for 16 layers, 22 domains, 64 experts; a file of it takes half or less,
    see `moescope.statistics.storage`). Replicates are int32: exact as long as no expert has 2^31 tokens of
    one domain.

    A token counts once for each of its K experts; padding and special tokens are not in the records. A document is one
    row of one batch.

    Args:
        layers: Decoder block indices of the layers to look at.
        num_experts: E.
        num_experts_per_token: K.
        domains: Names of the domains; `domain_ids_B` of the records index them.
        device: Where the state is kept.
        seed: Chooses halves, weights and labels.
        num_bootstrap: R; 0 for no intervals.
        num_null: Null replicates; 0 for no nulls.
        domain_shares: Probability of each domain under the null; None: all equal, as the sampler divides its tokens.
            The null depends on it only in second order (the bias of both measures grows with the number of domains over
            the number of documents, however the domains share them).

    Raises:
        UsageError: No domain, or shares that are not one positive number per domain.
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
        num_bootstrap: int = NUM_BOOTSTRAP,
        num_null: int = 200,
        domain_shares: Sequence[float] | None = None,
    ) -> None:
        if not domains:
            raise UsageError("`domains` is empty", expected="one or more")
        shares = None if domain_shares is None else [float(share) for share in domain_shares]
        if shares is not None and (len(shares) != len(domains) or not all(share > 0 for share in shares)):
            raise UsageError(
                f"`domain_shares={shares}`", expected=f"{len(domains)} positive numbers, one for each domain"
            )
        super().__init__(
            layers=layers,
            device=device,
            num_experts=num_experts,
            num_experts_per_token=num_experts_per_token,
            domains=list(domains),
            seed=seed,
            num_bootstrap=num_bootstrap,
            num_null=num_null,
            domain_shares=shares,
        )
        self.num_experts = num_experts
        self.num_experts_per_token = num_experts_per_token
        self.domains = list(domains)
        self.seed = seed
        self.domain_shares = shares or [1.0 / len(self.domains)] * len(self.domains)
        num_layers, num_domains = len(self.layers), len(self.domains)
        self._declare("counts_LHDE", (num_layers, 2, num_domains, num_experts))
        self._declare("tokens_LHD", (num_layers, 2, num_domains))
        self._declare("documents_LHD", (num_layers, 2, num_domains))
        self._declare("probabilities_LDE", (num_layers, num_domains, num_experts), torch.float64)
        shape = (num_layers, 2, num_domains, num_bootstrap)
        self._declare("bootstrap_counts_LHDRE", (*shape, num_experts), torch.int32)
        self._declare("bootstrap_tokens_LHDR", shape)
        self._declare("null_counts_LRDE", (num_layers, num_null, num_domains, num_experts), torch.int32)
        self._declare("null_tokens_LRD", (num_layers, num_null, num_domains))
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

        counts_BE = drawn.real.new_zeros((num_documents, self.num_experts))
        counts_BE.index_add_(0, drawn.rows_T, record.selected_TE.to(counts_BE))
        probabilities_BE = torch.zeros_like(counts_BE, dtype=torch.float64)
        probabilities_BE.index_add_(0, drawn.rows_T, record.probabilities_TE.to(probabilities_BE))

        cells_HDE = counts_BE.new_zeros((2 * num_domains, self.num_experts)).index_add_(0, drawn.cells_B, counts_BE)
        self._combine("counts_LHDE", cells_HDE.view(2, num_domains, -1), layer)
        self._combine("tokens_LHD", drawn.tokens_HD, layer)
        self._combine("documents_LHD", drawn.documents_HD, layer)
        domains_DE = probabilities_BE.new_zeros((num_domains, self.num_experts))
        domains_DE.index_add_(0, drawn.cells_B % num_domains, probabilities_BE)
        self._combine("probabilities_LDE", domains_DE, layer)

        # At most one step per half and domain: documents of one lie side by side.
        for half, domain, start, end, weights_RB in drawn.groups:
            if end - start == 1:  # an outer product, without a detour over floats
                replicates_RE = weights_RB.int() * counts_BE[start].int()
            else:
                replicates_RE = weights_RB @ counts_BE[start:end]
            self._combine("bootstrap_counts_LHDRE", replicates_RE, (layer, half, domain))
        self._combine("bootstrap_tokens_LHDR", drawn.bootstrap_tokens_HDR, layer)
        if drawn.labels_XB.shape[0]:
            null_XE = drawn.labels_XB @ counts_BE
            self._combine("null_counts_LRDE", null_XE.view(-1, num_domains, self.num_experts), layer)
            self._combine("null_tokens_LRD", drawn.null_tokens_RD, layer)

    def _draw(self, tokens: TokenBatch) -> _Drawn:
        """All that does not depend on the layer, once per batch: documents sorted by half and domain, and their draws.

        Matrix products of float32 are exact while sums stay below 2^24, and no Poisson weight exceeds 18.
        """
        real = torch.zeros((), device=self.device, dtype=torch.float32 if tokens.num_tokens < 9e5 else torch.float64)
        num_domains, num_bootstrap = len(self.domains), self.parameters["num_bootstrap"]
        hashes_B, domain_ids_B, rows_T = (
            tensor.to(self.device) for tensor in (tokens.document_hashes_B, tokens.domain_ids_B, tokens.rows_T)
        )
        cells_B = halves(hashes_B, seed=self.seed) * num_domains + domain_ids_B
        order_B = cells_B.argsort(stable=True)
        rank_B = torch.empty_like(order_B)
        rank_B[order_B] = torch.arange(order_B.shape[0], device=order_B.device)
        rows_T = rank_B[rows_T]
        cells_B, hashes_B = cells_B[order_B], hashes_B[order_B]
        lengths_B = torch.zeros_like(cells_B).index_add_(0, rows_T, torch.ones_like(rows_T))

        def by_cell(values_BX: Tensor) -> Tensor:
            sums = values_BX.new_zeros((2 * num_domains, *values_BX.shape[1:])).index_add_(0, cells_B, values_BX)
            return sums.view(2, num_domains, *values_BX.shape[1:])

        weights_BR = poisson_weights(hashes_B, num_bootstrap, seed=self.seed)
        labels_BR = null_labels(hashes_B, self.parameters["num_null"], self.domain_shares, seed=self.seed)
        labels_XB = (labels_BR.T[:, None, :] == torch.arange(num_domains, device=cells_B.device)[None, :, None]).to(
            real
        )
        null_tokens_RD = torch.zeros(labels_BR.shape[1], num_domains, dtype=torch.int64, device=cells_B.device)
        null_tokens_RD.scatter_add_(1, labels_BR.T, lengths_B.expand(labels_BR.shape[1], -1))

        present, sizes = cells_B.unique_consecutive(return_counts=True)
        groups, start = [], 0
        for cell, size in zip(present.tolist(), sizes.tolist(), strict=True):
            weights_RB = weights_BR[start : start + size].T.to(real.dtype).contiguous()
            groups.append((cell // num_domains, cell % num_domains, start, start + size, weights_RB))
            start += size
        return _Drawn(
            tokens=tokens,
            real=real,
            rows_T=rows_T,
            cells_B=cells_B,
            lengths_B=lengths_B,
            tokens_HD=by_cell(lengths_B),
            documents_HD=by_cell((lengths_B > 0).long()),
            groups=groups if num_bootstrap else [],
            bootstrap_tokens_HDR=by_cell(weights_BR * lengths_B[:, None]),
            labels_XB=labels_XB.flatten(0, 1),
            null_tokens_RD=null_tokens_RD,
        )

    def compute(self) -> xr.Dataset:
        """All measures of usage and specialization; see `moescope.statistics.usage_table.usage_table`."""
        return usage_table(
            UsageCounts(
                **{name: tensor.cpu().numpy() for name, tensor in self.totals().items()},
                layers=self.layers,
                domains=self.domains,
                num_experts_per_token=self.num_experts_per_token,
                domain_shares=self.domain_shares,
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

        Nothing is known of documents, so there are no replicates: intervals, nulls and what needs router probabilities
        are NaN, and `compute()` says so in its attrs.

        Args:
            counts_LDE: Tokens of each domain that selected each expert, (layers, domains, experts).
            tokens_D: Tokens of each domain.
            num_experts_per_token: K.
            layers: Decoder block indices of the layers.
            domains: Names of the domains.

        Raises:
            UsageError: Shapes that disagree, or counts of a layer and domain that do not add up to K x its tokens.
        """
        counts, tokens = np.asarray(counts_LDE), np.asarray(tokens_D)
        shape = (len(layers), len(domains))
        if counts.ndim != 3 or counts.shape[:2] != shape or tokens.shape != shape[1:]:
            raise UsageError(
                f"counts of shape {counts.shape}, tokens of shape {tokens.shape}",
                expected=f"({shape[0]} layers, {shape[1]} domains, experts) and ({shape[1]} domains,)",
            )
        whole_counts, whole_tokens = counts.astype(np.int64), tokens.astype(np.int64)
        sums_LD = whole_counts.sum(axis=2)
        wrong = np.argwhere(sums_LD != num_experts_per_token * whole_tokens)
        if len(wrong):
            layer, domain = wrong[0]
            raise UsageError(
                f"layer {layers[layer]}, domain {domains[domain]!r}: counts add up to {sums_LD[layer, domain]}",
                expected=f"{num_experts_per_token} experts x {whole_tokens[domain]} tokens",
                remedy="give counts of all selected experts, and the number of tokens they were counted on",
            )
        if (whole_counts < 0).any() or (whole_counts != counts).any() or (whole_tokens != tokens).any():
            raise UsageError("some counts are negative or not whole numbers", expected="numbers of tokens")
        if (whole_counts > whole_tokens[None, :, None]).any():
            raise UsageError(
                "an expert was selected more often than there are tokens", expected="each expert once per token"
            )
        statistic = cls(
            layers=list(layers),
            num_experts=counts.shape[2],
            num_experts_per_token=num_experts_per_token,
            domains=domains,
            num_bootstrap=0,
            num_null=0,
        )
        # all in half 0, as if one document: the halves of known counts are not known
        statistic._combine("counts_LHDE", torch.from_numpy(whole_counts), np.s_[:, 0])
        statistic._combine("tokens_LHD", torch.from_numpy(whole_tokens).expand(shape), np.s_[:, 0])
        return statistic


@dataclass(frozen=True)
class _Drawn:
    """What one batch brings to every layer. Documents (B) are sorted by half and domain; X is replicate x domain.

    Attributes:
        tokens: The batch; kept so that it cannot be mistaken for a later one at the same address.
        real: A scalar of the dtype that holds this batch's sums exactly, on the right device.
        rows_T: Each token's document.
        cells_B: Each document's half x D + domain.
        lengths_B: Tokens of each document.
        tokens_HD: Tokens by half and domain.
        documents_HD: Documents with a token, by half and domain.
        groups: For each half and domain that occurs: half, domain, first document, end, and Poisson weights (R, n).
        bootstrap_tokens_HDR: Tokens by half and domain in each bootstrap replicate.
        labels_XB: 1 where the replicate gives that domain to the document.
        null_tokens_RD: Tokens by drawn domain in each null replicate.
    """

    tokens: TokenBatch
    real: Tensor
    rows_T: Tensor
    cells_B: Tensor
    lengths_B: Tensor
    tokens_HD: Tensor
    documents_HD: Tensor
    groups: list[tuple[int, int, int, int, Tensor]]
    bootstrap_tokens_HDR: Tensor
    labels_XB: Tensor
    null_tokens_RD: Tensor
