"""Exact sums against rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.statistics import exact

NUMBERS = st.lists(st.floats(-1e9, 1e9, allow_nan=False), min_size=1, max_size=30)


@settings(deadline=None)
@given(NUMBERS, st.randoms())
def test_the_sum_is_that_of_rounded_increments_in_any_order(numbers, random) -> None:
    rounded = sum((Fraction(round(Fraction(number) * 2**exact.BITS), 2**exact.BITS) for number in numbers), Fraction())
    expected = float(rounded)
    states = []
    for _ in range(3):
        sums = exact.zeros((1,), torch.device("cpu"))
        for number in numbers:
            exact.add(sums, exact.parts(torch.tensor([number], dtype=torch.float64)))
        states.append(sums.tolist())
        assert abs(float(exact.value(sums)[0]) - expected) <= 4 * np.spacing(abs(expected)) + 2.0**-exact.BITS
        random.shuffle(numbers)
    assert states[0] == states[1] == states[2]


def test_what_is_no_number_stays_none() -> None:
    for broken in (float("nan"), float("inf"), -float("inf"), 1e30):
        sums = exact.zeros((2,), torch.device("cpu"))
        exact.add(sums, exact.parts(torch.tensor([broken, 1.5], dtype=torch.float64)))
        exact.add(sums, exact.parts(torch.tensor([1.0, -4.25], dtype=torch.float64)))
        value = exact.value(sums)
        assert value[0].isnan() and value[1] == -2.75


def test_large_sums_are_broken_rather_than_wrong() -> None:
    sums = exact.zeros((1,), torch.device("cpu"))
    for _ in range(4):
        exact.add(sums, exact.parts(torch.tensor([2.0**60.9], dtype=torch.float64)))
    assert exact.value(sums).isnan().all()
