"""What a Python program may give as a corpus, and what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from moescope.corpora import Sampler, load_corpus
from moescope.corpora.problems import Problems
from moescope.errors import CorpusError, MoescopeError, UsageError
from tests.corpora.texts import tokenizer, words

ROWS = [{"text": words(number, 30), "d": "ab"[number % 2], "n": number} for number in range(1200)]
BY_DOMAIN = {domain: [row["text"] for row in ROWS if row["d"] == domain] for domain in "ab"}


def stream_of() -> datasets.IterableDataset:
    return datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=3)


OBJECTS = {
    "records": lambda: ROWS,
    "frame": lambda: pd.DataFrame(ROWS),
    "frame with an index": lambda: pd.DataFrame(ROWS, index=range(5, 1205)),
    "dataset": lambda: datasets.Dataset.from_list(ROWS),
    "formatted dataset": lambda: datasets.Dataset.from_list(ROWS).with_format("numpy"),
    "parts": lambda: datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS[:3]), "test": datasets.Dataset.from_list(ROWS)}
    ),
    "stream": stream_of,
    "texts by domain": lambda: BY_DOMAIN,
    "arrays by domain": lambda: {domain: np.array(some) for domain, some in BY_DOMAIN.items()},
    "columns by domain": lambda: {domain: pd.Series(some) for domain, some in BY_DOMAIN.items()},
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_objects_hold_what_they_hold(kind: str):
    fields = {} if "by domain" in kind else {"domain_field": "d"}
    corpus = load_corpus(OBJECTS[kind](), **fields)
    assert corpus.domains == ("a", "b")
    for seed in (0, 1):
        documents = list(corpus.stream(seed, {"a", "b"}, Problems()))
        assert len({one.document_id for one in documents}) == len(ROWS)
        assert {d: sorted(one.text for one in documents if one.domain == d) for d in "ab"} == {
            d: sorted(some) for d, some in BY_DOMAIN.items()
        }
        assert [one.text for one in documents] == [one.text for one in corpus.stream(seed, {"a", "b"}, Problems())]
    assert [one.text for one in corpus.documents("a", 0)] != [one.text for one in corpus.documents("a", 1)]
    assert load_corpus(OBJECTS[kind](), **fields).fingerprint == corpus.fingerprint
    json.dumps([corpus.name, corpus.domains, corpus.fingerprint, corpus.notes])
    sampler = Sampler(corpus, tokenizer(), num_tokens=1000)
    assert sum(batch.tokens.num_tokens for batch in sampler) == 1000
    assert corpus.first(1).domains == ("a",)
    assert repr(corpus).count("\n") == 0 and "2 domains (a, b)" in repr(corpus)


def test_another_content_is_another_fingerprint():
    for change in (lambda: ROWS[:-1], lambda: [*ROWS[:-1], {**ROWS[-1], "text": "other"}]):
        assert load_corpus(change()).fingerprint != load_corpus(ROWS).fingerprint
    assert (
        load_corpus({"a": ["one two", "three"]}).fingerprint
        != load_corpus({"a": ["one two"], "b": ["three"]}).fingerprint
    )


def test_a_list_of_texts_is_one_domain():
    corpus = load_corpus(["some text", "more text"])
    assert corpus.domains == ("texts",)
    assert sorted(one.text for one in corpus.documents("texts")) == ["more text", "some text"]
    assert load_corpus({"a": "a text may stand for itself"}).domains == ("a",)
    assert load_corpus({"a": ["one two"], "b": []}).domains == ("a", "b")
    assert load_corpus(corpus) is corpus


def test_paths_are_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, text in (
        ("a.jsonl", '{"text": "one", "d": "x"}\n'),
        ("b.txt", "two"),
        ("deep/a.jsonl", '{"text": "three", "d": "y"}\n'),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)

    def read(corpus):
        return sorted((one.domain, one.text) for one in corpus.stream(0, set(corpus.domains), Problems()))

    assert read(load_corpus(["a.jsonl", Path("b.txt")])) == [("a", "one"), ("b", "two")]
    # Of one name, but not one domain.
    assert read(load_corpus(["a.jsonl", "deep/a.jsonl"])) == [("a", "one"), ("a (2)", "three")]
    assert read(load_corpus(["a.jsonl", "deep"], domain_field="d")) == [("x", "one"), ("y", "three")]
    assert read(load_corpus({"p": [Path("a.jsonl"), Path("deep")], "q": Path("b.txt")})) == [
        ("p", "one"), ("p", "three"), ("q", "two"),
    ]  # fmt: skip
    with pytest.raises(CorpusError, match=r"'c\.txt' is no file or folder"):
        load_corpus(["a.jsonl", "c.txt"])


WRONG = {
    "nothing": None,
    "a number": 3,
    "bytes": b"text",
    "a set": {"text"},
    "a generator": (text for text in ("a b", "c d")),
    "an empty list": [],
    "an empty mapping": {},
    "an empty name": "",
    "a name in a list": ["a"],
    "names in a list": ["pile", "c4"],
    "a path that is not there": ["a.txt"],
    "a list of numbers": [1, 2],
    "mixed": ["a text", 3],
    "numbers by domain": {"a": [1]},
    "a number by domain": {"a": 1},
    "keys that are no names": {1: ["some text"]},
    "empty texts": {"a": [""]},
    "records without text": [{"body": "x"}],
    "a text": "a text of several words that is no name " * 200,
    "a zero byte": "a\0b",
    "no such user": "~nobody-of-that-name/x",
    "a class": Path,
    "a frame without text": pd.DataFrame({"body": ["x"]}),
    "an empty frame": pd.DataFrame(),
    "an array": np.zeros((2, 2)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_corpus_gets_an_error_of_ours(kind: str):
    with pytest.raises(MoescopeError) as raised:
        load_corpus(WRONG[kind])
    assert raised.value.exit_code == 2
    assert len(str(raised.value)) < 1500


@pytest.mark.parametrize(
    "options",
    [
        {"text_field": 3}, {"domain_field": ["d"]}, {"num_domains": "2"}, {"num_domains": True}, {"num_domains": 0},
        {"domains": "a"}, {"domains": [1]}, {"domains": 3}, {"split": 1}, {"domain_field": ""},
    ],
)  # fmt: skip
def test_options_of_another_type(options):
    with pytest.raises(UsageError):
        load_corpus({"a": ["some text"]} if "domain_field" not in options else ROWS, **options)


def test_a_frame_with_columns_of_one_name():
    frame = pd.DataFrame([["first", "second"]], columns=["text", "text"])
    corpus = load_corpus(frame)
    assert [one.text for one in corpus.documents("dataframe")] == ["first"]
    assert corpus.notes == ("1 columns of dataframe are named like others: the first of a name is read",)
