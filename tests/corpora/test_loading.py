"""`load_corpus`: which name means what."""

from __future__ import annotations

from pathlib import Path

import pytest

from moescope.corpora import load_corpus
from moescope.corpora.files import FilesCorpus
from moescope.errors import CorpusError
from tests.corpora import folders


@pytest.mark.parametrize("name", ["nothing-of-that-name", "./no/folder", "a/b/c", "no/file.jsonl", Path("some/path")])
def test_a_name_that_is_nothing(name, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match=r"(?s)there is no corpus.*embedded, pile.*check the spelling") as raised:
        load_corpus(name)
    assert raised.value.exit_code == 2


def test_a_path_that_exists_comes_before_a_preset(tmp_path: Path, monkeypatch):
    folders.write_text_folder(tmp_path / "pile")
    monkeypatch.chdir(tmp_path)
    corpus = load_corpus("pile")
    assert isinstance(corpus, FilesCorpus)
    assert corpus.domains == ("alpha", "beta", "gamma")


def test_domains_and_their_number(tmp_path: Path):
    path = folders.write_text_folder(tmp_path / "corpus")
    assert load_corpus(path, num_domains=2).domains == ("alpha", "beta")
    assert load_corpus(path, domains=["gamma", "alpha"]).domains == ("gamma", "alpha")
    assert load_corpus(path, domains=["gamma", "alpha"], num_domains=1).domains == ("gamma",)
    with pytest.raises(CorpusError, match="4 domains were asked for, and corpus corpus has 3: alpha, beta, gamma"):
        load_corpus(path, num_domains=4)
    with pytest.raises(CorpusError, match="no domain delta"):
        load_corpus(path, domains=["delta"])
