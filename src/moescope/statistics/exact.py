"""Sums of real numbers that do not depend on the order in which they are added up.

Sums of floating-point numbers differ in their last bits with the order, so that two workers and one process, or a run
that was interrupted and one that was not, would leave different tables. Here every increment is rounded to a multiple
of 2^-50 and added as whole numbers: the sum is the same for every order and every split. Numbers from 8 on lose nothing
(a float64 has no finer digits there), smaller ones at most 2^-51 an increment.

A sum is a pair in the last dimension of an int64 tensor, (whole, fraction) with `value = whole + fraction / 2^50` and
`0 <= fraction < 2^50`. NaN, infinity and what exceeds 2^61 make the whole part `BROKEN`, which stays, and reads as NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 50
BROKEN = torch.iinfo(torch.int64).min
_LARGEST = 2.0**61


def zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Sums of that shape, all zero."""
    return torch.zeros((*shape, 2), dtype=torch.int64, device=device)


def parts(values: Tensor) -> Tensor:
    """Float64 values as pairs."""
    known = values.abs() < _LARGEST  # False for NaN
    values = torch.where(known, values, 0.0)
    whole = values.floor()
    fraction = ((values - whole) * 2.0**BITS).round().long()
    whole = torch.where(known, whole.long() + (fraction >> BITS), BROKEN)
    return torch.stack([whole, fraction & ((1 << BITS) - 1)], dim=-1)


def add(sums: Tensor, increments: Tensor) -> None:
    """Adds pairs to sums, in place."""
    broken = (sums[..., 0] == BROKEN) | (increments[..., 0] == BROKEN)
    fraction = sums[..., 1] + increments[..., 1]
    whole = sums[..., 0] + increments[..., 0] + (fraction >> BITS)
    broken |= whole.abs() > 2**62
    sums[..., 0] = torch.where(broken, BROKEN, whole)
    sums[..., 1] = torch.where(broken, 0, fraction & ((1 << BITS) - 1))


def value(sums: Tensor) -> Tensor:
    """Sums as float64: NaN where one is broken."""
    real = sums[..., 0].double() + sums[..., 1].double() * 2.0**-BITS
    return torch.where(sums[..., 0] == BROKEN, torch.nan, real)
