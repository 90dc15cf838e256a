"""How often the label of a point is recovered from its nearest neighbors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moescope.measures.constants import COVERAGE, MIN_DOCUMENTS, NUM_BOOTSTRAP
from moescope.measures.resampling import poisson_weights

MIN_LABEL_DOCUMENTS = 3
"""Fewest documents of a label: neighbors are of other documents, so that a label of one is never recovered."""
_ROWS = 1024
"""Points whose distances to all others are held at a time."""


@dataclass(frozen=True)
class Recovery:
    """How often a label is recovered from neighbors.

    Attributes:
        accuracy: Share of points whose neighbors' vote is their own label.
        low: Lower end of its 95 % interval; NaN for fewer than `MIN_DOCUMENTS` documents.
        high: Upper end.
        chance: Share of the most frequent label among them (majority-class baseline).
        num_points: Points judged: they have a neighbor, and their label at least `MIN_LABEL_DOCUMENTS` documents.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    num_points: int


def nearest(points_NM: Tensor, num_neighbors: int, documents_N: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Nearest neighbors by Euclidean distance, computed exactly, in float64.

    Args:
        points_NM: Points.
        num_neighbors: k.
        documents_N: Document of each point; neighbors of the same document (the point itself too) are excluded.
            None: only the point itself is excluded.

    Returns:
        Their indices and distances, (N, k), the nearest first; -1 and infinity where there are fewer than k.
    """
    points_NM = points_NM.detach().cpu().double()
    points_NM = points_NM - points_NM.mean(dim=0, keepdim=True)
    num_points = points_NM.shape[0]
    squares_N = points_NM.square().sum(1)
    indices_N = torch.arange(num_points)
    ids, distances = [], []
    count = min(num_neighbors, num_points)
    for rows in indices_N.split(_ROWS):
        squared_nN = squares_N[rows].unsqueeze(1) + squares_N - 2 * points_NM[rows] @ points_NM.T
        own_nN = rows.unsqueeze(1) == indices_N if documents_N is None else documents_N[rows, None] == documents_N
        found = squared_nN.clamp(min=0).masked_fill(own_nN, torch.inf).topk(count, dim=1, largest=False)
        ids.append(torch.where(found.values.isinf(), -1, found.indices))
        distances.append(found.values.sqrt())
    padding = (0, num_neighbors - count)
    return (
        torch.nn.functional.pad(torch.cat(ids), padding, value=-1),
        torch.nn.functional.pad(torch.cat(distances), padding, value=torch.inf),
    )


def vote(labels_N: Tensor, neighbors_NK: Tensor) -> Tensor:
    """The most frequent label among each point's neighbors; of several, the one whose neighbors are nearer by rank.

    Args:
        labels_N: Labels, 0 and up.
        neighbors_NK: As `nearest` gives them.

    Returns:
        Labels (N,), -1 for a point without neighbors.
    """
    num_neighbors = neighbors_NK.shape[1]
    # One vote each, ties to the smaller sum of ranks: all that ranks add together is less than a vote. In integers, so
    # that ties are exact.
    votes_K = num_neighbors * (num_neighbors + 1) + torch.arange(num_neighbors, 0, -1)
    known_NK = neighbors_NK >= 0
    tally_NC = torch.zeros(len(labels_N), int(labels_N.max()) + 1 if len(labels_N) else 1, dtype=torch.int64)
    tally_NC.scatter_add_(1, labels_N[neighbors_NK.clamp(min=0)], votes_K * known_NK)
    return torch.where(known_NK.any(1), tally_NC.argmax(1), -1)


def recovery(labels_N: Tensor, neighbors_NK: Tensor, document_hashes_N: Tensor, *, seed: int = 0) -> Recovery:
    """How often the neighbors' vote is the point's own label, beside the majority-class baseline.

    Interval: percentiles of a Poisson bootstrap over the documents of the points judged; the neighbors they are judged
    by stay as they are.

    Args:
        labels_N: Labels, 0 and up.
        neighbors_NK: As `nearest` gives them.
        document_hashes_N: Hash of each point's document.
        seed: Of the bootstrap replicates.
    """
    labels_N, document_hashes_N = labels_N.cpu(), document_hashes_N.cpu()
    voted_N = vote(labels_N, neighbors_NK)
    documents_B, rows_N = document_hashes_N.unique(return_inverse=True)
    pairs = torch.stack([labels_N.long(), rows_N]).unique(dim=1)[0] if len(labels_N) else labels_N.long()
    frequent_C = torch.bincount(pairs) >= MIN_LABEL_DOCUMENTS
    judged = ((voted_N >= 0) & frequent_C[labels_N.long()]).nonzero().squeeze(1)
    if not len(judged) or len(labels_N[judged].unique()) < 2:
        return Recovery(np.nan, np.nan, np.nan, np.nan, 0)
    right_n = (voted_N[judged] == labels_N[judged]).double()
    documents_B, rows_n = document_hashes_N[judged].unique(return_inverse=True)
    low = high = np.nan
    if len(documents_B) >= MIN_DOCUMENTS:
        weights_BR = poisson_weights(documents_B, NUM_BOOTSTRAP, seed=seed).double()
        right_B = torch.zeros(len(documents_B), dtype=torch.float64).index_add_(0, rows_n, right_n)
        count_B = torch.bincount(rows_n, minlength=len(documents_B)).double()
        accuracy_R = (right_B @ weights_BR) / (count_B @ weights_BR)
        tail = (1 - COVERAGE) / 2
        low, high = np.nanquantile(accuracy_R.numpy(), (tail, 1 - tail)).tolist()
    chance = float(torch.bincount(labels_N[judged]).max()) / len(judged)
    return Recovery(float(right_n.mean()), low, high, chance, len(judged))
