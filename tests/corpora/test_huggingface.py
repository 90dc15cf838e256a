"""Datasets: the path that a hub dataset takes, on data sets of this machine; and what happens without a network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from moescope.corpora import Sampler, huggingface, load_corpus
from moescope.corpora.huggingface import HuggingFaceCorpus
from moescope.corpora.loading import presets
from moescope.corpora.problems import Problems
from moescope.errors import CorpusError
from tests.corpora import folders
from tests.corpora.texts import tokenizer, words


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch):
    """Whoever opens a connection fails at once."""

    def refuse(*arguments, **options):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_of_copies_of_a_text_only_the_first_is_a_document(tmp_path: Path):
    rows = [{"text": text, "url": f"https://example.org/{number}"} for number, text in enumerate(["one", "two"] * 3)]
    path = folders.write_parquet(tmp_path / "x.parquet", rows)
    problems = Problems()
    documents = list(HuggingFaceCorpus("parquet", data_files=str(path), name="x").stream(0, {"x"}, problems))
    assert sorted(document.text for document in documents) == ["one", "two"]
    assert {document.source for document in documents} <= {row["url"] for row in rows}
    assert problems.counts["copy"] == 4


def test_the_part_is_chosen_and_said(tmp_path: Path):
    for split in ("train", "test"):
        folders.write_parquet(tmp_path / "set" / f"{split}.parquet", [{"text": f"text of {split}"}])
    corpus = HuggingFaceCorpus(str(tmp_path / "set"))
    assert [document.text for document in corpus.documents("set")] == ["text of test"]
    assert "the part 'test' is read" in corpus.notes[0]
    corpus = HuggingFaceCorpus(str(tmp_path / "set"), split="train")
    assert [document.text for document in corpus.documents("set")] == ["text of train"]
    assert corpus.notes == ()
    with pytest.raises(CorpusError, match=r"no part 'dev'(?s:.*)one of"):
        HuggingFaceCorpus(str(tmp_path / "set"), split="dev")


def test_only_the_columns_looked_at_are_read(tmp_path: Path):
    rows = [{"text": "one", "picture": b"bytes", "meta": {"set": "a"}}]
    path = folders.write_parquet(tmp_path / "x.parquet", rows)
    corpus = HuggingFaceCorpus("parquet", data_files=str(path), domain_field="meta.set")
    assert set(corpus._needed(corpus._dataset).column_names) == {"text", "meta"}
    assert [document.text for document in corpus.documents("a")] == ["one"]


def test_domains_that_are_listed_are_not_looked_for(tmp_path: Path):
    path = folders.write_jsonl(tmp_path / "x.jsonl", folders.records(nested=True))
    corpus = HuggingFaceCorpus("json", data_files=str(path), domain_field="meta.set", domains=["gamma", "absent"])
    assert corpus.domains == ("gamma", "absent")
    problems = Problems()
    texts = [document.text for document in corpus.stream(0, {"gamma", "absent"}, problems)]
    assert sorted(texts) == sorted(folders.texts()["gamma"])
    assert problems.counts["other_domain"] == 16
    sampler = Sampler(corpus, tokenizer(), num_tokens=100)
    with pytest.warns(match="fewer tokens than asked, 50 of 100: 1 of 2 domains ran out"):
        list(sampler)
    assert sampler.num_tokens_D.tolist() == [50, 0]


def test_a_stream_is_left_when_reading_on_is_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"text": words(number, 5), "d": "common" if number else "rare"} for number in range(200)]
    path = folders.write_jsonl(tmp_path / "x.jsonl", rows)
    corpus = HuggingFaceCorpus("json", data_files=str(path), domain_field="d")
    monkeypatch.setattr(huggingface, "PATIENCE_RECORDS", 20)
    monkeypatch.setattr(huggingface, "BUFFER_DOCUMENTS", 1)
    problems = Problems()
    wanted = {"common", "rare"}
    seen = []
    for document in corpus.stream(0, wanted, problems):
        seen.append(document.domain)
        wanted.discard("common")
    assert len(seen) <= 2
    assert problems.messages() == [
        "1 stream left before its end: no document of a domain still wanted in a long time (json)"
    ]


def test_fields_that_are_not_there(tmp_path: Path):
    path = folders.write_parquet(tmp_path / "x.parquet", [{"body": "t", "kind": "a"}])
    with pytest.raises(CorpusError, match=r"(?s)holds no text: 1 record .*there are body, kind"):
        HuggingFaceCorpus("parquet", data_files=str(path))
    with pytest.raises(CorpusError, match=r"(?s)no record of parquet has a domain.*there are body, kind"):
        HuggingFaceCorpus("parquet", data_files=str(path), text_field="body", domain_field="meta.kind")


def test_a_broken_line_names_the_way_that_can_bear_it(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(folders.lines([{"text": "one"}]) + b'{"text": broken\n')
    with pytest.raises(CorpusError, match=r"(?s)cannot be (read|opened).*--corpus FOLDER"):
        list(HuggingFaceCorpus("json", data_files=str(path), name="x").documents("x"))


@pytest.mark.parametrize("name", ["pile", "c4", "some/dataset"])
def test_without_a_network_it_says_how_to_use_a_local_copy(name: str, no_network):
    with pytest.raises(CorpusError) as raised:
        load_corpus(name)
    message = str(raised.value)
    assert "cannot be reached" in message
    assert f"hf download --repo-type dataset {presets().get(name, {}).get('id', name)}" in message
    assert "--corpus FOLDER --text-field text" in message
    assert ("--domain-field meta.pile_set_name" in message) == (name == "pile")
    assert raised.value.exit_code == 2


def test_the_remedy_works(tmp_path: Path):
    """What the message without a network tells: a downloaded folder, given as the corpus with the preset's fields."""
    fields = presets()["pile"]
    rows = [
        {"text": words(number, 30), "meta": {"pile_set_name": domain}}
        for domain in fields["domains"]
        for number in range(2)
    ]
    folders.write_jsonl(tmp_path / "pile" / "val.jsonl.zst", rows)
    corpus = load_corpus(
        tmp_path / "pile", text_field=fields["text_field"], domain_field=fields["domain_field"], num_domains=22
    )
    assert sorted(corpus.domains) == sorted(fields["domains"])


def test_presets_say_what_is_needed():
    assert {"pile", "c4"} <= set(presets())
    for preset in presets().values():
        assert {"id", "split", "text_field", "description"} <= set(preset)
        assert set(preset) <= {
            "id", "config", "revision", "split", "text_field", "domain_field", "domains", "description",
        }  # fmt: skip
        assert preset["id"].count("/") == 1
        assert ("domains" in preset) == ("domain_field" in preset)
    pile = presets()["pile"]
    assert pile["domain_field"] == "meta.pile_set_name"
    assert len(set(pile["domains"])) == 22
    removed = {"Books3", "BookCorpus2", "OpenSubtitles", "YoutubeSubtitles", "OpenWebText2"}
    kept = [domain for domain in pile["domains"] if domain not in removed]
    assert presets()["pile-uncopyrighted"]["domains"] == kept
    assert presets()["c4"]["config"] == "en"
