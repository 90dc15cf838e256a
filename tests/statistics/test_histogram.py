from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moescope.measures.histogram import LinearAxis, LogAxis, count, lower_edges, merge_bins, moments, quantiles

AXES = [LinearAxis(-4.0, 4.0, 128, closed=False), LogAxis(-6, 2, 16), LogAxis(-20, 0, 1)]


def counted(axis: LinearAxis | LogAxis, values: np.ndarray) -> np.ndarray:
    return count(axis.cells(torch.from_numpy(values)), axis.num_bins + 2).numpy()


def expected(axis: LinearAxis | LogAxis, values: np.ndarray) -> np.ndarray:
    """By numpy: every edge begins a bin."""
    places = np.searchsorted(axis.edges, values, side="right")
    return np.bincount(places, minlength=axis.num_bins + 2)


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_counts_are_those_of_a_search_in_the_edges(axis: LinearAxis | LogAxis) -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate(
        [
            generator.normal(size=5000),
            np.exp(generator.normal(size=5000) * 3),
            axis.edges,  # a value on an edge belongs to the bin that begins there
            [-1e30, 1e30, 0.0, -0.0, np.inf, -np.inf],
        ]
    ).astype(np.float32)
    # float32 rounding may move what lies within it of a linear edge; nothing of the above does
    assert np.array_equal(counted(axis, values), expected(axis, values))


def test_a_closed_axis_takes_its_upper_end_into_the_last_bin() -> None:
    values = np.array([0.0, 1.0, 1.0, 1.0000001, -1e-3], dtype=np.float32)
    assert counted(LinearAxis(0.0, 1.0, 4), values).tolist() == [1, 1, 0, 0, 2, 1]
    assert counted(LinearAxis(0.0, 1.0, 4, closed=False), values).tolist() == [1, 1, 0, 0, 0, 3]


def test_the_edges_of_a_log_axis_double_from_octave_to_octave() -> None:
    edges = LogAxis(-2, 1, 4).edges
    assert edges.tolist() == [0.25, 0.3125, 0.375, 0.4375, 0.5, 0.625, 0.75, 0.875, 1, 1.25, 1.5, 1.75, 2]


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_what_is_no_number_is_counted_outside_the_axis(axis: LinearAxis | LogAxis) -> None:
    counts = counted(axis, np.array([np.nan, np.nan], dtype=np.float32))
    assert counts[0] + counts[-1] == 2


def test_impossible_axes_are_refused() -> None:
    for make in (lambda: LinearAxis(1.0, 1.0, 4), lambda: LinearAxis(0.0, 1.0, 0), lambda: LogAxis(0, 0, 4)):
        with pytest.raises(ValueError, match="not an axis"):
            make()
    with pytest.raises(ValueError, match="not an axis"):
        LogAxis(-4, 0, 3)


@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-3.75, 3.75, width=32)),
    levels=st.lists(st.floats(0, 1), min_size=1, max_size=4),
)
def test_quantiles_are_within_a_bin_of_those_of_the_values(values: np.ndarray, levels: list[float]) -> None:
    axis = AXES[0]
    found = quantiles(counted(axis, values), axis.edges, levels)
    # cumulative counts compare with level * n in float64 on both sides
    exact = np.quantile(values.astype(np.float64), levels, method="inverted_cdf")
    assert np.all(np.abs(found - exact) <= 8 / 128 + 1e-6)


def test_quantiles_by_rows_with_empty_rows_and_values_off_the_axis() -> None:
    edges = np.array([0.0, 1.0, 2.0])
    counts = np.array([[0, 4, 0, 0], [0, 0, 0, 0], [3, 0, 0, 1], [0, 2, 2, 0]])
    found = quantiles(counts, edges, [0.0, 0.5, 1.0])
    assert found[0].tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert np.isnan(found[1]).all()
    assert found[2].tolist() == [0.0, 0.0, 2.0]  # clipped to the axis
    assert found[3].tolist() == pytest.approx([0.0, 1.0, 2.0])


def test_log_quantiles_are_within_a_bin_of_those_of_the_values() -> None:
    axis = LogAxis(-20, 1, 16)
    values = np.random.default_rng(1).beta(0.3, 4, 30_000).astype(np.float32)
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    exact = np.quantile(values.astype(np.float64), levels, method="inverted_cdf")
    np.testing.assert_allclose(quantiles(counted(axis, values), axis.edges, levels), exact, rtol=1 / 16)


def test_moments_are_mean_and_standard_deviation() -> None:
    values = np.random.default_rng(2).normal(3, 0.1, (4, 1000))
    mean, std = moments(values.sum(1), (values**2).sum(1), np.full(4, 1000))
    np.testing.assert_allclose(mean, values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(std, values.std(1), rtol=1e-9)
    assert np.isnan(moments(0.0, 0.0, 0)).all()


def test_bins_merge_into_the_histogram_on_coarse_edges() -> None:
    axis = LogAxis(-30, 3, 64)
    values = np.random.default_rng(3).beta(0.05, 1, 20_000).astype(np.float32)
    counts = counted(axis, values)
    coarse = np.linspace(0, 1, 129)  # with 0 in place of the lowest edge
    merged = merge_bins(counts, axis.edges, np.append(coarse[:-1], 1 + 1 / 64))
    assert np.array_equal(merged[1:-1], np.histogram(values, coarse)[0])
    assert merged[0] == merged[-1] == 0
    assert merged.sum() == len(values)
    among = axis.edges[::64]
    assert np.array_equal(merge_bins(counts, axis.edges, among), np.bincount(np.searchsorted(among, values, "right")
                                                                              , minlength=len(among) + 1))  # fmt: skip
    with pytest.raises(ValueError, match="not among"):
        merge_bins(counts, axis.edges, [0.0, 0.3, 1.0])


def test_lower_edges_begin_below_everything() -> None:
    assert lower_edges([0.0, 1.0]).tolist() == [-np.inf, 0.0, 1.0]
