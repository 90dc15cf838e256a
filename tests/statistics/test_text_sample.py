from __future__ import annotations

import numpy as np
import pytest
import torch

from moescope.errors import UsageError
from moescope.statistics.samples.texts import TextSample
from tests.records import random_batch, random_routings

DOMAINS = ["alpha", "beta", "gamma"]


def filled(num_documents: int, length: int, seed: int = 0) -> tuple[TextSample, list]:
    sample = TextSample(layers=[1, 4], domains=DOMAINS, num_documents=num_documents, length=length, seed=seed)
    batches = [random_batch(number, num_documents=15, shuffle=True) for number in range(3)]
    for tokens in batches:
        for record in random_routings(tokens, layers=[1, 4]):
            sample.update(record)
    return sample, batches


def plain(batches: list) -> dict[int, tuple[int, list[tuple[int, int, int]]]]:
    """Each document's domain and its (position, token, next token), in order, by hash."""
    documents: dict[int, tuple[int, list[tuple[int, int, int]]]] = {}
    for tokens in batches:
        for token, following, position, row in zip(
            tokens.token_ids_T, tokens.next_token_ids_T, tokens.positions_T, tokens.rows_T, strict=True
        ):
            key = int(tokens.document_hashes_B[row])
            _, text = documents.setdefault(key, (int(tokens.domain_ids_B[row]), []))
            text.append((int(position), int(token), int(following)))
    return {key: (domain, sorted(text)) for key, (domain, text) in documents.items()}


def test_whole_documents_are_kept_as_they_were_read() -> None:
    sample, batches = filled(100, 60)
    expected = plain(batches)
    found = [document for domain in range(3) for document in sample.documents(domain)]
    assert len(found) == len(expected) == 45
    for document in found:
        domain, text = expected[document.document_hash]
        assert document.domain_id == domain
        rows = zip(document.positions, document.token_ids, document.next_token_ids, strict=True)
        assert [tuple(map(int, row)) for row in rows] == text


def test_what_is_kept_is_the_beginning_of_documents_drawn_by_seed() -> None:
    few, batches = filled(4, 7)
    many, _ = filled(100, 60)
    expected = plain(batches)
    for domain in range(3):
        kept = few.documents(domain)
        whole = many.documents(domain)
        assert [document.document_hash for document in kept] == [document.document_hash for document in whole[:4]]
        for document in kept:
            text = expected[document.document_hash][1]
            assert document.positions.tolist() == [position for position, _, _ in text[:7]]
    other, _ = filled(4, 7, seed=1)
    assert [d.document_hash for d in other.documents(0)] != [d.document_hash for d in few.documents(0)]


def test_every_document_is_as_likely_as_another() -> None:
    """Of 15 documents 5 are drawn: over 300 seeds each is kept about 100 times."""
    tokens = random_batch(3, num_documents=15, domain_ids=[0] * 15)
    (record,) = random_routings(tokens, layers=[0])
    counts: dict[int, int] = {}
    for seed in range(300):
        sample = TextSample(layers=[0], domains=["all"], num_documents=5, length=3, seed=seed)
        sample.update(record)
        for document in sample.documents(0):
            counts[document.document_hash] = counts.get(document.document_hash, 0) + 1
    assert len(counts) == 15
    # Binomial(300, 1/3) has a standard deviation of 8.2.
    assert all(abs(count - 100) < 41 for count in counts.values())


def test_counts_and_bounds() -> None:
    sample, batches = filled(4, 7)
    table = sample.compute()
    domains = np.concatenate([tokens.domain_ids_B.numpy() for tokens in batches])
    assert table["num_documents"].values.tolist() == np.bincount(domains, minlength=3).tolist()
    assert (table["num_sampled_documents"].values == 4).all()
    assert (table["num_sampled_tokens"].values <= 28).all()
    assert sample.nbytes() == 8 * (3 + 3 * 4 * (2 + 3 * 7))
    assert not torch.equal(sample.state["hashes_DN"], torch.zeros_like(sample.state["hashes_DN"]))


@pytest.mark.parametrize("sizes", [{"num_documents": 0, "length": 5}, {"num_documents": 5, "length": 0}])
def test_a_sample_of_nothing_is_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="1 or more"):
        TextSample(layers=[0], domains=DOMAINS, **sizes)
