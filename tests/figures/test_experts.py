"""The order of experts in heat maps, against scipy's own and orders known in advance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster import hierarchy

from moescope.figures import style
from moescope.figures.experts import cluster_order, dendrogram


def blocks(sizes: list[int], within: float, between: float) -> np.ndarray:
    of_block = np.repeat(np.arange(len(sizes)), sizes)
    return np.where(of_block[:, None] == of_block, within, between)


@pytest.mark.parametrize(("within", "between"), [(0.8, 0.1), (3.0, 1.5), (-0.2, -0.9)])
def test_experts_of_one_cluster_are_adjacent(within: float, between: float) -> None:
    """Also where all similarities exceed 1, as log-ratios can, or none exceeds 0."""
    similarity_EE = blocks([3, 4, 2], within, between)
    shuffled = np.random.default_rng(2).permutation(9)
    order, tree = cluster_order(similarity_EE[np.ix_(shuffled, shuffled)])
    of_block = np.repeat([0, 1, 2], [3, 4, 2])[shuffled][order]
    assert len(np.flatnonzero(np.diff(of_block))) == 2
    assert tree is not None
    assert sorted(order) == list(range(9))


def test_the_tree_is_that_of_the_distance_one_minus_similarity() -> None:
    similarity_EE = np.corrcoef(np.random.default_rng(0).normal(size=(12, 6)))
    condensed = (1 - similarity_EE)[np.triu_indices(12, 1)]
    expected = hierarchy.linkage(condensed, "average", optimal_ordering=True)
    order, tree = cluster_order(similarity_EE)
    np.testing.assert_allclose(tree, expected)
    assert order == hierarchy.leaves_list(expected).tolist()


def test_experts_without_values_come_last_and_are_not_in_the_tree() -> None:
    similarity_EE = np.corrcoef(np.random.default_rng(0).normal(size=(6, 20)))
    similarity_EE[[1, 4]] = similarity_EE[:, [1, 4]] = np.nan
    similarity_EE[0, 5] = similarity_EE[5, 0] = np.nan  # a pair without a value has no expert to drop
    order, tree = cluster_order(similarity_EE)
    assert order[-2:] == [1, 4]
    assert tree is not None
    assert len(tree) == 3


def test_the_input_stays_as_it_was() -> None:
    similarity_EE = np.corrcoef(np.random.default_rng(0).normal(size=(5, 20)))
    before = similarity_EE.copy()
    cluster_order(similarity_EE)
    np.testing.assert_array_equal(similarity_EE, before)


@pytest.mark.parametrize("num_experts", [1, 2])
def test_fewer_than_three_experts_have_no_tree(num_experts: int) -> None:
    assert cluster_order(np.eye(num_experts)) == (list(range(num_experts)), None)


def test_the_dendrogram_spans_the_rows_of_its_experts() -> None:
    _, tree = cluster_order(np.corrcoef(np.random.default_rng(0).normal(size=(6, 20))))
    _, ax = style.figure("column", 2.0)
    dendrogram(ax, tree, 8)
    assert ax.get_ylim() == (8, 0)
    rows = np.concatenate([segment[:, 1] for segment in ax.collections[0].get_segments()])
    assert (rows.min(), rows.max()) == (0.5, 5.5)
    assert ax.get_xlim()[0] > ax.get_xlim()[1]  # the root is on the left
    _, hidden = style.figure("column", 2.0)
    dendrogram(hidden, None, 2)
    assert not hidden.get_visible()
