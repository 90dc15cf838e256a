"""Margins by the expert selected, and the sample of tokens, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.measures.resampling import halves, sample_hashes
from moescope.statistics.margins import SelectionMargins
from moescope.statistics.samples.tokens import TokenSample
from tests.records import random_batch, random_routings


@pytest.mark.parametrize(("scoring", "corrected"), [("softmax", False), ("sigmoid", False), ("sigmoid", True)])
def test_margins_against_a_plain_loop(scoring, corrected):
    tokens = random_batch(2, num_documents=10)
    (record,) = random_routings(tokens, 2, layers=[1], num_experts_per_token=3, scoring=scoring, corrected=corrected)
    statistic = SelectionMargins(layers=[1], num_experts=8)
    statistic.update(record)
    table = statistic.compute().sel(layer=1)
    logits = record.logits_TE.double().numpy()
    scores = np.exp(logits) if scoring == "softmax" else 1 / (1 + np.exp(-logits))
    p = scores / scores.sum(axis=1, keepdims=True)
    by = p if scoring == "softmax" else scores
    if corrected:
        by = record.selection_values_TE.double().numpy()
    ids, weights = record.expert_ids_TK.numpy(), record.weights_TK.double().numpy()
    for expert in range(8):
        rows = []
        for t in range(len(p)):
            if expert not in ids[t]:
                continue
            out = max(by[t, e] for e in range(8) if e not in ids[t])
            top = np.sort(p[t])[::-1]
            rank = ids[t].tolist().index(expert)
            rows.append(
                (
                    weights[t, rank],
                    p[t, expert],
                    top[0] - top[1],
                    by[t, ids[t]].min() - out,
                    by[t, expert] - out,
                    rank == 0,
                )
            )
        means = np.mean(rows, axis=0)
        names = ["weight", "probability", "margin", "boundary_margin", "margin_mean"]
        for name, mean in zip(names, means, strict=False):
            assert float(table[f"selection_{name}"][expert]) == pytest.approx(mean, abs=1e-6), name
        assert float(table["first_rank_share"][expert]) == pytest.approx(means[-1])
        assert int(table["num_selected"][expert]) == len(rows)


def test_an_expert_that_is_never_selected_has_no_margin():
    tokens = random_batch(2, num_documents=3)
    (record,) = random_routings(tokens, 2, layers=[1])
    statistic = SelectionMargins(layers=[1], num_experts=9)
    statistic.update(record)
    table = statistic.compute().sel(layer=1)
    assert int(table["num_selected"][8]) == 0
    for name in ("selection_weight", "selection_margin_mean", "selection_boundary_margin", "first_rank_share"):
        assert np.isnan(table[name][8])
        assert np.isfinite(table[name][:8]).all()


def test_the_sample_of_tokens_is_that_of_the_smallest_hashes():
    batches = [random_batch(seed, num_documents=9) for seed in range(4)]
    statistic = TokenSample(layers=[1, 4, 5], num_experts_per_token=2, num_samples=60, seed=3)
    every = []
    for seed, tokens in enumerate(batches):
        records = random_routings(tokens, seed)
        for record in records:
            statistic.update(record)
        documents_T = tokens.document_hashes_B[tokens.rows_T]
        hashes_T = sample_hashes(documents_T, tokens.positions_T, seed=3)
        for t in range(tokens.num_tokens):
            every.append(
                (
                    int(hashes_T[t]),
                    int(tokens.token_ids_T[t]),
                    int(documents_T[t]),
                    int(tokens.domain_ids_T[t]),
                    records[1].expert_ids_TK[t].tolist(),
                )
            )
    chosen = sorted(every)[:60]
    sample = statistic.sample(4)
    assert sample.token_ids_N.tolist() == [row[1] for row in chosen]
    assert sample.document_hashes_N.tolist() == [row[2] for row in chosen]
    assert sample.domain_ids_N.tolist() == [row[3] for row in chosen]
    assert sample.expert_ids_NK.tolist() == [row[4] for row in chosen]
    assert np.array_equal(sample.halves_N, halves(sample.document_hashes_N, seed=3))
    assert np.array_equal(sample.token_ids_N, statistic.sample(1).token_ids_N)  # the same tokens at every layer
    assert sample.selected_NE(8).sum(axis=1).tolist() == [2] * 60
