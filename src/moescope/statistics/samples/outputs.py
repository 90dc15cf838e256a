"""A sample of each expert's own outputs: of the tokens routed to it, those of smallest hash.

Which tokens are kept depends on seed, document and position alone, so that corpora may be split, reordered and merged,
and batches cut anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from moescope.measures.resampling import sample_hashes
from moescope.records import ExpertOutputs
from moescope.statistics.samples.base import EMPTY, Sample
from moescope.statistics.variables import variable


@dataclass(frozen=True)
class ExpertSamples:
    """One layer's sample: experts in order, each expert's outputs in ascending order of hash.

    Attributes:
        outputs_NM: `o_e(x)`, before any routing weight, in the dtype they were kept in.
        expert_ids_N: The expert of each output, int64.
        document_hashes_N: Hash of each token's document, int64.
        domain_ids_N: Index of each token's domain, int64.
        positions_N: Position of each token in its document, int64.
        token_ids_N: Each token's type, int64.
    """

    outputs_NM: Tensor
    expert_ids_N: Tensor
    document_hashes_N: Tensor
    domain_ids_N: Tensor
    positions_N: Tensor
    token_ids_N: Tensor

    @property
    def num_documents(self) -> int:
        """Documents that the tokens are from."""
        return int(self.document_hashes_N.unique().shape[0])


class OutputSample(Sample[ExpertOutputs]):
    """Keeps, of each expert's tokens, the N outputs with the smallest hash of (seed, document, position).

    The N smallest of independent uniform hashes are a simple random sample without replacement ("bottom-k" sampling;
    Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches"): as many of each expert, however rarely it is
    selected, unless fewer tokens were routed to it. It takes E x N x M numbers a layer, however long the corpus.

    Args:
        layers: MoE layers.
        num_experts: E.
        model_width: M.
        num_samples: N, outputs kept of each expert.
        dtype: Format the outputs are kept in: "float32", "bfloat16", "float16" or "float64".
        seed: Of the hash that selects the sample.
        device: Device of the sample.
    """

    needs_outputs = True

    def __init__(
        self,
        *,
        layers: Sequence[int],
        num_experts: int,
        model_width: int,
        num_samples: int,
        dtype: str = "float32",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            layers=list(layers),
            device=device,
            num_experts=num_experts,
            model_width=model_width,
            num_samples=num_samples,
            dtype=dtype,
            seed=seed,
        )
        self.num_experts, self.num_samples, self.seed = num_experts, num_samples, seed
        places = (len(self.layers), num_experts, num_samples)
        self._declare("num_tokens_L", places[:1])
        self._declare("num_selected_LE", places[:2])
        self._declare_places("hashes_LEN", places, empty=EMPTY)
        for name in ("document_hashes_LEN", "domain_ids_LEN", "positions_LEN", "token_ids_LEN"):
            self._declare_places(name, places)
        self._declare_places("outputs_LENM", (*places, model_width), getattr(torch, dtype))

    def update(self, record: ExpertOutputs) -> None:
        """Takes in one layer's expert outputs of one batch."""
        position, tokens = self._position[record.routing.layer], record.routing.tokens
        counts_E = torch.tensor(record.offsets_E1, device=self.device).diff()
        self._combine("num_tokens_L", torch.tensor(tokens.num_tokens), position)
        self._combine("num_selected_LE", counts_E, position)
        documents_T = tokens.document_hashes_B[tokens.rows_T]
        hashes_T = sample_hashes(documents_T, tokens.positions_T, seed=self.seed)
        experts_A = torch.repeat_interleave(torch.arange(self.num_experts, device=self.device), counts_E)
        # In a long corpus hardly any output's hash is still below its expert's largest kept: the others are not copied.
        largest_E = self.state["hashes_LEN"][position, :, -1]
        hashes_A = hashes_T[record.token_rows_A]
        rows = (hashes_A < largest_E[experts_A]).nonzero().squeeze(1)
        rows_T = record.token_rows_A[rows]
        numbers = (documents_T, tokens.domain_ids_T, tokens.positions_T, tokens.token_ids_T)
        kept = (hashes_A[rows], *(number_T[rows_T] for number_T in numbers), record.outputs_AM[rows])
        self._keep(position, experts_A[rows], *kept)

    def _merge_places(self, others: Mapping[str, Tensor]) -> None:
        for position in range(len(self.layers)):
            experts, columns = (others["hashes_LEN"][position] < EMPTY).nonzero(as_tuple=True)
            self._keep(position, experts, *(place[position][experts, columns] for place in others.values()))

    def _keep(self, position: int, experts_C: Tensor, *candidates: Tensor) -> None:
        """Of those kept so far and C candidates (tensors in the order of places), keeps each expert's smallest."""
        if not experts_C.shape[0]:
            return
        # Candidates by expert, then hash; those beyond an expert's N smallest are never kept.
        by_hash_C = candidates[0].argsort(stable=True)
        order_C = by_hash_C[experts_C[by_hash_C].argsort(stable=True)]
        sorted_C = experts_C[order_C]
        starts_E = torch.searchsorted(sorted_C, torch.arange(self.num_experts, device=self.device))
        ranks_C = torch.arange(order_C.shape[0], device=self.device) - starts_E[sorted_C]
        best = (ranks_C < self.num_samples).nonzero().squeeze(1)
        # A table of candidates beside the table of those kept: each row is sorted, the first N columns stay. Sorting is
        # stable, so that places left empty are those that were.
        kept_EN = self.state["hashes_LEN"][position]
        rivals_EN = torch.full_like(kept_EN, EMPTY)
        rivals_EN[sorted_C[best], ranks_C[best]] = candidates[0][order_C[best]]
        source_EN = torch.zeros_like(kept_EN)
        source_EN[sorted_C[best], ranks_C[best]] = order_C[best]
        columns_EN = torch.cat([kept_EN, rivals_EN], dim=1).argsort(dim=1, stable=True)[:, : self.num_samples]
        is_new_EN = columns_EN >= self.num_samples
        from_EN = columns_EN % self.num_samples
        rows_E1 = torch.arange(self.num_experts, device=self.device).unsqueeze(1)
        sources = source_EN[rows_E1, from_EN][is_new_EN]
        for name, candidate in zip(self._places, candidates, strict=True):
            place = self.state[name][position]
            kept = place[rows_E1, from_EN]
            kept[is_new_EN] = candidate[sources].to(place.dtype)
            place.copy_(kept)

    def sample(self, layer: int) -> ExpertSamples:
        """What is kept of one layer; of an expert that fewer than N tokens were routed to, all of them."""
        position = self._position[layer]
        filled_EN = self.state["hashes_LEN"][position] < EMPTY
        experts_E1 = torch.arange(self.num_experts, device=self.device).unsqueeze(1)
        return ExpertSamples(
            outputs_NM=self.state["outputs_LENM"][position][filled_EN],
            expert_ids_N=experts_E1.expand_as(filled_EN)[filled_EN],
            document_hashes_N=self.state["document_hashes_LEN"][position][filled_EN],
            domain_ids_N=self.state["domain_ids_LEN"][position][filled_EN],
            positions_N=self.state["positions_LEN"][position][filled_EN],
            token_ids_N=self.state["token_ids_LEN"][position][filled_EN],
        )

    def compute(self) -> xr.Dataset:
        """By `layer, expert`: how many tokens were routed to it, how many are kept; by `layer`: tokens seen."""
        by_expert = ("layer", "expert")
        num_samples_LE = (self.state["hashes_LEN"] < EMPTY).sum(-1).cpu().numpy()
        num_selected_LE = self.state["num_selected_LE"].cpu().numpy()
        smallest = "of these, kept: those with the smallest hash of seed, document and position"
        return xr.Dataset(
            {
                "num_tokens": variable("layer", self.state["num_tokens_L"].cpu().numpy(), "tokens", "tokens counted"),
                "num_selected": variable(by_expert, num_selected_LE, "tokens", "tokens routed to the expert"),
                "num_samples": variable(by_expert, num_samples_LE, "tokens", smallest),
            },
            coords={"layer": self.layers, "expert": np.arange(self.num_experts)},
        )
