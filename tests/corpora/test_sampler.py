"""The sampler: exact budgets, one window a document, nothing mixed, the same tokens however they are batched."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.corpora import Batch, Sampler
from moescope.corpora.batching import MAX_SHARE
from moescope.corpora.document import MAX_CHARACTERS, Document
from moescope.errors import CorpusError, MoescopeWarning, UsageError
from tests.corpora.texts import ListCorpus, tokenizer, words


def run(corpus, used=None, **options) -> tuple[Sampler, list[Batch]]:
    """All batches, with warnings kept out of the way."""
    sampler = Sampler(corpus, used or tokenizer(), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MoescopeWarning)
        return sampler, list(sampler)


def document_hash(corpus, document_id: str) -> int:
    """The hash written out once more, independently."""
    digest = hashlib.blake2b(f"{corpus.name}\0{document_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def counted(batches) -> Counter:
    """How often each (document, position, token, next token) was counted."""
    seen: Counter = Counter()
    for batch in batches:
        tokens = batch.tokens
        hashes_T = tokens.document_hashes_B[tokens.rows_T]
        columns = (hashes_T, tokens.positions_T, tokens.token_ids_T, tokens.next_token_ids_T, tokens.domain_ids_T)
        seen.update(zip(*(column.tolist() for column in columns), strict=True))
    return seen


def mixed_corpus(num_domains=3, num_documents=60, longest=400) -> ListCorpus:
    lengths = itertools.cycle([3, 20, longest // 2, longest, 7 * longest // 8, 90])
    texts = {
        f"domain{d}": [words(1000 * d + n, next(lengths)) for n in range(num_documents)] for d in range(num_domains)
    }
    return ListCorpus(texts)


corpora = st.builds(
    lambda lengths_DN, seed: ListCorpus(
        {
            f"d{d}": [words(seed * 10_000 + d * 100 + n, length) for n, length in enumerate(lengths_N)]
            for d, lengths_N in enumerate(lengths_DN)
        }
    ),
    st.lists(st.lists(st.integers(0, 250), min_size=1, max_size=12), min_size=1, max_size=4),
    st.integers(0, 50),
)


@settings(deadline=None, max_examples=60)
@given(
    corpus=corpora,
    num_tokens=st.integers(4, 3000),
    seed=st.integers(0, 2**31),
    sequence_length=st.none() | st.integers(3, 300),
    batch_tokens=st.sampled_from([1, 64, 512, 8192]),
    around=st.sampled_from([("", ""), ("<|begin|>", ""), ("<|begin|>", "<|end|>")]),
)
def test_every_counted_token_is_the_documents_own(corpus, num_tokens, seed, sequence_length, batch_tokens, around):
    used = tokenizer(*around)
    options = {"num_tokens": num_tokens, "seed": seed, "sequence_length": sequence_length}
    texts = [text for texts in corpus.texts.values() for text in texts]
    if sum(len(used(text, add_special_tokens=False)["input_ids"]) >= 2 for text in texts) == 0:
        with pytest.raises(CorpusError):
            run(corpus, used, batch_tokens=batch_tokens, **options)
        return
    sampler, batches = run(corpus, used, batch_tokens=batch_tokens, **options)

    documents = {
        document_hash(corpus, f"{domain}/{number}"): (index, used(text)["input_ids"], text)
        for index, (domain, texts) in enumerate(corpus.texts.items())
        for number, text in enumerate(texts)
    }
    num_prefix, num_suffix = (1 if token else 0 for token in around)
    window = sequence_length or max(128, min(num_tokens // len(corpus.domains) // 30, 4096))
    window = min(window, (sequence_length or 4096) - num_prefix - num_suffix)
    assert sampler.window == window
    positions_of: dict[int, list[int]] = {}
    for batch in batches:
        tokens = batch.tokens
        B, S = batch.input_ids_BS.shape
        assert batch_tokens >= B * S or B == 1
        assert len(tokens.document_hashes_B) == len(tokens.domain_ids_B) == B
        # The records' shapes and types.
        for column in (tokens.token_ids_T, tokens.next_token_ids_T, tokens.positions_T, tokens.rows_T, batch.keep_T):
            assert column.dtype == torch.int64
            assert column.shape == (tokens.num_tokens,)
        assert torch.equal(batch.input_ids_BS.flatten()[batch.keep_T], tokens.token_ids_T)
        assert torch.equal(batch.keep_T // S, tokens.rows_T)
        assert torch.all(batch.keep_T.diff() > 0)
        # Every row is one document.
        for row, (key, domain_id) in enumerate(
            zip(tokens.document_hashes_B.tolist(), tokens.domain_ids_B.tolist(), strict=True)
        ):
            expected_domain, whole, _ = documents[key]
            assert domain_id == expected_domain
            ids = whole[num_prefix : len(whole) - num_suffix]
            mine = tokens.rows_T == row
            positions = tokens.positions_T[mine].tolist()
            assert key not in positions_of, "a document gave two windows"
            positions_of[key] = positions
            assert positions == list(range(positions[0], positions[0] + len(positions)))
            assert len(positions) <= window
            assert tokens.token_ids_T[mine].tolist() == ids[positions[0] : positions[-1] + 1]
            following = [*ids, -1][positions[0] + 1 : positions[-1] + 2]
            assert tokens.next_token_ids_T[mine].tolist() == following
            fed = batch.input_ids_BS[row].tolist()
            expected = whole[:num_prefix] + ids[positions[0] : positions[-1] + 1]
            if positions[-1] == len(ids) - 1:
                expected += whole[len(whole) - num_suffix :]
            assert fed[: len(expected)] == expected
            assert set(fed[len(expected) :]) <= {used.pad_token_id}

    # Exact budgets: what each domain can give at most, and no more than asked.
    available_D = np.zeros(len(corpus.domains), dtype=int)
    for domain_id, whole, _ in documents.values():
        length = len(whole) - num_prefix - num_suffix
        available_D[domain_id] += min(length, window) if length >= 2 else 0
    share, remainder = divmod(num_tokens, len(corpus.domains))
    budget_D = [share + (domain_id < remainder) for domain_id in range(len(corpus.domains))]
    assert sampler.num_tokens_D.tolist() == np.minimum(available_D, budget_D).tolist()
    assert sampler.num_tokens_D.sum() == sum(batch.tokens.num_tokens for batch in batches)
    assert sampler.num_documents_D.sum() == len(positions_of)
    said = any("fewer tokens than asked" in message for message in sampler.warnings)
    assert said == bool(np.any(available_D < budget_D))


@settings(deadline=None, max_examples=12)
@given(num_tokens=st.integers(3, 6000), seed=st.integers(0, 2**31), sequence_length=st.none() | st.integers(2, 300))
def test_batch_size_changes_no_counted_token(num_tokens, seed, sequence_length):
    corpus = mixed_corpus()
    options = {"num_tokens": num_tokens, "seed": seed, "sequence_length": sequence_length}
    by_size = [counted(run(corpus, batch_tokens=size, **options)[1]) for size in (1, 512, 8192)]
    assert by_size[0] == by_size[1] == by_size[2]
    assert by_size[0].total() > 0


def test_a_seed_gives_the_same_batches_again_and_another_seed_gives_others():
    corpus = mixed_corpus()
    torch.manual_seed(1)
    sampler, first = run(corpus, num_tokens=3000, seed=5)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002 (the global state must not matter)
    again = list(sampler)
    _, other = run(corpus, num_tokens=3000, seed=6)
    assert len(first) == len(again)
    assert all(torch.equal(a.input_ids_BS, b.input_ids_BS) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a.keep_T, b.keep_T) for a, b in zip(first, again, strict=True))
    assert counted(first) != counted(other)


def test_windows_lie_anywhere_in_a_document():
    text = words(0, 500)
    length = len(tokenizer()(text)["input_ids"])
    starts = []
    for seed in range(200):
        _, batches = run(ListCorpus({"d": [text]}), num_tokens=128, seed=seed)
        starts.append(int(batches[0].tokens.positions_T[0]))
    relative = np.array(starts) / (length - 128)
    assert relative.min() < 0.03
    assert relative.max() > 0.97
    # Uniform: the mean of 200 draws lies within four standard errors of the middle.
    assert abs(relative.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 200)


def test_total_is_exact_and_the_remainder_goes_to_the_first_domains():
    sampler, batches = run(mixed_corpus(num_domains=7), num_tokens=2005)
    assert sampler.num_tokens_D.tolist() == [287, 287, 287, 286, 286, 286, 286]
    assert sum(batch.tokens.num_tokens for batch in batches) == 2005
    assert sampler.warnings == []


def test_the_cap_on_a_document_grows_with_its_domains_budget():
    corpus = mixed_corpus()
    assert Sampler(corpus, tokenizer(), num_tokens=3 * 3840).window == 128
    assert Sampler(corpus, tokenizer(), num_tokens=3 * 5000).window == 166
    assert Sampler(corpus, tokenizer(), num_tokens=3 * 5000, sequence_length=100).window == 100
    assert Sampler(corpus, tokenizer(), num_tokens=3 * 5000, max_positions=64).window == 64
    begins = tokenizer("<|begin|>")
    assert Sampler(corpus, begins, num_tokens=3 * 5000, max_positions=64).window == 63
    assert Sampler(corpus, tokenizer(), num_tokens=10**9).window == 4096


def test_a_sequence_length_that_is_given_wins_and_what_it_costs_is_said():
    corpus = mixed_corpus(num_domains=2, num_documents=40, longest=900)
    usual, _ = run(corpus, num_tokens=4000)
    sampler, batches = run(corpus, num_tokens=4000, sequence_length=1500)
    assert (usual.window, sampler.window) == (128, 1500)
    longest = max(int(batch.tokens.rows_T.bincount().max()) for batch in batches)
    assert 1000 < longest <= 1500
    assert sampler.num_tokens_D.tolist() == usual.num_tokens_D.tolist() == [2000, 2000]
    (message,) = sampler.warnings
    fewest = int(sampler.num_documents_D.argmin())
    assert f"come from {sampler.num_documents_D.sum()} documents" in message
    assert f"(fewest: {sampler.num_documents_D[fewest]} of domain{fewest})" in message
    assert "with at most 128 tokens of each" in message
    # The documents are fewer than they would have been at the very least.
    at_least = int(message.split("from ")[2].split()[0])
    assert sampler.num_documents_D.sum() < at_least <= usual.num_documents_D.sum()
    assert usual.warnings == []


def test_a_sequence_length_beyond_the_model_is_said():
    begins = tokenizer("<|begin|>")
    sampler, _ = run(mixed_corpus(), begins, num_tokens=3000, sequence_length=2000, max_positions=256)
    assert sampler.window == 255
    assert "sequence_length is 2,000 and the model takes 256 tokens: at most 255 tokens" in sampler.warnings[0]
    # One that takes nothing away is not worth a word.
    assert run(mixed_corpus(), num_tokens=3000, sequence_length=100)[0].warnings == []


@pytest.mark.parametrize("value", ["100", 99.5, True])
def test_numbers_of_another_type(value):
    with pytest.raises(UsageError, match=f"sequence_length is {value!r}"):
        Sampler(mixed_corpus(), tokenizer(), num_tokens=300, sequence_length=value)


def test_no_row_is_longer_than_the_model_takes():
    begins = tokenizer("<|begin|>", "<|end|>")
    _, batches = run(mixed_corpus(), begins, num_tokens=3000, max_positions=50)
    assert max(batch.input_ids_BS.shape[1] for batch in batches) == 50


def test_padding_costs_little():
    corpus = mixed_corpus(num_domains=10, num_documents=200)
    for num_tokens, limit in ((10_000, 0.05), (30_000, 0.03)):
        sampler, batches = run(corpus, num_tokens=num_tokens)
        fed = sum(batch.input_ids_BS.numel() for batch in batches)
        rows = sum(batch.input_ids_BS.shape[0] for batch in batches)
        # One row a document and nothing around it: all that is fed and not counted is padding.
        assert rows == sampler.num_documents_D.sum()
        assert sampler.padding_share == pytest.approx(1 - num_tokens / fed)
        assert sampler.padding_share < limit


def test_special_tokens_spelled_out_in_the_text_are_not_counted():
    text = "some words<|end|>more words<|pad|>" * 40
    ids = tokenizer()(text)["input_ids"]
    special = [token in tokenizer().all_special_ids for token in ids]
    assert sum(special) == 80
    corpus = ListCorpus({"d": [text] * 9})
    sampler, batches = run(corpus, num_tokens=500)
    assert sampler.num_tokens_D.tolist() == [500]
    for batch in batches:
        assert not set(batch.tokens.token_ids_T.tolist()) & set(tokenizer().all_special_ids)
        for position, token, following in zip(
            batch.tokens.positions_T.tolist(),
            batch.tokens.token_ids_T.tolist(),
            batch.tokens.next_token_ids_T.tolist(),
            strict=True,
        ):
            assert ids[position] == token
            assert following == (-1 if position + 1 == len(ids) or special[position + 1] else ids[position + 1])


def test_documents_of_one_token_are_skipped_and_counted():
    corpus = ListCorpus({"d": ["a", "b", words(1, 100), "<|end|><|end|><|end|>", "a<|end|>"]})
    sampler = Sampler(corpus, tokenizer(), num_tokens=50_000)
    with pytest.warns(MoescopeWarning, match="4 documents of fewer than two tokens skipped"):
        batches = list(sampler)
    assert sampler.num_documents_D.tolist() == [1]
    assert sum(batch.tokens.num_documents for batch in batches) == 1


def test_a_domain_that_runs_short_is_said_and_not_made_up_for_by_others():
    texts = {"rich": [words(n, 200) for n in range(50)], "poor": [words(99, 20)]}
    poor = len(tokenizer()(texts["poor"][0])["input_ids"])
    sampler = Sampler(ListCorpus(texts), tokenizer(), num_tokens=4000)
    with pytest.warns(MoescopeWarning, match="fewer tokens than asked"):
        list(sampler)
    assert sampler.num_tokens_D.tolist() == [2000, poor]
    assert len(sampler.warnings) == 1
    assert f"poor {poor} of 2,000 (1 documents)" in sampler.warnings[0]
    assert "rich" not in sampler.warnings[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tokens": 0}, "num_tokens is 0"),
        ({"num_tokens": -5}, "num_tokens is -5"),
        ({"num_tokens": 2}, "3 domains"),
        ({"num_tokens": 100, "sequence_length": 0}, "sequence_length is 0"),
        ({"num_tokens": 100, "batch_tokens": 0}, "batch_tokens is 0"),
    ],
)
def test_numbers_that_make_no_sense(options, message):
    with pytest.raises(UsageError, match=message) as raised:
        Sampler(mixed_corpus(), tokenizer(), **options)
    assert raised.value.exit_code == 2


def test_rows_without_room_for_text():
    with pytest.raises(UsageError, match="no room for text"):
        Sampler(mixed_corpus(), tokenizer("<|begin|>", "<|end|>"), num_tokens=100, sequence_length=2)


def test_a_corpus_without_text():
    sampler = Sampler(ListCorpus({"d": ["", "a"]}), tokenizer(), num_tokens=100)
    with pytest.raises(CorpusError, match=r"holds no text: 2 documents of fewer than two tokens"):
        list(sampler)


def test_a_row_longer_than_a_batch_runs_alone_and_is_said():
    sampler, batches = run(mixed_corpus(), num_tokens=600, batch_tokens=100)
    assert all(batch.input_ids_BS.shape[0] == 1 for batch in batches if batch.input_ids_BS.numel() > 100)
    alone = sum(batch.input_ids_BS.numel() > 100 for batch in batches)
    assert alone > 0
    assert f"{alone} rows were longer than batch_tokens (100)" in sampler.warnings[-1]


def test_of_a_very_long_document_only_the_beginning_is_read():
    text = words(3, MAX_CHARACTERS // 4)
    assert len(text) > MAX_CHARACTERS
    whole = tokenizer()(text)["input_ids"]
    known = tokenizer()(text[:MAX_CHARACTERS])["input_ids"]
    for seed in range(2):
        _, batches = run(ListCorpus({"d": [text]}), num_tokens=128, seed=seed)
        tokens = batches[0].tokens
        assert tokens.positions_T[-1] < len(known) - 1
        for position, token, following in zip(
            tokens.positions_T.tolist(), tokens.token_ids_T.tolist(), tokens.next_token_ids_T.tolist(), strict=True
        ):
            assert (token, following) == (whole[position], whole[position + 1])


def test_memory_does_not_grow_with_the_number_of_tokens():
    texts = [words(number, 150) for number in range(50)]

    class Endless(ListCorpus):
        def stream(self, seed, wanted, problems):
            for number in itertools.count():
                yield Document(texts[number % 50], "d", str(number))

    def peak(num_tokens: int) -> int:
        corpus = Endless({"d": []})
        sampler = Sampler(corpus, tokenizer(), num_tokens=num_tokens, sequence_length=128, batch_tokens=1024)
        tracemalloc.start()
        assert sum(batch.tokens.num_tokens for batch in sampler) == num_tokens
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    # From where the look-ahead is full: 16 batches of 1,024.
    peak(50_000)
    assert peak(150_000) < 1.05 * peak(50_000)


def test_a_batch_moves_as_a_whole():
    _, batches = run(mixed_corpus(), num_tokens=300)
    moved = batches[0].to("meta")
    tensors = [moved.input_ids_BS, moved.keep_T, moved.tokens.domain_ids_T]
    tensors += [value for value in vars(moved.tokens).values() if value is not None]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.tokens.num_tokens == batches[0].tokens.num_tokens


@pytest.mark.parametrize("page", ["metrics.md", "decisions/sampling.md"])
def test_docs_state_the_share_of_a_domain_that_one_document_may_have(page):
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    assert f"max(128, domain budget / {MAX_SHARE})" in text
