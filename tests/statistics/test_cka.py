"""HSIC and CKA against float64 NumPy written from the formulas, with whole Gram matrices and explicit centering."""

from __future__ import annotations

import itertools
from pathlib import Path

import ckatorch
import numpy as np
import pytest
import torch
from scipy.stats import ortho_group

from moescope.measures import cka
from moescope.measures.cka import HSIC, MinibatchHSIC, hsic, minibatches
from moescope.measures.cka_exact import OutputsFile, exact_hsic
from moescope.measures.jackknife import interval

NUM_GROUPS = 6


def unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. 2012, equation 5, term by term."""
    n = len(x)
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    ones = np.ones(n)
    trace = np.trace(k @ m)
    middle = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (trace + middle - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    return unbiased_hsic(x, y) / np.sqrt(unbiased_hsic(x, x) * unbiased_hsic(y, y))


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Kornblith et al. 2019, on column-centered matrices."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def deconfounded_cka(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """Regresses one U-centered Gram matrix out of two others entry by entry, least squares; then their cosine."""
    n = len(x)

    def centered(values: np.ndarray) -> np.ndarray:
        k = values @ values.T
        np.fill_diagonal(k, 0)
        rows = k.sum(1) / (n - 2)
        k = k - rows[:, None] - rows[None, :] + k.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(k, 0)
        return k.ravel()

    a, b, c = centered(x), centered(y), centered(z)
    a, b = (v - c * np.linalg.lstsq(c[:, None], v, rcond=None)[0][0] for v in (a, b))
    return a @ b / np.sqrt((a @ a) * (b @ b))


def all_pairs(function, outputs: np.ndarray, *more: np.ndarray) -> np.ndarray:
    return np.array([[function(x, y, *more) for y in outputs] for x in outputs])


def related_outputs(num_tokens: int, seed: int = 0, *, num_variables: int = 5, width: int = 24) -> torch.Tensor:
    """Non-linear functions of one input with means far from zero and scales far apart; the input comes last."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(num_tokens, width)) * np.linspace(0.2, 3, width)
    outputs = [
        10.0 ** (index - 2) * (np.maximum(inputs @ generator.normal(size=(width, width)), 0) + 3 * index)
        for index in range(num_variables)
    ]
    return torch.from_numpy(np.stack([*outputs, inputs])).float()


def dealt(num_tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.sort(np.random.default_rng(seed).integers(0, NUM_GROUPS, num_tokens)))


WAYS = {
    "whole": hsic,
    "tiles": lambda *given: exact_hsic(*given, tile=17, slab=40),
    "one tile": exact_hsic,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_cka_is_what_the_formulas_say(way: str, dtype: torch.dtype) -> None:
    outputs = related_outputs(90).to(dtype)
    groups = dealt(90)
    result = WAYS[way](outputs, groups, NUM_GROUPS)
    stored = outputs.double().numpy()
    parts = [(np.arange(90) >= 0, 0)] + [(groups.numpy() != group, 1 + group) for group in range(NUM_GROUPS)]
    for kind, function in (("debiased", debiased_cka), ("linear", linear_cka)):
        ours = torch.cat([part.reshape(-1, 6, 6) for part in result.cka(biased=kind == "linear")]).numpy()
        for kept, index in parts:
            np.testing.assert_allclose(ours[index], all_pairs(function, stored[:, kept]), atol=1e-5, err_msg=kind)
    ours = torch.cat([part.reshape(-1, 5, 5) for part in result.cka(given_last=True)]).numpy()
    for kept, index in parts:
        given = stored[-1, kept]
        np.testing.assert_allclose(ours[index], all_pairs(deconfounded_cka, stored[:-1, kept], given), atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_without_groups_the_same_and_no_intervals(way: str) -> None:
    outputs = related_outputs(61)
    with_groups, without = WAYS[way](outputs, dealt(61), NUM_GROUPS), WAYS[way](outputs)
    torch.testing.assert_close(with_groups.unbiased_VV, without.unbiased_VV, rtol=1e-5, atol=0)
    assert without.unbiased_GVV.shape == (0, 6, 6)


@pytest.mark.parametrize("num_tokens", [64, 256, 1024])
def test_debiased_cka_of_independent_outputs_is_zero_where_the_biased_one_is_high(num_tokens: int) -> None:
    outputs = torch.randn(8, num_tokens, 2048, generator=torch.Generator().manual_seed(num_tokens))
    result = hsic(outputs)
    pairs = torch.triu_indices(8, 8, 1).unbind()
    debiased, biased = result.cka()[0][pairs], result.cka(biased=True)[0][pairs]
    assert abs(float(debiased.mean())) < 4 * float(debiased.std()) / len(debiased) ** 0.5
    # d / (d + n - 1) for independent Gaussian outputs of d columns, n tokens
    assert float(biased.mean()) == pytest.approx(2048 / (2048 + num_tokens - 1), abs=0.01)


def test_cka_with_itself_is_one_and_rotation_and_scale_change_nothing() -> None:
    outputs = related_outputs(120).double()
    rotated = 7.0 * outputs @ torch.from_numpy(ortho_group.rvs(24, random_state=0)) - 4.0
    for options in ({}, {"biased": True}):
        whole = hsic(outputs).cka(**options)[0]
        np.testing.assert_allclose(whole.diagonal(), 1.0, atol=1e-12)
        np.testing.assert_allclose(hsic(rotated).cka(**options)[0], whole, atol=1e-9)
        both = hsic(torch.cat([outputs, rotated])).cka(**options)[0]
        np.testing.assert_allclose(both[:6, 6:].diagonal(), 1.0, atol=1e-9)


def by_minibatches(outputs: torch.Tensor, groups: torch.Tensor, size: int) -> HSIC:
    average = MinibatchHSIC()
    for start, end in minibatches(outputs.shape[1], size):
        order = groups[start:end].argsort(stable=True)
        part, given = outputs[:, start:end][:, order], groups[start:end][order]
        average.add(hsic(part, given, NUM_GROUPS, average.scratch))
    return average.finish()


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_however_many_variables_are_worked_on_at_a_time(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, groups = related_outputs(90), dealt(90)
    expected = hsic(outputs.double(), groups, NUM_GROUPS)
    monkeypatch.setattr(cka, "_CHUNK_BYTES", 4 * 24 * 15 * chunk)
    for way in WAYS.values():
        result = way(outputs, groups, NUM_GROUPS)
        torch.testing.assert_close(result.unbiased_VV, expected.unbiased_VV, rtol=1e-4, atol=0)
        torch.testing.assert_close(result.unbiased_GVV, expected.unbiased_GVV, rtol=1e-4, atol=0)


def test_an_independent_package_finds_the_same() -> None:
    outputs = related_outputs(128)
    stored = outputs.double()
    for way in WAYS.values():
        result = way(outputs)
        for biased in (True, False):
            theirs = [[ckatorch.cka_base(x, y, unbiased=not biased) for y in stored] for x in stored]
            np.testing.assert_allclose(result.cka(biased=biased)[0], theirs, atol=1e-5)
    halves = stored.view(6, 2, 64, 24)
    theirs = [[ckatorch.cka_batch(x, y) for y in halves] for x in halves]
    ours = by_minibatches(outputs, torch.zeros(128, dtype=torch.int64), 64).cka()[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_minibatches_average_numerator_and_denominators_separately() -> None:
    outputs = related_outputs(100)
    groups = torch.from_numpy(np.random.default_rng(4).integers(0, NUM_GROUPS, 100))
    result = by_minibatches(outputs, groups, 25)
    stored = outputs.double().numpy()
    assert result.num_tokens == 100 and result.num_minibatches == 4
    for without in (None, 2):
        kept = np.ones(100, bool) if without is None else groups.numpy() != without
        parts = [stored[:, start:end][:, kept[start:end]] for start, end in minibatches(100, 25)]
        mean = np.mean([all_pairs(unbiased_hsic, part) for part in parts], axis=0)
        ours = result.cka()[0] if without is None else result.cka()[1][without]
        np.testing.assert_allclose(ours, mean / np.sqrt(np.outer(mean.diagonal(), mean.diagonal())), atol=1e-5)


def test_minibatches_and_exact_agree_within_their_intervals() -> None:
    outputs = related_outputs(1200, 3)
    groups = torch.from_numpy(np.random.default_rng(4).integers(0, NUM_GROUPS, 1200))
    order = groups.argsort(stable=True)
    exact, batched = exact_hsic(outputs[:, order], groups[order], NUM_GROUPS), by_minibatches(outputs, groups, 150)
    pairs = torch.triu_indices(5, 5, 1).unbind()
    (low, high), (other_low, other_high) = (interval(*result.cka()) for result in (exact, batched))
    assert (low <= other_high)[pairs].all() and (other_low <= high)[pairs].all()
    assert (high - low)[pairs].max() < 0.2
    assert (exact.cka()[0] - batched.cka()[0]).abs().max() < 0.02


def test_minibatches_are_of_nearly_equal_size_and_leave_nothing_out() -> None:
    for num_tokens, sizes in ((4, [4]), (256, [256]), (383, [383]), (500, [250, 250]), (770, [256, 257, 257])):
        parts = minibatches(num_tokens)
        assert [end - start for start, end in parts] == sizes
        assert parts[0][0] == 0 and parts[-1][1] == num_tokens
        assert all(left[1] == right[0] for left, right in itertools.pairwise(parts))


def test_what_does_not_vary_is_a_gap_and_too_little_is_an_error() -> None:
    outputs = related_outputs(30)
    outputs[1] = 0.0
    whole = hsic(outputs).cka()[0]
    assert whole[1].isnan().all() and whole[:, 1].isnan().all()
    assert whole[torch.arange(6) != 1][:, torch.arange(6) != 1].isfinite().all()
    outputs[2] = 2 * outputs[-1]
    given = hsic(outputs).cka(given_last=True)[0]
    assert given[2].isnan().all() and given[3, 4].isfinite()
    for way in WAYS.values():
        assert way(related_outputs(4)).cka()[0].isfinite().all()
        with pytest.raises(ValueError, match="3 tokens"):
            way(related_outputs(3))
        with pytest.raises(ValueError, match="ascending"):
            way(related_outputs(5), torch.tensor([0, 1, 0, 1, 0]), 2)


def test_outputs_in_a_file_are_those_that_were_written(tmp_path: Path) -> None:
    outputs = related_outputs(80) * 1e5
    with OutputsFile(6, 80, 24, tmp_path) as file:
        for start in range(0, 80, 33):
            file.write(start, outputs[:, start : start + 33])
        assert len(list(tmp_path.iterdir())) == 1
        stored = file.outputs_VNM.float()
        scale = outputs.norm(dim=(1, 2)) / stored.norm(dim=(1, 2))
        torch.testing.assert_close(stored * scale.view(-1, 1, 1), outputs, rtol=2e-3, atol=1e2)
        ours = exact_hsic(file.outputs_VNM, tile=16, slab=32).cka()[0]
        np.testing.assert_allclose(ours, all_pairs(debiased_cka, stored.double().numpy()), atol=1e-5)
        np.testing.assert_allclose(ours, hsic(outputs).cka()[0], atol=1e-3)
        with pytest.raises(OverflowError, match="variable 2"):
            beyond = outputs[:, :1].clone()
            beyond[2] *= 1e7
            file.write(0, beyond)
    assert not list(tmp_path.iterdir())


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 3)))
    without = (values.sum(0) - values) / 19
    low, high = interval(values.mean(0), without)
    reach = 2.093024 * values.std(0) / 20**0.5  # Student's t with 19 degrees of freedom
    torch.testing.assert_close(high - values.mean(0), reach, rtol=1e-6, atol=0)
    torch.testing.assert_close(values.mean(0) - low, reach, rtol=1e-6, atol=0)


def test_jackknife_leaves_out_what_holds_nothing() -> None:
    values = torch.tensor([[1.0], [2.0], [4.0]])
    without = (values.sum(0) - values) / 2
    padded = torch.cat([without, values.mean(0, keepdim=True)])
    expected = interval(values.mean(0), without)
    assert interval(values.mean(0), padded, torch.tensor([True, True, True, False])) == expected
    low, high = interval(values.mean(0), padded, torch.tensor([True, False, False, False]))
    assert low.isnan() and high.isnan()
