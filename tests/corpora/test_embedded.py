"""The corpus that comes with moescope: read as it was built, and enough of it."""

from __future__ import annotations

import hashlib
from importlib.resources import files

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from moescope.corpora import Sampler, load_corpus

PACKAGE = files("moescope")


@pytest.fixture(scope="module")
def corpus():
    return load_corpus()


@pytest.fixture(scope="module")
def nano_tokenizer():
    return AutoTokenizer.from_pretrained(str(PACKAGE / "models" / "nano"))


def test_every_row_is_read(corpus):
    with (PACKAGE / "corpora" / "embedded" / "held_out.parquet").open("rb") as file:
        content = file.read()
        rows = pq.read_table(file).to_pylist()
    read = {one.document_id: one for domain in corpus.domains for one in corpus.documents(domain)}
    assert len(read) == len(rows)
    for row in rows:
        document = read[row["document_id"]]
        row["license"] = row.pop("licence")  # as the file spells it
        assert {name: getattr(document, name) for name in row} == row
        assert document.source
        assert document.license
        assert not document.truncated
    assert corpus.fingerprint == f"embedded:{hashlib.sha256(content).hexdigest()[:32]}"


def test_domains_and_groups(corpus):
    assert corpus.name == "embedded"
    assert len(corpus.domains) == 22
    assert list(corpus.groups) == list(corpus.domains)
    # Domains of a group stand beside each other, so that figures can color them by group.
    order = list(dict.fromkeys(corpus.groups.values()))
    assert order == ["prose", "reference", "code", "formal", "languages"]
    assert [corpus.groups[domain] for domain in corpus.domains] == sorted(corpus.groups.values(), key=order.index)


def test_no_document_is_over_a_twentieth_of_its_domain(corpus):
    for domain in corpus.domains:
        lengths = [len(document.text) for document in corpus.documents(domain)]
        assert len(lengths) >= 40
        assert max(lengths) <= sum(lengths) / 20


@pytest.mark.parametrize("num_tokens", [10_000, 100_000, pytest.param(440_000, marks=pytest.mark.slow)])
def test_there_is_enough_for_the_embedded_model(corpus, nano_tokenizer, num_tokens):
    sampler = Sampler(corpus, nano_tokenizer, num_tokens=num_tokens, max_positions=2048)
    batches = list(sampler)
    assert sampler.warnings == []
    assert sampler.num_tokens_D.sum() == num_tokens
    assert set((sampler.num_tokens_D - num_tokens // 22).tolist()) <= {0, 1}
    assert sampler.padding_share < 0.03
    assert len({int(key) for batch in batches for key in batch.tokens.document_hashes_B}) == (
        sampler.num_documents_D.sum()
    )
