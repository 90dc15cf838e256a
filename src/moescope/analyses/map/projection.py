"""Points of many dimensions on a plane: PCA, and UMAP of the leading components, seeded; and its trustworthiness."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from moescope.measures.neighbors import nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from moescope.analyses.map.options import Method, Metric

MIN_DIST = 0.1
NUM_EPOCHS = 200
MIN_POINTS = 3


@dataclass(frozen=True)
class Plane:
    """Points on a plane.

    Attributes:
        xy: (N, 2), float32.
        method: Method of projection.
        num_components: Principal components kept.
        variance_explained: Share of the variance that these explain.
        variance_explained_xy: Share of the variance that the first two explain.
    """

    xy: NDArray[np.float32]
    method: Method
    num_components: int
    variance_explained: float
    variance_explained_xy: float


def comparable(points: NDArray[np.floating], metric: Metric) -> NDArray[np.float64]:
    """Points whose Euclidean distances rank as the metric's: for "cosine" each is divided by its norm (0 stays 0)."""
    exact: NDArray[np.float64] = np.asarray(points, np.float64)
    if metric == "euclidean":
        return exact
    norms = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / np.where(norms > 0, norms, 1.0)


def project(
    points: NDArray[np.floating], method: Method, *, num_neighbors: int, seed: int, num_components: int
) -> Plane:
    """Projects points to a plane.

    Args:
        points: (N, M), at least `MIN_POINTS` of them.
        method: "umap" (McInnes, Healy, Melville 2018, arXiv 1802.03426; umap-learn) of the principal components, or
            "pca", the first two of them.
        num_neighbors: Neighbors that UMAP joins each point to, fewer than there are points.
        seed: Of PCA's solver, UMAP's initialization and its sampling.
        num_components: Principal components to keep, at most: E experts with unrelated directions span E dimensions.

    Raises:
        ValueError: Too few points.
    """
    from sklearn.decomposition import PCA

    count = min(num_components, len(points) - 1, points.shape[1])
    if len(points) < MIN_POINTS or (method == "umap" and num_neighbors >= len(points)):
        raise ValueError(f"{len(points)} points are too few")
    centered = np.asarray(points, np.float64) - np.mean(points, axis=0, dtype=np.float64)
    if not centered.any():
        raise ValueError("all points are the same")
    pca = PCA(n_components=count, random_state=seed)
    components = pca.fit_transform(centered)
    shares = pca.explained_variance_ratio_
    xy = components[:, :2] if count > 1 else np.pad(components, ((0, 0), (0, 1)))
    if method == "umap":
        xy = _umap(components.astype(np.float32), num_neighbors, seed)
    return Plane(xy.astype(np.float32), method, count, float(shares.sum()), float(shares[:2].sum()))


def _umap(points: NDArray[np.float32], num_neighbors: int, seed: int) -> NDArray[np.float32]:
    # Exact neighbors of our own: for so few points umap-learn calls a Python function for every pair.
    ids_NK, distances_NK = nearest(torch.from_numpy(points), num_neighbors - 1)
    own_N1 = np.arange(len(points))[:, None]
    known = (
        np.concatenate([own_N1, ids_NK.numpy()], axis=1).astype(np.int32),
        np.concatenate([np.zeros_like(own_N1, np.float32), distances_NK.numpy().astype(np.float32)], axis=1),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that new points can't be added, and that a seed means one thread
        from umap import UMAP

        reducer = UMAP(
            n_neighbors=num_neighbors,
            n_epochs=NUM_EPOCHS,
            min_dist=MIN_DIST,
            random_state=seed,
            n_jobs=1,
            precomputed_knn=known,
            force_approximation_algorithm=True,
        )
        threads = torch.get_num_threads()
        try:
            return np.asarray(reducer.fit_transform(points))
        finally:
            torch.set_num_threads(threads)  # numba sets OpenMP's number of threads, which is torch's too


def trust(points: NDArray[np.floating], xy: NDArray[np.floating], num_neighbors: int) -> float:
    """Trustworthiness: 1 if all neighbors on the plane are neighbors among the points, less the further they are not.

    Venna and Kaski 2001, "Neighborhood preservation in nonlinear projection methods"; as scikit-learn computes it. NaN
    where there are not more than twice as many points as neighbors.
    """
    from sklearn.manifold import trustworthiness

    if 2 * num_neighbors >= len(points):
        return float("nan")
    return float(trustworthiness(np.asarray(points, np.float32), xy, n_neighbors=num_neighbors))
