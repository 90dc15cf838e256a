"""Randomness that does not depend on order: hashes of documents instead of a stream of random numbers.

Every draw is a function of (seed, purpose, document, replicate), so that a corpus may be split, reordered and merged
and each document still gets the weights and labels it would have got in one pass. All arithmetic is on 64-bit integers
that wrap around; inverse cumulative distributions are compared as integers of 53 bits. The same bits come out of numpy
and torch, on every device.

The hash is the finalizer of splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"),
applied once for each value that is mixed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)

BITS = 53
"""Bits of a hash that draws are made of: as many as a float64 holds."""

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)
_PURPOSES = {"bootstrap": 1, "half": 3, "sample": 4, "group": 5, "document": 6}


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift_right(values: Array, bits: int) -> Array:
    """Logical shift: int64 shifts arithmetically, so the copies of the sign bit are masked away."""
    return cast(Array, (values >> bits) & ((1 << (64 - bits)) - 1))


def mix(values: Array) -> Array:
    """The finalizer of splitmix64 on each element: a bijection of int64 in which each input bit flips half the output.

    Args:
        values: int64, any shape, numpy or torch.
    """
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS, strict=False):
        values = cast(Array, (values ^ _shift_right(values, shift)) * _signed(multiplier))
    return cast(Array, values ^ _shift_right(values, _SHIFTS[2]))


def stable_hash(first: Array, *more: Array | int) -> Array:
    """A 64-bit hash of each tuple of integers: `h <- mix(h + golden + value)` over the values, from h = 0.

    Args:
        first: int64, numpy or torch.
        more: int64 arrays of the same kind that broadcast with it, or plain ints.

    Returns:
        int64 of the broadcast shape.
    """
    # numpy warns when scalars wrap around; arrays wrap in silence, which is what is wanted
    hashed = mix(cast(Array, first + _signed(_GOLDEN)))
    for value in more:
        value = _signed(value) if isinstance(value, int) else value
        hashed = mix(cast(Array, hashed + _signed(_GOLDEN) + value))
    return hashed


def uniform_bits(hashes: Array) -> Array:
    """The upper 53 bits of each hash, an int64 in 0..2^53 - 1; divided by 2^53 it is uniform on [0, 1)."""
    return _shift_right(hashes, 64 - BITS)


def _draws(document_hashes_B: Array, purpose: str, seed: int, num_replicates: int) -> Array:
    """A uniform draw of 53 bits for each document and replicate, shape (B, R)."""
    replicates_R: Array
    if isinstance(document_hashes_B, Tensor):
        replicates_R = cast(Array, torch.arange(num_replicates, device=document_hashes_B.device))
    else:
        replicates_R = cast(Array, np.arange(num_replicates))
    hashes_B = stable_hash(document_hashes_B, seed, _PURPOSES[purpose])
    return uniform_bits(stable_hash(cast(Array, hashes_B[:, None]), cast(Array, replicates_R[None, :])))


def _count_reached(draws: Array, thresholds: Sequence[int]) -> Array:
    """How many of the ascending thresholds each draw has reached: the inverse of a cumulative distribution, int64."""
    if isinstance(draws, Tensor):
        return cast(Array, torch.bucketize(draws, torch.tensor(thresholds, device=draws.device), right=True))
    return cast(Array, np.searchsorted(np.array(thresholds, dtype=np.int64), draws, side="right"))


@lru_cache
def _poisson_thresholds() -> tuple[int, ...]:
    """Cumulative distribution of Poisson(1) times 2^53, up to where 53 bits see no difference from 1."""
    thresholds: list[int] = []
    cumulative, count = 0.0, 0
    while True:
        cumulative += math.exp(-1.0) / math.factorial(count)
        threshold = round(cumulative * (1 << BITS))
        if threshold >= 1 << BITS or (thresholds and threshold == thresholds[-1]):
            return tuple(thresholds)
        thresholds.append(threshold)
        count += 1


def poisson_weights(document_hashes_B: Array, num_replicates: int, *, seed: int = 0) -> Array:
    """Poisson(1) weight of each document in each bootstrap replicate.

    The Poisson bootstrap: resampling n documents gives each a Binomial(n, 1/n) weight, nearly Poisson(1), and
    independent weights need neither n nor a second pass (Chamandy et al. 2012, "Estimating uncertainty for massive
    data streams").

    Args:
        document_hashes_B: int64, numpy or torch.
        num_replicates: R.
        seed: Another seed, other weights.

    Returns:
        int64 of shape (B, R).
    """
    return _count_reached(_draws(document_hashes_B, "bootstrap", seed, num_replicates), _poisson_thresholds())


def halves(document_hashes_B: Array, *, seed: int = 0) -> Array:
    """Which half of the documents each belongs to, 0 or 1: findings are chosen on half 0 and measured on half 1."""
    return uniform_bits(stable_hash(document_hashes_B, seed, _PURPOSES["half"])) >> (BITS - 1)


def groups(document_hashes_B: Array, num_groups: int, *, seed: int = 0) -> Array:
    """Which of `num_groups` groups of documents each belongs to (for a jackknife), int64 in 0..num_groups - 1."""
    thresholds = [(index << BITS) // num_groups for index in range(1, num_groups)]
    return _count_reached(uniform_bits(stable_hash(document_hashes_B, seed, _PURPOSES["group"])), thresholds)


def sample_hashes(document_hashes_T: Array, positions_T: Array, *, seed: int = 0) -> Array:
    """A hash of (seed, document, position): the n tokens with the smallest are a random sample that merges.

    Args:
        document_hashes_T: Hash of each token's document (`tokens.document_hashes_B[tokens.rows_T]`).
        positions_T: Position of each token in its document.
        seed: Another seed, another sample.

    Returns:
        int64 in 0..2^63 - 1: non-negative, so that order is plain.
    """
    return _shift_right(stable_hash(document_hashes_T, positions_T, seed, _PURPOSES["sample"]), 1)


def document_order(document_hashes_B: Array, *, seed: int = 0) -> Array:
    """A hash of (seed, document), int64 in 0..2^63 - 1: the n documents with the smallest are a random sample."""
    return _shift_right(stable_hash(document_hashes_B, seed, _PURPOSES["document"]), 1)
