"""Options of `moescope map`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moescope.errors import at_least

Method = Literal["umap", "pca"]
Metric = Literal["cosine", "euclidean"]


@dataclass(frozen=True)
class MapOptions:
    """Which outputs are mapped, and how."""

    method: Method = "umap"
    """umap: UMAP of the leading principal components, seeded. pca: the first two principal components."""

    metric: Metric = "cosine"
    """Distance between outputs. cosine: of their directions, whatever their norms. euclidean: of the outputs
    themselves."""

    num_neighbors: int = 15
    """Neighbors that UMAP joins each output to, that trustworthiness looks at, and that vote for expert and domain."""

    num_samples: int = 50
    """Outputs of each expert, at most: those of its tokens with the smallest hash."""

    num_components: int = 100
    """Principal components that UMAP is given, at most."""

    max_layers: int | None = 4
    """Layers to map, at most: the first and the last of the layers looked at, and others evenly spaced between them.
    None: all of them."""

    def __post_init__(self) -> None:
        """Refuses numbers that give no map."""
        at_least(2, num_neighbors=self.num_neighbors, num_components=self.num_components)
        at_least(1, num_samples=self.num_samples, max_layers=self.max_layers)
