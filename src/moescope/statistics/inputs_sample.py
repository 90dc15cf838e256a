"""A sample of a layer's inputs: the tokens of smallest hash, with what the layer's experts were given for them.

What all experts of a layer would make of the same tokens can only be known by running every expert on them; this keeps
the tokens to run them on. Which ones are kept depends on seed, document and position alone, so that corpora may be
split, reordered and merged, and batches cut anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from moescope.records import ExpertOutputs, Routing
from moescope.statistics.base import Statistic
from moescope.statistics.resampling import sample_hashes

_EMPTY = torch.iinfo(torch.int64).max
"""Hash of a place that holds no token."""


@dataclass(frozen=True)
class InputsSample:
    """One layer's sample, in ascending order of hash: any part of it in this order is a random one.

    Attributes:
        inputs_NM: What the layer's experts were given, in the dtype it was kept in.
        document_hashes_N: Hash of each token's document, int64.
        domain_ids_N: Index of each token's domain, int64.
    """

    inputs_NM: Tensor
    document_hashes_N: Tensor
    domain_ids_N: Tensor

    @property
    def num_documents(self) -> int:
        """Documents the tokens are from."""
        return int(self.document_hashes_N.unique().shape[0])


class LayerInputs(Statistic):
    """Keeps the N inputs of each layer with the smallest hash of (seed, document, position).

    The N smallest of independent uniform hashes are a simple random sample without replacement ("bottom-k" sampling;
    Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches"), and the N smallest of two such samples are that
    of both corpora together. N here is the sample's size; it takes N x M numbers a layer, however long the corpus.

    Args:
        layers: MoE layers.
        model_width: M.
        num_samples: N.
        dtype: Format the inputs are kept in: "float32", "bfloat16", "float16" or "float64".
        seed: Another seed, another sample.
        device: Where the sample lies.
    """

    needs_inputs: ClassVar[bool] = True

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
        self.seed = seed
        places = (len(self.layers), num_samples)
        self._declare("num_tokens_L", places[:1])
        for name in ("hashes_LN", "document_hashes_LN", "domain_ids_LN"):
            self._declare(name, places)
        self.state["hashes_LN"].fill_(_EMPTY)
        self._declare("inputs_LNM", (*places, model_width), getattr(torch, dtype))

    def update(self, record: Routing | ExpertOutputs) -> None:
        """Takes in one layer's inputs of one batch."""
        assert isinstance(record, Routing)
        if record.inputs_TM is None:
            raise RuntimeError("this record carries no inputs")
        position, tokens = self._position[record.layer], record.tokens
        self._combine("num_tokens_L", torch.tensor(tokens.num_tokens), position)
        documents_T = tokens.document_hashes_B[tokens.rows_T]
        hashes_T = sample_hashes(documents_T, tokens.positions_T, seed=self.seed)
        # In a long corpus hardly any token is still small enough: the others are not copied.
        rows = (hashes_T < self.state["hashes_LN"][position].max()).nonzero().squeeze(1)
        self._keep(position, hashes_T[rows], documents_T[rows], tokens.domain_ids_T[rows], record.inputs_TM[rows])

    def merge(self, other: Self) -> Self:
        """Adds another part's sample: of both, the tokens with the smallest hashes stay.

        Raises:
            UsageError: The two were made with different parameters.
        """
        # Places of a sample can't be added one tensor at a time, only counts can: `_combine` lets the rest pass.
        super().merge(other)
        for position in range(len(self.layers)):
            parts = [other.state[name][position].to(self.device) for name in _PLACES]
            rows = (parts[0] < _EMPTY).nonzero().squeeze(1)
            self._keep(position, *(part[rows] for part in parts))
        return self

    def _combine(self, name: str, increment: Tensor, at: Any = ...) -> None:
        if name not in _PLACES:
            super()._combine(name, increment, at)

    def _keep(self, position: int, *candidates: Tensor) -> None:
        """Of those kept so far and the candidates (tensors in the order of `_PLACES`), keeps the smallest hashes."""
        if not candidates[0].shape[0]:
            return
        kept = [self.state[name][position] for name in _PLACES]
        hashes = torch.cat([kept[0], candidates[0]])
        order_N = hashes.argsort(stable=True)[: kept[0].shape[0]]
        for place, candidate in zip(kept, candidates, strict=True):
            place.copy_(torch.cat([place, candidate.to(place.dtype)])[order_N])

    def sample(self, layer: int) -> InputsSample:
        """What is kept of one layer, in ascending order of hash; fewer than N where the corpus is shorter."""
        position = self._position[layer]
        size = int((self.state["hashes_LN"][position] < _EMPTY).sum())
        return InputsSample(
            inputs_NM=self.state["inputs_LNM"][position, :size],
            document_hashes_N=self.state["document_hashes_LN"][position, :size],
            domain_ids_N=self.state["domain_ids_LN"][position, :size],
        )

    def compute(self) -> xr.Dataset:
        """By `layer`: how many tokens were seen, how many are kept, and of how many documents."""
        samples = [self.sample(layer) for layer in self.layers]
        numbers = {
            "num_tokens": (self.state["num_tokens_L"].tolist(), "tokens", "tokens counted"),
            "num_samples": (
                [sample.inputs_NM.shape[0] for sample in samples],
                "tokens",
                "tokens kept: those with the smallest hash of seed, document and position",
            ),
            "num_documents": ([s.num_documents for s in samples], "documents", "documents that kept tokens are from"),
        }
        return xr.Dataset(
            {
                name: ("layer", np.array(values, dtype=np.int64), {"units": units, "definition": definition})
                for name, (values, units, definition) in numbers.items()
            },
            coords={"layer": self.layers},
        )


_PLACES = ("hashes_LN", "document_hashes_LN", "domain_ids_LN", "inputs_LNM")
"""State that belongs together: one token's place in each."""
