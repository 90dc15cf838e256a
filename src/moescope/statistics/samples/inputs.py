"""A sample of a layer's inputs: those of the tokens with the smallest hash.

Outputs of all experts of a layer for the same tokens take running every expert on them; this keeps the inputs to run
them on. Which tokens are kept depends on seed, document and position alone, so that corpora may be split, reordered and
merged, and batches cut anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from moescope.records import Routing
from moescope.statistics.samples.base import SmallestTokens
from moescope.statistics.variables import variable


@dataclass(frozen=True)
class InputsSample:
    """One layer's sample, in ascending order of hash: any part of it in this order is a random one.

    Attributes:
        inputs_NM: Inputs of the layer's experts, in the dtype they were kept in.
        document_hashes_N: Hash of each token's document, int64.
        domain_ids_N: Index of each token's domain, int64.
    """

    inputs_NM: Tensor
    document_hashes_N: Tensor
    domain_ids_N: Tensor

    @property
    def num_documents(self) -> int:
        """Documents that the tokens are from."""
        return int(self.document_hashes_N.unique().shape[0])


class LayerInputs(SmallestTokens):
    """Keeps the N inputs of each layer with the smallest hash of (seed, document, position).

    A simple random sample; see `SmallestTokens`. N is its size; it takes N x M numbers a layer, however long the text.

    Args:
        layers: MoE layers.
        model_width: M.
        num_samples: N.
        dtype: Format the inputs are kept in: "float32", "bfloat16", "float16" or "float64".
        seed: Of the hash that selects the sample.
        device: Device of the sample.
    """

    needs_inputs = True

    def __init__(
        self,
        *,
        layers: Sequence[int],
        model_width: int,
        num_samples: int,
        dtype: str = "float32",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(
            layers=list(layers),
            device=device,
            model_width=model_width,
            num_samples=num_samples,
            dtype=dtype,
            seed=seed,
        )
        self._declare_place("document_hashes_LN")
        self._declare_place("domain_ids_LN")
        self._declare_place("inputs_LNM", model_width, dtype=getattr(torch, dtype))

    def update(self, record: Routing) -> None:
        """Takes in one layer's inputs of one batch."""
        inputs_TM, tokens = record.inputs_TM, record.tokens
        if inputs_TM is None:
            raise RuntimeError("this record has no inputs")
        self._take(
            record.layer,
            tokens,
            {
                "document_hashes_LN": lambda rows: tokens.document_hashes_B[tokens.rows_T[rows]],
                "domain_ids_LN": lambda rows: tokens.domain_ids_T[rows],
                "inputs_LNM": lambda rows: inputs_TM[rows],
            },
        )

    def sample(self, layer: int) -> InputsSample:
        """What is kept of one layer, in ascending order of hash; fewer than N where the corpus is shorter."""
        position, size = self._position[layer], self.sample_size(layer)
        return InputsSample(
            inputs_NM=self.state["inputs_LNM"][position, :size],
            document_hashes_N=self.state["document_hashes_LN"][position, :size],
            domain_ids_N=self.state["domain_ids_LN"][position, :size],
        )

    def compute(self) -> xr.Dataset:
        """By `layer`: how many tokens were seen, how many are kept, and of how many documents."""
        samples = [self.sample(layer) for layer in self.layers]
        num_samples_L = np.array([sample.inputs_NM.shape[0] for sample in samples], dtype=np.int64)
        num_documents_L = np.array([sample.num_documents for sample in samples], dtype=np.int64)
        smallest = "tokens kept: those with the smallest hash of seed, document and position"
        return xr.Dataset(
            {
                "num_tokens": variable("layer", self.state["num_tokens_L"].cpu().numpy(), "tokens", "tokens counted"),
                "num_samples": variable("layer", num_samples_L, "tokens", smallest),
                "num_documents": variable(
                    "layer", num_documents_L, "documents", "documents that the tokens kept are from"
                ),
            },
            coords={"layer": self.layers},
        )
