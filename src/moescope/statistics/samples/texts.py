"""A sample of the text itself: the documents of smallest hash in each domain, to be run through the model again.

Measures that take a second pass (the loss without an expert) are measured on these documents. The sample depends on
seed and documents alone, so that corpora may be split, reordered and merged, and batches cut anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from moescope.errors import at_least
from moescope.measures.resampling import sample_hashes
from moescope.records import Routing
from moescope.statistics.samples.base import EMPTY, SmallestHashes
from moescope.statistics.variables import variable

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class SampledDocument:
    """The first tokens that were read of one document.

    Attributes:
        token_ids: Its tokens.
        next_token_ids: The true next token of each, -1 where there is none.
        positions: Position of each in its document.
        document_hash: Hash of the document's id.
        domain_id: Index of its domain.
    """

    token_ids: np.ndarray
    next_token_ids: np.ndarray
    positions: np.ndarray
    document_hash: int
    domain_id: int


class TextSample(SmallestHashes):
    """Keeps, for each domain, the N documents of smallest hash: of each at most the first S tokens that were read.

    The N smallest of independent uniform hashes are a simple random sample of the domain's documents without
    replacement ("bottom-k" sampling; Cohen and Kaplan 2007), and the N smallest of two such samples are that of both
    corpora together. Only records of the first layer are read. The state takes 24 bytes for each of `D N S` tokens,
    whatever the size of the corpus.

    Args:
        layers: MoE layers that the records are of.
        domains: Names of the domains; `domain_ids_B` of the records index them.
        num_documents: N, documents of a domain.
        length: S, tokens of a document.
        seed: Seed of the draw of documents.
        device: Where the state lives.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int],
        domains: Sequence[str],
        num_documents: int,
        length: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        at_least(1, num_documents=num_documents, length=length)
        super().__init__(
            layers=list(layers),
            device=device,
            domains=list(domains),
            num_documents=num_documents,
            length=length,
            seed=seed,
        )
        self.domains, self.num_documents, self.length, self.seed = list(domains), num_documents, length, seed
        places = (len(self.domains), num_documents)
        self._declare("num_documents_D", places[:1])
        self._declare_places("hashes_DN", places, empty=EMPTY)
        self._declare_places("document_hashes_DN", places)
        for name in _TEXT:
            self._declare_places(name, (*places, length), empty=-1)

    def update(self, record: Routing) -> None:
        """Adds the text of one batch, from the record of the first layer."""
        if self._position[record.layer] or not record.tokens.num_tokens:
            return
        tokens = record.tokens
        rows_T = tokens.rows_T.to(self.device)
        lengths_B = torch.bincount(rows_T, minlength=tokens.num_documents)
        present_B = lengths_B.nonzero().squeeze(1)
        domain_ids_B, documents_B = (x.to(self.device) for x in (tokens.domain_ids_B, tokens.document_hashes_B))
        ones = torch.ones_like(present_B)
        counts_D = torch.zeros_like(self.state["num_documents_D"]).index_add_(0, domain_ids_B[present_B], ones)
        self._combine("num_documents_D", counts_D)
        hashes_B = sample_hashes(documents_B, torch.zeros_like(documents_B), seed=self.seed)
        # In a long corpus few further documents have a small enough hash; the tokens of the others are not copied.
        largest_D = self.state["hashes_DN"].amax(1)
        wanted_B = present_B[hashes_B[present_B] < largest_D[domain_ids_B[present_B]]]
        if not wanted_B.shape[0]:
            return
        texts_XBS = self._cut(tokens, rows_T, lengths_B, wanted_B)
        for domain in domain_ids_B[wanted_B].unique().tolist():
            own = (domain_ids_B[wanted_B] == domain).nonzero().squeeze(1)
            rows_B = wanted_B[own]
            candidates = {"hashes_DN": hashes_B[rows_B], "document_hashes_DN": documents_B[rows_B]}
            self._keep(domain, candidates | {name: text[own] for name, text in zip(_TEXT, texts_XBS, strict=True)})

    def _cut(self, tokens: Any, rows_T: Tensor, lengths_B: Tensor, wanted_B: Tensor) -> list[Tensor]:
        """The first tokens of some documents by position: ids, next ids, positions, padded with -1."""
        columns_T = [
            column.to(self.device) for column in (tokens.token_ids_T, tokens.next_token_ids_T, tokens.positions_T)
        ]
        order_T = columns_T[2].argsort(stable=True)
        order_T = order_T[rows_T[order_T].argsort(stable=True)]
        starts_B = lengths_B.cumsum(0) - lengths_B
        columns_BS = torch.arange(self.length, device=self.device).expand(wanted_B.shape[0], -1)
        inside_BS = columns_BS < lengths_B[wanted_B][:, None]
        tokens_BS = (starts_B[wanted_B][:, None] + columns_BS).clamp(max=order_T.shape[0] - 1)
        return [torch.where(inside_BS, column_T[order_T][tokens_BS], -1) for column_T in columns_T]

    def documents(self, domain_id: int) -> list[SampledDocument]:
        """The documents of one domain in ascending order of hash: any first n of them are a random sample too."""
        sampled = []
        state = {name: self.state[name][domain_id].cpu().numpy() for name in self._places}
        for place in np.flatnonzero(state["hashes_DN"] < EMPTY).tolist():
            length = int((state["token_ids_DNS"][place] >= 0).sum())
            token_ids, next_ids, positions = (state[name][place, :length] for name in _TEXT)
            document_hash = int(state["document_hashes_DN"][place])
            sampled.append(SampledDocument(token_ids, next_ids, positions, document_hash, domain_id))
        return sampled

    def compute(self) -> xr.Dataset:
        """By `domain`: documents counted, documents sampled, and tokens sampled."""
        import xarray as xr

        kept_DN = (self.state["hashes_DN"] < EMPTY).cpu().numpy()
        tokens_D = (self.state["token_ids_DNS"] >= 0).sum((1, 2)).cpu().numpy()
        numbers = {
            "num_documents": (self.state["num_documents_D"].cpu().numpy(), "documents", "documents counted"),
            "num_sampled_documents": (
                kept_DN.sum(1),
                "documents",
                "documents sampled: those with the smallest hash of seed and document",
            ),
            "num_sampled_tokens": (tokens_D, "tokens", f"tokens sampled, at most {self.length} of a document"),
        }
        return xr.Dataset(
            {
                name: variable("domain", values.astype(np.int64), units, definition)
                for name, (values, units, definition) in numbers.items()
            },
            coords={"domain": self.domains},
        )


_TEXT = ("token_ids_DNS", "next_token_ids_DNS", "positions_DNS")
"""The state by token; -1 after a document's last."""
