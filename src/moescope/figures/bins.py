"""Counts on many fine bins made ready to draw: cropped to where they lie, merged, divided by width."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def densities(
    edges: ArrayLike, counts: ArrayLike, *, num_bins: int = 50, log: bool = False, cut: float = 5e-4
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Densities on at most about `num_bins` bins, nearly even on a linear or logarithmic scale.

    Args:
        edges: (n + 1,) fine edges, ascending; positive if `log`.
        counts: (..., n + 2), with what lies below and above the edges; all rows are drawn on the same bins.
        num_bins: Bins to draw at most; fewer where the fine ones are wider.
        log: Bins are even in the logarithm, and densities are per factor of 10.
        cut: The range drawn leaves out at most this share of any row on each side. Shares are of all that was counted,
            so what is left out is not made up for.

    Returns:
        Edges (m + 1,) and densities (..., m), in shares of the row per unit (or per factor of 10).
    """
    edges, counts = np.asarray(edges, dtype=float), np.asarray(counts, dtype=float)
    totals = np.maximum(counts.sum(axis=-1, keepdims=True), 1.0)
    cumulative = (counts / totals).cumsum(axis=-1)  # cumulative[i]: share below edges[i]
    filled = counts.sum(axis=-1) > 0
    below = cumulative[..., :-1][filled]
    if below.size:
        first = int((below <= cut).all(axis=0).nonzero()[0].max(initial=0))
        last = int((below >= below[..., -1:] - cut).all(axis=0).nonzero()[0].min(initial=len(edges) - 1))
    else:
        first, last = 0, len(edges) - 1
    last = min(max(last, first + 1), len(edges) - 1)
    first = min(first, last - 1)
    scale = np.log10(edges) if log else edges
    targets = np.linspace(scale[first], scale[last], num_bins + 1)
    places = np.unique(np.abs(scale[first : last + 1][None, :] - targets[:, None]).argmin(axis=1)) + first
    shares = np.diff(cumulative[..., places], axis=-1)
    return edges[places], shares / np.diff(scale[places])
