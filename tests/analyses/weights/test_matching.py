"""Matching of hidden neurons, cosines, effective ranks: against plain formulas in float64."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moescope.analyses.weights.matching import JOINED, Neurons, cosines_of_rows, effective_rank
from moescope.models import load_model
from tests.families import build, save

E, F, M = 5, 4, 9
PAIRS = np.stack(np.triu_indices(E, 1), axis=1)


def neurons(
    *, gate: bool = True, sign_is_free: bool = False, seed: int = 0, shape: tuple[int, ...] = (E, F, M)
) -> Neurons:
    generator = torch.Generator().manual_seed(seed)
    names = ("gate", "up", "down") if gate else ("up", "down")
    return Neurons({name: torch.randn(shape, generator=generator) for name in names}, sign_is_free)


def double(given: Neurons) -> dict[str, np.ndarray]:
    return {name: part.double().numpy() for name, part in given.parts.items()}


@pytest.mark.parametrize(("gate", "sign_is_free"), [(True, False), (True, True), (False, False)])
def test_matched_is_the_best_of_all_orders_and_signs(gate: bool, sign_is_free: bool) -> None:
    given = neurons(gate=gate, sign_is_free=sign_is_free)
    parts = double(given)
    found = given.matched_cosines(PAIRS)
    for place, (i, j) in enumerate(PAIRS):
        whole_i = np.concatenate([part[i] for part in parts.values()], axis=1)
        best: tuple[float, dict[str, float]] = (-2.0, {})
        signs = itertools.product((1, -1), repeat=F) if sign_is_free else [(1,) * F]
        for order, flipped in itertools.product(itertools.permutations(range(F)), signs):
            turned = {name: part[j][list(order)].copy() for name, part in parts.items()}
            for name in ("up", "down"):
                turned[name] *= np.array(flipped)[:, None]
            whole_j = np.concatenate(list(turned.values()), axis=1)
            value = (whole_i * whole_j).sum() / np.linalg.norm(whole_i) / np.linalg.norm(whole_j)
            if value > best[0]:
                each = {
                    name: (part[i] * turned[name]).sum() / np.linalg.norm(part[i]) / np.linalg.norm(part[j])
                    for name, part in parts.items()
                }
                best = value, each
        assert found[JOINED][place] == pytest.approx(best[0], abs=1e-6)
        for name, value in best[1].items():
            assert found[name][place] == pytest.approx(value, abs=1e-6)


def test_cosines_as_stored_are_those_of_flat_vectors() -> None:
    given = neurons()
    parts = double(given)
    parts[JOINED] = np.concatenate(list(parts.values()), axis=2)
    for name, cosine_EE in given.cosines().items():
        flat = parts[name].reshape(E, -1)
        flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
        np.testing.assert_allclose(cosine_EE, flat @ flat.T, atol=1e-6)
        np.testing.assert_allclose(given.norms()[name], np.linalg.norm(parts[name].reshape(E, -1), axis=1), rtol=1e-6)
    rows = torch.randn(E, M, generator=torch.Generator().manual_seed(3))
    expected = torch.nn.functional.cosine_similarity(rows[:, None].double(), rows[None].double(), dim=-1)
    np.testing.assert_allclose(cosines_of_rows(rows), expected, atol=1e-6)


@pytest.mark.parametrize("sign_is_free", [False, True])
def test_permuting_an_experts_neurons_changes_nothing(sign_is_free: bool) -> None:
    given = neurons(sign_is_free=sign_is_free, shape=(4, 24, 10))
    pairs = np.stack(np.triu_indices(4, 1), axis=1)
    before = given.matched_cosines(pairs)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    signs = torch.where(torch.arange(24) % 3 == 0, -1.0, 1.0)[:, None] if sign_is_free else torch.ones(24, 1)
    turned = {name: part.clone() for name, part in given.parts.items()}
    for name, part in turned.items():
        part[2] = part[2][order] * (1 if name == "gate" else signs)
    after = Neurons(turned, sign_is_free).matched_cosines(pairs)
    for name in before:
        np.testing.assert_allclose(after[name], before[name], atol=1e-6)
    assert not torch.allclose(Neurons(turned, sign_is_free).cosines()["gate"], given.cosines()["gate"], atol=1e-2)


def test_a_copy_with_its_neurons_in_another_order_is_the_same_expert() -> None:
    given = neurons(shape=(2, 24, 10), sign_is_free=True)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    for name, part in given.parts.items():
        part[1] = part[0][order] * (1.0 if name == "gate" else -1.0)
    found = given.matched_cosines(np.array([[0, 1]]))
    assert all(value[0] == pytest.approx(1.0, abs=1e-6) for value in found.values())
    assert float(given.cosines()[JOINED][0, 1]) < 0.5


def test_pairs_in_any_order_and_none() -> None:
    given = neurons()
    forwards, shuffled = given.matched_cosines(PAIRS), np.random.default_rng(0).permutation(len(PAIRS))
    backwards = given.matched_cosines(PAIRS[shuffled])
    for name, values in forwards.items():
        np.testing.assert_allclose(backwards[name], values[shuffled], atol=1e-6)
        assert given.matched_cosines(PAIRS[:0])[name].shape == (0,)


@pytest.mark.parametrize("shape", [(3, 6, 20), (3, 20, 6)])
def test_spectra_are_singular_values(shape: tuple[int, ...]) -> None:
    given = neurons(shape=shape)
    given.parts["up"][0, 2:] = 0.0  # of rank 2
    for name, values_EC in given.spectra().items():
        expected = np.linalg.svd(double(given)[name], compute_uv=False)
        np.testing.assert_allclose(values_EC, expected, atol=1e-3 * expected.max())
        shares = expected**2 / (expected**2).sum(-1, keepdims=True)
        entropy = -np.where(shares > 1e-12, shares * np.log(np.maximum(shares, 1e-300)), 0).sum(-1)
        np.testing.assert_allclose(effective_rank(values_EC), np.exp(entropy), rtol=1e-4)


def test_effective_rank_of_what_is_known() -> None:
    assert effective_rank(np.array([2.0, 0, 0])) == pytest.approx(1)
    assert effective_rank(np.full(7, 0.3)) == pytest.approx(7)
    assert np.isnan(effective_rank(np.zeros(3)))


def test_random_directions_keep_their_norms_and_nothing_else() -> None:
    given = neurons(shape=(6, 16, 64))
    drawn = given.random_directions([4, 1], seed=3)
    for name, part in drawn.parts.items():
        own = given.parts[name][[4, 1]]
        torch.testing.assert_close(part.norm(dim=-1), own.norm(dim=-1))
        assert torch.nn.functional.cosine_similarity(part, own, dim=-1).abs().mean() < 0.2
    again = given.random_directions([4, 1], seed=3)
    assert all(torch.equal(part, again.parts[name]) for name, part in drawn.parts.items())


@torch.no_grad()
@pytest.mark.parametrize("family", ["olmoe", "gpt_oss"])
def test_matched_experts_of_a_model(family: str, tmp_path: Path) -> None:
    """An expert overwritten with another one's neurons in another order computes the same, and matching sees it."""
    model = load_model(str(save(build(family), tmp_path)), device="cpu")
    layer = model.layers[0]
    weights = model.expert_weights(layer)
    order = torch.randperm(model.expert_width, generator=torch.Generator().manual_seed(5))

    def renumber(tensor: Tensor | None, dim: int) -> None:
        if tensor is not None:
            tensor[3] = tensor[1].index_select(dim, order)

    for tensor, dim in (
        (weights.gate_EFM, 0),
        (weights.up_EFM, 0),
        (weights.down_EMF, 1),
        (weights.gate_bias_EF, 0),
        (weights.up_bias_EF, 0),
    ):
        renumber(tensor, dim)
    if weights.down_bias_EM is not None:
        weights.down_bias_EM[3] = weights.down_bias_EM[1]
    inputs = torch.randn(10, model.model_width, generator=torch.Generator().manual_seed(6))
    outputs = model.expert_outputs(layer, inputs, [1, 3])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    found = Neurons.of(model.expert_weights(layer)).matched_cosines(np.array([[1, 3], [1, 2]]))
    assert found[JOINED][0] == pytest.approx(1.0, abs=1e-5)
    assert found[JOINED][1] < 0.9
