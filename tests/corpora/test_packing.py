"""Packing: every window once, no batch too large, and no cheaper way to cut."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.corpora.packing import BATCH_COST, Window, pack


def window(number: int, length: int) -> Window:
    ids = np.arange(length)
    return Window(row=ids, counted=ids, next_ids=ids, positions=ids, document_hash=number, domain_id=0)


def cheapest(lengths: list[int], batch_tokens: int) -> int:
    """The least cost over all ways to cut the sorted lengths, by trying them all."""
    ordered = sorted(lengths, reverse=True)

    @cache
    def cost(start: int) -> int:
        if start == len(ordered):
            return 0
        return min(
            ordered[start] * (end - start) + BATCH_COST + cost(end)
            for end in range(start + 1, len(ordered) + 1)
            if end == start + 1 or ordered[start] * (end - start) <= batch_tokens
        )

    return cost(0)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(1, 400), max_size=30), st.integers(1, 3000))
def test_no_cheaper_way_to_cut(lengths, batch_tokens):
    windows = [window(number, length) for number, length in enumerate(lengths)]
    batches = pack(windows, batch_tokens)
    assert sorted(one.document_hash for batch in batches for one in batch) == list(range(len(lengths)))
    sizes = [(len(batch), max(len(one.row) for one in batch)) for batch in batches]
    assert all(batch_tokens >= B * S or B == 1 for B, S in sizes)
    assert sum(B * S + BATCH_COST for B, S in sizes) == cheapest(lengths, batch_tokens)


def test_equal_rows_fill_batches():
    batches = pack([window(number, 128) for number in range(200)], 8192)
    assert sorted(len(batch) for batch in batches) == [8, 64, 64, 64]
