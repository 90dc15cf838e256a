"""The sample of whole documents with the experts their tokens selected, against a plain sort of all tokens."""

from dataclasses import fields

import numpy as np
import pytest

from moescope.measures.resampling import groups, halves, sample_hashes
from moescope.statistics.samples.routed import NUM_GROUPS, RoutedDocuments, RoutedTokens
from tests.records import random_batch, random_routings

LAYERS, E, K, SEED = (1, 4), 8, 2, 5


@pytest.fixture(scope="module")
def batches() -> list:
    """Seven batches of ten documents, tokens in any order."""
    tokens = [random_batch(seed, num_documents=10, shuffle=True) for seed in range(7)]
    return [random_routings(batch, 3, layers=LAYERS, num_experts=E, num_experts_per_token=K) for batch in tokens]


def fed(batches: list, num_samples: int, seed: int = SEED) -> RoutedTokens:
    statistic = RoutedTokens(layers=LAYERS, num_experts=E, num_experts_per_token=K, num_samples=num_samples, seed=seed)
    for routings in batches:
        for routing in routings:
            statistic.update(routing)
    return statistic


def plain(batches: list, num_samples: int) -> tuple[list[tuple], bool]:
    """Every token as (hash, position, document, domain, id, next id, experts by layer), sorted; whether one is cut."""
    rows = []
    for routings in batches:
        tokens = routings[0].tokens
        documents_T = tokens.document_hashes_B[tokens.rows_T]
        hashes_T = sample_hashes(documents_T, 0 * documents_T, seed=SEED)
        for t in range(tokens.num_tokens):
            experts = tuple(tuple(routing.expert_ids_TK[t].tolist()) for routing in routings)
            facts = (documents_T, tokens.domain_ids_T, tokens.token_ids_T, tokens.next_token_ids_T)
            rows.append((hashes_T[t].item(), tokens.positions_T[t].item(), *(int(f[t]) for f in facts), experts))
    rows.sort()
    kept, out = rows[:num_samples], rows[num_samples:]
    # Where text is left out, the last document kept is left out too: that it was not cut is not known.
    return [row for row in kept if not (out and row[0] == kept[-1][0])], bool(out) and out[0][0] == kept[-1][0]


@pytest.mark.parametrize(("num_samples", "cuts"), [(150, False), (160, True), (400, True), (10_000, False)])
def test_whole_documents_of_smallest_hash_are_kept(batches, num_samples, cuts):
    rows, is_cut = plain(batches, num_samples)
    assert is_cut == cuts, "150 tokens are those of whole documents"
    sample = fed(batches, num_samples).sample()
    assert 0 < len(rows) <= num_samples
    assert sample.num_tokens == len(rows)
    _, positions, documents, domains, ids, next_ids, experts = zip(*rows, strict=True)
    for name, expected in (
        *(("positions_N", positions), ("domain_ids_N", domains)),
        *(("token_ids_N", ids), ("next_token_ids_N", next_ids)),
    ):
        assert getattr(sample, name).tolist() == list(expected), name
    hashes_N = np.array(documents)
    assert (sample.documents_N[1:] == sample.documents_N[:-1]).tolist() == (hashes_N[1:] == hashes_N[:-1]).tolist()
    assert sample.num_documents() == len(set(documents)) == sample.documents_N[-1] + 1
    assert sample.halves_N.tolist() == halves(hashes_N, seed=SEED).tolist()
    assert sample.groups_N.tolist() == groups(hashes_N, NUM_GROUPS, seed=SEED).tolist()
    for position, layer in enumerate(LAYERS):
        expected_NK = [of_layers[position] for of_layers in experts]
        assert sample.expert_ids_NK(layer).tolist() == [list(ids) for ids in expected_NK]
        selected_NE = [[float(e in ids) for e in range(E)] for ids in expected_NK]
        assert sample.selected_NE(layer).tolist() == selected_NE


def equal(first: RoutedDocuments, second: RoutedDocuments) -> bool:
    return all(np.array_equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))


def test_the_order_of_batches_has_no_part_in_it(batches):
    sample = fed(batches, 400).sample()
    for order in ([6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 2, 5, 1, 4]):
        assert equal(fed([batches[index] for index in order], 400).sample(), sample)
    assert not equal(fed(batches, 400, seed=6).sample(), sample)


def test_parts_merge_into_the_sample_of_all(batches):
    for cut in (1, 3, 6):
        merged = fed(batches[:cut], 400).merge(fed(batches[cut:], 400))
        assert equal(merged.sample(), fed(batches, 400).sample())
    assert equal(fed([], 400).merge(fed(batches, 400)).sample(), fed(batches, 400).sample())


def test_it_is_no_larger_for_more_text(batches):
    def size(statistic: RoutedTokens) -> int:
        return sum(tensor.nbytes for name, tensor in statistic.state.items() if name != "num_tokens_L")

    assert size(fed(batches, 400)) == size(fed([], 400)) == 400 * (44 + len(LAYERS) * K)
    many = RoutedTokens(layers=LAYERS, num_experts=257, num_experts_per_token=K, num_samples=400)
    assert size(many) == 400 * (44 + 2 * len(LAYERS) * K)


def test_what_is_counted_is_all_of_the_text(batches):
    table = fed(batches, 400).compute()
    total = sum(routings[0].tokens.num_tokens for routings in batches)
    assert table["num_tokens"].values.tolist() == [total, total]
    assert int(table["num_samples"]) == len(plain(batches, 400)[0]) < 400
    assert int(table["num_documents"]) == len({row[2] for row in plain(batches, 400)[0]})


def test_halves_count_their_documents(batches):
    sample = fed(batches, 10_000).sample()
    assert sample.num_documents(0) + sample.num_documents(1) == sample.num_documents() == 70
    assert sample.num_documents(0) == len(set(sample.documents_N[sample.halves_N == 0].tolist()))


def test_nothing_kept_is_an_empty_sample():
    sample = fed([], 50).sample()
    assert (sample.num_tokens, sample.num_documents()) == (0, 0)
    assert sample.selected_NE(4).shape == (0, E)
