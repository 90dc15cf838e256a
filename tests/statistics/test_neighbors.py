"""Neighbors and votes against scikit-learn, and against plain loops where documents are passed over."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from moescope.measures.neighbors import MIN_DOCUMENTS, nearest, recovery, vote


def cloud(num_points: int = 300, num_labels: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, num_labels, num_points)
    points = generator.normal(size=(num_points, 5)) + 0.8 * generator.normal(size=(num_labels, 5))[labels]
    documents = generator.integers(-(2**62), 2**62, 40)[generator.integers(0, 40, num_points)]
    return torch.from_numpy(points), torch.from_numpy(labels), torch.from_numpy(documents)


def test_neighbors_are_scikit_learns() -> None:
    points, _, _ = cloud(2500)  # more than one block of rows
    ids, distances = nearest(points, 7)
    theirs = NearestNeighbors(n_neighbors=8, algorithm="brute").fit(points.numpy()).kneighbors(points.numpy())
    np.testing.assert_allclose(distances.numpy(), theirs[0][:, 1:], rtol=1e-9)
    assert np.array_equal(ids.numpy(), theirs[1][:, 1:])


@pytest.mark.parametrize("num_neighbors", [1, 5])
def test_votes_leaving_one_out_are_scikit_learns(num_neighbors: int) -> None:
    points, labels, _ = cloud()
    voted = vote(labels, nearest(points, num_neighbors)[0])
    for number in range(0, 300, 7):
        others = np.delete(np.arange(300), number)
        theirs = KNeighborsClassifier(num_neighbors).fit(points[others].numpy(), labels[others].numpy())
        assert int(voted[number]) == theirs.predict(points[number : number + 1].numpy())[0]


def test_neighbors_of_the_same_document_are_passed_over_and_ties_go_to_the_nearer() -> None:
    points, labels, documents = cloud(num_labels=6)
    ids, _ = nearest(points, 4, documents)
    voted = vote(labels, ids)
    ties = 0
    for number in range(300):
        order = (points - points[number]).norm(dim=1).argsort().tolist()
        expected = [other for other in order if documents[other] != documents[number]][:4]
        assert ids[number].tolist() == expected
        named = [int(labels[other]) for other in expected]
        most = max(Counter(named).values())
        best = [label for label, count in Counter(named).items() if count == most]
        ties += len(best) > 1
        ranks = {label: sum(rank for rank, name in enumerate(named) if name == label) for label in best}
        least = min(ranks.values())
        assert ranks.get(int(voted[number])) == least
    assert ties > 20


def test_recovery_beside_chance() -> None:
    points, labels, documents = cloud(num_labels=3)
    ids, _ = nearest(points, 5, documents)
    found = recovery(labels, ids, documents)
    right = (vote(labels, ids) == labels).double()
    assert found.accuracy == pytest.approx(float(right.mean()))
    assert found.chance == pytest.approx(Counter(labels.tolist()).most_common(1)[0][1] / 300)
    assert found.low < found.accuracy < found.high and found.num_points == 300
    # about as wide as the error of a ratio over documents
    rows = documents.unique(return_inverse=True)[1].numpy()
    residual = np.bincount(rows, (right - right.mean()).numpy())
    error = np.sqrt((residual**2).sum()) / 300
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.25)
    shuffled = labels[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    assert recovery(shuffled, ids, documents).low < 0.4


def test_few_documents_and_few_points() -> None:
    points, labels, documents = cloud(30)
    few = documents.unique()[torch.arange(30) % (MIN_DOCUMENTS - 1)]
    assert np.isnan(recovery(labels, nearest(points, 3, few)[0], few).low)
    alone = torch.zeros(30, dtype=torch.int64)
    ids, distances = nearest(points, 3, alone)
    assert (ids == -1).all() and distances.isinf().all()
    assert recovery(labels, ids, alone).num_points == 0 and np.isnan(recovery(labels, ids, alone).accuracy)
    ids, _ = nearest(points[:2], 4)
    assert ids.tolist() == [[1, -1, -1, -1], [0, -1, -1, -1]]
