"""Odd folders: circles of links, depth, names that are not UTF-8; nothing is lost without a word, nothing hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from moescope.corpora import load_corpus
from moescope.corpora.problems import Problems
from moescope.errors import CorpusError


def texts(corpus) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {domain: [] for domain in corpus.domains}
    for document in corpus.stream(0, set(corpus.domains), Problems()):
        found[document.domain].append(document.text)
    return {domain: sorted(some) for domain, some in found.items()}


def test_every_sub_folder_is_a_domain_or_named(tmp_path: Path):
    for domain, file in (("books", "0.jsonl"), ("wiki", "0.json"), ("code", "x.rs"), ("web", "c4.json.gz.part")):
        (tmp_path / domain).mkdir()
        (tmp_path / domain / file).write_text('{"text": "some text"}\n')
    (tmp_path / "books" / "cover.png").write_bytes(b"png")
    corpus = load_corpus(tmp_path)
    assert corpus.domains == ("books", "code", "wiki")
    assert "sub-folders" in corpus.notes[0] and "web (1 .part)" in corpus.notes[0]
    assert "2 files of kinds that are not read (1 .png, 1 .part)" in corpus.notes[1]


def test_links_in_a_circle_end_and_are_counted(tmp_path: Path):
    for domain in ("a", "b"):
        (tmp_path / "corpus" / domain).mkdir(parents=True)
        (tmp_path / "corpus" / domain / "x.txt").write_text(f"text of {domain}")
        (tmp_path / "corpus" / domain / "up").symlink_to(tmp_path / "corpus")
        (tmp_path / "corpus" / domain / "top").symlink_to("/")
    (tmp_path / "corpus" / "a" / "other").symlink_to("../b")
    (tmp_path / "corpus" / "a" / "self").symlink_to("self")
    corpus = load_corpus(tmp_path / "corpus")
    assert texts(corpus) == {"a": ["text of a"], "b": ["text of b"]}
    (note,) = corpus.notes
    assert "5 links to a folder that is read already" in note
    assert "1 links that lead nowhere" in note


def test_links_out_of_the_folder_are_followed_and_said(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.txt").write_text("elsewhere")
    (tmp_path / "data" / "again").symlink_to("../data")
    (tmp_path / "corpus" / "a").mkdir(parents=True)
    (tmp_path / "corpus" / "a" / "y.txt").symlink_to(tmp_path / "data" / "x.txt")
    (tmp_path / "corpus" / "b").symlink_to(tmp_path / "data")
    corpus = load_corpus(tmp_path / "corpus")
    assert texts(corpus) == {"a": ["elsewhere"], "b": ["elsewhere"]}
    assert any("3 links in corpus lead out of it: what they lead to is read" in note for note in corpus.notes)


@pytest.mark.skipif(sys.platform != "linux", reason="a path of any length, one folder at a time")
def test_folders_deeper_than_a_path_may_be(tmp_path: Path):
    (tmp_path / "corpus" / "a").mkdir(parents=True)
    (tmp_path / "corpus" / "a" / "x.txt").write_text("near the top")
    here = os.open(tmp_path / "corpus" / "a", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        corpus = load_corpus(tmp_path / "corpus")
        assert texts(corpus) == {"a": ["near the top"]}
        assert "1 folders too deep to be opened" in corpus.notes[0]
    finally:
        # Path by path it can't be removed either.
        subprocess.run(["rm", "-rf", tmp_path / "corpus"], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_names_that_are_not_utf8(tmp_path: Path):
    for domain in (b"caf\xe9", b"plain"):
        folder = os.fsencode(tmp_path) + b"/corpus/" + domain
        Path(os.fsdecode(folder)).mkdir(parents=True)
        Path(os.fsdecode(folder + b"/na\xefve.txt")).write_text("some text")
    corpus = load_corpus(tmp_path / "corpus")
    assert corpus.domains == ("caf\\xe9", "plain")
    documents = list(corpus.stream(0, set(corpus.domains), Problems()))
    assert sorted(one.document_id for one in documents) == ["caf\\xe9/na\\xefve.txt", "plain/na\\xefve.txt"]
    corpus.fingerprint.encode("utf-8")
    assert load_corpus(os.fsdecode(os.fsencode(tmp_path) + b"/corpus/caf\xe9")).name == "caf\\xe9"


def test_names_of_any_kind_are_domains(tmp_path: Path):
    names = ["all", "All", "a/b", "../x", "", " ", "x" * 300, "=1+1", "<b>", "\x1b[31m", "漢", "None"]
    lines = "".join(json.dumps({"text": f"text number {n}", "d": name}) + "\n" for n, name in enumerate(names))
    (tmp_path / "x.jsonl").write_text(lines)
    corpus = load_corpus(tmp_path / "x.jsonl", domain_field="d")
    assert set(corpus.domains) == set(names)
    assert texts(corpus) == {name: [f"text number {n}"] for n, name in enumerate(names)}
    assert corpus.only([""]).domains == ("",)
    assert len(repr(corpus)) < 300
    with pytest.raises(CorpusError) as raised:
        corpus.only(["nothing"])
    assert len(str(raised.value)) < 1000


def test_what_save_to_disk_leaves(tmp_path: Path):
    rows = datasets.Dataset.from_list([{"text": f"text {n}", "d": "ab"[n % 2]} for n in range(20)])
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    (tmp_path / "one" / "cache-123.arrow").write_bytes(b"left by map()")
    corpus = load_corpus(tmp_path / "one", domain_field="d")
    assert sum(map(len, texts(corpus).values())) == 20
    assert corpus.notes == ("left out of one: 1 files that the data set's state.json does not list",)
    parts = datasets.DatasetDict({"train": rows, "test": rows.select([3])})
    parts.save_to_disk(tmp_path / "parts")
    corpus = load_corpus(tmp_path / "parts")
    assert (corpus.name, texts(corpus)) == ("parts", {"parts": ["text 3"]})
    assert "of the dataset parts the part 'test' is read" in corpus.notes
    assert len(texts(load_corpus(tmp_path / "parts", split="train"))["parts"]) == 20
    with pytest.raises(CorpusError, match="no part 'dev'"):
        load_corpus(tmp_path / "parts", split="dev")


def test_a_state_that_names_files_elsewhere_is_of_no_effect(tmp_path: Path):
    datasets.Dataset.from_list([{"text": "one two"}]).save_to_disk(tmp_path / "set")
    (tmp_path / "outside.jsonl").write_text('{"text": "outside"}\n')
    (tmp_path / "set" / "state.json").write_text('{"_data_files": [{"filename": "../outside.jsonl"}]}')
    with pytest.raises(CorpusError, match="no file we can read"):
        load_corpus(tmp_path / "set")
