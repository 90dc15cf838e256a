"""Token usage against plain loops, published counts, and simulation."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from moescope.errors import UsageError
from moescope.measures.independence import expected_chosen_share, expected_maximum_share, expected_minimum_sum
from moescope.measures.resampling import halves
from moescope.statistics.tokens import TokenUsage
from tests.golden import golden
from tests.records import VOCAB_SIZE, random_batch, random_routings

LAYERS = [1, 4, 5]
SIZES = {"layers": LAYERS, "num_experts": 8, "num_experts_per_token": 2, "vocab_size": VOCAB_SIZE}
BATCHES = [random_batch(seed, num_documents=9) for seed in range(3)]
ROUTINGS = [random_routings(tokens, seed) for seed, tokens in enumerate(BATCHES)]
READINGS = {"input": "token_ids_T", "predicted": "predicted_token_ids_T", "next": "next_token_ids_T"}


def counted(**changes) -> TokenUsage:
    statistic = TokenUsage(**{**SIZES, "min_count": 3, **changes})
    for routings in ROUTINGS:
        for routing in routings:
            statistic.update(routing)
    return statistic


def plain_counts(layer: int, reading: str, num_ranks: int) -> tuple[Counter, Counter]:
    """N_x and N_xe of one layer, counted one token at a time."""
    types, cells = Counter(), Counter()
    for routings in ROUTINGS:
        routing = next(routing for routing in routings if routing.layer == layer)
        for x, experts in zip(
            getattr(routing.tokens, READINGS[reading]).tolist(), routing.expert_ids_TK.tolist(), strict=True
        ):
            if x == -1:
                continue
            types[x] += 1
            for expert in experts[:num_ranks]:
                cells[x, expert] += 1
    return types, cells


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("ranks", ["all", "first"])
def test_vocabulary_specialization_is_that_of_a_plain_loop(reading: str, ranks: str) -> None:
    table = counted(reading=reading, ranks=ranks).compute()
    for layer in LAYERS:
        types, cells = plain_counts(layer, reading, 2 if ranks == "all" else 1)
        shares = [
            max(cells[x, expert] for expert in range(8)) / count for x, count in sorted(types.items()) if count >= 3
        ]
        at = table.sel(layer=layer)
        assert float(at.vocabulary_specialization) == pytest.approx(np.mean(shares), rel=1e-12)
        assert int(at.num_types) == len(shares)
        assert int(at.num_types_seen) == len(types)
        assert int(at.num_tokens) == sum(types.values())


def test_only_the_predicted_reading_needs_predictions() -> None:
    assert TokenUsage(**SIZES, reading="predicted").needs_predictions
    assert not TokenUsage(**SIZES, reading="input").needs_predictions
    assert not TokenUsage(**SIZES, reading="next").needs_predictions
    tokens = random_batch(0, predictions=False)
    with pytest.raises(RuntimeError, match="after the forward pass"):
        TokenUsage(**SIZES, reading="predicted").update(random_routings(tokens)[0])


def test_top_tokens_are_those_of_a_plain_sort() -> None:
    top = counted().top_tokens(4)
    for layer in LAYERS:
        types, cells = plain_counts(layer, "input", 2)
        total = sum(types.values())
        for expert in range(8):
            load = sum(count for (_, e), count in cells.items() if e == expert) / total
            mine = [(x, cells[x, expert], n) for x, n in types.items() if cells[x, expert]]
            by_lift = sorted((-(k / n), -n, x) for x, k, n in mine if n >= 3)[:4]
            by_count = sorted((-k, -n, x) for x, k, n in mine)[:4]
            for order, expected in (("lift", by_lift), ("count", by_count)):
                at = top.sel(layer=layer, expert=expert, order=order)
                ids = at.token_id.values.tolist()
                assert ids == [row[2] for row in expected] + [-1] * (4 - len(expected))
                for place, x in enumerate(ids[: len(expected)]):
                    assert int(at.num_selected[place]) == cells[x, expert]
                    assert int(at.num_occurrences[place]) == types[x]
                    assert float(at.lift[place]) == pytest.approx(cells[x, expert] / types[x] / load)


def test_vocabulary_overlap_is_that_of_a_plain_loop() -> None:
    overlap = counted().vocabulary_overlap()
    for layer in LAYERS:
        types, cells = plain_counts(layer, "input", 2)
        for i in range(8):
            for j in range(8):
                smaller = sum(min(cells[x, i], cells[x, j]) for x in types)
                larger = sum(max(cells[x, i], cells[x, j]) for x in types)
                value = float(overlap.weighted_jaccard.sel(layer=layer, expert=i, other_expert=j))
                assert value == pytest.approx(smaller / larger)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.integers(1, 400))
def test_weighted_jaccard_is_symmetric_and_within_0_and_1(seed: int, num_experts: int, num_rows: int) -> None:
    generator = np.random.default_rng(seed)
    rows = np.stack(
        [
            np.zeros(num_rows, int),
            generator.integers(0, num_experts, num_rows),
            generator.integers(0, 30, num_rows),
            generator.geometric(0.2, num_rows),
        ],
        axis=1,
    )
    usage = TokenUsage.from_counts(rows, num_experts_per_token=1, layers=[0], num_experts=num_experts)
    overlap = usage.vocabulary_overlap()
    used = np.isin(np.arange(num_experts), rows[:, 1])
    for values in (overlap.weighted_jaccard.values[0], overlap.weighted_jaccard_chance.values[0]):
        np.testing.assert_allclose(values, values.T)
        assert np.allclose(np.diag(values)[used], 1.0)
        assert np.isnan(np.diag(values)[~used]).all()
        inside = values[np.ix_(used, used)]
        assert (inside >= 0).all()
        assert (inside <= 1 + 1e-12).all()


def test_expected_maximum_is_the_product_of_binomials() -> None:
    frequencies_LE = np.random.default_rng(0).dirichlet(np.ones(64) * 2, size=3) * 8
    frequencies_LE[2, 5], frequencies_LE[2, 6] = 0.0, 1.0
    trials = np.array([1, 2, 10, 57, 400, 9000])
    found_LU = expected_maximum_share(trials, np.minimum(frequencies_LE, 1.0))
    for layer, frequencies in enumerate(np.minimum(frequencies_LE, 1.0)):
        for column, n in enumerate(trials):
            below = stats.binom.cdf(np.arange(n)[:, None], n, frequencies).prod(axis=1)
            below[: int(np.ceil(n * frequencies.sum() / 64)) - 1] = 0.0
            assert found_LU[layer, column] == pytest.approx((1 - below).sum() / n, abs=2e-4 if n < 3 else 1e-9)


def test_expected_maximum_of_the_glossary() -> None:
    """At N_x = 10, E = 64, K = 8, all experts alike, it is 0.41, not 0.125."""
    assert round(expected_maximum_share(np.array([10]), np.full((1, 64), 0.125))[0, 0], 2) == 0.41


@pytest.mark.parametrize("num_ranks", [1, 8])
@pytest.mark.parametrize("even", [True, False])
def test_expected_maximum_agrees_with_drawing_distinct_experts(num_ranks: int, even: bool) -> None:
    generator = np.random.default_rng(1)
    log_odds = np.zeros(64) if even else generator.normal(size=64)

    def draw(count: int) -> np.ndarray:
        keys = log_odds + generator.gumbel(size=(count, 64))
        chosen = np.argpartition(-keys, num_ranks - 1, axis=1)[:, :num_ranks]
        selected = np.zeros((count, 64))
        np.put_along_axis(selected, chosen, 1.0, axis=1)
        return selected

    frequencies = draw(40_000).mean(axis=0)[None]
    for n in (10, 40):
        maxima = [draw(n).sum(axis=0).max() / n for _ in range(2000)]
        found = expected_maximum_share(np.array([n]), frequencies)[0, 0]
        assert found == pytest.approx(np.mean(maxima), abs=0.012)


def test_expected_minimum_sum_is_exact() -> None:
    frequencies = np.array([0.0, 0.02, 0.3, 0.3, 0.9, 1.0])
    trials, num_types = np.array([1, 3, 40, 700]), np.array([7, 2, 3, 1])
    found = expected_minimum_sum(trials, num_types, frequencies)
    for i in range(6):
        for j in range(6):
            if i == j:
                expected = (trials * num_types).sum() * frequencies[i]
            else:
                expected = sum(
                    c
                    * (
                        stats.binom.sf(np.arange(n), n, frequencies[i])
                        * stats.binom.sf(np.arange(n), n, frequencies[j])
                    ).sum()
                    for n, c in zip(trials, num_types, strict=True)
                )
            assert found[i, j] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_expected_choice_is_that_of_drawing() -> None:
    frequencies_E = np.array([0.9, 0.5, 0.5, 0.1, 0.0])
    generator = np.random.default_rng(0)
    trials = np.array([1, 4, 30])
    for n, found in zip(trials, expected_chosen_share(trials, frequencies_E), strict=True):
        largest = generator.binomial(n, frequencies_E, (200_000, 5)).argmax(axis=1)  # ties: the lower id
        assert found == pytest.approx(frequencies_E[largest].mean(), abs=3e-3)
    assert expected_chosen_share(np.array([100_000]), frequencies_E)[0] == pytest.approx(0.9)


def held_out_of(batch, records, seed: int = 0, min_count: int = 3) -> tuple:
    """`held_out` of one layer, and the same by plain loops."""
    sizes = {"layers": [4], "num_experts": 8, "num_experts_per_token": 2, "vocab_size": VOCAB_SIZE}
    every = TokenUsage(**sizes, min_count=min_count, seed=seed)
    selection = TokenUsage(**sizes, min_count=min_count, seed=seed, half=0)
    for record in records:
        every.update(record)
        selection.update(record)
    counts_HVE, types_HV = np.zeros((2, VOCAB_SIZE, 8)), np.zeros((2, VOCAB_SIZE))
    half_B = halves(batch.document_hashes_B.numpy(), seed=seed)
    for token, row in enumerate(batch.rows_T.tolist()):
        type_id = int(batch.token_ids_T[token])
        types_HV[half_B[row], type_id] += 1
        counts_HVE[half_B[row], type_id, records[0].expert_ids_TK[token].numpy()] += 1
    shares = [
        counts_HVE[1, x, counts_HVE[0, x].argmax()] / types_HV[1, x]
        for x in range(VOCAB_SIZE)
        if (types_HV[:, x] >= min_count).all()
    ]
    return every.held_out(selection).isel(layer=0), shares


def test_held_out_specialization_is_that_of_a_plain_loop() -> None:
    batch = random_batch(3, num_documents=30)
    found, shares = held_out_of(batch, random_routings(batch, 3, layers=[4]))
    assert float(found["evaluation_half_vocabulary_specialization"]) == pytest.approx(np.mean(shares))
    assert int(found["evaluation_half_num_types"]) == len(shares) > 10


def test_held_out_a_router_that_ignores_its_input_shows_what_independence_predicts() -> None:
    batch = random_batch(4, num_documents=300)
    (record,) = random_routings(batch, 4, layers=[4])
    values = []
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        ids_TK = torch.multinomial(torch.arange(1.0, 9.0).expand(batch.num_tokens, 8), 2, generator=generator)
        found, _ = held_out_of(batch, [dataclasses.replace(record, expert_ids_TK=ids_TK)], min_count=10)
        values.append([float(found[f"evaluation_half_vocabulary_specialization{end}"]) for end in ("", "_chance")])
    # Experts of a token exclude each other, which the expectation leaves out.
    assert np.mean(values, axis=0)[0] == pytest.approx(np.mean(values, axis=0)[1], abs=0.02)
    nothing = counted().held_out(None)
    assert np.isnan(nothing["evaluation_half_vocabulary_specialization"]).all()
    assert (nothing["evaluation_half_num_types"] == 0).all()


def test_a_router_that_ignores_its_input_shows_what_independence_predicts() -> None:
    """Real draws of K distinct experts, types with a long tail: measured values equal the independent ones."""
    generator = np.random.default_rng(2)
    num_tokens = 60_000
    types = np.minimum(generator.zipf(1.3, num_tokens) - 1, 2999)
    keys = generator.normal(scale=0.7, size=32) + generator.gumbel(size=(num_tokens, 32))
    experts = np.argpartition(-keys, 3, axis=1)[:, :4]
    rows = np.stack(
        [np.zeros(num_tokens * 4, int), experts.ravel(), np.repeat(types, 4), np.ones(num_tokens * 4, int)], 1
    )
    usage = TokenUsage.from_counts(rows, num_experts_per_token=4, layers=[0], num_experts=32)
    table = usage.compute()
    assert int(table.num_types[0]) > 200
    assert float(table.vocabulary_specialization[0]) == pytest.approx(
        float(table.vocabulary_specialization_chance[0]), abs=0.008
    )
    overlap = usage.vocabulary_overlap()
    apart = ~np.eye(32, dtype=bool)
    difference = (overlap.weighted_jaccard - overlap.weighted_jaccard_chance).values[0][apart]
    assert abs(difference.mean()) < 0.003
    assert np.abs(difference).max() < 0.05  # rare experts: noise of one draw


@pytest.mark.parametrize("domain", ["arxiv", "book"])
def test_published_token_counts(domain: str) -> None:
    """Counts of the real OLMoE: every layer's value equals that of a table of the rows."""
    rows = golden()[f"token_counts_{domain}"]
    frame = pd.DataFrame(rows, columns=["position", "expert", "token", "count"])
    layers = golden()["layers"].tolist()
    for min_count in (1, 10):
        usage = TokenUsage.from_counts(
            rows, num_experts_per_token=8, layers=layers, num_experts=64, min_count=min_count
        )
        table = usage.compute()
        for position, layer in enumerate(layers):
            by_type = frame[frame.position == position].groupby("token")["count"].agg(["max", "sum"])
            by_type = by_type[by_type["sum"] / 8 >= min_count]
            shares = by_type["max"] / (by_type["sum"] / 8)
            at = table.sel(layer=layer)
            assert float(at.vocabulary_specialization) == pytest.approx(np.mean(shares), rel=1e-12)
            assert int(at.num_types) == len(shares)
            assert int(at.num_tokens) == 208_896
            assert at.vocabulary_specialization > at.vocabulary_specialization_chance


def test_known_counts_by_hand() -> None:
    """Token 7 goes to experts 0, 1 twice and 0, 2 once; token 9 once to 2, 3."""
    rows = [[0, 0, 7, 1], [0, 0, 7, 2], [0, 1, 7, 2], [0, 2, 7, 1], [0, 2, 9, 1], [0, 3, 9, 1]]
    usage = TokenUsage.from_counts(
        np.array(rows), num_experts_per_token=2, layers=[3], num_experts=4, min_count=1, vocab_size=12
    )
    table = usage.compute()
    assert float(table.vocabulary_specialization.sel(layer=3)) == 1.0
    assert int(table.num_types[0]) == 2
    assert usage.state["counts_LVE"].shape == (1, 12, 4)
    few = TokenUsage.from_counts(np.array(rows), num_experts_per_token=2, layers=[3], num_experts=4, min_count=4)
    assert np.isnan(few.compute().vocabulary_specialization.values[0])
    assert int(few.compute().num_types[0]) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([3, 0, 0, 1], "layer position 3"),
        ([0, 8, 0, 1], "expert 8"),
        ([0, 0, 50, 1], "token id 50"),
        ([0, 0, 0, -1], "count -1"),
    ],
)
def test_rows_out_of_range_are_refused(row: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TokenUsage.from_counts(
            np.array([[0, 0, 0, 1], row]), num_experts_per_token=2, layers=LAYERS, num_experts=8, vocab_size=50
        )


def test_rows_of_another_shape_and_unknown_readings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"shape \(2, 3\)"):
        TokenUsage.from_counts(np.zeros((2, 3)), num_experts_per_token=2, layers=[0], num_experts=8)
    with pytest.raises(UsageError, match="output"):
        TokenUsage(**SIZES, reading="output")


def test_a_token_beyond_the_vocabulary_is_an_error_not_another_layers_count() -> None:
    statistic = TokenUsage(**{**SIZES, "vocab_size": 5})
    with pytest.raises((IndexError, RuntimeError)):
        statistic.update(ROUTINGS[0][0])
    assert not torch.any(statistic.state["counts_LVE"][1:])


def listed(max_cells: int, reading: str = "input", **changes) -> TokenUsage:
    return counted(reading=reading, max_cells=max_cells, **changes)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("ranks", ["all", "first"])
def test_a_list_of_cells_gives_the_bits_of_the_table(reading: str, ranks: str) -> None:
    """Where all cells fit, down to room for exactly as many as there are."""
    table = counted(reading=reading, ranks=ranks)
    num_cells = int((table.state["counts_LVE"] > 0).sum((1, 2)).max())
    for max_cells in (num_cells, num_cells + 1, 10**5):
        cells = listed(max_cells, reading, ranks=ranks)
        assert not cells.pooled_share()
        xr.testing.assert_identical(cells.compute(), table.compute())
        xr.testing.assert_identical(cells.top_tokens(6), table.top_tokens(6))
        xr.testing.assert_identical(cells.vocabulary_overlap(), table.vocabulary_overlap())
    assert listed(num_cells - 1, reading, ranks=ranks).pooled_share() > 0


@pytest.mark.parametrize("max_cells", [1, 7, 40, 90, 150])
def test_what_does_not_fit_are_the_types_of_the_largest_ids(max_cells: int) -> None:
    """Against a plain loop: the longest run of the smallest ids whose cells fit is counted singly, the rest pooled."""
    usage = listed(max_cells)
    top, table = usage.top_tokens(3), usage.compute()
    for position, layer in enumerate(LAYERS):
        types, cells = plain_counts(layer, "input", 2)
        single, used = [], 0
        for x in sorted(types):
            num = sum(cells[x, expert] > 0 for expert in range(8))
            if used + num > max_cells:
                break
            single.append(x)
            used += num
        ids, counts, totals, pooled = usage._seen(position)
        assert ids.tolist() == single
        assert totals.tolist() == [types[x] for x in single]
        assert counts.tolist() == [[cells[x, expert] for expert in range(8)] for x in single]
        rest = [sum(cells[x, e] for x in types if x not in single) for e in range(8)]
        assert pooled.tolist() == rest
        at = table.sel(layer=layer)
        assert int(at.num_tokens) == sum(types.values())
        assert int(at.num_tokens_pooled) == sum(types.values()) - sum(types[x] for x in single)
        for expert in range(8):  # lift stands beside the load of all types
            load = sum(cells[x, expert] for x in types) / sum(types.values())
            for rank in range(3):
                found = top.sel(layer=layer, expert=expert, order="count").isel(rank=rank)
                if (x := int(found.token_id)) >= 0:
                    assert float(found.lift) == pytest.approx(cells[x, expert] / types[x] / load)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 5))
def test_cells_are_the_same_bits_however_the_counts_are_divided(seed: int, max_cells: int, num_parts: int) -> None:
    draw = np.random.default_rng(seed)
    rows = np.stack([draw.integers(0, high, 120) for high in (2, 4, 30, 9)], axis=1)
    sizes = {"layers": [0, 1], "num_experts": 4, "num_experts_per_token": 1, "vocab_size": 30, "max_cells": max_cells}

    def made(part: np.ndarray) -> TokenUsage:
        statistic = TokenUsage(**sizes)
        for some in np.array_split(part, draw.integers(1, 4)):
            statistic._add(
                torch.as_tensor((some[:, 0] * 30 + some[:, 2]) * 4 + some[:, 1]), torch.as_tensor(some[:, 3])
            )
        return statistic

    whole = made(rows)
    parts = [made(rows[draw.permutation(len(rows))][:0]), *map(made, np.array_split(draw.permutation(rows), num_parts))]
    merged = TokenUsage(**sizes)
    for index in draw.permutation(len(parts)):
        merged.merge(parts[index])
    for name, tensor in whole.state.items():
        assert torch.equal(tensor, merged.state[name]), name


def test_a_large_model_takes_what_is_allowed() -> None:
    """512 experts, 60 layers, a vocabulary of 200,000: a table of all cells takes 25 GB, the list 1 GiB."""
    sizes = {"layers": list(range(60)), "num_experts": 512, "num_experts_per_token": 10, "vocab_size": 200_000}
    usage = TokenUsage(**sizes, device="meta")
    assert 0.99 * 2**30 < usage.nbytes() < 1.01 * 2**30
    # A token makes at most K cells: a sample of 200,000 always fits.
    assert usage.state["cell_keys_LC"].shape[1] >= 10 * 200_000
    assert TokenUsage(**(sizes | {"layers": [0, 1]}), device="meta").is_dense
