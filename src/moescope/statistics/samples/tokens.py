"""A sample of tokens with the experts they selected: for questions that need tokens, not counts of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from moescope.measures.resampling import halves
from moescope.records import Routing
from moescope.statistics.samples.base import SmallestTokens


@dataclass(frozen=True)
class SampledTokens:
    """One layer's sample, in ascending order of hash; numpy arrays.

    Attributes:
        token_ids_N: Input token ids.
        document_hashes_N: Hash of each token's document.
        domain_ids_N: Index of each token's domain.
        halves_N: Half of the documents each token's is of, 0 or 1.
        expert_ids_NK: Experts selected, by rank.
    """

    token_ids_N: NDArray[np.int64]
    document_hashes_N: NDArray[np.int64]
    domain_ids_N: NDArray[np.int64]
    halves_N: NDArray[np.int64]
    expert_ids_NK: NDArray[np.int64]

    def selected_NE(self, num_experts: int) -> NDArray[np.bool_]:
        """Whether each token selected each expert."""
        selected_NE = np.zeros((len(self.token_ids_N), num_experts), dtype=bool)
        np.put_along_axis(selected_NE, self.expert_ids_NK, True, axis=1)
        return selected_NE


class TokenSample(SmallestTokens):
    """Keeps N tokens of each layer with type, document, domain and selected experts; the same tokens at every layer.

    State: `L N (24 + 2 K)` bytes, whatever the number of tokens (13 MB for 16 layers, 20,000 tokens, K = 8).

    Args:
        layers: MoE layers looked at.
        num_experts_per_token: K.
        num_samples: N.
        seed: Chooses the sample, and the halves.
        device: Where the sample lies.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int],
        num_experts_per_token: int,
        num_samples: int = 20_000,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            layers=list(layers),
            device=device,
            num_samples=num_samples,
            seed=seed,
            num_experts_per_token=num_experts_per_token,
        )
        self._declare_place("document_hashes_LN")
        self._declare_place("domain_ids_LN", dtype=torch.int32)
        self._declare_place("token_ids_LN", dtype=torch.int32)
        self._declare_place("expert_ids_LNK", num_experts_per_token, dtype=torch.int16)

    def update(self, record: Routing) -> None:
        """Takes in one layer's routing of one batch."""
        tokens = record.tokens
        self._take(
            record.layer,
            tokens,
            {
                "document_hashes_LN": lambda rows: tokens.document_hashes_B[tokens.rows_T[rows]],
                "domain_ids_LN": lambda rows: tokens.domain_ids_T[rows],
                "token_ids_LN": lambda rows: tokens.token_ids_T[rows],
                "expert_ids_LNK": lambda rows: record.expert_ids_TK[rows],
            },
        )

    def sample(self, layer: int) -> SampledTokens:
        """What is kept of one layer."""
        position, size = self._position[layer], self.sample_size(layer)

        def kept(key: str) -> NDArray[np.int64]:
            return self.state[key][position, :size].cpu().numpy().astype(np.int64)

        documents_N = kept("document_hashes_LN")
        return SampledTokens(
            token_ids_N=kept("token_ids_LN"),
            document_hashes_N=documents_N,
            domain_ids_N=kept("domain_ids_LN"),
            halves_N=halves(documents_N, seed=self.seed),
            expert_ids_NK=kept("expert_ids_LNK"),
        )

    def compute(self) -> xr.Dataset:
        """By `layer`: how many tokens were seen, how many are kept, and of how many documents."""
        samples = [self.sample(layer) for layer in self.layers]
        numbers = {
            "num_tokens": (self.state["num_tokens_L"].tolist(), "tokens", "tokens counted"),
            "num_samples": (
                [len(sample.token_ids_N) for sample in samples],
                "tokens",
                "tokens kept: those with the smallest hash of seed, document and position",
            ),
            "num_documents": (
                [len(np.unique(sample.document_hashes_N)) for sample in samples],
                "documents",
                "documents that kept tokens are from",
            ),
        }
        return xr.Dataset(
            {
                name: ("layer", np.array(values, dtype=np.int64), {"units": units, "definition": definition})
                for name, (values, units, definition) in numbers.items()
            },
            coords={"layer": self.layers},
        )
