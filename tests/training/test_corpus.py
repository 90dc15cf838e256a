"""The shipped corpus is what its documentation says, and nothing long of it can be left in the training text."""

import random
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from training.corpus import markup, mathematics, programs, prose
from training.corpus.attribution import domains_toml
from training.corpus.build import COLUMNS, REPOSITORY
from training.corpus.deduplicate import KnownRuns, cut_runs, longest_shared_runs, window_hashes
from training.corpus.document import Document, clean, dedent, slug, unique_name
from training.corpus.domains import DOMAINS, GROUPS
from training.corpus.fetch import SourceError, verify
from training.corpus.hold_out import cut_passage, split
from training.corpus.sources import PACKAGES
from training.corpus.tokenizer import END_OF_TEXT, VOCABULARY_SIZE
from training.corpus.works import WORKS

EMBEDDED = REPOSITORY / "src/moescope/corpora/embedded"
NANO = REPOSITORY / "src/moescope/models/nano"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return pq.read_table(EMBEDDED / "held_out.parquet").to_pylist()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(NANO / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokens_of_domain(rows, tokenizer) -> dict[str, list[int]]:
    counts = defaultdict(list)
    for row, encoding in zip(rows, tokenizer.encode_batch([row["text"] for row in rows]), strict=True):
        counts[row["domain"]].append(len(encoding.ids))
    return counts


# ---------------------------------------------------------------- what ships


def test_columns_and_ids(rows):
    assert pq.read_schema(EMBEDDED / "held_out.parquet").names == list(COLUMNS)
    ids = [row["document_id"] for row in rows]
    assert len(set(ids)) == len(ids)
    assert all(row["document_id"].startswith(row["domain"] + "/") for row in rows)
    assert all(value for row in rows for value in row.values())
    assert len({row["text"] for row in rows}) == len(rows)


def test_rows_stand_in_the_order_of_the_domains_and_of_their_ids(rows):
    order = [domain.name for domain in DOMAINS]
    assert rows == sorted(rows, key=lambda row: (order.index(row["domain"]), row["document_id"]))


def test_every_domain_is_large_enough_and_no_document_dominates(rows, tokens_of_domain):
    assert len(tokens_of_domain) == 22
    for domain, counts in tokens_of_domain.items():
        lengths = [len(row["text"]) for row in rows if row["domain"] == domain]
        assert len(counts) >= 40, domain
        assert sum(counts) >= 20_000, domain
        assert max(counts) <= sum(counts) / 20, domain
        assert max(lengths) <= sum(lengths) / 20, domain
    assert sum(map(sum, tokens_of_domain.values())) >= 440_000


def test_domains_file_agrees_with_the_rows(rows):
    text = (EMBEDDED / "domains.toml").read_text("utf-8")
    assert text == domains_toml()
    listed = tomllib.loads(text)["domain"]
    assert [entry["name"] for entry in listed] == list(dict.fromkeys(row["domain"] for row in rows))
    assert {entry["group"] for entry in listed} == set(GROUPS)
    licences = {entry["name"]: entry["licence"] for entry in listed}
    assert all(row["licence"] == licences[row["domain"]] for row in rows)


def test_attribution_names_every_domain_its_package_and_every_article(rows):
    text = (EMBEDDED / "ATTRIBUTION.md").read_text("utf-8")
    for domain in DOMAINS:
        section = text.split(f"\n## {domain.name}\n")[1].split("\n## ")[0]
        assert domain.licence in section
        assert all(name in section for name in WORKS[domain.name].packages)
    for row in rows:
        if row["domain"] == "wikipedia":
            assert f"[{row['source'].split('Wikipedia, ')[1]}](" in text


def test_held_out_text_is_clean(rows):
    groups = {domain.name: domain.group for domain in DOMAINS}
    for row in rows:
        assert row["text"] == clean(row["text"]), row["document_id"]
        if groups[row["domain"]] in ("prose", "formal") or row["domain"] in ("wikipedia", "factbook", "biology"):
            assert not re.search(r"</|&[a-z]+;|\{\{|\[\[", row["text"]), row["document_id"]


def test_tokenizer_round_trip_and_special_token(rows, tokenizer):
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    for row in rows[::7]:
        ids = tokenizer.encode(row["text"]).ids
        assert 0 not in ids
        assert tokenizer.decode(ids) == row["text"]


@given(text=st.text(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tokenizer_encodes_any_text(tokenizer, text):
    if END_OF_TEXT not in text:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_are_split_and_nothing_is_prepended(tokenizer):
    assert tokenizer.encode("x 2024").tokens == ["x", "Ġ2", "0", "2", "4"]
    assert tokenizer.encode("").ids == []


def test_packages_are_pinned_and_used():
    assert len({package.name for package in PACKAGES}) == len(PACKAGES)
    assert all(len(package.sha256) == 64 and package.version for package in PACKAGES)
    assert {name for work in WORKS.values() for name in work.packages} == {package.name for package in PACKAGES}
    assert list(WORKS) == [domain.name for domain in DOMAINS]


# ---------------------------------------------------------------- cutting shared runs


def shared_positions(text: str, others: list[str], window: int) -> list[bool]:
    """Brute force: which characters of a text lie in a run that another text contains."""
    shared = [False] * len(text)
    for start in range(len(text) - window + 1):
        if any(text[start : start + window] in other for other in others):
            shared[start : start + window] = [True] * window
    return shared


SMALL = st.text(alphabet="abé中", max_size=60)


@settings(max_examples=300)
@given(SMALL, st.lists(SMALL, max_size=4), st.integers(2, 9))
def test_cutting_removes_exactly_what_is_shared(text, held_out, window):
    pieces = cut_runs(text, KnownRuns(held_out, window))
    shared = shared_positions(text, held_out, window)
    assert "".join(pieces) == "".join(c for c, gone in zip(text, shared, strict=True) if not gone)
    assert not longest_shared_runs(held_out, pieces, window)
    assert not any(any(shared_positions(piece, held_out, window)) for piece in pieces)
    if not any(shared):
        assert pieces == ([text] if text else [])


@settings(max_examples=300)
@given(SMALL, SMALL, st.integers(2, 9))
def test_the_check_finds_a_run_exactly_where_there_is_one(held_out, training, window):
    found = longest_shared_runs([held_out], [training], window)
    longest = max(
        (
            n
            for n in range(1, len(training) + 1)
            for s in range(len(training) - n + 1)
            if training[s : s + n] in held_out
        ),
        default=0,
    )
    assert bool(found) == (longest >= window)
    if found:
        assert max(run.length for run in found) == longest


@given(st.text(max_size=40), st.text(max_size=40), st.integers(1, 12))
def test_a_run_has_one_hash_wherever_it_stands(before, run, window):
    alone, within = window_hashes(run, window), window_hashes(before + run, window)
    assert len(alone) == max(len(run) - window + 1, 0)
    assert list(within[len(before) :][: len(alone)]) == list(alone)


# ---------------------------------------------------------------- choosing what is held out


def test_split_keeps_held_out_and_training_documents_apart():
    domain = next(domain for domain in DOMAINS if domain.name == "novels")
    words = [f"word{number}" for number in range(60_000)]
    documents = [
        Document(
            f"book/{number}",
            clean("\n\n".join(" ".join(words[at : at + 50]) for at in range(first, first + 600, 50))),
            "",
        )
        for number, first in enumerate(range(0, 60_000, 600))
    ]
    held_out, training = split(domain, documents, [], seed=3)
    assert split(domain, documents[::-1], [], seed=3) == (held_out, training)
    assert split(domain, documents, [], seed=4)[0] != held_out
    assert not {document.key for document in held_out} & {document.key for document in training}
    originals = {document.key: document.text for document in documents}
    assert all(document.text.strip() in originals[document.key] for document in held_out)


def test_further_training_text_leaves_the_choice_alone_and_repeats_no_passage(monkeypatch):
    domain = next(domain for domain in DOMAINS if domain.name == "novels")
    shared = " ".join(f"shared{number}" for number in range(20))
    documents = []
    for number in range(300):
        paragraphs = [" ".join(f"word{number}x{part}x{i}" for i in range(30)) for part in range(8)]
        if number % 3 == 0:
            paragraphs[4:4] = [shared]  # a few repeated lines do not keep a document from being held out
        documents.append(Document(f"book/{number}", clean("\n\n".join(paragraphs)), ""))
    monkeypatch.setattr("training.corpus.hold_out.TRAINING_BYTES", 100_000)
    monkeypatch.setattr("training.corpus.hold_out.FURTHER_BYTES", 0)
    held_out, training = split(domain, documents, [], seed=3)
    monkeypatch.setattr("training.corpus.hold_out.FURTHER_BYTES", 150_000)
    again, more = split(domain, documents, [], seed=3)
    assert again == held_out
    assert more[: len(training)] == training
    further = more[len(training) :]
    assert sum(len(document.text) for document in further) >= 150_000
    assert any(shared in document.text for document in held_out)
    assert not any(shared in document.text for document in further)


@given(st.integers(0, 1000))
def test_a_passage_is_whole_paragraphs_of_the_asked_length(seed):
    domain = DOMAINS[0]
    text = clean("\n\n".join(f"Paragraph {n}. " + "x" * 150 for n in range(60)))
    passage = cut_passage(text, domain, random.Random(seed))
    assert 0.7 * domain.passage <= len(passage) <= domain.passage
    assert set(passage.strip().split("\n\n")) <= set(text.strip().split("\n\n"))
    assert cut_passage("too short", domain, random.Random(seed)) is None


# ---------------------------------------------------------------- extraction


def test_markup_becomes_plain_text():
    assert markup.plain_text("<p>One &amp;\n two</p><script>no()</script><ul><li>three</li></ul>") == "One & two\nthree"
    wiki = "'''Bold''' {{cite|{{inner}}}} [[File:a.png|thumb|A [[link]] here]] of [[target|shown]] <ref>no</ref>text."
    assert markup.plain_wikitext(wiki).split() == ["Bold", "of", "shown", "text."]


def test_notices_are_cut_from_the_head_of_a_file_only():
    notice, rest = programs.split_notice(
        "// Copyright 2009 Somebody\n// All rights reserved.\n\npackage main // Copyright\n"
    )
    assert notice.startswith("// Copyright 2009") and rest == "\npackage main // Copyright\n"
    assert programs.split_notice("/* What it does. */\nint x;\n") == ("", "/* What it does. */\nint x;\n")


def test_small_helpers():
    used: set[str] = set()
    assert [unique_name(name, used) for name in ("a", "a", "a-2", "a")] == ["a", "a-2", "a-2-2", "a-3"]
    assert slug("Pride & Préjudice!") == "pride-prejudice"
    assert dedent("    a\n\n      b") == "a\n\n  b"
    assert clean("a \r\n\r\n\r\n\r\nb\x07\n\n") == "a\n\nb\n"
    assert [prose.scene_number(written) for written in ("I", "iv", "VI", "IX", "12")] == [1, 4, 6, 9, 12]


def test_mathematics_is_right_and_reproducible(monkeypatch):
    monkeypatch.setattr(mathematics, "SHEETS_PER_KIND", 6)
    first, again = (list(mathematics.mathematics(Path())) for _ in range(2))
    assert first == again
    checked = 0
    for sheet in first:
        for question, answer in (block.split("\n") for block in sheet.text.strip().split("\n\n")):
            if question.startswith("Evaluate ") and "/" not in question:
                assert eval(question.removeprefix("Evaluate ").removesuffix(".")) == int(answer)
                checked += 1
    assert checked > 20


def test_a_changed_download_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"other bytes")
    with pytest.raises(SourceError, match="pinned is"):
        verify(PACKAGES[0], tmp_path / "file")
