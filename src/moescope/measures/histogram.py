"""Histograms on fixed edges: counted batch by batch, added up exactly, read back as quantiles.

Bin i holds `edges[i] <= x < edges[i + 1]`. Counts have two cells more than there are bins: the first counts values
below the lowest edge, the last those above the highest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


class Axis(Protocol):
    """The edges of a histogram, and the cell of each value."""

    @property
    def num_bins(self) -> int:
        """Bins between the lowest and the highest edge."""

    @property
    def edges(self) -> NDArray[np.float64]:
        """(num_bins + 1,), ascending."""

    def cells(self, values: Tensor) -> Tensor:
        """Index into the counts for each value: 0 below the axis, i + 1 in bin i, num_bins + 1 above; int32."""


@dataclass(frozen=True)
class LinearAxis:
    """`num_bins` bins of equal width from `low` to `high`.

    Values are scaled in float32, or in float64 if that is what they are: one within rounding of an edge may fall to
    either side, one exactly on an edge does not where the width is a power of two and `low` a multiple of it.

    Attributes:
        low: Lowest edge.
        high: Highest edge.
        num_bins: Bins between them.
        closed: The last bin holds `high` too (measures that reach their bound); else it counts as above.
    """

    low: float
    high: float
    num_bins: int
    closed: bool = True

    def __post_init__(self) -> None:
        if not (self.high > self.low and self.num_bins > 0):
            raise ValueError(f"not an axis: {self}")

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """(num_bins + 1,), ascending."""
        return np.linspace(self.low, self.high, self.num_bins + 1)

    def cells(self, values: Tensor) -> Tensor:
        """Index into the counts for each value, int32; NaN falls to either end."""
        per_unit = self.num_bins / (self.high - self.low)
        first = torch.tensor(1.0 - self.low * per_unit, dtype=values.dtype)  # on the CPU: no copy to wait for
        cells = torch.add(first, values, alpha=per_unit).clamp_(0, self.num_bins + 1).to(torch.int32)
        cells.clamp_(min=0)  # NaN became some integer
        if self.closed:
            cells.sub_((values == self.high).view(torch.int8))
        return cells


@dataclass(frozen=True)
class LogAxis:
    """From `2 ** low_exponent` to `2 ** high_exponent`, each octave cut into `per_octave` bins of equal width.

    On a logarithmic scale the bins are nearly even, and `per_octave` bounds the relative error of any quantile:
    `1 / per_octave`. Binning reads the bits of a float32, so it is exact and costs no logarithm. All edges are dyadic:
    bins of `2 ** -k` on a linear scale are unions of these, see `merge_bins`.

    Values that are 0 or negative lie below the axis.
    """

    low_exponent: int
    high_exponent: int
    per_octave: int

    def __post_init__(self) -> None:
        if not (-126 <= self.low_exponent < self.high_exponent <= 127) or self.per_octave not in {
            2**k for k in range(16)
        }:
            raise ValueError(f"not an axis: {self}")

    @property
    def num_bins(self) -> int:
        """Bins between the lowest and the highest edge."""
        return (self.high_exponent - self.low_exponent) * self.per_octave

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """(num_bins + 1,), ascending."""
        within = 1.0 + np.arange(self.per_octave) / self.per_octave
        octaves = 2.0 ** np.arange(self.low_exponent, self.high_exponent)
        return np.append(np.outer(octaves, within).ravel(), 2.0**self.high_exponent)

    def cells(self, values: Tensor) -> Tensor:
        """Index into the counts for each value, int32; NaN lies above."""
        bits_per_octave = self.per_octave.bit_length() - 1
        first = (self.low_exponent + 127) << bits_per_octave
        # the exponent and the first bits of the fraction of a positive float32, read as an integer, grow with it
        cells = values.float().contiguous().view(torch.int32) >> (23 - bits_per_octave)
        return cells.sub_(first - 1).clamp_(0, self.num_bins + 1)


def lower_edges(edges: ArrayLike) -> NDArray[np.float64]:
    """Lower edge of each cell of the counts, for use as a coordinate: -inf, then the edges."""
    return np.concatenate([[-np.inf], np.asarray(edges, dtype=np.float64)])


def count(cells: Tensor, length: int) -> Tensor:
    """How often each of `0..length - 1` occurs among the cells, int64; does not wait for the device."""
    flat = cells.flatten()
    if flat.is_cuda:
        counts = torch.zeros(length, dtype=torch.int64, device=flat.device)
        return counts.scatter_add_(0, flat.long(), counts.new_ones(1).expand(flat.shape))
    return torch.bincount(flat, minlength=length)


def quantiles(counts: ArrayLike, edges: ArrayLike, levels: ArrayLike) -> NDArray[np.float64]:
    """Quantiles of what was counted, interpolated linearly inside a bin.

    A quantile lies in the same bin as the exact one (the smallest value with at least that share of values at or
    below it), so it is off by a bin's width at most. Below or above the axis it is the end of the axis.

    Args:
        counts: (..., num_bins + 2), with the cells below and above the axis.
        edges: (num_bins + 1,).
        levels: (q,), each in 0..1.

    Returns:
        (..., q); NaN where nothing was counted.
    """
    counts, edges, levels = (np.asarray(array, dtype=np.float64) for array in (counts, edges, levels))
    bounds = np.concatenate([edges[:1], edges, edges[-1:]])
    cumulative = counts.cumsum(axis=-1)
    totals = cumulative[..., -1]
    results = np.full((*totals.shape, len(levels)), np.nan)
    for position, level in enumerate(levels):
        targets = np.maximum(level * totals, np.finfo(float).tiny)  # level 0 is the first cell with a value
        cells = (cumulative >= targets[..., None]).argmax(axis=-1)[..., None]
        inside = np.take_along_axis(counts, cells, -1)[..., 0]
        before = np.take_along_axis(cumulative, cells, -1)[..., 0] - inside
        low, high = bounds[cells[..., 0]], bounds[cells[..., 0] + 1]
        share = np.divide(targets - before, inside, out=np.zeros_like(targets), where=inside > 0)
        results[..., position] = np.where(totals > 0, low + np.clip(share, 0, 1) * (high - low), np.nan)
    return results


def moments(sums: ArrayLike, squares: ArrayLike, number: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (of the values themselves: divided by n) from float64 sums; NaN where n is 0."""
    sums, squares, number = (np.asarray(array, dtype=np.float64) for array in (sums, squares, number))
    safe = np.where(number > 0, number, np.nan)
    mean = sums / safe
    return mean, np.sqrt(np.maximum(squares / safe - mean**2, 0.0))


def merge_bins(counts: ArrayLike, edges: ArrayLike, coarse: ArrayLike) -> NDArray[np.int64]:
    """The same counts on fewer edges: exact, since every coarse edge must be a fine one.

    Values below the lowest fine edge go to the first coarse bin if that begins at or below 0: a lowest coarse edge
    of 0 stands for all that is not negative.

    Args:
        counts: (..., num_bins + 2).
        edges: (num_bins + 1,).
        coarse: Ascending edges, all of them in `edges`, except that the lowest may be 0.

    Returns:
        (..., len(coarse) + 1): again with the cells below and above.
    """
    counts, edges, coarse = np.asarray(counts), np.asarray(edges, dtype=float), np.asarray(coarse, dtype=float)
    starts = np.searchsorted(edges, coarse)
    from_zero = coarse[0] == 0 and edges[0] > 0
    known = edges[np.minimum(starts, len(edges) - 1)] == coarse
    if not (known[1:].all() and (known[0] or from_zero)):
        raise ValueError("the coarse edges are not among the fine ones")
    splits = np.concatenate([[0], np.where(from_zero & (np.arange(len(coarse)) == 0), 0, starts + 1)])
    cumulative = np.concatenate([np.zeros((*counts.shape[:-1], 1), counts.dtype), counts.cumsum(axis=-1)], axis=-1)
    at = cumulative[..., np.append(splits, counts.shape[-1])]
    return np.diff(at, axis=-1).astype(np.int64)
