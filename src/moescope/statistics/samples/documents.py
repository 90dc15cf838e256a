"""A bounded sample of documents with how often each selects every expert: what permutations are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moescope.records import Routing
from moescope.statistics.samples.base import EMPTY, Sample

MOST_DOCUMENTS = 8192
"""Documents kept of all domains together."""
MOST_BYTES = 256 * 2**20
"""Fewer documents are kept where these would take more memory."""
FEWEST_OF_A_DOMAIN = 4
"""Documents kept of each domain in any case."""


def documents_per_domain(num_layers: int, num_domains: int, num_experts: int) -> int:
    """Documents of each domain that are kept: 8,192 over all domains, fewer beyond 256 MiB, at least 4 of each."""
    fitting = MOST_BYTES // max(1, 4 * num_layers * num_experts)
    return max(FEWEST_OF_A_DOMAIN, min(MOST_DOCUMENTS, fitting) // num_domains)


class DocumentCounts(Sample[Routing]):
    """Keeps, of each layer and domain, the N documents with the smallest hash of seed and document.

    A simple random sample of each domain's documents that merges (see `SmallestHashes`); all documents, where a domain
    has no more than N. Places lie by domain, within it by hash; a subclass declares them with `_declare_documents`.
    """

    def __init__(self, *, layers: list[int], device: torch.device | str = "cpu", **parameters: Any) -> None:
        super().__init__(layers=layers, device=device, **parameters)
        self._place_domains_B = torch.empty(0, dtype=torch.int64)

    def _declare_documents(self, num_domains: int, num_documents: int, num_experts: int) -> None:
        shape = (len(self.layers), num_domains * num_documents)
        self._declare_places("document_order_LB", shape, empty=EMPTY)
        self._declare_places("document_counts_LBE", (*shape, num_experts), torch.int32)
        self._place_domains_B = torch.arange(num_domains, device=self.device).repeat_interleave(num_documents)

    def _take_documents(self, layer: int, order_b: Tensor, domain_ids_b: Tensor, counts_bE: Tensor) -> None:
        """Of the documents kept of a layer and these, keeps the smallest hashes of each domain."""
        order_B, counts_BE = self.state["document_order_LB"][layer], self.state["document_counts_LBE"][layer]
        if not order_B.numel() or not order_b.numel():
            return
        orders = torch.cat([order_B, order_b.to(order_B)])
        domains = torch.cat([self._place_domains_B, domain_ids_b.to(order_B)])
        by_hash = orders.argsort(stable=True)
        sorting = by_hash[domains[by_hash].argsort(stable=True)]
        # Every domain has at least N candidates, since empty places are candidates too: its first N are kept.
        num_domains = int(self._place_domains_B[-1]) + 1
        num_kept = order_B.shape[0] // num_domains
        sizes_D = torch.bincount(domains, minlength=num_domains)
        starts_D = sizes_D.cumsum(0) - sizes_D
        first = torch.arange(orders.shape[0], device=orders.device) - starts_D.repeat_interleave(sizes_D) < num_kept
        kept = sorting[first]
        candidates = torch.cat([counts_BE, counts_bE.to(counts_BE)])
        order_B.copy_(orders[kept])
        counts_BE.copy_(candidates[kept])

    def _merge_places(self, others: Mapping[str, Tensor]) -> None:
        for layer, order_B in enumerate(others["document_order_LB"]):
            kept = (order_B < EMPTY).nonzero().squeeze(1)
            counts_bE = others["document_counts_LBE"][layer][kept]
            self._take_documents(layer, order_B[kept], self._place_domains_B[kept], counts_bE)
