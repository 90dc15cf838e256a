from __future__ import annotations

import numpy as np
import torch

from moescope.measures.cosine import CosineSums


def plain(outputs: np.ndarray) -> np.ndarray:
    unit = outputs / np.linalg.norm(outputs, axis=-1, keepdims=True)
    return np.einsum("int,jnt->ij", unit, unit) / outputs.shape[1]


def test_mean_cosine_centered_and_without_each_group() -> None:
    outputs = np.random.default_rng(0).normal(size=(4, 50, 7)) + np.arange(4)[:, None, None]
    given = torch.from_numpy(outputs).float()
    bounds = [(0, 11), (11, 11), (11, 50)]
    for center in (None, given.mean(1, keepdim=True)):
        sums = CosineSums(4, 3)
        sums.add(given, bounds, center, at_a_time=9)
        whole, without = sums.finish()
        expected = outputs if center is None else outputs - outputs.mean(1, keepdims=True)
        np.testing.assert_allclose(whole, plain(expected), atol=1e-6)
        for group, (start, end) in enumerate(bounds):
            kept = np.delete(expected, np.arange(start, end), axis=1)
            np.testing.assert_allclose(without[group], plain(kept), atol=1e-6)


def test_an_output_of_zeros_has_no_direction() -> None:
    outputs = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(0))
    outputs[0] = 0.0
    outputs[1, :5] = 0.0
    sums = CosineSums(3)
    sums.add(outputs)
    whole, without = sums.finish()
    assert whole[0].isnan().all() and without.shape == (0, 3, 3)
    np.testing.assert_allclose(whole[1, 2], plain(outputs[:, 5:].double().numpy()[1:])[0, 1], atol=1e-6)
