"""The sample against sorting all hashes at once; shared tokens against a loop over tokens."""

from __future__ import annotations

import numpy as np
import torch

from moescope.measures.resampling import sample_hashes
from moescope.statistics.samples.inputs import LayerInputs
from moescope.statistics.shared_tokens import SharedTokens
from tests.records import random_batch, random_outputs, random_routings

LAYERS = [1, 4]


def test_the_sample_is_the_tokens_of_smallest_hash_in_order() -> None:
    statistic = LayerInputs(layers=LAYERS, model_width=5, num_samples=30, seed=3)
    hashes, inputs, documents, domains = [], [], [], []
    for seed in range(3):
        tokens = random_batch(seed, shuffle=True)
        routings = random_routings(tokens, seed, layers=LAYERS, inputs_width=5)
        for routing in routings:
            statistic.update(routing)
        documents_T = tokens.document_hashes_B[tokens.rows_T]
        hashes.append(sample_hashes(documents_T, tokens.positions_T, seed=3))
        inputs.append(routings[1].inputs_TM)
        documents.append(documents_T)
        domains.append(tokens.domain_ids_T)
    order = torch.cat(hashes).argsort()[:30]
    sample = statistic.sample(4)
    assert torch.equal(sample.inputs_NM, torch.cat(inputs)[order])
    assert torch.equal(sample.document_hashes_N, torch.cat(documents)[order])
    assert torch.equal(sample.domain_ids_N, torch.cat(domains)[order])
    assert sample.num_documents == len(set(sample.document_hashes_N.tolist()))
    table = statistic.compute()
    assert table.num_tokens.values.tolist() == [sum(len(part) for part in hashes)] * 2
    assert table.num_samples.values.tolist() == [30, 30]


def test_a_short_corpus_is_kept_whole() -> None:
    statistic = LayerInputs(layers=[1], model_width=5, num_samples=500, dtype="bfloat16")
    tokens = random_batch(0)
    statistic.update(random_routings(tokens, 0, layers=[1], inputs_width=5)[0])
    sample = statistic.sample(1)
    assert sample.inputs_NM.shape == (tokens.num_tokens, 5) and sample.inputs_NM.dtype == torch.bfloat16
    assert statistic.empty().sample(1).inputs_NM.shape == (0, 5)


def test_shared_tokens_are_compared_token_by_token() -> None:
    statistic = SharedTokens(layers=[1], num_experts=8, num_experts_per_token=3, num_groups=4)
    sums, counts, norms, selected = np.zeros((8, 8)), np.zeros((8, 8)), np.zeros(8), np.zeros(8)
    for seed in range(3):
        tokens = random_batch(seed)
        routing = random_routings(tokens, seed, layers=[1], num_experts_per_token=3)[0]
        outputs = random_outputs(routing, seed)
        statistic.update(outputs)
        found: list[dict[int, np.ndarray]] = [{} for _ in range(tokens.num_tokens)]
        for expert in range(8):
            rows_nM, token_rows_n, _ = outputs.of(expert)
            for row, token in zip(rows_nM.double().numpy(), token_rows_n.tolist(), strict=True):
                found[token][expert] = row
        for by_expert in found:
            for i, a in by_expert.items():
                norms[i] += np.linalg.norm(a)
                selected[i] += 1
                for j, b in by_expert.items():
                    sums[i, j] += a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                    counts[i, j] += 1
    table = statistic.compute().isel(layer=0)
    assert np.array_equal(table.num_shared, counts) and np.array_equal(table.num_selected, selected)
    known = counts > 0
    np.testing.assert_allclose(table.cosine.values[known], (sums[known] / counts[known]), atol=1e-6)
    assert np.isnan(table.cosine.values[~known]).all()
    np.testing.assert_allclose(table.output_norm, norms / selected, rtol=1e-6)
    low, high = table.cosine_ci_low.values, table.cosine_ci_high.values
    inside = np.isfinite(low) & ~np.eye(8, dtype=bool)
    assert inside.any() and (low[inside] < table.cosine.values[inside]).all()
    assert (table.cosine.values[inside] < high[inside]).all()


def test_a_pair_that_no_token_shares_is_a_gap() -> None:
    statistic = SharedTokens(layers=[1], num_experts=12, num_experts_per_token=2)
    tokens = random_batch(0, lengths=[5, 4])
    statistic.update(random_outputs(random_routings(tokens, 0, layers=[1], num_experts=12)[0]))
    table = statistic.compute().isel(layer=0)
    unused = table.num_selected.values == 0
    assert unused.any() and np.isnan(table.output_norm.values[unused]).all()
    assert np.array_equal(np.isnan(table.cosine.values), table.num_shared.values == 0)
