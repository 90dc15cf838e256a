"""The sample of each expert's outputs against sorting all hashes of its tokens at once."""

from __future__ import annotations

import torch

from moescope.measures.resampling import sample_hashes
from moescope.statistics.samples.outputs import OutputSample
from tests.records import random_batch, random_outputs, random_routings

SAMPLES = 9


def test_the_sample_is_each_experts_outputs_of_smallest_hash_in_order() -> None:
    statistic = OutputSample(layers=[1, 4], num_experts=8, model_width=6, num_samples=SAMPLES, seed=3)
    seen: dict[int, list[tuple[int, int, int, int, int, torch.Tensor]]] = {expert: [] for expert in range(8)}
    for seed in range(4):
        tokens = random_batch(seed, shuffle=True)
        hashes_T = sample_hashes(tokens.document_hashes_B[tokens.rows_T], tokens.positions_T, seed=3)
        for routing in random_routings(tokens, seed, layers=[1, 4]):
            outputs = random_outputs(routing, seed)
            statistic.update(outputs)
            if routing.layer != 4:
                continue
            for expert in range(8):
                for row, t in zip(*outputs.of(expert)[:2], strict=True):
                    document = int(tokens.document_hashes_B[tokens.rows_T[t]])
                    facts = (
                        document,
                        int(tokens.domain_ids_T[t]),
                        int(tokens.positions_T[t]),
                        int(tokens.token_ids_T[t]),
                    )
                    seen[expert].append((int(hashes_T[t]), *facts, row))
    sample = statistic.sample(4)
    expected = [
        (expert, *kept) for expert in range(8) for kept in sorted(seen[expert], key=lambda kept: kept[0])[:SAMPLES]
    ]
    assert len(expected) == 8 * SAMPLES < sum(len(kept) for kept in seen.values())
    found = zip(
        sample.expert_ids_N.tolist(),
        sample.document_hashes_N.tolist(),
        sample.domain_ids_N.tolist(),
        sample.positions_N.tolist(),
        sample.token_ids_N.tolist(),
        strict=True,
    )
    assert list(found) == [(expert, *facts) for expert, _, *facts, _ in expected]
    assert torch.equal(sample.outputs_NM, torch.stack([kept[-1] for kept in expected]))
    assert sample.num_documents == len(set(sample.document_hashes_N.tolist()))
    table = statistic.compute().sel(layer=4)
    assert table.num_selected.values.tolist() == [len(kept) for kept in seen.values()]
    assert table.num_samples.values.tolist() == [SAMPLES] * 8


def test_experts_that_saw_few_tokens_or_none_have_fewer() -> None:
    statistic = OutputSample(layers=[1], num_experts=12, model_width=6, num_samples=50, dtype="bfloat16")
    assert statistic.sample(1).outputs_NM.shape == (0, 6)
    tokens = random_batch(0, lengths=[5, 4])
    routing = random_routings(tokens, 0, layers=[1], num_experts=12)[0]
    statistic.update(random_outputs(routing))
    counts_E = torch.bincount(routing.expert_ids_TK.flatten(), minlength=12)
    assert (counts_E == 0).any()
    sample = statistic.sample(1)
    assert torch.equal(torch.bincount(sample.expert_ids_N, minlength=12), counts_E)
    assert sample.outputs_NM.dtype == torch.bfloat16
